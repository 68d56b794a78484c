"""Tiled flash linear attention: chunks far larger than one tile holds. Declared, and refused for now."""

from __future__ import annotations

from recur.ir.normal import NormalForm
from recur.ir.plan import Choice, Reject

NAME = "tiled"


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Choice:
    if normal.family != "matrix":
        return Reject(f"needs a matrix state; this stage is {normal.family}")
    return Reject("chunks cut into tiles are not built yet")

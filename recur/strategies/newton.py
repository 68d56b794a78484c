"""Newton's method over time (DEER, ParaRNN): declared, and refused for now."""

from __future__ import annotations

from recur.ir.normal import NormalForm
from recur.ir.plan import Choice, Reject

NAME = "newton"


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Choice:
    if normal.family == "general":
        return Reject("iterated linearisation of nonlinear states is not built yet; sequential runs them")
    return Reject("the update is affine in the state, so there is nothing to linearise")

"""Dims named like the axes that plans bring with them get other names before planning.

A dim may be called H, or c. In a plan these are the heads, and the rows of a chunk; there such a dim is `dim_H`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recur.ir.normal import Program
from recur.ir.spec import Assign, Binary, Call, Dim, For, Index, Name, Output, Recurrence, Unary, Variable

AXES = frozenset((
    "B", "T", "H", "C", "c", "s", "batch", "time", "head", "chunk", "chunks", "step", "steps", "tile", "walk", "walks",
    "place", "slot",
))  # fmt: skip


def clear_dims(program: Program, sizes: Mapping[str, int]) -> tuple[Program, dict[str, int]]:
    """The program, and sizes of its dims, in names that plans can use; both as they are where they already can."""
    from recur.compiler import compile_program

    rec = program.step.recurrence
    new = _clear_names(rec)
    if not new:
        return program, dict(sizes)
    return compile_program(_renamed(rec, new)), {new.get(name, name): size for name, size in sizes.items()}


def _clear_names(rec: Recurrence) -> dict[str, str]:
    taken = {d.name for d in rec.dims} | {v.name for v in rec.variables} | _assigned(rec.body)
    found: dict[str, str] = {}
    for dim in rec.dims:
        if dim.name in AXES:
            wanted = f"dim_{dim.name}"
            while wanted in taken:
                wanted += "_"
            taken.add(wanted)
            found[dim.name] = wanted
    return found


def _assigned(body: tuple[Any, ...]) -> set[str]:
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, For):
            found |= {statement.variable} | _assigned(statement.body)
        else:
            found.add(statement.target if isinstance(statement, Assign) else statement.name)
    return found


# What of each node is a dim's name, or holds other nodes. All names of a recurrence share one namespace.
NAMED: dict[type, tuple[str, ...]] = {
    Recurrence: ("dims", "variables", "body"),
    Dim: ("name", "alias"),
    Variable: ("dims",),
    Assign: ("dims", "value"),
    Output: ("dims", "value"),
    For: ("dim", "body"),
    Name: ("id",),
    Unary: ("operand",),
    Binary: ("left", "right"),
    Call: ("args",),
    Index: ("base", "index"),
}


def _renamed(x: Any, new: dict[str, str]) -> Any:
    if isinstance(x, str):
        return new.get(x, x)
    if isinstance(x, tuple):
        return tuple(_renamed(item, new) for item in x)
    fields = NAMED.get(type(x), ())
    return replace(x, **{name: _renamed(getattr(x, name), new) for name in fields}) if fields else x

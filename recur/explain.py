"""What the compiler found and decided, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recur.ir.normal import LinearForm, MatrixForm, Program
from recur.strategies.select import Selection

DEFAULT_SIZE = 64
MATRIX_SIZE = 16


class Explanation(str):
    """The text of ``explain``; ``data`` holds the same as plain values.

    ``data``: {"name", "stages": [{"states", "structure", "strategy", "rejected": {strategy: reason}}]}
    """

    data: dict[str, Any]

    def __new__(cls, text: str, data: dict[str, Any]) -> Explanation:
        found = super().__new__(cls, text)
        found.data = data
        return found

    def __repr__(self) -> str:
        return str(self)


def default_sizes(program: Program, given: dict[str, int] | None = None) -> dict[str, int]:
    """A size for every dim: the given ones (for a dim or for another name of it), fixed ones, 64 for the rest, but 16
    for those of a matrix that every token has as its transition, and of a state with several key dims.

    Raises ValueError for a size of an unknown dim, or one that contradicts another.
    """
    rec = program.step.recurrence
    names = [d.name for d in rec.dims]
    roots: dict[str, int] = {d.name: d.size for d in rec.dims if d.size is not None}
    for name, size in (given or {}).items():
        if name not in names:
            raise ValueError(f"{rec.name} has no dim {name}; its dims are {', '.join(names) or 'none'}")
        if size < 1:
            raise ValueError(f"{name} = {size}: a size must be at least 1")
        if roots.setdefault(rec.root_dim(name), size) != size:
            raise ValueError(f"{name} = {size}, but {rec.root_dim(name)} is {roots[rec.root_dim(name)]}")
    small = {rec.root_dim(d) for d in _paired_dims(program)}
    free = {name: MATRIX_SIZE if rec.root_dim(name) in small else DEFAULT_SIZE for name in names}
    return {name: roots.get(rec.root_dim(name), free[name]) for name in names}


def _paired_dims(program: Program) -> list[str]:
    forms = [form for normal in program.stages for form in normal.forms]
    rows = [d for form in forms if isinstance(form, LinearForm) for d in form.batch + form.row]
    return rows + [d for form in forms if isinstance(form, MatrixForm) and len(form.key) > 1 for d in form.key]


def explain(
    program: Program, sizes: dict[str, int], selections: Sequence[Selection], remarks: Sequence[str] = ()
) -> Explanation:
    """Structure, strategy, and why each other strategy was not taken. ``remarks``: lines about how it is run."""
    rec = program.step.recurrence
    shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    lines = [f"{rec.name}" + (f"  ({shown})" if shown else "")]
    for number, selection in enumerate(selections, 1):
        lines += ["", *_explain_stage(number, selection)]
    if remarks:
        lines += ["", *remarks]
    stages = [
        {
            "states": list(s.normal.stage.states),
            "structure": s.normal.structure,
            "strategy": s.strategy,
            "rejected": s.rejected,
        }
        for s in selections
    ]
    return Explanation("\n".join(lines), {"name": rec.name, "stages": stages})


def _explain_stage(number: int, selection: Selection) -> list[str]:
    normal, plan = selection.normal, selection.plan
    chunk = f", chunks of {plan.chunk} tokens" if plan.chunk else ""
    launches = f"{len(plan.forward)} + {len(plan.backward)} kernels"
    lines = [
        f"stage {number}: {', '.join(normal.stage.states) or 'no state'}",
        f"  structure  {normal.structure}",
        f"  strategy   {selection.strategy}{chunk}; {launches} forward + backward",
    ]
    label = "  not taken  "
    for name, reason in selection.rejected.items():
        lines.append(f"{label}{name}: {reason}")
        label = " " * len(label)
    return lines + [f"  note       {note}" for note in (*normal.notes, *plan.notes)]


def describe_backend(selections: Sequence[Selection]) -> str:
    """Where the selected plans run when nothing else is asked for, as a line of ``explain``."""
    limits = [reason for s in selections for reason in s.plan.limits]
    return f"backend      torch: {limits[0]}" if limits else "backend      triton on a GPU, torch elsewhere"

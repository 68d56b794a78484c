"""Decays inside a chunk: their running logs, at the position of every event.

The key class holds scalar decays and decays over the key dims, the value class decays over the value dims. For one
class, with l the log2 of a token's decays,

    G[t, e] = sum of l over the tokens before t  +  the decays of token t that come before event e
    G_C     = sum of l over the chunk

Only differences G[t] - G[s] with s at or before t are ever exponentiated. A decay below 2^CUT cuts: it is left out of
G and counted in n instead, and whatever lies across a cut is zero. (A running sum that keeps such a term loses the
digits of its ordinary ones.) Decays over dims clamp instead of counting: chunks are short there. Signs and phases
multiply the vectors: from s to t they are unit_t conj(unit_s), with unit their running product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from recur.ir.core import Node, is_const, leaves, topological
from recur.ir.normal import Decay, MatrixForm
from recur.ir.tile import Builder, Value
from recur.strategies.chunk.sums import ones_where, sum_of, sum_rows

LOG2_E = 1 / math.log(2)
CUT = -40.0  # 2^-40 is below float32's rounding of whatever the state is added to


@dataclass(frozen=True)
class Gate:
    """One class of decays from the chunk's start to a position: G, the number of cuts n, the running sign or phase."""

    log: Value
    cuts: Value | None
    unit: Value | None


@dataclass(frozen=True)
class Gates:
    """One class: its gate at every event of the form, and at the chunk's end.

    ``axes``: the dims it runs over; ``steps``: the log2 of its decays by position, where they are worked out here.
    """

    axes: tuple[str, ...]
    at: dict[int, Gate]
    end: Gate
    steps: dict[int, Value] = field(default_factory=dict)


def decay_class(form: MatrixForm, decay: Decay) -> str:
    return "value" if decay.factor.dims and set(decay.factor.dims) <= set(form.value) else "key"


def class_decays(form: MatrixForm, which: str) -> list[tuple[int, Decay]]:
    """The decays of a class with their positions among the form's events."""
    return [(i, e) for i, e in enumerate(form.events) if isinstance(e, Decay) and decay_class(form, e) == which]


def can_cut(log: Node | None) -> bool:
    return log is not None and not is_const(log)


def emit_gates(
    b: Builder,
    form: MatrixForm,
    which: str,
    logs: dict[int, Value],
    signs: dict[int, Value],
    angles: dict[int, Value],
    rows: str = "c",
) -> Gates | None:
    """The gates of one class from the tiles of its decays' natural logs, signs and angles; None where it has no decay.

    ``logs``, ``signs`` and ``angles`` map a decay's position to its tile (past the sequence: log 0, sign 1, angle 0).
    """
    if not class_decays(form, which):
        return None
    axes, steps, cuts = decay_steps(b, form, which, logs, rows)
    over_keys = any(d.factor.dims for _, d in class_decays(form, "key"))  # then chunks are too short for it
    sums = _sums_by_products if which == "value" and steps and not over_keys else _running_sums
    log_at, log_end = sums(b, form, steps, (rows, *axes), rows, "G")
    cut_at, cut_end = _running_sums(b, form, cuts, (rows, *axes), rows, "n") if cuts else ({}, None)
    unit_at, unit_end = _running_signs(b, form, signs, rows) if signs else ({}, None)
    if angles:
        unit_at, unit_end = _running_phases(b, form, angles, (rows, *axes), rows, unit_at, unit_end)
    at = {i: Gate(log_at[i], cut_at.get(i), unit_at.get(i)) for i in log_at}
    return Gates(axes, at, Gate(log_end, cut_end, unit_end), steps)


def decay_steps(
    b: Builder, form: MatrixForm, which: str, logs: dict[int, Value], rows: str = "c"
) -> tuple[tuple[str, ...], dict[int, Value], dict[int, Value]]:
    """The axes of a class, and by position the log2 of every decay on (rows, *axes), and whether it cuts (1 or 0)."""
    decays = class_decays(form, which)
    axes = tuple(dict.fromkeys(d for _, decay in decays for d in decay.factor.dims))
    steps: dict[int, Value] = {}
    cuts: dict[int, Value] = {}
    for position, decay in decays:
        if position not in logs:
            continue
        step = b.mul(logs[position], b.const(LOG2_E), name="log2_decay")
        if can_cut(decay.log):
            limit = b.const(CUT, name="cut_below")
            if axes:
                step = b.map("max", step, limit, name="log2_decay")
            else:
                cut = b.map("lt", step, limit, name="cut")
                zero, one = b.const(0.0, name="zero"), b.const(1.0, name="one")
                cuts[position] = b.where(cut, one, zero, name="is_cut")
                step = b.where(cut, zero, step, name="uncut_decay")
        if set(step.axes) != {rows, *axes}:
            step = b.expand(step, (rows, *axes), name="log2_decay")
        steps[position] = step
    return axes, steps, cuts


def _running_sums(
    b: Builder, form: MatrixForm, steps: dict[int, Value], axes: tuple[str, ...], rows: str, name: str
) -> tuple[dict[int, Value], Value]:
    if not steps:
        zero = b.zeros(axes, name=name)
        return {i: zero for i in range(len(form.events))}, b.zeros(axes[1:], name=f"{name}_C")
    token = None
    for step in steps.values():
        token = step if token is None else b.add(token, step, name=f"{name}_token")
    assert token is not None
    current = b.cumsum(token, rows, exclusive=True, name=f"{name}_before")
    at: dict[int, Value] = {}
    for i in range(len(form.events)):
        at[i] = current
        if i in steps:
            current = b.add(current, steps[i], name=name)
    return at, b.sum(token, (rows,), name=f"{name}_C")


def _sums_by_products(
    b: Builder, form: MatrixForm, steps: dict[int, Value], axes: tuple[str, ...], rows: str, name: str
) -> tuple[dict[int, Value], Value]:
    """The same sums as products with a triangle of ones: scans along the rows of a tile are slow beside those."""
    token = sum_of(b, list(steps.values()), f"{name}_token")
    current = sum_rows(b, ones_where(b, b.after("c", "s", 0)), token, name)
    at: dict[int, Value] = {}
    for i in reversed(range(len(form.events))):
        if i in steps:
            current = b.sub(current, steps[i], name=f"{name}_before")
        at[i] = current
    return at, b.sum(token, (rows,), name=f"{name}_C")


def _running_signs(b: Builder, form: MatrixForm, signs: dict[int, Value], rows: str) -> tuple[dict[int, Value], Value]:
    token = None
    for sign in signs.values():
        token = sign if token is None else b.mul(token, sign, name="sign_token")
    assert token is not None
    inclusive, _ = b.scan(token, b.zeros(token.axes), rows, names=("unit", "unused"))
    # Signs are their own inverses: undoing the token's own gives the product before it.
    current = b.mul(inclusive, token, name="unit_before", comment="running sign before the token's own decays")
    at: dict[int, Value] = {}
    for i in range(len(form.events)):
        at[i] = current
        if i in signs:
            current = b.mul(current, signs[i], name="unit_at")
    return at, b.last(inclusive, rows, name="unit_C")


def _running_phases(
    b: Builder,
    form: MatrixForm,
    angles: dict[int, Value],
    axes: tuple[str, ...],
    rows: str,
    signs: dict[int, Value],
    sign_end: Value | None,
) -> tuple[dict[int, Value], Value]:
    """exp(i running angle), times the running signs where there are any."""
    wide = {i: x if set(x.axes) == set(axes) else b.expand(x, axes, name="angle") for i, x in angles.items()}
    at, end = _running_sums(b, form, wide, axes, rows, "angle")
    one = b.const(1.0, name="one")
    phases: dict[str, Value] = {}
    for angle in at.values():
        if angle.name not in phases:
            phases[angle.name] = b.map("polar", one, angle, name="unit")
    last = b.map("polar", one, end, name="unit_C")
    if sign_end is None:
        return {i: phases[angle.name] for i, angle in at.items()}, last
    units = {i: b.mul(signs[i], phases[angle.name], name="unit") for i, angle in at.items()}
    return units, b.mul(sign_end, last, name="unit_C")


# --- factors ---------------------------------------------------------------------------------------------------------
#
# Each is zero unless exactly ``crossing`` cuts lie on the way: 0 for values, 1 for the gradient of a cut itself, whose
# own factor is left out of G.


def from_start(b: Builder, gate: Gate, crossing: int = 0) -> Value:
    """2^G: the decay from the chunk's start to the position; without the sign."""
    factor = b.exp2(gate.log, name="from_start")
    if gate.cuts is None:
        return factor
    return _crossing(b, factor, gate.cuts, b.const(0.0, name="zero"), crossing, "from_start")


def to_end(b: Builder, gate: Gate, end: Gate, crossing: int = 0) -> Value:
    """2^(G_C - G): the decay from the position to the chunk's end; without the sign."""
    factor = b.exp2(b.sub(end.log, gate.log, name="remaining"), name="to_end")
    if gate.cuts is None or end.cuts is None:
        return factor
    return _crossing(b, factor, end.cuts, gate.cuts, crossing, "to_end")


def whole_chunk(b: Builder, end: Gate, crossing: int = 0) -> Value:
    """The decay over the whole chunk, sign included."""
    factor = from_start(b, end, crossing)
    return factor if end.unit is None else b.mul(factor, end.unit, name="over_chunk")


def between(b: Builder, later: Gate, earlier: Gate) -> Value:
    """2^(G_t - G_s) on a tile [c, s] for a class without dims, cuts left out; at most 1 where s is after t."""
    elapsed = b.sub(later.log, _column(b, earlier.log), name="elapsed")
    return b.exp2(b.map("min", elapsed, b.const(0.0, name="zero"), name="elapsed"), name="D")


def uncut(b: Builder, later: Gate, earlier: Gate, crossing: int = 0) -> Value | None:
    """Whether exactly ``crossing`` cuts lie between two rows, on a tile [c, s]; None where nothing can cut."""
    if later.cuts is None or earlier.cuts is None:
        return None
    return _same_count(b, later.cuts, _column(b, earlier.cuts), crossing)


def _column(b: Builder, value: Value) -> Value:
    """A value of rows c as one of columns s; tiles of rows come as columns already."""
    return b.rename(value, "c", "s") if "c" in value.axes else value


def _crossing(b: Builder, factor: Value, later: Value, earlier: Value, crossing: int, name: str) -> Value:
    return b.where(_same_count(b, later, earlier, crossing), factor, b.const(0.0, name="zero"), name=name)


def _same_count(b: Builder, later: Value, earlier: Value, crossing: int) -> Value:
    if crossing:
        earlier = b.add(earlier, b.const(float(crossing), name="crossing"), name="cuts")
    return b.map("eq", later, earlier, name="uncut")


# --- decays whose log has no usable derivative -----------------------------------------------------------------------


def is_plain_factor(decay: Decay) -> bool:
    """Whether the user gave the factor itself, so that its log is log|factor|: the gradient is taken of the factor."""
    return decay.log is not None and any(n.op == "log" and leaves([n]) for n in topological([decay.log]))

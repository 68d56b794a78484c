"""What every tile holds on the padding of its axes: blocks are powers of two, so tiles overhang their tensors.

Loads read zero there. ZERO survives operations that keep zeros, and makes a sum over the axis right as it stands;
FINITE is harmless beside a ZERO factor; WILD may be infinite or NaN (a quotient, a logarithm) and is masked before it
is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from recur.ir.tile import Kernel, Let, Loop, Statement, Value
from recur.operators import OPERATORS

WILD_FROM_ZERO = frozenset({"div", "log", "log2", "rsqrt", "pow"})
EVERYWHERE = "everywhere"  # the entry of a tile that is zero along any axis, its own or not


class Fill(IntEnum):
    """Ordered by how much is known: the least certain of several is their minimum."""

    WILD = 0
    FINITE = 1
    ZERO = 2


Fills = Mapping[str, Fill]  # by axis


def infer_padding(kernel: Kernel) -> dict[str, Fills]:
    """The padding of every value of the kernel, by name; carried values take what holds in every iteration."""
    known: dict[str, Fills] = {}
    _infer_block(kernel.body, known)
    return known


def _infer_block(body: Iterable[Statement], known: dict[str, Fills]) -> None:
    for statement in body:
        if isinstance(statement, Let):
            for out in statement.outs:
                known[out.name] = {axis: _fill_of(statement, axis, known) for axis in out.axes}
            if statement.op == "zeros" or (statement.op == "const" and statement.attr("value") == 0):
                known[statement.out.name] = {**known[statement.out.name], EVERYWHERE: Fill.ZERO}
        elif isinstance(statement, Loop):
            _infer_loop(statement, known)


def _infer_loop(loop: Loop, known: dict[str, Fills]) -> None:
    for carry in loop.carries:
        known[carry.phi.name] = {axis: _of(carry.init, axis, known) for axis in carry.phi.axes}
    while True:
        _infer_block(loop.body, known)
        weaker = {
            c.phi.name: {a: min(known[c.phi.name][a], _of(c.next, a, known)) for a in c.phi.axes} for c in loop.carries
        }
        if all(known[name] == fills for name, fills in weaker.items()):
            return
        known.update(weaker)


def _of(value: Value, axis: str, known: Mapping[str, Fills]) -> Fill:
    """A tile without the axis repeats one ordinary number along it, which may be known to be zero."""
    fills = known[value.name]
    return fills.get(axis, fills.get(EVERYWHERE, Fill.FINITE))


def _fill_of(let: Let, axis: str, known: Mapping[str, Fills]) -> Fill:
    fills = [_of(arg, axis, known) for arg in let.args]
    match let.op:
        case "load" | "zeros" | "place" | "select":
            return Fill.ZERO
        case (
            "const" | "size" | "room" | "full" | "eye" | "expand"
            | "after" | "right" | "apart" | "together" | "beside" | "across"
        ):  # fmt: skip
            return (
                Fill.FINITE if not let.args else min(fills[0], Fill.ZERO if axis in let.args[0].axes else Fill.FINITE)
            )
        case "rename":
            back = {str(let.attr("new")): str(let.attr("old"))}
            return known[let.args[0].name].get(back.get(axis, axis), Fill.FINITE)
        case "valid":
            own = axis == let.attr("axis")
            return (Fill.ZERO if let.attr("fill") == 0 else Fill.FINITE) if own else fills[0]
        case "at_step":
            return fills[0] if let.attr("fill") == 0 else min(fills[0], Fill.FINITE)
        case "contract":
            return _product(fills)
        case "weigh":
            return _product(fills[:2])
        case "sum" | "amax" | "last" | "index" | "cumsum" | "middle" | "start" | "end" | "rounded":
            return fills[0]
        case "previous":
            return min(min(fills), Fill.FINITE) if axis == let.attr("axis") else min(fills)
        case "scan" | "prescan" | "maxprescan" | "resume" | "maxresume":
            return min(min(fills), Fill.FINITE)
        case "inverse" | "hadamard":
            return Fill.FINITE
        case _:
            return _elementwise(let, axis, fills)


def _product(fills: list[Fill]) -> Fill:
    if Fill.WILD in fills:
        return Fill.WILD
    return max(fills)


def _elementwise(let: Let, axis: str, fills: list[Fill]) -> Fill:
    if let.op == "mul":
        return _product(fills)
    if let.op == "where":
        return min(fills[1:])
    if let.op == "div" and axis not in let.args[1].axes:
        return fills[0]
    if let.op in WILD_FROM_ZERO and axis in {a for arg in let.args for a in arg.axes}:
        return Fill.WILD
    if OPERATORS[let.op].keeps_zero:
        return min(fills)
    return min([*fills, Fill.FINITE])

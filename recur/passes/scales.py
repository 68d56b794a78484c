"""Values kept as  value * exp(scale): what an expression becomes when its states carry a common factor.

A scale is a sum of multiples of atoms, an atom being the maximum of some logs: m, or max(m, 0) where a constant stands
beside a state. Products add scales, quotients subtract them, sums bring both sides to the maximum first; so a ratio of
states that share a scale loses it, and every exponential that is evaluated has an exponent <= 0. A scale is a constant
to differentiation: the value does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from recur.ir.core import Node, apply, const, index, is_const, leaves, mul, neg, rebuild, rename, stop, topological
from recur.ir.printing import format_node
from recur.operators import power
from recur.passes.affine import add_up, flatten, multiply
from recur.passes.decay import Ranges

Atom = tuple[Node, ...]


class NotScalable(Exception):
    """The expression does not follow when its states are scaled; the node that breaks it."""

    def __init__(self, node: Node) -> None:
        super().__init__(format_node(node, 100))
        self.node = node


@dataclass(frozen=True)
class Scale:
    """sum of coefficient * max(atom); no terms: the value is as written."""

    terms: tuple[tuple[Atom, float], ...] = ()

    @property
    def dims(self) -> set[str]:
        return {d for atom, _ in self.terms for n in atom for d in n.dims}

    def plus(self, other: Scale, times: float = 1.0) -> Scale:
        total = dict(self.terms)
        for atom, coefficient in other.terms:
            total[atom] = total.get(atom, 0.0) + times * coefficient
        return Scale(tuple((a, c) for a, c in total.items() if c))

    def times(self, factor: float) -> Scale:
        return Scale(tuple((a, c * factor) for a, c in self.terms))

    def map(self, function: Callable[[Node], Node]) -> Scale:
        return Scale(tuple((tuple(function(n) for n in a), c) for a, c in self.terms))

    def node(self) -> Node:
        """The scale as a node."""
        parts = []
        for atom, coefficient in self.terms:
            value = atom[0]
            for n in atom[1:]:
                value = apply("max", value, n)
            parts.append(neg(value) if coefficient == -1 else mul(const(coefficient), value))
        return add_up(parts)

    @property
    def never_grows(self) -> bool:
        """Whether exp(scale) <= 1 whatever the logs are: every growing atom is outweighed by one that contains it."""
        left = [[set(a), c] for a, c in self.terms if c < 0]
        for atom, coefficient in self.terms:
            if coefficient <= 0:
                continue
            for entry in left:
                members, available = entry
                if set(atom) <= members and coefficient > 0:  # type: ignore[operator]
                    used = min(coefficient, -available)  # type: ignore[operator]
                    entry[1] = available + used
                    coefficient -= used
            if coefficient > 0:
                return False
        return all(not c for _, c in left)


NONE = Scale()


def single(log: Node) -> Scale:
    return Scale((((log,), 1.0),))


def common(first: Scale, second: Scale, node: Node) -> Scale:
    """The maximum of two scales, of which one may be none; raises NotScalable where it is no multiple of one atom."""
    if first == second:
        return first
    if len(first.terms) > 1 or len(second.terms) > 1:
        raise NotScalable(node)
    zero: tuple[Atom, float] = ((const(0),), 0.0)
    (atom1, c1), (atom2, c2) = (s.terms[0] if s.terms else zero for s in (first, second))
    coefficient = c1 or c2
    if coefficient <= 0 or c1 not in (0.0, coefficient) or c2 not in (0.0, coefficient):
        raise NotScalable(node)
    members = {n: None for n in (*atom1, *atom2)}
    atom = tuple(sorted(members, key=lambda n: (n.op == "const", format_node(n), n.key)))
    return Scale(((atom, coefficient),))


@dataclass(frozen=True)
class Scaled:
    """value * exp(scale)."""

    value: Node
    scale: Scale = NONE

    def at(self, scale: Scale, ranges: Ranges) -> Node:
        """The value that goes with another scale. Exponentials are combined, never multiplied."""
        if self.scale == scale:
            return self.value
        if is_const(self.value, 0.0):
            return self.value
        logs, rest = split_gates(flatten(self.value), ranges)
        exponent = [*logs, self.scale.node(), neg(scale.node())]
        return multiply([*rest, apply("exp", add_up(e for e in exponent if not is_const(e, 0.0)))])


def split_gates(factors: tuple[Node, ...], ranges: Ranges) -> tuple[list[Node], list[Node]]:
    """The logs of the factors that are exponentials without bounds, and the other factors."""
    logs: list[Node] = []
    rest: list[Node] = []
    for factor in factors:
        log = _gate_log(factor, ranges)
        if log is None:
            rest.append(factor)
        else:
            logs.append(log)
    return logs, rest


def varies(node: Node) -> bool:
    """Whether the value changes from token to token."""
    return any(n.attrs[0] != "param" for n in leaves([node]))


def _gate_log(factor: Node, ranges: Ranges) -> Node | None:
    """The log of an exponential without bounds, under powers, reciprocals, renames and indices; None for the rest."""
    outside: list[Callable[[Node], Node]] = []
    while factor.op != "exp":
        if factor.op == "div" and is_const(factor.args[0], 1.0):
            outside.append(neg)
            factor = factor.args[1]
        elif factor.op == "pow":
            outside.append(partial(mul, const(float(factor.attrs[0]))))  # type: ignore[arg-type]
            factor = factor.args[0]
        elif factor.op in ("rename", "index"):
            outside.append(_through(factor))
            factor = factor.args[0]
        else:
            return None
    if factor.is_complex or ranges.bounded(factor.args[0]) or not varies(factor):
        return None
    log = factor.args[0]
    for function in reversed(outside):
        log = function(log)
    return log


def _through(node: Node) -> Callable[[Node], Node]:
    """What a rename or an index does, to another node, which may lack the dim."""
    first, second = node.attrs

    def moved(x: Node) -> Node:
        if str(first) not in x.dims:
            return x
        if node.op == "rename":
            return rename(x, str(first), str(second))
        return index(x, str(first), int(second))  # type: ignore[arg-type]

    return moved


# --- expressions -----------------------------------------------------------------------------------------------------

_KEEP = ("neg", "abs", "real", "imag", "conj", "relu", "version", "stop", "expand")
_ALIGN = ("add", "sub", "max", "min", "complex")
_COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}
_REDUCE = ("sum", "amax", "hadamard")


def scale_nodes(roots: list[Node], known: Mapping[Node, Scaled], ranges: Ranges) -> list[Scaled]:
    """The roots where leaves are scaled as ``known`` says; raises NotScalable."""
    done: dict[Node, Scaled] = {}
    for node in topological(roots, known):
        if node in known:
            done[node] = known[node]
        else:
            done[node] = _scale_or_settle(node, [done[a] for a in node.args], ranges)
    return [done[r] for r in roots]


def _scale_or_settle(node: Node, args: list[Scaled], ranges: Ranges) -> Scaled:
    """Where the operation needs a plain value, a scale that only shrinks is applied."""
    try:
        return _scale_node(node, args, ranges)
    except NotScalable:
        settled = [Scaled(settle(a, node)) if a.scale.never_grows else a for a in args]
        if settled == args:
            raise
        return _scale_node(node, settled, ranges)


def _scale_node(node: Node, args: list[Scaled], ranges: Ranges) -> Scaled:
    op = node.op
    values = tuple(a.value for a in args)
    if all(a.scale == NONE for a in args):
        return Scaled(rebuild(node, values))
    if op in _KEEP:
        return Scaled(rebuild(node, values), args[0].scale)
    if op in ("rename", "index"):
        return Scaled(rebuild(node, values), args[0].scale.map(_through(node)))
    if op in ("mul", "div"):
        return Scaled(apply(op, *values), args[0].scale.plus(args[1].scale, 1.0 if op == "mul" else -1.0))
    if op in _ALIGN:
        aligned, scale = _aligned(args, node, ranges)
        return Scaled(apply(op, *aligned), scale)
    if op in _COMPARE:
        aligned, _ = _aligned(args, node, ranges)
        return Scaled(apply(op, *aligned))
    if op == "where":
        aligned, scale = _aligned(args[1:], node, ranges)
        return Scaled(apply("where", values[0], *aligned), scale)
    if op == "pow":
        exponent = float(node.attrs[0])  # type: ignore[arg-type]
        return Scaled(power(values[0], exponent), args[0].scale.times(exponent))
    if op in _POWERS:
        return Scaled(rebuild(node, values), args[0].scale.times(_POWERS[op]))
    if op == "log":
        return Scaled(apply("add", rebuild(node, values), args[0].scale.node()))
    if op == "sign":
        return Scaled(rebuild(node, values))
    if op == "contract" or op in _REDUCE:
        scale = args[0].scale if len(args) == 1 else args[0].scale.plus(args[1].scale)
        over = (node.attrs[0],) if op == "hadamard" else node.attrs[0]
        assert isinstance(over, tuple)
        if scale.dims & set(over):
            raise NotScalable(node)
        return Scaled(rebuild(node, values), scale)
    raise NotScalable(node)




def _aligned(args: list[Scaled], node: Node, ranges: Ranges) -> tuple[list[Node], Scale]:
    """Both sides at their common scale; an operand that is an unbounded exponential brings its log as a scale."""
    if all(a.scale == NONE for a in args):
        return [a.value for a in args], NONE
    known = [_own_scale(a, ranges) for a in args if not is_const(a.value, 0.0)]
    scale = known[0] if len(known) == 1 else common(known[0], known[1], node)
    return [a.at(scale, ranges) for a in args], scale


def _own_scale(operand: Scaled, ranges: Ranges) -> Scale:
    if operand.scale != NONE or operand.value.op in ("add", "sub"):
        return operand.scale
    logs, _ = split_gates(flatten(operand.value), ranges)
    return single(stop(add_up(logs))) if logs else NONE


def settle(scaled: Scaled, node: Node) -> Node:
    """An output's value, its scale applied; raises NotScalable where the scale could grow without bounds."""
    if scaled.scale == NONE:
        return scaled.value
    if not scaled.scale.never_grows:
        raise NotScalable(node)
    return mul(scaled.value, apply("exp", scaled.scale.node()))

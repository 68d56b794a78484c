"""Decay coefficients: what is known of their values, their logs, signs and phases.

    factor = sign * exp(log) * exp(i angle)

The log is taken of the product as the user wrote it, factor by factor: exp(g) gives g, sigmoid(f) gives logsigmoid(f),
so that decays near zero and near one lose nothing, and only what has no such form becomes log(abs(.)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recur.ir import intervals
from recur.ir.core import Node, apply, const, is_const, mul, neg, topological, where
from recur.ir.intervals import EVERYTHING, Interval
from recur.ir.spec import Recurrence
from recur.operators import OPERATORS
from recur.passes.affine import add_up, flatten, multiply

MAX_DEPTH = 100


class Ranges:
    """The intervals of nodes, from the ranges that a recurrence declares and those of earlier stages' ``values``.

    ``fixed``: the dims of fixed size.
    """

    def __init__(self, recurrence: Recurrence, values: Mapping[str, Interval] | None = None) -> None:
        self.recurrence = recurrence
        self._values = dict(values or {})
        self._declared = {v.name: (v.range.low, v.range.high) for v in recurrence.variables if v.range is not None}
        roots = {d.name: d.size for d in recurrence.dims}
        self.fixed = {d.name: size for d in recurrence.dims if (size := roots[recurrence.root_dim(d.name)]) is not None}
        self._known: dict[Node, Interval] = {}

    def of(self, node: Node) -> Interval:
        """The closed interval that holds the node's values, everything where nothing is known."""
        if node not in self._known:
            for n in topological([node], self._known):
                if n not in self._known:
                    self._known[n] = EVERYTHING if n.is_complex else self._infer(n)
        return self._known[node]

    def _infer(self, node: Node) -> Interval:
        op, attrs = node.op, node.attrs
        args = [self._known[a] for a in node.args]
        if op == "const":
            value = float(attrs[0])  # type: ignore[arg-type]
            return (value, value)
        if op == "size":
            size = self.fixed.get(str(attrs[0]))
            return (float(size), float(size)) if size is not None else (1.0, math.inf)
        if op == "leaf":
            return self._infer_leaf(str(attrs[0]), str(attrs[1]))
        if op == "mul" and node.args[0] == node.args[1]:
            return intervals.square(args[0])
        if op in OPERATORS:
            rule = OPERATORS[op].range
            if rule is None or (any(a.is_complex for a in node.args) and op != "abs"):
                return (0.0, math.inf) if op == "abs" else EVERYTHING
            low, high = rule(*args, *(float(a) for a in attrs))  # type: ignore[arg-type]
            return EVERYTHING if math.isnan(low) or math.isnan(high) else (low, high)
        if op in ("amax", "rename", "index", "expand", "stop", "version"):
            return args[0]
        if op == "eye":
            return (0.0, 1.0)
        return self._infer_sum(node, args)

    def _infer_leaf(self, kind: str, name: str) -> Interval:
        if kind == "value":
            return self._values.get(name, EVERYTHING)
        declared = self._declared.get(name, EVERYTHING)
        if kind == "prev":  # zero at a sequence's start
            return intervals.union(declared, (0.0, 0.0))
        return declared if kind in ("input", "param") else EVERYTHING

    def _infer_sum(self, node: Node, args: list[Interval]) -> Interval:
        if node.op == "contract":
            term = intervals.square(args[0]) if node.args[0] == node.args[1] else intervals.mul(args[0], args[1])
            if not node.attrs[0]:
                return term
        elif node.op in ("sum", "place"):
            term = intervals.union(args[0], (0.0, 0.0)) if node.op == "place" else args[0]
        else:
            return EVERYTHING
        return (0.0 if term[0] >= 0 else -math.inf, 0.0 if term[1] <= 0 else math.inf)

    def nonnegative(self, node: Node) -> bool:
        return not node.is_complex and self.of(node)[0] >= 0

    def bounded(self, node: Node) -> bool:
        """Whether declared ranges bound the node's values on both sides."""
        low, high = self.of(node)
        return math.isfinite(low) and math.isfinite(high)


@dataclass(frozen=True)
class Polar:
    """A factor taken apart. None: log 0, sign +1, angle 0. ``exact``: the log needed no log(abs(.))."""

    log: Node | None = None
    sign: Node | None = None
    angle: Node | None = None
    exact: bool = True


def decompose(factors: tuple[Node, ...], ranges: Ranges) -> Polar:
    """The log, sign and angle of a product. Factors nested too deeply are not looked into."""
    is_deep = {f: _depth(f) > MAX_DEPTH for f in factors}
    return _join([_fallback(f, ranges) if is_deep[f] else _decompose_factor(f, ranges) for f in factors])


def _depth(node: Node) -> int:
    depths: dict[Node, int] = {}
    for n in topological([node]):
        depths[n] = 1 + max((depths[a] for a in n.args), default=0)
    return depths[node]


def _inside(factors: tuple[Node, ...], ranges: Ranges) -> Polar:
    return _join([_decompose_factor(f, ranges) for f in factors])


def _join(parts: list[Polar]) -> Polar:
    logs = sorted((p.log for p in parts if p.log is not None), key=lambda n: (len(n.dims), repr(n)))
    signs = [p.sign for p in parts if p.sign is not None]
    angles = [p.angle for p in parts if p.angle is not None]
    sign = multiply(signs)
    return Polar(
        add_up(logs) if logs else None,
        None if is_const(sign, 1.0) else sign,
        add_up(angles) if angles else None,
        all(p.exact for p in parts),
    )


def _decompose_factor(factor: Node, ranges: Ranges) -> Polar:
    if factor.op in ("mul", "neg", "contract") or (factor.op == "div" and not is_const(factor.args[0], 1.0)):
        parts = flatten(factor)
        if parts != (factor,):
            return _inside(parts, ranges)
    rule = _RULES.get(factor.op)
    found = rule(factor, ranges) if rule is not None else None
    return found if found is not None else _fallback(factor, ranges)


def _fallback(factor: Node, ranges: Ranges) -> Polar:
    modulus = apply("abs", factor)
    if factor.is_complex:
        return Polar(apply("log", modulus), None, apply("angle", factor), False)
    if ranges.nonnegative(factor):
        return Polar(apply("log", factor), None, None, False)
    return Polar(apply("log", modulus), apply("sign", factor), None, False)


def _const(factor: Node, ranges: Ranges) -> Polar:
    value = float(factor.attrs[0])  # type: ignore[arg-type]
    log = None if abs(value) == 1 else const(math.log(abs(value)) if value else -math.inf)
    return Polar(log, const(-1) if value < 0 else None)


def _exp(factor: Node, ranges: Ranges) -> Polar:
    x = factor.args[0]
    if not x.is_complex:
        return Polar(x)
    if x.op == "complex":
        return Polar(x.args[0], None, x.args[1])
    return Polar(apply("real", x), None, apply("imag", x))


def _sigmoid(factor: Node, ranges: Ranges) -> Polar:
    return Polar(apply("logsigmoid", factor.args[0]))


def _one_minus(factor: Node, ranges: Ranges) -> Polar | None:
    one, x = factor.args
    if not is_const(one, 1.0) or x.is_complex:
        return None
    if x.op == "sigmoid":
        return Polar(apply("logsigmoid", neg(x.args[0])))
    if x.op == "exp" and ranges.of(x)[1] <= 1:
        return Polar(apply("log", neg(apply("expm1", x.args[0]))))
    return Polar(apply("log1p", neg(x)), None, None, False) if ranges.of(x)[1] <= 1 else None


def _pow(factor: Node, ranges: Ranges) -> Polar | None:
    exponent = float(factor.attrs[0])  # type: ignore[arg-type]
    return _times(_decompose_factor(factor.args[0], ranges), exponent)


def _times(inner: Polar, exponent: float) -> Polar:
    log = None if inner.log is None else mul(const(exponent), inner.log)
    angle = None if inner.angle is None else mul(const(exponent), inner.angle)
    return Polar(log, inner.sign if exponent % 2 == 1 else None, angle, inner.exact)


def _div(factor: Node, ranges: Ranges) -> Polar | None:
    inner = _inside(flatten(factor.args[1]), ranges)
    log = None if inner.log is None else neg(inner.log)
    angle = None if inner.angle is None else neg(inner.angle)
    return Polar(log, inner.sign, angle, inner.exact)


def _polar(factor: Node, ranges: Ranges) -> Polar:
    radius = _inside(flatten(factor.args[0]), ranges)
    return Polar(radius.log, radius.sign, factor.args[1], radius.exact)


def _conj(factor: Node, ranges: Ranges) -> Polar:
    inner = _inside(flatten(factor.args[0]), ranges)
    return Polar(inner.log, inner.sign, None if inner.angle is None else neg(inner.angle), inner.exact)


def _where(factor: Node, ranges: Ranges) -> Polar | None:
    condition = factor.args[0]
    sides = [_inside(flatten(a), ranges) for a in factor.args[1:]]
    if any(s.angle is not None or not s.exact for s in sides):
        return None
    logs = [s.log or const(0) for s in sides]
    signs = [s.sign or const(1) for s in sides]
    log = logs[0] if logs[0] == logs[1] else where(condition, *logs)
    sign = signs[0] if signs[0] == signs[1] else where(condition, *signs)
    return Polar(None if is_const(log, 0.0) else log, None if is_const(sign, 1.0) else sign)


def _size(factor: Node, ranges: Ranges) -> Polar:
    return Polar(apply("log", factor))


def _through(factor: Node, ranges: Ranges) -> Polar | None:
    """rename, index and expand of something with an exact log: the same of the log."""
    inner = _decompose_factor(factor.args[0], ranges)
    if not inner.exact:
        return None

    def again(x: Node | None) -> Node | None:
        if x is None or x.op == "const":
            return x
        dims = {"rename": _renamed, "index": _indexed}[factor.op](factor, x.dims)
        return x if dims == x.dims else Node(factor.op, (x,), dims, factor.attrs, x.is_complex, factor.span)

    return Polar(again(inner.log), again(inner.sign), again(inner.angle))


def _renamed(factor: Node, dims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(factor.attrs[1]) if d == factor.attrs[0] else d for d in dims)


def _indexed(factor: Node, dims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(d for d in dims if d != factor.attrs[0])


_RULES: dict[str, Callable[[Node, Ranges], Polar | None]] = {
    "const": _const,
    "exp": _exp,
    "sigmoid": _sigmoid,
    "sub": _one_minus,
    "pow": _pow,
    "sqrt": lambda f, r: _times(_decompose_factor(f.args[0], r), 0.5),
    "rsqrt": lambda f, r: _times(_decompose_factor(f.args[0], r), -0.5),
    "square": lambda f, r: _times(_decompose_factor(f.args[0], r), 2.0),
    "div": _div,
    "polar": _polar,
    "conj": _conj,
    "where": _where,
    "size": _size,
    "rename": _through,
    "index": _through,
}

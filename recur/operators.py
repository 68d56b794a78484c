"""The operator table: one row an elementwise operation, read by the parser, the checker, autodiff and both printers.

A derivative gives one partial per argument (None: no gradient flows); the cotangent of a complex argument is
cotangent * conj(partial), PyTorch's convention. Operations that are not holomorphic bring their own `pullback`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from recur.ir import intervals
from recur.ir.core import Node, add, apply, const, div, is_const, mul, neg, sub, where

Derivative = Callable[[tuple[Node, ...], Node], tuple[Node | None, ...]]
Pullback = Callable[[Node, tuple[Node, ...], Node], tuple[Node | None, ...]]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Operator:
    """An elementwise operation.

    ``torch`` and ``triton`` are expressions with {0}, {1}, ... for the arguments (triton's may call a helper that the
    generated file defines, see codegen/triton_printer); ``symbol`` is the infix spelling in the language;
    ``range``: the result's interval from the arguments' (and an exponent), where they are real;
    ``keeps_zero``: zero in every argument gives zero; ``user``: callable by name in the language.
    """

    name: str
    arity: int
    torch: str
    triton: str
    derivative: Derivative | None = None
    pullback: Pullback | None = None
    keeps_zero: bool = False
    takes_complex: bool = False
    complex_result: bool | None = None  # None: complex where an argument is
    symbol: str | None = None
    user: bool = True
    range: Callable[..., Interval] | None = None
    doc: str = ""

    def result_is_complex(self, args: tuple[bool, ...]) -> bool:
        if self.complex_result is not None:
            return self.complex_result
        return any(args)


def _one(x: Node) -> Node:
    return const(1)


def _d_tanh(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    return (sub(const(1), mul(out, out)),)


def _d_sigmoid(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    return (mul(out, sub(const(1), out)),)


def _d_silu(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    s = apply("sigmoid", args[0])
    return (add(s, mul(out, sub(const(1), s))),)


def _d_gelu(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    x = args[0]
    cdf = mul(const(0.5), add(const(1), apply("erf", mul(x, const(math.sqrt(0.5))))))
    pdf = mul(apply("exp", mul(const(-0.5), mul(x, x))), const(1 / math.sqrt(2 * math.pi)))
    return (add(cdf, mul(x, pdf)),)


def _pull_where(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node | None, ...]:
    return (None, where(args[0], g, const(0)), where(args[0], const(0), g))


def _d_max(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    x, y = args
    tie = where(apply("eq", x, y), const(0.5), const(0))
    return (where(apply("gt", x, y), const(1), tie), where(apply("lt", x, y), const(1), tie))


def _d_min(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    right, left = _d_max(args, out)
    return (left, right)


def power(x: Node, exponent: float) -> Node:
    """x ** exponent with a constant exponent; the exponent is the node's attribute."""
    if exponent == 1:
        return x
    if is_const(x):
        return const(float(x.attrs[0]) ** exponent)  # type: ignore[arg-type]
    return apply("pow", x, attrs=(float(exponent),))


def _d_pow(args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    p = float(out.attrs[0])  # type: ignore[arg-type]
    return (const(0) if p == 0 else mul(const(p), power(args[0], p - 1)),)


def _pull_real(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    return (g,)  # without an imaginary part, also where the argument has one: products with g stay real ones


def _pull_imag(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node | None, ...]:
    return (apply("complex", const(0), g),) if args[0].is_complex else (None,)


def _pull_conj(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    return (apply("conj", g) if g.is_complex else g,)


def _pull_abs(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    x = args[0]
    if not x.is_complex:
        return (mul(g, apply("sign", x)),)
    is_zero = apply("eq", out, const(0))
    return (mul(where(is_zero, const(0), div(g, where(is_zero, const(1), out))), x),)


def _pull_polar(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node, ...]:
    radius, angle = args
    unit = apply("polar", const(1), angle)
    towards = apply("real", mul(g, apply("conj", unit)))
    around = apply("imag", mul(g, apply("conj", unit)))
    return (towards, mul(radius, around))


def _pull_angle(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node | None, ...]:
    """d angle(z) = Im(conj(z) dz) / |z|^2, so the cotangent is i g z / |z|^2; zero at zero, as torch has it."""
    z = args[0]
    if not z.is_complex:
        return (None,)
    squared = apply("real", mul(z, apply("conj", z)))
    scale = div(g, where(apply("eq", squared, const(0)), const(1), squared))
    return (apply("complex", neg(mul(scale, apply("imag", z))), mul(scale, apply("real", z))),)


def _pull_complex(g: Node, args: tuple[Node, ...], out: Node) -> tuple[Node | None, ...]:
    return (apply("real", g), apply("imag", g)) if g.is_complex else (g, None)


_ROWS = (
    # arithmetic: spelled by symbols in the language
    Operator("add", 2, "({0} + {1})", "({0} + {1})", lambda a, o: (const(1), const(1)), keeps_zero=True,
             takes_complex=True, symbol="+", user=False, range=intervals.add),
    Operator("sub", 2, "({0} - {1})", "({0} - {1})", lambda a, o: (const(1), const(-1)), keeps_zero=True,
             takes_complex=True, symbol="-", user=False, range=intervals.sub),
    Operator("mul", 2, "({0} * {1})", "({0} * {1})", lambda a, o: (a[1], a[0]), keeps_zero=True, takes_complex=True,
             symbol="*", user=False, range=intervals.mul),
    Operator("div", 2, "({0} / {1})", "({0} / {1})", lambda a, o: (div(const(1), a[1]), neg(div(o, a[1]))),
             takes_complex=True, symbol="/", user=False, range=intervals.div),
    Operator("neg", 1, "(-{0})", "(-{0})", lambda a, o: (const(-1),), keeps_zero=True, takes_complex=True, symbol="-",
             user=False, range=intervals.negative),
    Operator("pow", 1, "({0} ** {exponent})", "_pow({0}, {exponent})", _d_pow, takes_complex=True, symbol="**",
             user=False, range=intervals.power),
    # comparisons: real arguments, only as the condition of where
    Operator("lt", 2, "({0} < {1})", "({0} < {1})", symbol="<", user=False),
    Operator("le", 2, "({0} <= {1})", "({0} <= {1})", symbol="<=", user=False),
    Operator("gt", 2, "({0} > {1})", "({0} > {1})", symbol=">", user=False),
    Operator("ge", 2, "({0} >= {1})", "({0} >= {1})", symbol=">=", user=False),
    Operator("eq", 2, "({0} == {1})", "({0} == {1})", symbol="==", user=False),
    Operator("ne", 2, "({0} != {1})", "({0} != {1})", symbol="!=", user=False),
    # functions
    Operator("exp", 1, "torch.exp({0})", "_exp({0})", lambda a, o: (o,), takes_complex=True,
             range=intervals.increasing(intervals.exp)),
    Operator("expm1", 1, "torch.expm1({0})", "_expm1({0})", lambda a, o: (add(o, const(1)),), keeps_zero=True,
             range=intervals.increasing(intervals.expm1)),
    Operator("log", 1, "torch.log({0})", "tl.log({0})", lambda a, o: (div(const(1), a[0]),),
             range=intervals.increasing(intervals.log)),
    Operator("log1p", 1, "torch.log1p({0})", "_log1p({0})", lambda a, o: (div(const(1), add(const(1), a[0])),),
             keeps_zero=True, range=intervals.increasing(intervals.log1p)),
    Operator("sigmoid", 1, "torch.sigmoid({0})", "_sigmoid({0})", _d_sigmoid,
             range=intervals.increasing(intervals.sigmoid)),
    Operator("logsigmoid", 1, "torch.nn.functional.logsigmoid({0})", "_logsigmoid({0})",
             lambda a, o: (apply("sigmoid", neg(a[0])),), range=intervals.increasing(intervals.logsigmoid)),
    Operator("softplus", 1, "torch.nn.functional.softplus({0})", "_softplus({0})",
             lambda a, o: (apply("sigmoid", a[0]),), range=intervals.increasing(intervals.softplus)),
    Operator("tanh", 1, "torch.tanh({0})", "_tanh({0})", _d_tanh, keeps_zero=True,
             range=intervals.increasing(math.tanh)),
    Operator("relu", 1, "torch.relu({0})", "tl.maximum({0}, 0.0)",
             lambda a, o: (where(apply("gt", a[0], const(0)), const(1), const(0)),), keeps_zero=True,
             range=intervals.increasing(intervals.relu)),
    Operator("elu", 1, "torch.nn.functional.elu({0})", "tl.where({0} > 0, {0}, _expm1(tl.minimum({0}, 0.0)))",
             lambda a, o: (where(apply("gt", a[0], const(0)), const(1), add(o, const(1))),), keeps_zero=True,
             range=intervals.increasing(intervals.elu)),
    Operator("silu", 1, "torch.nn.functional.silu({0})", "({0} * _sigmoid({0}))", _d_silu, keeps_zero=True,
             range=intervals.bounded(-0.2785, math.inf)),
    Operator("gelu", 1, "torch.nn.functional.gelu({0})", "(0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476)))",
             _d_gelu,
             keeps_zero=True, range=intervals.bounded(-0.1701, math.inf)),
    Operator("erf", 1, "torch.erf({0})", "tl.erf({0})",
             lambda a, o: (mul(const(2 / math.sqrt(math.pi)), apply("exp", neg(mul(a[0], a[0])))),),
             keeps_zero=True, user=False, range=intervals.increasing(math.erf)),
    Operator("sqrt", 1, "torch.sqrt({0})", "tl.sqrt({0})", lambda a, o: (div(const(0.5), o),), keeps_zero=True,
             range=intervals.increasing(intervals.sqrt)),
    Operator("rsqrt", 1, "torch.rsqrt({0})", "tl.rsqrt({0})", lambda a, o: (mul(const(-0.5), div(o, a[0])),),
             range=intervals.rsqrt),
    Operator("abs", 1, "torch.abs({0})", "tl.abs({0})", pullback=_pull_abs, keeps_zero=True, takes_complex=True,
             complex_result=False, range=intervals.magnitude),
    Operator("sign", 1, "torch.sign({0})", "_sign({0})", lambda a, o: (None,), keeps_zero=True,
             range=intervals.increasing(intervals.sign)),
    Operator("sin", 1, "torch.sin({0})", "_sin({0})", lambda a, o: (apply("cos", a[0]),), keeps_zero=True,
             range=intervals.bounded(-1.0, 1.0)),
    Operator("cos", 1, "torch.cos({0})", "_cos({0})", lambda a, o: (neg(apply("sin", a[0])),),
             range=intervals.bounded(-1.0, 1.0)),
    Operator("square", 1, "torch.square({0})", "({0} * {0})", lambda a, o: (mul(const(2), a[0]),), keeps_zero=True,
             takes_complex=True, range=intervals.square),
    Operator("max", 2, "torch.maximum({0}, {1})", "tl.maximum({0}, {1})", _d_max, keeps_zero=True,
             range=intervals.maximum),
    Operator("min", 2, "torch.minimum({0}, {1})", "tl.minimum({0}, {1})", _d_min, keeps_zero=True,
             range=intervals.minimum),
    Operator("where", 3, "torch.where({0}, {1}, {2})", "tl.where({0}, {1}, {2})", pullback=_pull_where,
             takes_complex=True, range=intervals.where),
    # complex numbers
    Operator("polar", 2, "torch.polar({0}, {1})", "", pullback=_pull_polar, complex_result=True),
    Operator("complex", 2, "torch.complex({0}, {1})", "", pullback=_pull_complex, complex_result=True),
    Operator("real", 1, "torch.real({0})", "", pullback=_pull_real, keeps_zero=True, takes_complex=True,
             complex_result=False),
    Operator("imag", 1, "torch.imag({0})", "", pullback=_pull_imag, keeps_zero=True, takes_complex=True,
             complex_result=False),
    Operator("conj", 1, "torch.conj({0}).resolve_conj()", "", pullback=_pull_conj, keeps_zero=True, takes_complex=True),
    # introduced by passes
    Operator("exp2", 1, "torch.exp2({0})", "tl.exp2({0})", lambda a, o: (mul(const(math.log(2)), o),), user=False),
    Operator("angle", 1, "torch.angle({0})", "", pullback=_pull_angle, takes_complex=True, complex_result=False,
             user=False),
    Operator("log2", 1, "torch.log2({0})", "tl.log2({0})", lambda a, o: (div(const(1 / math.log(2)), a[0]),),
             user=False),
)

OPERATORS: dict[str, Operator] = {row.name: row for row in _ROWS}

# Functions of the language that are not rows: structural, or written out in terms of rows by the elaboration.
STRUCTURAL = (
    "outer", "rename", "sum", "mean", "amax", "norm", "softmax", "l2norm", "rmsnorm", "hadamard", "eye", "prev",
)  # fmt: skip

FUNCTION_NAMES = tuple(sorted([r.name for r in _ROWS if r.user] + list(STRUCTURAL)))

"""Complex arithmetic on pairs of real expressions; a pair without an imaginary part is a real number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recur.ir.tile import Attr


@dataclass(frozen=True)
class Pair:
    """The real and imaginary part of a value, as expressions that need no parentheses around them."""

    re: str
    im: str | None = None

    def parts(self) -> tuple[str, ...]:
        return (self.re,) if self.im is None else (self.re, self.im)

    def map(self, change: Callable[[str], str]) -> Pair:
        return Pair(change(self.re), None if self.im is None else change(self.im))


def multiply_with(product: Callable[[str, str], str], x: Pair, y: Pair) -> Pair:
    """x times y for any bilinear product of real expressions."""
    if x.im is None and y.im is None:
        return Pair(product(x.re, y.re))
    if x.im is None:
        return y.map(lambda part: product(x.re, part))
    if y.im is None:
        return x.map(lambda part: product(part, y.re))
    return Pair(
        f"({product(x.re, y.re)} - {product(x.im, y.im)})",
        f"({product(x.re, y.im)} + {product(x.im, y.re)})",
    )


def multiply(x: Pair, y: Pair) -> Pair:
    parts = multiply_with(lambda a, b: f"{a} * {b}", x, y)
    return parts.map(lambda part: part if part.startswith("(") else f"({part})")


def squared_modulus(x: Pair) -> str:
    return f"({x.re} * {x.re} + {x.im} * {x.im})"


def reciprocal(x: Pair) -> Pair:
    return Pair(f"({x.re} / {squared_modulus(x)})", f"(-{x.im} / {squared_modulus(x)})")


def power(x: Pair, exponent: float) -> Pair:
    """A whole power, by repeated multiplication."""
    if exponent != int(exponent) or exponent == 0:
        raise ValueError(f"a complex number to the power {exponent} is not printed: only whole powers are")
    result = x
    for _ in range(abs(int(exponent)) - 1):
        result = multiply(result, x)
    return result if exponent > 0 else reciprocal(result)


def apply(op: str, args: Sequence[Pair], attrs: Sequence[Attr]) -> Pair | None:
    """The elementwise operation where a complex number goes in or comes out; None for one among real numbers."""
    x = args[0]
    match op:
        case "polar":
            return Pair(f"({x.re} * _cos({args[1].re}))", f"({x.re} * _sin({args[1].re}))")
        case "complex":
            return Pair(x.re, args[1].re)
        case "real":
            return Pair(x.re)
        case "imag":
            return Pair("0.0" if x.im is None else x.im)
    if all(arg.im is None for arg in args):
        return x if op == "conj" else None
    match op:
        case "conj":
            return Pair(x.re, f"(-{x.im})")
        case "neg":
            return x.map(lambda part: f"(-{part})")
        case "add" | "sub":
            return _add(x, args[1], "+" if op == "add" else "-")
        case "mul":
            return multiply(x, args[1])
        case "div":
            y = args[1]
            return x.map(lambda part: f"({part} / {y.re})") if y.im is None else multiply(x, reciprocal(y))
        case "square":
            return multiply(x, x)
        case "pow":
            return power(x, float(attrs[0]))  # type: ignore[arg-type]
        case "exp":
            return Pair(f"(_exp({x.re}) * _cos({x.im}))", f"(_exp({x.re}) * _sin({x.im}))")
        case "abs":
            return Pair(f"tl.sqrt({squared_modulus(x)})")
        case "where":
            _, yes, no = args
            return Pair(
                f"tl.where({x.re}, {yes.re}, {no.re})", f"tl.where({x.re}, {yes.im or '0.0'}, {no.im or '0.0'})"
            )
    raise ValueError(f"{op} of a complex number is not printed")


def _add(x: Pair, y: Pair, sign: str) -> Pair:
    re = f"({x.re} {sign} {y.re})"
    if y.im is None:
        return Pair(re, x.im)
    if x.im is None:
        return Pair(re, y.im if sign == "+" else f"(-{y.im})")
    return Pair(re, f"({x.im} {sign} {y.im})")

"""Expressions to nodes: names resolved, dimensions inferred, complex and real kept apart.

A value that has an error is None, and what is made of it is None without another error, so that every mistake is
reported once and none hides the next.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from recur.diagnostics import Diagnostic, did_you_mean, listing
from recur.ir.core import Node, apply, const, expand, index, is_const, leaf, size, where
from recur.ir.printer import ATOM
from recur.ir.spec import Binary, Call, Expr, Index, Name, Number, Span, Unary
from recur.operators import FUNCTION_NAMES, power
from recur.passes.dims import check_same, contract_last, labels, show
from recur.passes.names import Names

MAX_OPERATIONS = 20_000  # of one unrolled step

_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_COMPARISONS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "<": ("lt", operator.lt), "<=": ("le", operator.le), ">": ("gt", operator.gt), ">=": ("ge", operator.ge),
    "==": ("eq", operator.eq), "!=": ("ne", operator.ne),
}  # fmt: skip


class TooLarge(Exception):
    """The step has more operations than the compiler takes."""


class Turn(NamedTuple):
    """One turn of a loop: the value of its variable, and its dim (None where the loop has an error)."""

    number: int
    dim: str | None


@dataclass
class Scope:
    """What the names mean at one point of the step, and the errors found so far."""

    names: Names
    values: dict[str, Node | None] = field(default_factory=dict)  # states, and the locals assigned so far
    loops: dict[str, Turn] = field(default_factory=dict)  # by the variables of the loops around this point
    errors: list[Diagnostic] = field(default_factory=list)
    operations: int = 0

    def error(
        self,
        code: str,
        message: str,
        span: Span | None,
        help: str | None = None,
        secondary: tuple[tuple[Span, str], ...] = (),
    ) -> None:
        self.errors.append(Diagnostic(code, message, span, secondary=secondary, help=help))

    def accept(self, result: Node | Diagnostic) -> Node | None:
        """The node, or None after its error is noted."""
        if isinstance(result, Node):
            return result
        self.errors.append(result)
        return None


def elaborate(scope: Scope, expression: Expr) -> Node | None:
    """The expression's value at this point of the step, or None where it has an error."""
    scope.operations += 1
    if scope.operations > MAX_OPERATIONS:
        raise TooLarge
    return _ELABORATE[type(expression)](scope, expression)


def need_real(scope: Scope, what: str, expression: Expr, value: Node) -> bool:
    if value.is_complex:
        help = f"take `real({show(expression)})`, `imag(...)` or `abs(...)`"
        scope.error("R401", f"{what} takes real values, and this is complex", expression.span, help)
    return not value.is_complex


def promote(value: Node, is_complex: bool) -> Node:
    """The value as a complex one where that is asked for."""
    return apply("complex", value, const(0), span=value.span) if is_complex and not value.is_complex else value


def constant(scope: Scope, value: Node, span: Span | None) -> Node | None:
    """The value; an error where it is a constant that overflowed."""
    if is_const(value) and not math.isfinite(float(value.attrs[0])):  # type: ignore[arg-type]
        is_real = not math.isnan(float(value.attrs[0]))  # type: ignore[arg-type]
        help = "numbers go up to about 1.8e308" if is_real else "a root of a negative number is not real"
        scope.error("R407", "the constant has no finite real value", span, help)
        return None
    return value


# --- names and numbers -----------------------------------------------------------------------------------------------


def _number(scope: Scope, expression: Number) -> Node | None:
    try:
        return constant(scope, const(expression.value), expression.span)
    except OverflowError:
        scope.error("R407", "the number is too large", expression.span, "numbers go up to about 1.8e308")
        return None


def _name(scope: Scope, expression: Name) -> Node | None:
    name, names = expression.id, scope.names
    if name in scope.loops:
        return const(scope.loops[name].number)
    if name in scope.values:
        return scope.values[name]
    if name in names.variables and name not in names.broken:
        variable = names.variables[name]
        return leaf(variable.role, name, variable.dims, variable.is_complex, expression.span)
    if name in names.dims and name not in names.broken:
        fixed = names.size(name)
        return size(name) if fixed is None else const(fixed)
    if name not in names.broken:
        _unknown_name(scope, expression)
    return None


def _unknown_name(scope: Scope, expression: Name) -> None:
    name, names = expression.id, scope.names
    if name in names.outputs:
        help = "assign the value to a local first, and write `output` of the local"
        scope.error("R207", f"`{name}` is an output and cannot be read", expression.span, help, names.declared(name))
    elif name in names.targets:
        place = names.targets[name].target_span
        secondary = ((place, "assigned here"),) if place else ()
        help = f"move the assignment before this line, or declare `state {name}` to keep the previous token's value"
        scope.error("R206", f"`{name}` is used before it is assigned", expression.span, help, secondary)
    elif name in names.tainted:
        return
    elif name in names.loops:
        help = "its value is known in its loop only"
        scope.error("R201", f"the loop's variable `{name}` is used outside of its loop", expression.span, help)
    elif name in FUNCTION_NAMES:
        scope.error("R209", f"`{name}` is a function", expression.span, f"call it: `{name}(...)`")
    else:
        known = [*scope.values, *names.variables, *names.dims, *scope.loops]
        fix = did_you_mean(name, known, f"declare it, as in `input {name}`, or assign it before this line")
        scope.error("R201", f"unknown name `{name}`", expression.span, fix)


# --- operators -------------------------------------------------------------------------------------------------------


def _unary(scope: Scope, expression: Unary) -> Node | None:
    operand = elaborate(scope, expression.operand)
    if operand is None or expression.op == "+":
        return operand
    return apply("neg", operand, span=expression.span)


def _binary(scope: Scope, expression: Binary) -> Node | None:
    symbol, span = expression.op, expression.span
    if symbol in _COMPARISONS:
        help = f"write `where({show(expression)}, 1, 0)` for its value as a number"
        scope.error("R404", "a comparison stands only in the condition of `where`", span, help)
        return None
    left, right = elaborate(scope, expression.left), elaborate(scope, expression.right)
    if left is None or right is None:
        return None
    operands = (expression.left, left), (expression.right, right)
    if symbol == "@":
        return scope.accept(contract_last(scope.names, span, *operands))
    if symbol == "**":
        return _power(scope, expression, left, right)
    if symbol in "+-":
        mismatch = check_same(scope.names, f"`{symbol}`", span, *operands)
        if mismatch:
            scope.errors.append(mismatch)
            return None
    if symbol == "/" and is_const(right, 0.0):
        scope.error("R407", "a division by zero", expression.right.span, "divide by something else")
        return None
    return constant(scope, apply(_ARITHMETIC[symbol], left, right, span=span), span)


def _power(scope: Scope, expression: Binary, base: Node, exponent: Node) -> Node | None:
    if not is_const(exponent):
        help = f"write `exp({show(expression.right, ATOM)} * log({show(expression.left)}))` for a positive base"
        scope.error("R403", "the exponent of `**` is a constant number", expression.right.span, help)
        return None
    number = float(exponent.attrs[0])  # type: ignore[arg-type]
    if is_const(base):
        return _constant_power(scope, float(base.attrs[0]), number, expression.span)  # type: ignore[arg-type]
    result = power(base, number)
    return result if result is base else replace(result, span=expression.span)


def _constant_power(scope: Scope, base: float, exponent: float, span: Span | None) -> Node | None:
    try:
        value = base**exponent
    except (OverflowError, ZeroDivisionError):
        value = math.inf
    if isinstance(value, complex):
        value = math.nan
    return constant(scope, const(value), span)


# --- conditions ------------------------------------------------------------------------------------------------------


def elaborate_where(scope: Scope, call: Call) -> Node | None:
    """``where(c, a, b)``: c broadcasts, a and b have the same names or are numbers; a known c chooses at once."""
    condition = _condition(scope, call.args[0])
    left, right = elaborate(scope, call.args[1]), elaborate(scope, call.args[2])
    if condition is None or left is None or right is None:
        return None
    values = (call.args[1], left), (call.args[2], right)
    mismatch = check_same(scope.names, "`where`", call.span, *values)
    if mismatch:
        scope.errors.append(mismatch)
        return None
    if isinstance(condition, Node):
        return replace(where(condition, left, right), span=call.span)
    chosen, other = (left, right) if condition else (right, left)
    return expand(promote(chosen, other.is_complex), chosen.dims or other.dims)


def _condition(scope: Scope, expression: Expr) -> Node | bool | None:
    """A comparison as a node, or its truth where both sides are constant."""
    if not isinstance(expression, Binary) or expression.op not in _COMPARISONS:
        help = f"compare it with something, as in `{show(expression)} > 0`"
        scope.error("R404", "the condition of `where` is a comparison", expression.span, help)
        elaborate(scope, expression)
        return None
    left, right = elaborate(scope, expression.left), elaborate(scope, expression.right)
    if left is None or right is None:
        return None
    what = f"`{expression.op}`"
    if not need_real(scope, what, expression.left, left) or not need_real(scope, what, expression.right, right):
        return None
    mismatch = check_same(scope.names, what, expression.span, (expression.left, left), (expression.right, right))
    if mismatch:
        scope.errors.append(mismatch)
        return None
    name, compare = _COMPARISONS[expression.op]
    if is_const(left) and is_const(right):
        return compare(float(left.attrs[0]), float(right.attrs[0]))  # type: ignore[arg-type]
    return apply(name, left, right, span=expression.span)


# --- indices ---------------------------------------------------------------------------------------------------------


def _index(scope: Scope, expression: Index) -> Node | None:
    """``x[j]`` along the loop's dim, ``x[0]`` along x's only dim of fixed size."""
    base = elaborate(scope, expression.base)
    wanted = expression.index
    if isinstance(wanted, Name) and wanted.id in scope.loops:
        return _index_loop(scope, expression, base, wanted.id)
    number = wanted.value if isinstance(wanted, Number) else None
    if not isinstance(number, int):
        help = "write `x[j]` in `for j in range(n):`, or `x[0]`"
        scope.error("R307", "an index is a loop's variable or a whole number", wanted.span, help)
        return None
    if base is None:
        return None
    fixed = [d for d in base.dims if scope.names.size(d) is not None]
    if len(fixed) != 1:
        found = f"{listing(fixed, 'and')}, several" if fixed else "none"
        help = "index by the variable of a loop over one of them" if fixed else "fix a size, as in `dim n = 2`"
        message = f"an index needs the only dimension of fixed size, and `{show(expression.base)}` has {found}"
        scope.error("R307", message, expression.span, help, labels((expression.base, base)))
        return None
    bound = scope.names.size(fixed[0]) or 0
    if number >= bound:
        help = f"the indices go from 0 to {bound - 1}"
        message = f"`{fixed[0]}` has size {bound}: there is no entry {number}"
        scope.error("R307", message, wanted.span, help, scope.names.declared(fixed[0]))
        return None
    return index(base, fixed[0], number, expression.span)


def _index_loop(scope: Scope, expression: Index, base: Node | None, variable: str) -> Node | None:
    number, dim = scope.loops[variable]
    if base is None or dim is None:
        return None
    if dim not in base.dims:
        other = [d for d in base.dims if scope.names.same_size(d, dim)]
        help = f"declare `{show(expression.base)}` with the dimension `{dim}`"
        if other:
            help = f"rename it: `rename({show(expression.base)}, {other[0]}, {dim})[{variable}]`"
        message = f"`{variable}` runs along `{dim}`, which `{show(expression.base)}` does not have"
        scope.error("R307", message, expression.span, help, labels((expression.base, base)))
        return None
    return index(base, dim, number, expression.span)


def _call(scope: Scope, expression: Call) -> Node | None:
    from recur.passes.functions import elaborate_call

    return elaborate_call(scope, expression)


_ELABORATE: dict[type, Callable[..., Node | None]] = {
    Number: _number, Name: _name, Unary: _unary, Binary: _binary, Index: _index, Call: _call,
}  # fmt: skip

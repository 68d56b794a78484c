"""The functions of the language: rows of the operator table, and those with dimension arguments or other rules.

Composed functions are written out here in terms of rows: with sums over the named dimension,

    mean(x) = sum(x) / size        norm(x) = sqrt(sum(|x|^2)), its derivative 0 at x = 0
    softmax(x) = exp(x - m) / sum(exp(x - m)), m = amax(x), a constant to differentiation
    l2norm(x) = x * rsqrt(sum(x^2) + eps)        rmsnorm(x) = x * rsqrt(mean(x^2) + eps)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recur.diagnostics import did_you_mean, listing, show_dims
from recur.ir.core import (
    Node,
    add,
    apply,
    const,
    div,
    expand,
    eye,
    hadamard,
    is_const,
    leaf,
    reduce,
    rename,
    size,
    stop,
    sub,
    where,
)
from recur.ir.spec import Call, Expr, Index, Name, Span
from recur.operators import FUNCTION_NAMES, OPERATORS
from recur.passes.dims import check_same, labels, outer_product, show
from recur.passes.elaborate import Scope, elaborate, elaborate_where, need_real
from recur.passes.names import unknown_dim

DEFAULT_EPSILON = 1e-6

_SAME_DIMS = ("max", "min", "complex")  # rows whose operands need the same names; the others broadcast by name


def elaborate_call(scope: Scope, call: Call) -> Node | None:
    """The value of a call, or None where it has an error."""
    name = call.function
    if name in _STRUCTURAL:
        fewest, most, usage, function = _STRUCTURAL[name]
        return function(scope, call) if _check_count(scope, call, fewest, most, usage) else None
    row = OPERATORS.get(name)
    if row is None or not row.user:
        _unknown_function(scope, call)
        return None
    usage = {"where": "where(condition, a, b)", "polar": "polar(r, theta)", "complex": "complex(re, im)"}.get(
        name, f"{name}({', '.join('ab'[: row.arity]) if row.arity > 1 else 'x'})"
    )
    if not _check_count(scope, call, row.arity, row.arity, usage):
        return None
    return elaborate_where(scope, call) if name == "where" else _elementwise(scope, call)


def _elementwise(scope: Scope, call: Call) -> Node | None:
    row = OPERATORS[call.function]
    values = [elaborate(scope, a) for a in call.args]
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    if not row.takes_complex:
        fits = [need_real(scope, f"`{row.name}`", e, v) for e, v in zip(call.args, known, strict=True)]
        if not all(fits):
            return None
    if row.name in _SAME_DIMS:
        left, right = zip(call.args, known, strict=True)
        mismatch = check_same(scope.names, f"`{row.name}`", call.span, left, right)
        if mismatch:
            scope.errors.append(mismatch)
            return None
    if row.name in ("real", "imag", "conj") and not known[0].is_complex:
        return expand(const(0), known[0].dims) if row.name == "imag" else known[0]
    return apply(row.name, *known, span=call.span)


def _unknown_function(scope: Scope, call: Call) -> None:
    name, names = call.function, scope.names
    for argument in call.args:
        elaborate(scope, argument)
    kind = names.kind(name) or ("a local" if name in scope.values or name in names.targets else None)
    if kind:
        help = "write `*` for a product" if kind != "a dim" else "write its name alone for its size"
        scope.error("R202", f"`{name}` is {kind}, not a function", call.span, help, names.declared(name))
    elif name not in scope.names.tainted:
        fix = _INSTEAD.get(name) or did_you_mean(name, FUNCTION_NAMES, f"the functions are {', '.join(FUNCTION_NAMES)}")
        scope.error("R202", f"unknown function `{name}`", call.span, fix)


_INSTEAD = {
    "dot": "write `x @ y`, or `sum(x * y)`",
    "matmul": "write `x @ y`",
    "einsum": "dimensions have names: write `x @ y` or `sum(x * y, K)`",
    "transpose": "dimensions have names, so no transpose is needed",
    "maximum": "write `max(a, b)`",
    "minimum": "write `min(a, b)`",
    "clamp": "write `min(max(x, low), high)`",
    "pow": "write `x ** 2`",
    "range": "`range` stands only in `for j in range(n):`",
    "swish": "write `silu(x)`",
    "normalize": "write `l2norm(x)`",
}


def _check_count(scope: Scope, call: Call, fewest: int, most: int, usage: str) -> bool:
    if fewest <= len(call.args) <= most:
        return True
    wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
    plural = "argument" if wanted == "1" else "arguments"
    message = f"`{call.function}` takes {wanted} {plural}, not {len(call.args)}"
    scope.error("R405", message, call.span, f"write `{usage}`")
    return False


# --- arguments -------------------------------------------------------------------------------------------------------


def _dim_argument(scope: Scope, argument: Expr) -> str | None:
    """An argument that names a dimension."""
    if not isinstance(argument, Name):
        message = f"`{show(argument)}` stands where a dimension's name is wanted"
        scope.error("R406", message, argument.span, "write the name of a dim")
        return None
    if argument.id in scope.names.dims:
        return argument.id if argument.id not in scope.names.broken else None
    if argument.id not in scope.names.tainted:
        scope.errors.append(unknown_dim(scope.names, argument.id, argument.span))
    return None


def _present_dim(scope: Scope, call: Call, value: Node, argument: Expr) -> str | None:
    """An argument that names one of the value's dimensions."""
    dim = _dim_argument(scope, argument)
    if dim is None or dim in value.dims:
        return dim
    same = [d for d in value.dims if scope.names.same_size(d, dim)]
    help = f"leave `{call.function}` out: it is a number"
    if value.dims:
        help = f"it has {show_dims(value.dims)}, so that `{value.dims[0]}` could stand here"
    if same:
        help = f"`{same[0]}` is its name for that size: write `{same[0]}`"
    message = f"`{show(call.args[0])}` has no dimension `{dim}`"
    scope.error("R305", message, argument.span, help, labels((call.args[0], value)))
    return None


def _only_dim(scope: Scope, call: Call, value: Node) -> str | None:
    """The dimension that a call leaves out because there is only one."""
    if len(value.dims) == 1:
        return value.dims[0]
    first = call.args[0]
    if not value.dims:
        message = f"`{show(first)}` is a number: `{call.function}` has no dimension to work along"
        scope.error("R305", message, call.span, f"leave `{call.function}` out, or give it a value with dimensions")
    else:
        message = f"`{show(first)}` has {show_dims(value.dims)}: name the dimension"
        help = " or ".join(f"`{call.function}({show(first)}, {d})`" for d in value.dims)
        scope.error("R305", message, call.span, f"write {help}")
    return None


def _value_and_dim(scope: Scope, call: Call, arguments: Sequence[Expr]) -> tuple[Node, str] | None:
    value = elaborate(scope, call.args[0])
    if value is None:
        return None
    dim = _present_dim(scope, call, value, arguments[1]) if len(arguments) > 1 else _only_dim(scope, call, value)
    return (value, dim) if dim is not None else None


# --- reductions ------------------------------------------------------------------------------------------------------


def _sum(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    return reduce("sum", found[0], (found[1],), call.span) if found else None


def _mean(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    return _mean_of(scope, *found, call.span) if found else None


def _mean_of(scope: Scope, value: Node, dim: str, span: Span | None) -> Node:
    fixed = scope.names.size(dim)
    count = size(dim) if fixed is None else const(fixed)
    return apply("div", reduce("sum", value, (dim,), span), count, span=span)


def _amax(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    if found is None or not need_real(scope, "`amax`", call.args[0], found[0]):
        return None
    return reduce("amax", found[0], (found[1],), call.span)


def _norm(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    if found is None:
        return None
    value, dim = found
    squares = apply("square", value)
    if value.is_complex:
        squares = add(apply("square", apply("real", value)), apply("square", apply("imag", value)))
    total = reduce("sum", squares, (dim,), call.span)
    is_zero = apply("eq", total, const(0))
    return where(is_zero, const(0), apply("sqrt", where(is_zero, const(1), total), span=call.span))


def _softmax(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    if found is None or not need_real(scope, "`softmax`", call.args[0], found[0]):
        return None
    value, dim = found
    weights = apply("exp", sub(value, stop(reduce("amax", value, (dim,), call.span))), span=call.span)
    return expand(div(weights, reduce("sum", weights, (dim,), call.span)), value.dims)


def _normalised(scope: Scope, call: Call) -> Node | None:
    """l2norm and rmsnorm: ``(x)``, ``(x, K)``, ``(x, eps)`` or ``(x, K, eps)``."""
    arguments, epsilon = list(call.args), DEFAULT_EPSILON
    if len(arguments) > 1 and not (isinstance(arguments[-1], Name) and arguments[-1].id in scope.names.dims):
        last = elaborate(scope, arguments[-1]) if len(arguments) == 3 or not isinstance(arguments[-1], Name) else None
        if last is not None and is_const(last):
            epsilon = float(last.attrs[0])  # type: ignore[arg-type]
            arguments.pop()
        elif last is not None:
            help = f"write it like `{call.function}(x, K, 1e-6)`"
            scope.error("R406", "the last argument is a constant number", arguments[-1].span, help)
            return None
    if len(arguments) > 2:
        message = f"`{call.function}` works along one dimension"
        scope.error("R406", message, arguments[2].span, f"write it like `{call.function}(x, K, 1e-6)`")
        return None
    found = _value_and_dim(scope, call, arguments)
    if found is None or not need_real(scope, f"`{call.function}`", call.args[0], found[0]):
        return None
    value, dim = found
    squares = apply("square", value, span=call.span)
    total = reduce("sum", squares, (dim,), call.span)
    if call.function == "rmsnorm":
        total = _mean_of(scope, squares, dim, call.span)
    return expand(apply("mul", value, apply("rsqrt", add(total, const(epsilon))), span=call.span), value.dims)


# --- dimensions ------------------------------------------------------------------------------------------------------


def _outer(scope: Scope, call: Call) -> Node | None:
    left, right = elaborate(scope, call.args[0]), elaborate(scope, call.args[1])
    if left is None or right is None:
        return None
    return scope.accept(outer_product(scope.names, call.span, (call.args[0], left), (call.args[1], right)))


def _rename(scope: Scope, call: Call) -> Node | None:
    value = elaborate(scope, call.args[0])
    new = _dim_argument(scope, call.args[2])
    old = _present_dim(scope, call, value, call.args[1]) if value is not None else _dim_argument(scope, call.args[1])
    if value is None or old is None or new is None or old == new:
        return value if old == new else None
    if not scope.names.same_size(old, new):
        others = scope.names.others(old)
        help = f"its other names are {listing(others, 'and')}" if others else f"declare one, as in `dim J = {old}`"
        message = f"`{new}` is no other name of `{old}`'s size"
        scope.error("R306", message, call.args[2].span, help, scope.names.declared(old, new))
        return None
    if new in value.dims:
        message, help = f"`{show(call.args[0])}` has a dimension `{new}` already", "choose a name that it does not have"
        scope.error("R306", message, call.args[2].span, help, labels((call.args[0], value)))
        return None
    return rename(value, old, new, call.span)


def _hadamard(scope: Scope, call: Call) -> Node | None:
    found = _value_and_dim(scope, call, call.args)
    if found is None:
        return None
    value, dim = found
    fixed = scope.names.size(dim)
    if fixed is not None and fixed & (fixed - 1):
        message = f"`hadamard` needs a power of two, and `{dim}` has size {fixed}"
        help = f"choose {1 << (fixed.bit_length() - 1)} or {1 << fixed.bit_length()}"
        scope.error("R311", message, call.span, help, scope.names.declared(dim))
        return None
    return hadamard(value, dim, call.span)


def _eye(scope: Scope, call: Call) -> Node | None:
    row, column = (_dim_argument(scope, a) for a in call.args)
    if row is None or column is None:
        return None
    if row == column:
        help = f"declare another name of its size, `dim J = {row}`, and write `eye({row}, J)`"
        scope.error("R309", f"`eye` lists the dimension `{row}` twice", call.span, help)
        return None
    if not scope.names.same_size(row, column):
        help = f"declare one as another name of the other: `dim {column} = {row}`"
        message = f"`eye` is square, and `{row}` and `{column}` are two sizes"
        scope.error("R310", message, call.span, help, scope.names.declared(row, column))
        return None
    return eye(row, column, call.span)


def _prev(scope: Scope, call: Call) -> Node | None:
    argument, names = call.args[0], scope.names
    if isinstance(argument, Name) and argument.id in names.variables:
        variable = names.variables[argument.id]
        if variable.role == "input":
            known = variable.name not in names.broken
            return leaf("prev", variable.name, variable.dims, variable.is_complex, call.span) if known else None
    if isinstance(argument, Name) and argument.id in scope.names.tainted:
        return None
    help = "write `prev` of an input's name"
    if isinstance(argument, Index) and isinstance(argument.base, Name):
        help = f"write `prev({argument.base.id})[{show(argument.index)}]`"
    elif isinstance(argument, Name) and argument.id in names.variables:
        is_state = names.variables[argument.id].role == "state"
        help = f"`{argument.id}` means the previous value until it is assigned" if is_state else "a param has one value"
    elif isinstance(argument, Name) and argument.id in names.targets:
        help = "keep the local's value in a state of its own, or write `prev` of the inputs that it is made of"
    elif isinstance(argument, Name):
        inputs = [v.name for v in names.variables.values() if v.role == "input"]
        help = did_you_mean(argument.id, inputs, help) or help
    scope.error("R505", f"`prev` takes an input's name, not `{show(argument)}`", argument.span, help)
    return None


_STRUCTURAL: dict[str, tuple[int, int, str, Callable[[Scope, Call], Node | None]]] = {
    "outer": (2, 2, "outer(x, y)", _outer),
    "rename": (3, 3, "rename(x, old, new)", _rename),
    "sum": (1, 2, "sum(x, K)", _sum),
    "mean": (1, 2, "mean(x, K)", _mean),
    "amax": (1, 2, "amax(x, K)", _amax),
    "norm": (1, 2, "norm(x, K)", _norm),
    "softmax": (1, 2, "softmax(x, K)", _softmax),
    "l2norm": (1, 3, "l2norm(x, K)", _normalised),
    "rmsnorm": (1, 3, "rmsnorm(x, K)", _normalised),
    "hadamard": (1, 2, "hadamard(x, N)", _hadamard),
    "eye": (2, 2, "eye(K, J)", _eye),
    "prev": (1, 1, "prev(x)", _prev),
}

"""The rules of named dimensions: which operands fit one another, and which names a value takes for its target.

Each function returns the fitted nodes, or a Diagnostic that says what does not fit and which change repairs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from recur.diagnostics import Diagnostic, listing, show_dims
from recur.ir.core import Node, contract, expand, rename, topological
from recur.ir.printer import ATOM, COMPARISON, print_expression
from recur.ir.spec import Expr, Span
from recur.operators import OPERATORS
from recur.passes.names import Names

MAX_TEXT = 40


def show(expression: Expr, level: int = COMPARISON) -> str:
    """An expression as a message shows it; at level ATOM fit to stand beside any operator."""
    text = print_expression(expression, level)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def labels(*operands: tuple[Expr, Node]) -> tuple[tuple[Span, str], ...]:
    """The dimensions of each operand, under it."""
    return tuple((e.span, show_dims(n.dims)) for e, n in operands if e.span is not None)


def check_same(
    names: Names, what: str, span: Span | None, left: tuple[Expr, Node], right: tuple[Expr, Node]
) -> Diagnostic | None:
    """``+ - max min`` and their like: the same names on both sides, or an operand without dimensions."""
    a, b = left[1].dims, right[1].dims
    if not a or not b or set(a) == set(b):
        return None
    message = f"{what} needs the same dimensions on both sides, or a number: {show_dims(a)} and {show_dims(b)}"
    return Diagnostic("R301", message, span, secondary=labels(left, right), help=_same_help(names, left, right))


def _same_help(names: Names, left: tuple[Expr, Node], right: tuple[Expr, Node]) -> str:
    a, b = left[1].dims, right[1].dims
    for (_, node), other in ((left, b), (right, a)):
        found = find_outer(names, node, other)
        if found:
            return f"{found[0]}; {found[1]}"
    missing, extra = [d for d in a if d not in b], [d for d in b if d not in a]
    for wanted in missing:
        for given in extra:
            if names.same_size(wanted, given):
                return f"rename one side: `rename({show(right[0])}, {given}, {wanted})`"
    if not missing or not extra:
        wide, narrow = (right, left) if extra else (left, right)
        more = extra or missing
        return (
            f"only numbers broadcast here: give `{show(narrow[0])}` {listing(more, 'and')} by a product, "
            f"or reduce `{show(wide[0])}` over {listing(more, 'and')}"
        )
    return f"contract or reduce {listing(missing + extra, 'and')} first"


def contract_last(
    names: Names, span: Span | None, left: tuple[Expr, Node], right: tuple[Expr, Node]
) -> Node | Diagnostic:
    """``x @ y``: the last dimension of x with the dimension of that name in y; other shared names are aligned."""
    (x_expr, x), (y_expr, y) = left, right
    if not x.dims or not y.dims:
        empty = x_expr if not x.dims else y_expr
        message = f"nothing to contract: `{show(empty)}` has no dimensions"
        return Diagnostic("R302", message, span, secondary=labels(left, right), help="write `*` to scale")
    last = x.dims[-1]
    if last in y.dims:
        return contract(x, y, (last,), span)
    message = f"nothing to contract: the left side's last dimension is `{last}`, the right side has {show_dims(y.dims)}"
    return Diagnostic("R302", message, span, secondary=labels(left, right), help=_contract_help(names, left, right))


def _contract_help(names: Names, left: tuple[Expr, Node], right: tuple[Expr, Node]) -> str:
    (x_expr, x), (y_expr, y) = left, right
    last = x.dims[-1]
    aliases = [d for d in y.dims if names.same_size(d, last)]
    if y.dims[-1] in x.dims:
        return f"write `{show(y_expr, ATOM)} @ {show(x_expr, ATOM)}`, which contracts `{y.dims[-1]}`"
    if aliases:
        return f"rename it: `rename({show(y_expr)}, {aliases[0]}, {last})`"
    shared = [d for d in x.dims if d in y.dims]
    if shared:
        return f"to contract `{shared[0]}`, write `sum({show(x_expr, ATOM)} * {show(y_expr, ATOM)}, {shared[0]})`"
    return "the two share no dimension: write `*` or `outer` for their product"


def outer_product(
    names: Names, span: Span | None, left: tuple[Expr, Node], right: tuple[Expr, Node]
) -> Node | Diagnostic:
    """``outer(x, y)``: a dimension of both becomes, in y, the first declared other name that neither has."""
    x, y = left[1], right[1]
    for shared in [d for d in y.dims if d in x.dims]:
        free = [d for d in names.others(shared) if d not in x.dims and d not in y.dims]
        if not free:
            message = f"both sides of outer have `{shared}`, and it has no other name left"
            help = f"declare one, `dim J = {shared}`; to align the dimension instead, write `*`"
            return Diagnostic("R303", message, span, secondary=labels(left, right), help=help)
        y = rename(y, shared, free[0], span)
    return contract(x, y, (), span)


def fit_target(
    names: Names, value: Node, dims: tuple[str, ...], target: str, span: Span | None, place: Span | None
) -> Node | Diagnostic:
    """The value with exactly the target's dims, matched by name; a missing name may be one left-over other name's."""
    missing = [d for d in dims if d not in value.dims]
    extra = [d for d in value.dims if d not in dims]
    fitted = value
    for name in missing:
        stands = [d for d in extra if names.roots[d] == names.roots[name]]
        rivals = [d for d in missing if names.roots[d] == names.roots[name]]
        if len(stands) != 1 or len(rivals) != 1:
            break
        fitted = rename(fitted, stands[0], name, span)
    if set(fitted.dims) == set(dims):
        return expand(fitted, dims)
    message = f"the value has {show_dims(value.dims)}, `{target}` has {show_dims(dims)}"
    help = _target_help(names, target, missing, extra)
    found = find_outer(names, value, dims)
    if found and not missing:
        message, help = f"{message}: {found[0]}", found[1]
    return Diagnostic("R304", message, span, secondary=((place, "declared here"),) if place else (), help=help)


def _target_help(names: Names, target: str, missing: Sequence[str], extra: Sequence[str]) -> str:
    for name in missing:
        stands = [d for d in extra if names.roots[d] == names.roots[name]]
        if len(stands) > 1:
            choice = f"choose with `rename(..., {stands[0]}, {name})`"
            return f"{listing(stands, 'and')} could both stand for `{name}`: {choice}"
        if stands:
            choice = f"choose with `rename(..., {stands[0]}, {name})`"
            return f"`{stands[0]}` could stand for {listing(missing)}: {choice}"
        if any(names.same_size(d, name) for d in extra):
            given = next(d for d in extra if names.same_size(d, name))
            return f"rename it: `rename(..., {given}, {name})`"
    if missing and not extra:
        return f"nothing broadcasts into `{target}`: bring {listing(missing, 'and')} in by a product"
    if extra and not missing:
        return f"contract or reduce {listing(extra, 'and')}, as in `sum(..., {extra[0]})`"
    return f"reduce {listing(extra, 'and')}, and bring {listing(missing, 'and')} in by a product"


def find_outer(names: Names, value: Node, wanted: Sequence[str]) -> tuple[str, str] | None:
    """Elementwise work on two names of one size that made an outer product: what happened, and the renaming.

    ``wanted`` has one of the two names and not the other.
    """
    for extra in [d for d in value.dims if d not in wanted]:
        for kept in [d for d in value.dims if d in wanted and names.same_size(d, extra)]:
            for node in topological([value]):
                if node.op not in OPERATORS or not {extra, kept} <= set(node.dims):
                    continue
                if any({extra, kept} <= set(arg.dims) for arg in node.args):
                    continue
                culprit = next(arg for arg in node.args if extra in arg.dims)
                text = _source_text(names, culprit)
                cause = f"elementwise work on `{kept}` and `{extra}`, two names of one size, has made an outer product"
                return cause, f"write `rename({text}, {extra}, {kept})` in place of `{text}`"
    return None


def _source_text(names: Names, node: Node) -> str:
    """The user's words for a node."""
    if node.op == "leaf":
        return str(node.attrs[1])
    if node.op == "version":
        return str(node.attrs[0])
    span, lines = node.span, names.recurrence.source.split("\n")
    if span is None or span.line != span.end_line or span.line > len(lines):
        return "x"
    text = lines[span.line - 1][span.column - 1 : span.end_column - 1]
    return text if 0 < len(text) <= MAX_TEXT else "x"

"""Reverse-mode differentiation of a node DAG: cotangents in, cotangents of chosen nodes out, as nodes again.

For a node z = f(x, ...) with cotangent g (PyTorch's convention for complex values: g = dL/dRe z + i dL/dIm z)

    cotangent of x  +=  sum over the dims that z has and x lacks of  g * conj(dz/dx)

and its real part where x is real. A cotangent may lack dims of its node: it is then constant along them. That keeps the
result small (the adjoint of a sum is no work at all) and costs a factor `size(d)` where such a dim is summed.

Below a branch of a `where` the partial may be infinite or NaN just where the branch is not taken and g is zero. There,
and only there, a product is written where(g == 0, 0, g * partial); also for an exponential inside a function that is
flat where the exponential overflows, such as exp(-exp(w)). A contraction is guarded only if its other operand
is computed by an operation with a pole or an overflow (`_SINGULAR`), since the guard turns a matrix product into an
elementwise one; an operand that is itself an infinite leaf is not caught by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recur.ir.core import (
    Node,
    add,
    apply,
    const,
    contract,
    depends_on,
    div,
    expand,
    hadamard,
    index,
    is_const,
    mul,
    place,
    product,
    reduce,
    rename,
    size,
    sub,
    topological,
    where,
)
from recur.operators import OPERATORS

Dims = tuple[str, ...]

# Operations that may give infinity or NaN for finite arguments of ordinary size.
_SINGULAR = frozenset({"div", "pow", "exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt"})

# Functions that may be flat where their argument is infinite: what comes back from there is an exact zero.
_FLAT = frozenset({"exp", "sigmoid", "logsigmoid", "tanh", "max", "min"})
_OVERFLOWING = frozenset({"exp", "exp2", "expm1"})

_CONDITIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})


@dataclass(frozen=True)
class _Region:
    """What the guards need to know of a DAG.

    ``branch``: nodes below a `where`; ``singular``: nodes that may be infinite or NaN; ``saturated``: those that may
    overflow inside a function that is flat there.
    """

    branch: frozenset[Node]
    singular: frozenset[Node]
    saturated: frozenset[Node]


def pull_back(outputs: Sequence[Node], cotangents: Sequence[Node], sources: Sequence[Node]) -> list[Node]:
    """The cotangent of each source, given the cotangent of each output.

    Results have exactly their source's dims, in its order; a source that the outputs do not depend on gets const(0)
    expanded to them. A source inside the DAG gets the cotangent of its value, and what lies below it is reached through
    it all the same. An output may occur several times: its cotangents add up.
    """
    order = topological(outputs)
    active = depends_on(outputs, set(sources))
    region = _find_region(order)
    received: dict[Node, list[Node]] = {node: [] for node in order}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        _receive(received, output, cotangent)
    gathered: dict[Node, Node] = {}
    for node in reversed(order):
        if node not in active:
            continue
        gathered[node] = g = _gather(received[node])
        if _is_zero(g):
            continue
        for arg, contribution in zip(node.args, _pull(node, g, region), strict=True):
            if contribution is not None and arg in active:
                _receive(received, arg, contribution)
    return [_finish(gathered.get(source, const(0)), source) for source in sources]


def _receive(received: dict[Node, list[Node]], node: Node, contribution: Node) -> None:
    if contribution.is_complex and not node.is_complex:
        contribution = _real(contribution)
    if not _is_zero(contribution):
        received[node].append(contribution)


def _gather(contributions: list[Node]) -> Node:
    """Their sum; equal ones, such as x * x gives, are counted."""
    counts: dict[Node, int] = {}
    for contribution in contributions:
        counts[contribution] = counts.get(contribution, 0) + 1
    result = const(0)
    for contribution, n in counts.items():
        term = mul(const(n), contribution)
        result = sub(result, term.args[0]) if term.op == "neg" and not is_const(result, 0.0) else add(result, term)
    return result


def _finish(g: Node, source: Node) -> Node:
    if source.is_complex and not g.is_complex and not _is_zero(g):
        g = apply("complex", g, const(0))
    return expand(g, source.dims)


# --- one node ---------------------------------------------------------------------------------------------------------


def _pull(node: Node, g: Node, region: _Region) -> tuple[Node | None, ...]:
    """What each argument of ``node`` receives from the cotangent g (None: nothing)."""
    if node.op in OPERATORS:
        return _pull_elementwise(node, g, node in region.branch or node in region.saturated)
    if node.op == "contract":
        return _pull_contract(node, g, region)
    if node.op in ("leaf", "const", "size", "eye", "select"):
        return ()
    return (_pull_structural(node, g, node in region.branch),)


def _pull_elementwise(node: Node, g: Node, guarded: bool) -> tuple[Node | None, ...]:
    operator = OPERATORS[node.op]
    if operator.pullback is not None:
        contributions = operator.pullback(g, node.args, node)
        if guarded and node.op != "where":
            contributions = tuple(None if c is None else _guard(g, c) for c in contributions)
        return tuple(
            None if c is None else _sum_over(c, _missing(node.dims, arg.dims))
            for arg, c in zip(node.args, contributions, strict=True)
        )
    if node.op in _CONDITIONS:
        return (None,) * len(node.args)
    if operator.derivative is None:
        raise ValueError(f"the operator table has no derivative for {node.op!r}")
    return tuple(
        None if partial is None else _multiply(g, partial, _missing(node.dims, arg.dims), guarded, (*node.args, node))
        for arg, partial in zip(node.args, operator.derivative(node.args, node), strict=True)
    )


def _pull_contract(node: Node, g: Node, region: _Region) -> tuple[Node, ...]:
    """z = sum_over x y: x receives g conj(y), summed over every dim that x lacks."""
    x, y = node.args
    summed = tuple(dict.fromkeys(x.dims + y.dims))
    in_branch = node in region.branch
    return tuple(
        _multiply(g, other, _missing(summed, arg.dims), in_branch and other in region.singular, node.args)
        for arg, other in ((x, y), (y, x))
    )


def _pull_structural(node: Node, g: Node, guarded: bool) -> Node | None:
    x, attrs = node.args[0], node.attrs
    match node.op:
        case "sum" | "version":
            return g
        case "amax":
            return _pull_amax(node, g, guarded)
        case "expand":
            return _sum_over(g, _missing(node.dims, x.dims))
        case "rename":
            old, new = str(attrs[0]), str(attrs[1])
            return rename(g, new, old)
        case "index":
            return place(g, str(attrs[0]), int(attrs[1]))  # type: ignore[arg-type]
        case "place":
            dim = str(attrs[0])
            return index(g, dim, int(attrs[1])) if dim in g.dims else g  # type: ignore[arg-type]
        case "hadamard":
            dim = str(attrs[0])
            return hadamard(g if dim in g.dims else expand(g, (*g.dims, dim)), dim)
        case "stop":
            return None
    raise ValueError(f"no derivative is known for the operation {node.op!r}")


def _pull_amax(node: Node, g: Node, guarded: bool) -> Node:
    """The largest entries share equally: g / (how many there are), at each of them."""
    x, over = node.args[0], node.attrs[0]
    assert isinstance(over, tuple)
    is_largest = apply("eq", x, node)
    count = reduce("sum", where(is_largest, const(1), const(0)), over)
    return where(is_largest, _multiply(g, div(const(1), count), (), guarded), const(0))


# --- products and sums of cotangents ----------------------------------------------------------------------------------


def _multiply(g: Node, partial: Node, over: Dims, guarded: bool, kept: tuple[Node, ...] = ()) -> Node:
    """sum over ``over`` of g * conj(partial), each factor summed alone along the dims that the other lacks.

    Constant factors move in front; those of ``kept``, the forward pass's own values, stay, since these are at hand.
    """
    if is_const(partial, 0.0):
        return partial
    (factor, g), (scale, partial) = _split(g), _split(partial, kept)
    partial = _conj(partial)
    if guarded and not is_const(partial):
        return mul(const(factor * scale), _sum_over(_guard(g, _scale(g, partial)), over))
    shared = tuple(d for d in over if d in g.dims and d in partial.dims)
    absent = tuple(d for d in over if d not in g.dims and d not in partial.dims)
    only_g = tuple(d for d in over if d in g.dims and d not in partial.dims)
    only_partial = tuple(d for d in over if d in partial.dims and d not in g.dims)
    g, partial = reduce("sum", g, only_g), reduce("sum", partial, only_partial)
    term = contract(g, partial, shared) if shared else _scale(g, partial)
    return mul(const(factor * scale), _sum_over(term, absent))


def _split(node: Node, kept: tuple[Node, ...] = ()) -> tuple[float, Node]:
    """A constant factor and the rest: factors of several products meet in front, and signs cancel."""
    factor = 1.0
    while node.op in ("neg", "mul", "div") and node not in kept:
        if node.op == "neg":
            factor, node = -factor, node.args[0]
        elif node.op == "mul" and any(is_const(a) for a in node.args):
            number, node = node.args if is_const(node.args[0]) else reversed(node.args)
            factor *= float(number.attrs[0])  # type: ignore[arg-type]
        elif node.op == "div" and is_const(node.args[0]) and not is_const(node.args[0], 1.0):
            return factor * float(node.args[0].attrs[0]), div(const(1), node.args[1])  # type: ignore[arg-type]
        else:
            break
    if is_const(node):
        return factor * float(node.attrs[0]), const(1)  # type: ignore[arg-type]
    return factor, node


def _scale(g: Node, partial: Node) -> Node:
    """g * partial, without the multiplication where the partial selects (0 or 1) or is a reciprocal."""
    if is_const(g) and not is_const(partial):
        g, partial = partial, g
    if partial.op == "where" and all(is_const(p, 0.0) or is_const(p, 1.0) for p in partial.args[1:]):
        condition, *branches = partial.args
        return where(condition, *(g if is_const(branch, 1.0) else branch for branch in branches))
    if partial.op == "div" and is_const(partial.args[0], 1.0):
        return div(g, partial.args[1])
    return mul(g, partial)


def _sum_over(g: Node, over: Dims) -> Node:
    """The sum over ``over``; along a dim that g lacks it is constant, and the sum a factor."""
    repeats = product(size(d) for d in over if d not in g.dims)
    return mul(reduce("sum", g, tuple(d for d in over if d in g.dims)), repeats)


def _guard(g: Node, value: Node) -> Node:
    """The value, which is linear in g, as exactly zero where g is."""
    if is_const(g) or value == g:
        return value
    magnitude = _modulus(g) if g.is_complex else g
    return where(apply("eq", magnitude, const(0)), const(0), value)


def _modulus(g: Node) -> Node:
    """|Re g| + |Im g|: zero exactly where g is, without the underflow of a modulus."""
    return add(apply("abs", _real(g)), apply("abs", apply("imag", g)))


def _missing(dims: Dims, present: Dims) -> Dims:
    return tuple(d for d in dims if d not in present)


def _real(g: Node) -> Node:
    return g.args[0] if g.op == "complex" else apply("real", g)


def _conj(node: Node) -> Node:
    if not node.is_complex:
        return node
    if node.op == "div" and is_const(node.args[0], 1.0):
        return div(const(1), apply("conj", node.args[1]))
    return node.args[0] if node.op == "conj" else apply("conj", node)


def _is_zero(g: Node) -> bool:
    return is_const(g, 0.0) or (g.op == "expand" and is_const(g.args[0], 0.0))


# --- the guarded region -----------------------------------------------------------------------------------------------


def _find_region(order: Iterable[Node]) -> _Region:
    order = list(order)
    branch: set[Node] = set()
    inside: set[Node] = set()
    for node in reversed(order):
        if node in branch:
            branch.update(node.args)
        elif node.op == "where":
            branch.update(node.args[1:])
        if node in inside or node.op in _FLAT:
            inside.update(node.args)
    singular: set[Node] = set()
    for node in order:
        if node.op in _SINGULAR or any(arg in singular for arg in node.args):
            singular.add(node)
    varying: set[Node] = set()  # what depends on params alone is left as it is: its cotangents are summed over tokens
    for node in order:
        if (node.op == "leaf" and node.attrs[0] != "param") or any(arg in varying for arg in node.args):
            varying.add(node)
    saturated = frozenset(n for n in inside if n.op in _OVERFLOWING and n in varying)
    return _Region(frozenset(branch), frozenset(singular), saturated)

"""The step with its meaning made explicit: a directed acyclic graph of typed operations over named dimensions.

Elementwise operations align by dimension name and broadcast the rest, so no node states a layout. Loops are unrolled,
names resolved, outer products renamed. Batch, time and heads never appear: a node is one value per token and head.

Structural operations (elementwise ones are rows of `recur.operators`):

    leaf (kind, name)      input, param, state (its value before the step), prev (the previous token's input), or a
                           symbol that a pass introduces: readout, coefficient, cotangent
    const (value)          a real number
    size (dim)             a dimension's size as a number
    eye (J, K)             the identity matrix
    select (F, K, outer, inner)    [k is f's part]: F runs over all combinations of the dims outer, K, inner, row-major
    contract (over)        sum over the dims `over` of x * y; an empty `over` is the tensor product
    sum (over), amax (over)
    expand (dims)          broadcasts x to more dims
    rename (old, new)      names a dim differently; both have one size
    index (dim, i)         picks entry i of a dim of fixed size; place (dim, i) is its adjoint: zero elsewhere
    hadamard (dim)         Walsh-Hadamard transform, unnormalised, Sylvester order
    stop                   the value, constant to differentiation
    version (state, n)     the value, marked as the state's n-th assignment of the step
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from recur.ir.spec import Recurrence, Span

Attr = str | int | float | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One value. Equality and hash are structural, by a digest made on construction (spans are left out)."""

    op: str
    args: tuple[Node, ...] = ()
    dims: tuple[str, ...] = ()
    attrs: tuple[Attr, ...] = ()
    is_complex: bool = False
    span: Span | None = field(default=None, repr=False)
    key: bytes = field(default=b"", init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.op, self.dims, self.attrs, self.is_complex)).encode())
        for arg in self.args:
            digest.update(arg.key)
        object.__setattr__(self, "key", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return print_node(self)


@dataclass(frozen=True)
class Step:
    """One checked step: every state's new value and every output, as nodes over inputs and previous states.

    ``updates`` and ``outputs`` keep the order of declaration; an output's node has the dims in the order that the
    output's tensor has.
    """

    recurrence: Recurrence
    updates: tuple[tuple[str, Node], ...]
    outputs: tuple[tuple[str, Node], ...]


# --- builders: they apply the dimension rules and fold constants -----------------------------------------------------


def union_dims(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """The order of an elementwise result: the operand's that has them all, else by first appearance."""
    names = dict.fromkeys(d for group in groups for d in group)
    for group in groups:
        if len(group) == len(names):
            return group
    return tuple(names)


def leaf(kind: str, name: str, dims: tuple[str, ...] = (), is_complex: bool = False, span: Span | None = None) -> Node:
    return Node("leaf", (), dims, (kind, name), is_complex, span)


def const(value: float | int) -> Node:
    return Node("const", (), (), (float(value),))


def size(dim: str) -> Node:
    return Node("size", (), (), (dim,))


def is_const(node: Node, value: float | None = None) -> bool:
    return node.op == "const" and (value is None or node.attrs[0] == value)


def apply(op: str, *args: Node, attrs: tuple[Attr, ...] = (), span: Span | None = None) -> Node:
    """An elementwise operation of the operator table; constants fold, and neutral elements disappear."""
    from recur.operators import OPERATORS

    operator = OPERATORS[op]
    folded = _fold(op, args)
    if folded is not None:
        return folded
    is_complex = operator.result_is_complex(tuple(a.is_complex for a in args))
    return Node(op, args, union_dims(*(a.dims for a in args)), attrs, is_complex, span)


def _fold(op: str, args: tuple[Node, ...]) -> Node | None:
    if op in ("add", "sub", "mul", "div", "neg") and all(is_const(a) for a in args):
        values = [float(a.attrs[0]) for a in args]  # type: ignore[arg-type]
        if op == "neg":
            return const(-values[0])
        left, right = values
        if op == "div":
            return None if right == 0 else const(left / right)
        return const({"add": left + right, "sub": left - right, "mul": left * right}[op])
    if (op == "add" and is_const(args[1], 0.0)) or (op in ("mul", "div") and is_const(args[1], 1.0)):
        return args[0]
    if op == "sub" and is_const(args[1], 0.0):
        return args[0]
    if (op == "add" and is_const(args[0], 0.0)) or (op == "mul" and is_const(args[0], 1.0)):
        return args[1]
    if op == "neg" and args[0].op == "neg":
        return args[0].args[0]
    if op in ("real", "conj", "imag") and not args[0].is_complex:
        return args[0] if op != "imag" else expand(const(0), args[0].dims)
    if op == "mul" and is_const(args[1], -1.0):
        return apply("neg", args[0])
    if op == "mul" and is_const(args[0], -1.0):
        return apply("neg", args[1])
    return None


def add(x: Node, y: Node) -> Node:
    return apply("add", x, y)


def sub(x: Node, y: Node) -> Node:
    return apply("sub", x, y)


def mul(x: Node, y: Node) -> Node:
    return apply("mul", x, y)


def div(x: Node, y: Node) -> Node:
    return apply("div", x, y)


def neg(x: Node) -> Node:
    return apply("neg", x)


def where(condition: Node, x: Node, y: Node) -> Node:
    return apply("where", condition, x, y)


def product(nodes: Iterable[Node]) -> Node:
    result = const(1)
    for node in nodes:
        result = mul(result, node)
    return result


def total(nodes: Iterable[Node]) -> Node:
    result = const(0)
    for node in nodes:
        result = add(result, node)
    return result


def contract(x: Node, y: Node, over: tuple[str, ...], span: Span | None = None) -> Node:
    """Sum over ``over`` of x * y; dims: x's remaining, then y's new ones."""
    dims = tuple(d for d in dict.fromkeys(x.dims + y.dims) if d not in over)
    return Node("contract", (x, y), dims, (tuple(over),), x.is_complex or y.is_complex, span)


def reduce(kind: str, x: Node, over: tuple[str, ...], span: Span | None = None) -> Node:
    """``sum`` or ``amax`` over dims; no dims is x itself."""
    if not over:
        return x
    return Node(kind, (x,), tuple(d for d in x.dims if d not in over), (tuple(over),), x.is_complex, span)


def expand(x: Node, dims: tuple[str, ...]) -> Node:
    """x with exactly ``dims``, in that order (it may only add or reorder)."""
    return x if x.dims == dims else Node("expand", (x,), dims, (dims,), x.is_complex)


def rename(x: Node, old: str, new: str, span: Span | None = None) -> Node:
    if old == new or old not in x.dims:
        return x
    return Node("rename", (x,), tuple(new if d == old else d for d in x.dims), (old, new), x.is_complex, span)


def index(x: Node, dim: str, i: int, span: Span | None = None) -> Node:
    return Node("index", (x,), tuple(d for d in x.dims if d != dim), (dim, i), x.is_complex, span)


def place(x: Node, dim: str, i: int) -> Node:
    return Node("place", (x,), (*x.dims, dim), (dim, i), x.is_complex)


def hadamard(x: Node, dim: str, span: Span | None = None) -> Node:
    return Node("hadamard", (x,), x.dims, (dim,), x.is_complex, span)


def eye(row: str, column: str, span: Span | None = None) -> Node:
    return Node("eye", (), (row, column), (row, column), False, span)


def select(fused: str, part: str, outer: tuple[str, ...], inner: tuple[str, ...]) -> Node:
    return Node("select", (), (fused, part), (fused, part, outer, inner))


def stop(x: Node) -> Node:
    return Node("stop", (x,), x.dims, (), x.is_complex)


def version(x: Node, state: str, number: int, span: Span | None = None) -> Node:
    return Node("version", (x,), x.dims, (state, number), x.is_complex, span)


def rebuild(node: Node, args: tuple[Node, ...]) -> Node:
    """The same operation on other arguments of the same dims; the node itself where nothing changed."""
    if all(a is b for a, b in zip(args, node.args, strict=True)):
        return node
    is_complex = node.is_complex
    return Node(node.op, args, node.dims, node.attrs, is_complex, node.span)


# --- traversals: iterative, since a user's DAG may be deep -----------------------------------------------------------


def topological(roots: Iterable[Node], until: Container[Node] = ()) -> list[Node]:
    """Every node reachable from the roots, arguments before uses, each once, in a deterministic order.

    Nodes in ``until`` are listed, but what lies beneath them is not.
    """
    order: list[Node] = []
    seen: set[bytes] = set()
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.append(node)
                continue
            if node.key in seen:
                continue
            seen.add(node.key)
            stack.append((node, True))
            if node not in until:
                stack.extend((arg, False) for arg in reversed(node.args) if arg.key not in seen)
    return order


def substitute(roots: Iterable[Node], replacements: dict[Node, Node]) -> list[Node]:
    """The roots with every occurrence of a key replaced by its value (values are not searched again)."""
    roots = list(roots)
    done: dict[Node, Node] = {}
    for node in topological(roots):
        done[node] = replacements[node] if node in replacements else rebuild(node, tuple(done[a] for a in node.args))
    return [done[r] for r in roots]


def leaves(roots: Iterable[Node], kind: str | None = None) -> list[Node]:
    return [n for n in topological(roots) if n.op == "leaf" and (kind is None or n.attrs[0] == kind)]


def depends_on(roots: Iterable[Node], sources: set[Node]) -> set[Node]:
    """All nodes under the roots whose value depends on one of the sources."""
    found: set[Node] = set()
    for node in topological(roots):
        if node in sources or any(a in found for a in node.args):
            found.add(node)
    return found


def print_node(node: Node) -> str:
    """One line in the language's own notation, as far as it has one (for explain and for messages)."""
    from recur.ir.printing import format_node

    return format_node(node)

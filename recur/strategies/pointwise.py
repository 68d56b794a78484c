"""Per-token expressions inside tile programs: core nodes become tile operations on tiles of their leaves.

A leaf's tile has the leaf's dims as axes and, where the kernel holds tokens as rows, the rows axis in front; rows ride
along through every operation, since elementwise operations align axes by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from recur.ir.core import Node, topological
from recur.ir.tile import Builder, Value
from recur.operators import OPERATORS

# A node's op -> the tile operation that takes its attributes unchanged.
_REDUCTIONS = ("sum", "amax")


def emit_nodes(builder: Builder, roots: Sequence[Node], values: dict[Node, Value], name: str = "x") -> list[Value]:
    """Emits the roots and everything under them that ``values`` does not already hold; returns the roots' tiles.

    ``values`` maps leaves (or any node) to tiles already in the program, and is extended with what is emitted, so that
    later calls share it. ``name`` is the stem for intermediate tiles.
    """
    for node in _missing(roots, values):
        values[node] = _emit_node(builder, node, [values[a] for a in node.args], name)
    return [values[root] for root in roots]


def _missing(roots: Sequence[Node], values: dict[Node, Value]) -> list[Node]:
    """Nodes to emit, arguments first; does not look under nodes that have a tile."""
    needed: set[Node] = set()
    stack = [r for r in roots if r not in values]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        stack.extend(a for a in node.args if a not in values)
    return [n for n in topological(roots) if n in needed]


def _emit_node(builder: Builder, node: Node, args: list[Value], name: str) -> Value:
    op = node.op
    if op in OPERATORS:
        attrs = (("exponent", node.attrs[0]),) if op == "pow" else ()
        return builder.map(op, *args, name=name, attrs=attrs)
    if op == "const":
        return builder.const(float(node.attrs[0]))  # type: ignore[arg-type]
    if op == "size":
        return builder.let(f"{node.attrs[0]}_size", "size", (), (), (("dim", str(node.attrs[0])),))
    if op == "eye":
        row, column = node.dims
        return builder.let("identity", "eye", (), (row, column), (("row", row), ("column", column)))
    if op == "select":
        parts = tuple(zip(("fused", "part", "outer", "inner"), node.attrs, strict=True))
        return builder.let(f"part_{node.attrs[1]}", "select", (), node.dims, parts)
    if op in ("stop", "version"):
        return args[0]
    if op == "contract":
        return builder.contract(args[0], args[1], node.attrs[0], name=name, precision="full")  # type: ignore[arg-type]
    if op in _REDUCTIONS:
        reduce = builder.sum if op == "sum" else builder.amax
        return reduce(args[0], node.attrs[0], name=name)  # type: ignore[arg-type]
    if op == "expand":
        rows = tuple(a for a in args[0].axes if a not in node.args[0].dims)
        return builder.expand(args[0], rows + node.dims, name)
    if op == "rename":
        return builder.rename(args[0], str(node.attrs[0]), str(node.attrs[1]), name)
    if op == "hadamard":
        return builder.let(name, "hadamard", (args[0],), args[0].axes, (("axis", str(node.attrs[0])),))
    if op in ("index", "place"):
        axis, i = str(node.attrs[0]), int(node.attrs[1])  # type: ignore[arg-type]
        axes = tuple(a for a in args[0].axes if a != axis) + ((axis,) if op == "place" else ())
        return builder.let(name, op, (args[0],), axes, (("axis", axis), ("i", i)))
    raise ValueError(f"no tile operation for the leaf {node!r}: its tile must be given")

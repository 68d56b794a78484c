"""Rows past a sequence's end take no step: their decays are one and their drives zero.

Selecting that for every entry of a state is a large part of a short step. Often few entries decide:
exp(-delta[d] w[d, n]) is one where delta[d] is zero, and a product is zero where a token's tensor in it is, which reads
as zero past the end.
"""

from __future__ import annotations

from recur.ir.core import Node, is_const, leaves, topological
from recur.ir.tile import Builder, Value
from recur.operators import OPERATORS
from recur.passes.regroup import factors_of, is_product
from recur.strategies.pointwise import emit_nodes

KEEPING = ("expand", "sum", "rename", "index", "place")  # zero where what they take is
WILD_FROM_ZERO = frozenset({"div", "log", "log2", "rsqrt", "pow"})  # may be infinite where tokens read as zero


def emit_no_step(b: Builder, node: Node, fill: float, rows: str, values: dict[Node, Value]) -> None:
    """Gives ``values`` tiles such that ``node``, emitted from them, is ``fill`` past the end: 0 or 1."""
    for decisive, at in decisive_nodes(node, fill):
        values[decisive] = b.valid(emit_nodes(b, [decisive], values)[0], rows, at)


def decisive_nodes(node: Node, fill: float) -> list[tuple[Node, float]]:
    """The nodes to fill past the end, and with what, for ``node`` to be ``fill`` there; it varies with the token."""
    if fill == 1.0 and node.op in ("exp", "exp2"):
        return decisive_nodes(node.args[0], 0.0)
    if fill == 1.0 and node.op == "sub" and is_const(node.args[0], 1.0):
        return decisive_nodes(node.args[1], 0.0)
    if fill == 1.0:
        return [(node, fill)]
    varying = [f for f in factors_of(node) if varies(f)]
    wild = [f for f in varying if _is_wild(f)]
    if wild:
        return [(f, 0.0) for f in wild]
    if any(_vanishes(f) for f in varying):
        return []
    return [(min(varying, key=lambda f: len(f.dims)), 0.0)]


def varies(node: Node) -> bool:
    """Whether the node differs from token to token."""
    return any(x.attrs[0] != "param" for x in leaves([node]))


def _vanishes(node: Node) -> bool:
    """Whether the node is zero where all tokens' tensors are."""
    if node.op == "leaf":
        return varies(node)
    if is_product(node) or node.op == "contract":
        return any(_vanishes(a) for a in node.args)
    keeps_zero = node.op in KEEPING or (node.op in OPERATORS and OPERATORS[node.op].keeps_zero)
    return keeps_zero and all(_vanishes(a) for a in node.args)


def _is_wild(node: Node) -> bool:
    return any(n.op in WILD_FROM_ZERO and varies(n) for n in topological([node]))

"""Floating-point operations of one step as it is defined: what one head does for one token, before any strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping

from recur.ir.core import Node, Step, topological
from recur.operators import OPERATORS

FREE = frozenset({"real", "imag", "conj", "complex", "where", "lt", "le", "gt", "ge", "eq", "ne"})
COMPLEX = {"mul": 6, "div": 11, "add": 2, "sub": 2, "neg": 2}  # of real numbers; anything else: 4


def count_operations(step: Step, sizes: Mapping[str, int]) -> int:
    """Additions, multiplications and functions, each counted as one; shared values are computed once.

    A sum of n products is 2 n operations; four times as many real ones where both sides are complex. Choosing,
    comparing, moving and expanding are free, and so is what depends on params alone: it is done once for all tokens.
    """
    nodes = topological([node for _, node in (*step.updates, *step.outputs)])
    varying: set[Node] = set()
    for n in nodes:
        if (n.op == "leaf" and n.attrs[0] != "param") or any(a in varying for a in n.args):
            varying.add(n)
    return sum(_operations_of(n, sizes) for n in nodes if n in varying)


def _operations_of(node: Node, sizes: Mapping[str, int]) -> int:
    entries = _entries(node.dims, sizes)
    parts = [2 if a.is_complex else 1 for a in node.args]
    if node.op == "contract":
        summed = _entries(tuple(dict.fromkeys(d for a in node.args for d in a.dims)), sizes)
        return math.prod(parts) * (2 * summed if node.attrs[0] else summed)
    if node.op in ("sum", "amax"):
        return parts[0] * _entries(node.args[0].dims, sizes)
    if node.op == "hadamard":
        size = sizes[str(node.attrs[0])]
        return parts[0] * entries * (size.bit_length() - 1)
    if node.op not in OPERATORS or node.op in FREE:
        return 0
    return entries * (COMPLEX.get(node.op, 4) if all(p == 2 for p in parts) else max(parts))


def _entries(dims: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[d] for d in dims)

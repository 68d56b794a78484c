"""Products in the order that takes the fewest multiplications, all of a token's entries counted.

    (B[n] delta[d]) x[d]           =  B[n] (delta[d] x[d])
    sum_n lambda[d, n] x[d] B[n]   =  x[d] sum_n lambda[d, n] B[n]
    exp(-delta[d] w[d, n])         =  2 ** (delta[d] (-log2(e) w[d, n]))

Factors that no token changes are multiplied once, and first where that costs nothing, last where it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from recur.ir.core import Node, apply, const, contract, expand, leaves, mul, rebuild, reduce, topological

LOG2_E = const(1 / math.log(2))


def regroup(roots: Sequence[Node], sizes: Mapping[str, int]) -> list[Node]:
    """The roots with the same values and dims. ``sizes``: of dims; others count as 64."""
    return Regrouping(roots, sizes).roots


class Regrouping:
    def __init__(self, roots: Sequence[Node], sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.fixed: dict[Node, bool] = {}
        done: dict[Node, Node] = {}
        for node in topological(roots):
            known = rebuild(node, tuple(done[a] for a in node.args))
            done[node] = expand(self.regrouped(known), node.dims)
        self.roots = [done[root] for root in roots]

    def regrouped(self, node: Node) -> Node:
        if is_product(node):
            return self.product(factors_of(node))
        if node.op in ("contract", "sum"):
            return self.summed(node)
        if node.op == "exp" and not node.is_complex and len(found := factors_of(node.args[0])) > 1:
            return apply("exp2", self.product([*found, LOG2_E]))
        return node

    def summed(self, node: Node) -> Node:
        """A sum of products, what all terms share in front of it."""
        over: tuple[str, ...] = node.attrs[0]  # type: ignore[assignment]
        found = [f for a in node.args for f in factors_of(a)]
        inside = [f for f in found if set(over) & set(f.dims)]
        outside = [f for f in found if f not in inside]
        if not set(over) <= {d for f in inside for d in f.dims}:  # a factor was spread along one
            return node
        first, *second = self.merged(inside, 2)
        total = contract(first, second[0], over) if second else reduce("sum", first, over)
        return self.product([total, *outside])

    def product(self, factors: Sequence[Node]) -> Node:
        return self.merged(factors, 1)[0]

    def merged(self, factors: Sequence[Node], count: int) -> list[Node]:
        """At most ``count`` factors with the same product: the cheapest two become one, again and again."""
        found = list(factors)
        while len(found) > count:
            pairs = [(i, j) for j in range(len(found)) for i in range(j)]
            i, j = min(pairs, key=lambda pair: (*self.cost(found[pair[0]], found[pair[1]]), pair))
            found[i] = mul(found[i], found.pop(j))
        return found

    def cost(self, x: Node, y: Node) -> tuple[int, bool]:
        fixed = (self.is_fixed(x), self.is_fixed(y))
        if all(fixed):
            return 0, False
        return math.prod(self.sizes.get(d, 64) for d in {*x.dims, *y.dims}), any(fixed)

    def is_fixed(self, node: Node) -> bool:
        """Whether the node is the same for all tokens."""
        if node not in self.fixed:
            self.fixed[node] = all(x.attrs[0] == "param" for x in leaves([node]))
        return self.fixed[node]


def is_product(node: Node) -> bool:
    """Also a contraction over nothing, the tensor product."""
    return node.op == "mul" or (node.op == "contract" and not node.attrs[0])


def factors_of(node: Node) -> list[Node]:
    """Nodes whose product it is."""
    if is_product(node):
        return [f for a in node.args for f in factors_of(a)]
    if node.op == "neg":
        return [const(-1), *factors_of(node.args[0])]
    if node.op == "expand":
        return factors_of(node.args[0])
    return [node]

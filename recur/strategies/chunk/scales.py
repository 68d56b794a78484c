"""Factors without dims in the vectors and values of a write: rows are scaled after the matrix units, not before.

Then a product's operands are the user's own tensors, exact and straight from memory.
"""

from __future__ import annotations

from dataclasses import replace

from recur.ir.core import Node, const, div, is_const, leaves, mul, product, topological
from recur.ir.normal import Event, MatrixForm, Write

MOST_FACTORS = 64  # of a product taken apart
UNSAFE = ("div", "log", "log2", "rsqrt", "pow")  # may be infinite where their arguments are zero


def split_scale(node: Node) -> tuple[Node, Node]:
    """(scale without dims, the rest), a product taken apart; no scale where zero rows would not stay zero under it."""
    scale, rest = _split(node)
    return (scale, rest) if rest.dims and is_finite_at_zero(scale) else (const(1), node)


def is_finite_at_zero(scale: Node) -> bool:
    return not any(n.op in UNSAFE and leaves([n]) for n in topological([scale]))


def scale_last(node: Node) -> Node:
    """The expression with its factors and divisors without dims as one factor: a token's number, not one an entry."""
    scale, rest = _split(node, divisors=True)
    return mul(rest, scale) if rest.dims else node


def _split(node: Node, divisors: bool = False) -> tuple[Node, Node]:
    """(what has no dims, the rest) of a product's factors; ``divisors``: and of quotients'."""
    scales: list[Node] = []
    rest: list[Node] = []
    stack = [node]
    while stack:
        if len(scales) + len(rest) > MOST_FACTORS:
            return const(1), node
        x = stack.pop()
        if x.op == "mul":
            stack.extend(reversed(x.args))
        elif x.op == "neg":
            scales.append(const(-1))
            stack.append(x.args[0])
        elif divisors and x.op == "div" and not x.args[1].dims:
            scales.append(div(const(1), x.args[1]))
            stack.append(x.args[0])
        else:
            (rest if x.dims else scales).append(x)
    return product(scales), product(rest)


def scale_keys(form: MatrixForm) -> MatrixForm:
    """The same state with the factors without dims of what is written on the write's key: k (s v)^T = (s k) v^T.

    What is written without value dims is 1 then.
    """

    def event(e: Event) -> Event:
        if not isinstance(e, Write) or e.value is None:
            return e
        scale, rest = _split(e.value)
        return e if is_const(scale, 1.0) else replace(e, key=mul(scale, e.key), value=rest)

    return replace(form, events=tuple(map(event, form.events)))

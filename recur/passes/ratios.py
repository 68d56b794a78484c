"""Ratios of positive numbers by their logs: a / (a + b) is 0 / 0 where both underflow, and its exact value is not.

    a / (a + b)  ->  sigmoid(log a - log b)

Where the logs of both terms are known exactly (exp(x), sigmoid(x), products of such, positive constants).
"""

from __future__ import annotations

from dataclasses import replace

from recur.ir.core import Node, Step, apply, const, div, is_const, neg, rebuild, sub, topological
from recur.passes.affine import flatten, multiply
from recur.passes.decay import Ranges, decompose


def simplify_ratios(step: Step) -> Step:
    """The step with its ratios of a term to a sum of two."""
    ranges = Ranges(step.recurrence)
    done: dict[Node, Node] = {}
    for node in topological([n for _, n in (*step.updates, *step.outputs)]):
        new = rebuild(node, tuple(done[a] for a in node.args))
        ratio = _ratio(new, ranges) if new.op == "div" else None
        done[node] = new if ratio is None else ratio
    updates, outputs = (tuple((name, done[n]) for name, n in group) for group in (step.updates, step.outputs))
    return replace(step, updates=updates, outputs=outputs)


def _ratio(node: Node, ranges: Ranges) -> Node | None:
    """x a / (a + b) as x sigmoid(log a - log b); None where it is something else."""
    above, below = node.args
    if below.op != "add":
        return None
    first, second = (_exact_log(term, ranges) for term in below.args)
    if first is None or second is None:
        return None
    factors = flatten(above)
    pairs = [(below.args[0], first, second), (below.args[1], second, first)]
    # A constant divides anything: the other term comes first.
    for term, own, other in sorted(pairs, key=lambda pair: -len(_variables(pair[0]))):
        left = list(factors)
        parts = _variables(term)
        if all(parts.count(p) <= left.count(p) for p in parts):
            for part in parts:
                left.remove(part)
            numbers = [div(const(1), f) for f in flatten(term) if is_const(f)]
            difference = neg(other) if is_const(own, 0.0) else sub(own, other)
            return multiply([*left, *numbers, apply("sigmoid", difference, span=node.span)])
    return None


def _variables(term: Node) -> list[Node]:
    """The factors that are no numbers."""
    return [f for f in flatten(term) if not is_const(f)]


def _exact_log(term: Node, ranges: Ranges) -> Node | None:
    """The log of a positive term, which need not be evaluated itself."""
    if term.is_complex:
        return None
    polar = decompose((term,), ranges)
    if not polar.exact or polar.sign is not None or polar.angle is not None:
        return None
    return polar.log if polar.log is not None else const(0)

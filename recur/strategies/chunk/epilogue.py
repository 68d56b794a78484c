"""A stage's results as sums over its readouts.

A readout that a result adds as it is, in ``y = o + f(inputs)``, has the result's cotangent for its own: neither has to
go to memory, and what is left of the epilogue, f, is pulled back on its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from recur.ir.core import Node, is_const, leaves, mul, neg, total
from recur.ir.normal import MatrixForm, Readout

Epilogue = tuple[tuple[str, Node], ...]


def addends(node: Node) -> tuple[Node, ...]:
    """The terms of a sum, each with all of its dims."""
    if node.op not in ("add", "sub") or any(a.dims != node.dims for a in node.args):
        return (node,)
    first, second = (addends(a) for a in node.args)
    return first + (second if node.op == "add" else tuple(map(neg, second)))


def added_readouts(epilogue: Epilogue) -> dict[str, str]:
    """By readout that only one result reads, as a term: that result."""
    uses = _uses(epilogue)
    return {
        str(term.attrs[1]): result
        for result, node in epilogue
        for term in addends(node)
        if _is_readout(term) and term.is_complex == node.is_complex and uses[str(term.attrs[1])] == 1
    }


def added_rests(epilogue: Epilogue) -> Epilogue:
    """What the results are beside those readouts, where that is something."""
    added = added_readouts(epilogue)
    rests = [
        (result, total(t for t in addends(node) if not (_is_readout(t) and t.attrs[1] in added)))
        for result, node in epilogue
    ]
    return tuple((result, rest) for result, rest in rests if not is_const(rest, 0.0))


def absorb_scales(forms: tuple[MatrixForm, ...], epilogue: Epilogue) -> tuple[tuple[MatrixForm, ...], Epilogue]:
    """A constant times a readout that is used once becomes the readout of a scaled vector."""
    uses = _uses(epilogue)
    scales: dict[str, Node] = {}

    def absorbed(term: Node) -> Node:
        scale, core = _split_scale(term)
        if scale is None or not _is_readout(core) or uses[str(core.attrs[1])] != 1:
            return term
        scales[str(core.attrs[1])] = scale
        return core

    def rewritten(node: Node) -> Node:
        terms = addends(node)
        found = tuple(map(absorbed, terms))
        return node if found == terms else total(found)

    def scaled(form: MatrixForm) -> MatrixForm:
        events = tuple(
            replace(e, vector=mul(scales[e.name], e.vector)) if isinstance(e, Readout) and e.name in scales else e
            for e in form.events
        )
        return replace(form, events=events)

    results = tuple((result, rewritten(node)) for result, node in epilogue)
    return tuple(scaled(f) for f in forms), results


def _uses(epilogue: Epilogue) -> Counter[str]:
    """How often each readout stands in a term of a result."""
    return Counter(str(x.attrs[1]) for _, node in epilogue for t in addends(node) for x in leaves([t], "readout"))


def _is_readout(node: Node) -> bool:
    return node.op == "leaf" and node.attrs[0] == "readout"


def _split_scale(node: Node) -> tuple[Node | None, Node]:
    if node.op == "mul":
        for scale, core in (node.args, node.args[::-1]):
            if not scale.dims and not leaves([scale]):
                return scale, core
    return None, node

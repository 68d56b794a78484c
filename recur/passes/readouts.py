"""How a stage's exports use its matrix states: the contractions become readouts, what is left is the epilogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recur.ir.core import Node, rebuild, topological
from recur.passes.affine import Expander, NotAffine, Term, add_up, multiply
from recur.passes.matrix import MatrixBuilder
from recur.passes.updates import Linear, NotThisForm, Update, take_apart


@dataclass(frozen=True)
class Readings:
    """``terms``: for each node that contracts a state, its value as terms. ``whole``: states used whole."""

    terms: Mapping[Node, tuple[Term, ...]]
    whole: tuple[str, ...]
    order: tuple[Node, ...]

    def uses(self, update: Update) -> list[Linear]:
        """Every linear use of one state."""
        return [take_apart(t) for terms in self.terms.values() for t in terms if t.base in update.bases]


def find_readings(updates: Sequence[Update], roots: Sequence[Node]) -> Readings:
    """Which nodes under the roots contract the states; raises NotThisForm where one is used in another way."""
    owner = {base: u.state for u in updates for base in u.bases}
    order = topological(roots, owner)
    joint = Expander(owner)
    single = {u.state: Expander(u.bases) for u in updates}
    whole: set[str] = set()
    while True:
        raw: dict[Node, frozenset[str]] = {}
        inner: dict[Node, frozenset[str]] = {}  # the states read by a node that a further contraction may extend
        terms: dict[Node, tuple[Term, ...]] = {}
        for node in order:
            below = frozenset(s for a in node.args for s in raw[a]) if node not in owner else frozenset((owner[node],))
            states = below - whole
            read = frozenset(s for a in node.args for s in inner.get(a, ()))
            if states and node.op in ("contract", "sum") and node not in owner:
                found = _read(node, states, joint, single)
                if found is not None:
                    terms[node] = found
                    inner[node], states = states, frozenset()
            elif len(read) == 1 and not states and node.op in ("contract", "sum"):
                found = _read(node, read, joint, single)
                if found is not None and all(_leaves_columns(t, updates) for t in found):
                    terms[node] = found
                    inner[node] = read
            elif read and not states and node.op in ("mul", "neg", "div", "contract"):
                inner[node] = read
            raw[node] = states
        left = frozenset(s for r in roots for s in raw[r])
        if not left:
            used = _used_terms(roots, terms, owner)
            order = topological(roots, {*used, *owner})
            return Readings(used, tuple(u.state for u in updates if u.state in whole), tuple(order))
        whole |= left


def _used_terms(
    roots: Sequence[Node], terms: Mapping[Node, tuple[Term, ...]], owner: Mapping[Node, str]
) -> dict[Node, tuple[Term, ...]]:
    """Without the readings that occur inside further ones alone; those of coefficients beside a reading stay."""
    used: dict[Node, tuple[Term, ...]] = {}
    stack = list(roots)
    while stack:
        for node in topological([stack.pop()], {*terms, *owner}):
            if node in terms and node not in used:
                used[node] = terms[node]
                stack += [f for t in terms[node] for f in t.factors]
    return used


def _leaves_columns(term: Term, updates: Sequence[Update]) -> bool:
    """Whether a reading along several dims leaves dims of the state, or of a state of the stage that has more dims.

    q2 @ (q @ S) reads S[K, J, V] along K and J at once: one product of scores serves all of V. That also holds for its
    normaliser z[K, J], one more column. But w @ (q @ S) reads S[K, V] along K alone, and sums what was read.
    """
    if term.base is None:
        return False
    dims = set(term.base.dims)
    left = dims - {own for name, own in zip(term.dims, term.base.dims, strict=True) if name in term.over}
    return bool(left) or any(dims < set(u.dims) for u in updates)


def _read(
    node: Node, states: frozenset[str], joint: Expander, single: Mapping[str, Expander]
) -> tuple[Term, ...] | None:
    """The node as terms that all contract a state, or None."""
    expanders = [joint] if len(states) > 1 else [joint, single[next(iter(states))]]
    for expander in expanders:
        try:
            terms = expander.expand(node)
        except NotAffine:
            continue
        if all(t.base is None or set(t.dims) & set(t.over) for t in terms):
            return terms
    return None


def convert(roots: Sequence[Node], readings: Readings, builders: Mapping[str, MatrixBuilder]) -> list[Node]:
    """The roots as nodes over readout leaves; the builders collect the readouts."""
    owner = {base: state for state, b in builders.items() for base in b.update.bases}
    bases = set(owner)
    done: dict[Node, Node] = {}

    def factor(node: Node) -> Node:
        """A coefficient beside a readout may itself depend on readouts of other states."""
        for n in topological([node], owner):
            if n not in done:
                done[n] = once(n)
        return done[node]

    def once(node: Node) -> Node:
        if node in readings.terms:
            return add_up([_convert_term(t, builders, owner, factor, bases) for t in readings.terms[node]])
        if node in owner:
            return builders[owner[node]].whole(node) if owner[node] in readings.whole else node
        return rebuild(node, tuple(done[a] for a in node.args))

    for node in readings.order:
        if node not in done:
            done[node] = once(node)
    return [done[r] for r in roots]


def _convert_term(
    term: Term, builders: Mapping[str, MatrixBuilder], owner: Mapping[Node, str], factor: object, bases: set[Node]
) -> Node:
    assert callable(factor)
    if term.base is None:
        return multiply(factor(f) for f in term.factors)
    linear = take_apart(term)
    for f in linear.vector:
        if any(n in bases for n in topological([f], owner)):
            raise NotThisForm("is read out by a value that depends on the stage's own states", term.node)
    rest = tuple(factor(f) for f in linear.rest)
    return builders[owner[term.base]].readout(
        Linear(linear.base, linear.contracted, linear.vector, rest, linear.mixed, linear.term)
    )

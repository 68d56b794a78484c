"""A state's assignments within a step, in order, and its terms: what every family's classification starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from recur.ir.core import Node, leaf, rebuild, topological, version
from recur.ir.normal import Stage
from recur.ir.spec import Recurrence, Span
from recur.passes.affine import Term, rename_factor, summands
from recur.passes.affine import simplify_eye as _simplify_eye


class NotThisForm(Exception):
    """The state does not have the form that was tried: why, and the term that shows it."""

    def __init__(self, why: str, node: Node | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.node = node

    @property
    def span(self) -> Span | None:
        return self.node.span if self.node is not None else None


@dataclass(frozen=True)
class Update:
    """``versions``: the state's values after each of its assignments, `version` nodes; the last is the new state."""

    state: str
    dims: tuple[str, ...]
    leaf: Node
    versions: tuple[Node, ...]
    is_complex: bool

    @property
    def bases(self) -> tuple[Node, ...]:
        return (self.leaf, *self.versions)

    def position(self, base: Node) -> int:
        return self.bases.index(base)


def collect_update(stage: Stage, state: str, recurrence: Recurrence) -> Update:
    declared = next(v for v in recurrence.states if v.name == state)
    final = dict(stage.updates)[state]
    roots = [node for _, node in (*stage.updates, *stage.exports)]
    versions = [n for n in topological(roots) if n.op == "version" and n.attrs[0] == state]
    versions.sort(key=lambda n: n.attrs[1])
    if final.op != "version" or final.attrs[0] != state:
        final = version(final, state, len(versions) + 1, final.span)
        versions.append(final)
    versions = [v for v in versions if v != final] + [final]
    before = leaf("state", state, declared.dims, declared.is_complex)
    return Update(state, declared.dims, before, tuple(versions), declared.is_complex)


def unwrap(roots: Iterable[Node], states: set[str], keep: dict[Node, Node] | None = None) -> list[Node]:
    """The roots without `version` marks of the states; nodes in ``keep`` are replaced as it says."""
    roots = list(roots)
    keep = keep or {}
    done: dict[Node, Node] = {}
    for node in topological(roots):
        if node in keep:
            done[node] = keep[node]
        elif node.op == "version" and node.attrs[0] in states:
            done[node] = done[node.args[0]]
        else:
            done[node] = rebuild(node, tuple(done[a] for a in node.args))
    return [done[r] for r in roots]


# --- what a term does to the state -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A term that is linear in ``base``, taken apart.

    ``contracted``: the base's dims that are summed away. ``vector``: the factors of that sum, under the base's own
    names; ``rest``: the other factors. Where ``mixed``, the sum's factors also hold a result dim of the same name: a
    matrix.
    """

    base: Node
    contracted: tuple[str, ...]
    vector: tuple[Node, ...]
    rest: tuple[Node, ...]
    mixed: bool
    term: Term

    @property
    def node(self) -> Node | None:
        return self.term.node


def take_apart(term: Term) -> Linear:
    assert term.base is not None
    private = dict(zip(term.dims, term.base.dims, strict=True))
    over = set(term.over)
    contracted = tuple(own for name, own in private.items() if name in over)
    moved = [(own, name) for name, own in private.items() if name not in over and name != own]
    if moved:
        raise NotThisForm(f"moves the state's dimension {moved[0][0]} to {moved[0][1]}", term.node)
    vector = tuple(f for f in term.factors if over & set(f.dims))
    rest = tuple(f for f in term.factors if not over & set(f.dims))
    mixed = any(set(f.dims) & set(contracted) for f in vector)
    if not mixed:
        for name, own in private.items():
            if name in over:
                vector = tuple(rename_factor(f, name, own) for f in vector)
    return Linear(term.base, contracted, vector, rest, mixed, term)


def split_linear(term: Term) -> list[Linear]:
    """The term taken apart; matrices that are sums of outer products and identities, (I - b k k^T), are written out."""
    whole = take_apart(term)
    if not whole.mixed:
        return [whole]
    for factor in whole.vector:
        if not set(factor.dims) & set(whole.contracted):
            continue
        parts = summands(factor)
        if parts == [(factor,)]:
            return [whole]
        left = list(term.factors)
        left.remove(factor)
        pieces = [
            _simplify_eye(Term((*left, *part), term.base, term.dims, term.over, term.node)) for part in parts
        ]
        found = [linear for piece in pieces for linear in split_linear(piece)]
        return found if not any(f.mixed for f in found) else [whole]
    return [whole]

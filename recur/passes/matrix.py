"""Matrix states: an update as decays, reads and writes in order, and outputs as readouts (docs/mathematics.md, 1).

    S <- D S                      one or two decays, over K and over V
    r  = a^T S                    reads, all along the key dims
    S <- S + b (y - r)^T          writes, equal keys merged; scalars on the value's side and on the read's vector

A read or readout whose vector repeats the factors of the decay that comes next is moved behind that decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from recur.ir.core import Node, const, is_const, leaf
from recur.ir.normal import Decay, Event, MatrixForm, Read, Readout, Write
from recur.ir.printing import format_node
from recur.passes.affine import (
    Expander,
    Term,
    add_up,
    contract_factors,
    flatten,
    multiply,
    ones,
    ordered,
    summands,
    unroll,
)
from recur.passes.decay import Ranges, decompose
from recur.passes.updates import Linear, NotThisForm, Update, split_linear, take_apart

Axis = Literal["key", "value"]
MAX_RANK = 8  # sums over fixed dims up to this size become as many reads or writes
Slot = tuple[int, bool]  # (version, after the decay of the next version)


@dataclass
class _Assignment:
    """One version: its decay's factors, its reads (by slot and key) and its plain writes."""

    decay: tuple[Node, ...] = ()
    reads: list[tuple[Slot, Linear]] = field(default_factory=list)
    plain: list[tuple[Node, ...]] = field(default_factory=list)


@dataclass
class _RawWrite:
    key: Node
    values: list[Node]
    reads: dict[Slot, list[Node]]


@dataclass
class _RawReadout:
    axis: Axis
    vector: Node
    name: str


class MatrixBuilder:
    """Collects one state's events. Raises NotThisForm where the state is no matrix state.

    ``uses``: the linear terms by which outputs read the state; they fix the key where the update has no reads.
    """

    def __init__(self, update: Update, uses: Sequence[Linear], ranges: Ranges) -> None:
        self.update = update
        self.ranges = ranges
        self._readouts: dict[Slot, list[_RawReadout]] = {}
        self._count = 0
        expander = Expander(update.bases)
        fixed = ranges.fixed
        pieces = [[_pieces(t, fixed) for t in expander.expand(v.args[0])] for v in update.versions]
        linear = [[p for group in version for p in group if isinstance(p, Linear)] for version in pieces]
        plain = [[p for group in version for p in group if isinstance(p, tuple)] for version in pieces]
        self._find_axes(linear, plain, uses)
        self.assignments = [
            self._assign(i, lin, const_terms) for i, (lin, const_terms) in enumerate(zip(linear, plain, strict=True))
        ]

    # --- axes ---

    def _find_axes(
        self, linear: list[list[Linear]], plain: list[list[tuple[Node, ...]]], uses: Sequence[Linear]
    ) -> None:
        dims = self.update.dims
        reads = [p for version in linear for p in version if p.contracted]
        for p in reads:
            if p.mixed:
                raise NotThisForm(f"multiplies the state by the matrix {_show(p.vector)}", p.node)
        self.has_reads = bool(reads)
        keys = dict.fromkeys(ordered(p.contracted, dims) for p in reads)
        if len(keys) > 1:
            raise NotThisForm(f"is read along {' and along '.join(map(_show_dims, keys))}", reads[-1].node)
        if not keys:
            keys = dict.fromkeys(ordered(p.contracted, dims) for p in uses if len(p.contracted) < len(dims))
            keys = keys or dict.fromkeys(ordered(p.contracted, dims) for p in uses)
        if not keys:
            raise NotThisForm("is never contracted, neither by the update nor by an output")
        self.key: tuple[str, ...] = min(keys, key=len)  # a reading along more dims sums what this one reads
        products = [f for version in plain for factors in version for f in factors]
        products += [f for p in [*reads, *uses] for f in (*p.vector, *p.rest)]
        own = set(self.key)
        shared = {d for f in products if own & set(f.dims) for d in f.dims if d not in own}
        self.batch = ordered(shared, dims)
        self.value = tuple(d for d in dims if d not in shared and d not in own)
        if not self.value and not reads and len(dims) > len(self.key):
            raise NotThisForm("is weighed entry by entry")

    def _side(self, factor: Node) -> str:
        """key, value, both or scalar: which of the state's dims the factor has, batch dims aside."""
        has_key = bool(set(factor.dims) & set(self.key))
        has_value = bool(set(factor.dims) & set(self.value))
        return "both" if has_key and has_value else "key" if has_key else "value" if has_value else "scalar"

    # --- assignments ---

    def _assign(self, previous: int, linear: list[Linear], plain: list[tuple[Node, ...]]) -> _Assignment:
        result = _Assignment()
        bare = [p for p in linear if not p.contracted]
        late = [p for p in bare if self.update.position(p.base) != previous]
        if late:
            raise NotThisForm("adds an older value of the state", late[0].node)
        result.decay = self._decay_factors(bare)
        for p in linear:
            if p.contracted:
                result.reads.append(self._place(p, previous, result.decay))
        result.plain = plain
        return result

    def _decay_factors(self, bare: list[Linear]) -> tuple[Node, ...]:
        """The coefficient of the bare state as factors; what all terms share is taken out of the sum."""
        if not bare:
            raise NotThisForm("does not keep the previous state")
        products = [list(p.rest) for p in bare]
        common: list[Node] = []
        for factor in list(products[0]):
            if all(factor in p for p in products):
                common.append(factor)
                for p in products:
                    p.remove(factor)
        if any(products):
            common.append(add_up([multiply(p) for p in products]))
        elif len(products) > 1:
            common.append(const(len(products)))
        for factor in common:
            if self._side(factor) == "both":
                shown = format_node(factor, 80)
                raise NotThisForm(f"decays by {shown}, which does not split over the axes", bare[0].node)
            if is_const(factor, 0.0):
                raise NotThisForm("does not keep the previous state")
        return tuple(common)

    def _place(self, linear: Linear, position: int, decay: tuple[Node, ...]) -> tuple[Slot, Linear]:
        """Where the read acts: behind the next version's decay where its factors repeat that decay."""
        at = self.update.position(linear.base)
        if at != position or not decay:
            return (at, False), linear
        vector, rest = list(linear.vector), list(linear.rest)
        for factor in decay:
            if factor in vector:
                vector.remove(factor)
            elif factor in rest:
                rest.remove(factor)
            else:
                return (at, False), linear
        stripped = Linear(linear.base, linear.contracted, tuple(vector), tuple(rest), linear.mixed, linear.term)
        return (at, True), stripped

    # --- readouts ---

    def readout(self, linear: Linear) -> Node:
        """The value of a term of an output, as a node over a readout leaf; raises NotThisForm."""
        at = self.update.position(linear.base)
        decay = self.assignments[at].decay if at < len(self.assignments) else ()
        slot, linear = self._place(linear, at, decay)
        contracted = set(linear.contracted)
        axis: Axis = "value" if contracted == set(self.value) and self.value else "key"
        wanted = set(self.value if axis == "value" else self.key)
        if linear.mixed or not wanted <= contracted:
            raise NotThisForm("is read out other than along its axes", linear.node)
        vector = [f for f in linear.vector if set(f.dims) & wanted]
        other = [f for f in linear.vector if not set(f.dims) & wanted]
        allowed = wanted | set(self.batch)
        for f in vector:
            if not set(f.dims) <= allowed:
                raise NotThisForm(f"is read out by {format_node(f, 80)}, which is no vector", linear.node)
        name = self._add_readout(slot, axis, multiply([*vector, *(ones(d) for d in ordered(wanted, self.update.dims))]))
        left = contracted - wanted
        kept = self.batch + (self.key if axis == "value" else self.value)
        value = leaf("readout", name, kept, self.update.is_complex or any(f.is_complex for f in vector))
        if left:
            return multiply([*contract_factors([*other, value], left), *linear.rest])
        return multiply([value, *other, *linear.rest])

    def whole(self, base: Node) -> Node:
        """The state itself, for a vector state: a readout that contracts no dims."""
        if self.value:
            raise NotThisForm("is used whole, without a contraction", base)
        name = self._add_readout((self.update.position(base), False), "value", const(1))
        return leaf("readout", name, self.batch + self.key, self.update.is_complex)

    def _add_readout(self, slot: Slot, axis: Axis, vector: Node) -> str:
        found = self._readouts.setdefault(slot, [])
        for readout in found:
            if readout.axis == axis and readout.vector == vector:
                return readout.name
        name = f"{self.update.state}_out{self._count}"
        self._count += 1
        found.append(_RawReadout(axis, vector, name))
        return name

    # --- the form ---

    def build(self) -> MatrixForm:
        items: list[tuple[Node, ...] | Slot | list[_RawWrite]] = [(0, False)]
        for i, assignment in enumerate(self.assignments):
            if assignment.decay:
                items.append(assignment.decay)
            items += [(i, True), self._raw_writes(assignment), (i + 1, False)]
        reads = self._slot_reads(items)
        events: list[Event] = []
        names: dict[tuple[Slot, Node], str] = {}
        for item in _merge(items, lambda s: bool(reads.get(s) or self._readouts.get(s))):
            if isinstance(item, list):
                events += self._writes(item, names)
            elif _is_slot(item):
                for vector in reads.get(item, []):
                    names[item, vector] = f"{self.update.state}_read{len(names)}"
                    events.append(Read(names[item, vector], vector, vector.span))
                readouts = self._readouts.get(item, [])
                events += [Readout(r.name, r.vector, r.axis, r.vector.span) for r in readouts]
            else:
                events += self._decays(item)
        return MatrixForm(self.update.state, self.batch, self.key, self.value, tuple(events), self.update.is_complex)

    def _raw_writes(self, assignment: _Assignment) -> list[_RawWrite]:
        writes: dict[Node, _RawWrite] = {}
        for slot, p in assignment.reads:
            key, scalars, value = self._split_write(p.rest)
            if value:
                raise NotThisForm(f"scales a read by {_show(value)}, along the other axis", p.node)
            vector = multiply([const(-1), *scalars, *p.vector])
            write = writes.setdefault(key, _RawWrite(key, [], {}))
            write.reads.setdefault(slot, []).append(vector)
        for factors in assignment.plain:
            key, scalars, value = self._split_write(factors)
            uncovered = [ones(d) for d in self.value if not any(d in f.dims for f in value)]
            write = writes.setdefault(key, _RawWrite(key, [], {}))
            write.values.append(multiply([*scalars, *value, *uncovered]))
        return list(writes.values())

    def _split_write(self, factors: Iterable[Node]) -> tuple[Node, list[Node], list[Node]]:
        sides: dict[str, list[Node]] = {"key": [], "value": [], "scalar": [], "both": []}
        for f in factors:
            sides[self._side(f)].append(f)
        if sides["both"]:
            raise NotThisForm(f"adds {_show(sides['both'])}, which is no outer product", sides["both"][0])
        missing = [ones(d) for d in self.key if not any(d in f.dims for f in sides["key"])]
        return multiply([*sides["key"], *missing]), sides["scalar"], sides["value"]

    def _slot_reads(self, items: Sequence[object]) -> dict[Slot, list[Node]]:
        """The vectors read at each slot, in order, each once."""
        reads: dict[Slot, list[Node]] = {}
        for item in items:
            if isinstance(item, list):
                for write in item:
                    for slot, vectors in write.reads.items():
                        merged = add_up(vectors)
                        write.reads[slot] = [merged]
                        if merged not in reads.setdefault(slot, []):
                            reads[slot].append(merged)
        return reads

    def _writes(self, raw: list[_RawWrite], names: dict[tuple[Slot, Node], str]) -> list[Write]:
        result: list[Write] = []
        for write in raw:
            value = add_up(write.values) if write.values else None
            reads = [names[slot, vectors[0]] for slot, vectors in write.reads.items()]
            for i, name in enumerate(reads or [None]):
                own = value if i == 0 else None
                result.append(Write(write.key, own, name, write.key.span))
        return sorted(result, key=lambda w: (w.read is None, w.read or "", format_node(w.key)))

    def _decays(self, factors: tuple[Node, ...]) -> list[Decay]:
        """At most two decays, over the key's dims and over the value's; scalars join the first there is."""
        key = [f for f in factors if self._side(f) == "key"]
        value = [f for f in factors if self._side(f) == "value"]
        scalars = [f for f in factors if self._side(f) == "scalar"]
        groups = [g for g in (key, value) if g] or [[]]
        groups[0] = [*scalars, *groups[0]]
        decays = []
        for group in groups:
            polar = decompose(tuple(group), self.ranges)
            factor = multiply(group)
            may_grow = not self._is_at_most_one(factor, polar.log)
            decays.append(Decay(factor, polar.log, polar.sign, polar.angle, group[0].span, may_grow))
        return decays

    def _is_at_most_one(self, factor: Node, log: Node | None) -> bool:
        """Whether the modulus is known to be."""
        if log is None or self.ranges.of(log)[1] <= 0:
            return True
        low, high = self.ranges.of(factor)
        return not factor.is_complex and low >= -1 and high <= 1


def _pieces(term: Term, fixed: Mapping[str, int]) -> list[Linear | tuple[Node, ...]]:
    """The term taken apart. Matrices and plain writes of low rank, sums over a small fixed dim, are written out."""
    if term.base is None:
        return list(_plain_pieces(term.factors, fixed))
    inner = [d for d in term.over if d not in term.dims and fixed.get(d.split("'")[0], MAX_RANK + 1) <= MAX_RANK]
    if not inner or not take_apart(term).mixed:
        return list(split_linear(term))
    name = inner[0]
    over = tuple(d for d in term.over if d != name)
    terms = [replace(term, factors=f, over=over) for f in unroll(term.factors, name, fixed[name.split("'")[0]])]
    return [piece for t in terms for piece in _pieces(t, fixed)]


def _plain_pieces(factors: tuple[Node, ...], fixed: Mapping[str, int]) -> list[tuple[Node, ...]]:
    """A plain write's widest factor, written out where that gives smaller ones."""
    rank = max((len(f.dims) for f in factors), default=0)
    widest = next((f for f in factors if len(f.dims) == rank), None) if rank > 1 else None
    if widest is None:
        return [factors]
    parts = summands(widest)
    over = widest.attrs[0] if widest.op == "contract" else ()
    assert isinstance(over, tuple)
    if len(over) == 1 and fixed.get(over[0], MAX_RANK + 1) <= MAX_RANK:
        product = flatten(widest.args[0]) + flatten(widest.args[1])
        parts = unroll(product, over[0], fixed[over[0]])
    if any(len(f.dims) == rank for part in parts for f in part):
        return [factors]
    left = list(factors)
    left.remove(widest)
    return [piece for part in parts for piece in _plain_pieces((*left, *part), fixed)]


def _is_slot(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], int)


def _merge(items: list, occupied: object) -> list:
    """Neighbouring decays joined into one, and neighbouring writes; slots that nothing occupies fall away."""
    assert callable(occupied)
    result: list = []
    for item in items:
        if isinstance(item, list):
            if result and isinstance(result[-1], list):
                result[-1] = _join_writes(result[-1], item)
            elif item:
                result.append(item)
        elif _is_slot(item):
            if occupied(item):
                result.append(item)
        elif result and isinstance(result[-1], tuple) and not _is_slot(result[-1]):
            result[-1] = (*result[-1], *item)
        else:
            result.append(item)
    return result


def _join_writes(first: list[_RawWrite], second: list[_RawWrite]) -> list[_RawWrite]:
    joined = {w.key: _RawWrite(w.key, list(w.values), dict(w.reads)) for w in first}
    for w in second:
        own = joined.setdefault(w.key, _RawWrite(w.key, [], {}))
        own.values += w.values
        for slot, vectors in w.reads.items():
            own.reads.setdefault(slot, []).extend(vectors)
    return list(joined.values())




def _show(factors: Iterable[Node]) -> str:
    return format_node(multiply(factors), 80)


def _show_dims(dims: tuple[str, ...]) -> str:
    return ", ".join(dims)

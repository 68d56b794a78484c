"""Gradients where the key side of every chunk lies in memory: a program for a chunk and a tile of the key dims.

It takes one vector after the other, a phase each, so that registers hold the sums of one at a time. A phase walks the
tiles of the value dims for what its vector needs of them, then comes to the vector's cotangent. With (kx, vx) the
queries (readouts (q, dO), reads (a, -Z)) and (b, u) the writes,

    dkx = 2^G (vx S^T) + sum over the writes of E b^,   db = 2^(G_C - G) (u R^T) + sum over the queries of E^T kx~
    E[c, s] = vx[c] u[s], s written before c

What the decays take from each vector, kx dkx and -b db, is added up in float32 on the way: their cotangents are running
sums of it, anchored at the chunk's end. The writes' values have a kernel of their own, whose programs hold the key dims
whole: dy = P^T vx + B R where a write is plain, else Z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from recur.ir.core import Node
from recur.ir.normal import MatrixForm, Read
from recur.ir.tile import Access, Axis, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import adjoint_values, read_keys, readout_keys
from recur.strategies.chunk.decay_gradient import Row, later_sum
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import class_decays
from recur.strategies.chunk.gradients import (
    Cotangents,
    add_decay,
    adjoint_name,
    load_cotangents,
    store_gradient,
)
from recur.strategies.chunk.kernels import values_name
from recur.strategies.chunk.key_side import WARPS, place_keys, stored_chunk, stored_chunk_length, tile_widths
from recur.strategies.chunk.shape import Shape, chunk_access, token_access
from recur.strategies.chunk.tiles import FormTiles, Rows, Tiles, Vector, key_vector, load_gates, signed
from recur.strategies.operands import argument_leaves

PHASES = "gradients, phase by phase"  # the role of a kernel whose operations are in order

BufferOf = Callable[[Node, str, str], str]  # source, part, the axis whose tiles give partial sums or ""
EQUATIONS = (
    "dkx = 2^G vx S^T + E B^,   db = E^T kx~ + 2^(G_C - G) u R^T,   E = tril(vx u^T)",
    "(kx, vx): (q, dO) for readouts, (a, -Z) for reads",
    "dg = reverse running sum of kx dkx - b db, plus 2^G_C <S, R> and what the writes leave to R",
)


@dataclass(frozen=True)
class Query:
    """A readout, or the read of a solved write: its vector's expression and position."""

    name: str
    node: Node
    position: int
    write: int | None = None


def queries_of(form: MatrixForm) -> list[Query]:
    """The readouts, then the reads of the solved writes, in the order of `readout_keys` and `read_keys`."""
    reads = {e.name: (i, e.vector) for i, e in enumerate(form.events) if isinstance(e, Read)}
    found = [Query(r.name, r.vector, form.events.index(r)) for r in form.readouts]
    for j, write in enumerate(form.writes):
        if write.read is not None:
            position, node = reads[write.read]
            found.append(Query(f"solved_{j}", node, position, j))
    return found


@dataclass(frozen=True)
class Phase:
    """One vector's part: the expressions whose cotangents it adds, and its emitter."""

    nodes: tuple[Node, ...]
    emit: Callable[[], None]


def emit_key_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The key side's cotangents, pulled back to the inputs as soon as no later phase adds to them."""
    b = Builder(complex_buffers=shape.complex_buffers)
    body = Body(b, shape, buffer_of)
    phases = [phase for form in shape.forms for phase in FormPhases(body, form).phases()]
    for number, phase in enumerate(phases):
        phase.emit()
        body.store_complete([n for later in phases[number + 1 :] for n in later.nodes])
    axes = tuple(place_keys(shape, a, "grid") for a in looped_values(shape))
    grid = ("batch", "head", "chunk", f"tile:{shape.key[0]}")
    widths = tile_widths(shape, shape.key + shape.value, stored_chunk_length(shape))
    return Kernel("gradients", grid, axes, tuple(b.statements), EQUATIONS, PHASES, widths, WARPS)


def looped_values(shape: Shape) -> tuple[Axis, ...]:
    """The axes, with the value dims in tiles that a loop goes through."""
    looped = () if shape.whole_values else shape.value
    return tuple(replace(a, place="loop") if a.name in looped else a for a in shape.axes)


@dataclass
class Body:
    """What the phases share: the cotangents of expressions."""

    b: Builder
    shape: Shape
    buffer_of: BufferOf
    cotangents: Cotangents = field(default_factory=Cotangents)
    stored: set[Node] = field(default_factory=set)
    def store_complete(self, open_nodes: list[Node]) -> None:
        """Stores the gradients of the sources that none of the open expressions reads."""
        still_open = set(argument_leaves(open_nodes))
        reached = argument_leaves(self.cotangents.nodes)
        ready = [s for s in reached if s not in still_open and s not in self.stored]
        self.stored.update(ready)
        for source, tile in self.cotangents.pull_each(Tiles(self.b), ready):
            self._store(source, tile)
        self.cotangents.drop(still_open)

    def _store(self, source: Node, tile: Value) -> None:
        """Of a source without key dims, this tile's share."""
        (key,) = self.shape.key
        if key in source.dims:
            store_gradient(self.b, source, tile, self.buffer_of(source, "keys", ""))
            return
        buffer = self.buffer_of(source, "keys", key)
        if source.attrs[0] == "param":
            access = Access(buffer, ("batch", "chunk", "head", f"tile:{key}", *source.dims))
            self.b.store(access, self.b.sum(tile, ("c",), name=tile.name), "one partial sum a chunk and tile")
        else:
            access = Access(buffer, ("batch", "time", "head", f"tile:{key}", *source.dims), "c")
            self.b.store(access, tile, "one partial sum a tile")


@dataclass
class ValueLoop:
    """A loop over the tiles of the value dims and the sums that it carries; see `rows` and `states` for its tiles."""

    shape: Shape
    form: MatrixForm
    outer: Builder
    carries: list[Carry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b = self.outer.nested()
        self.tiles = Tiles(self.b)
        self.chunk = stored_chunk(self.tiles, self.form)
        self.cotangents = load_cotangents(self.b, self.shape, self.form)

    def state(self) -> Value:
        return self._state(self.form.state, f"chunk_{self.form.state}")

    def adjoint(self) -> Value:
        return self._state("R", f"chunk_R_{self.form.state}")

    def _state(self, name: str, buffer: str) -> Value:
        axes = self.shape.state_axes(self.form)
        return self.b.load(name, chunk_access(buffer, axes), axes)

    def solved(self, j: int) -> Value:
        """Z of a solved write."""
        access = token_access(adjoint_name(self.form.state, j), self.form.value)
        return self.b.load("Z", access, ("c", *self.form.value))

    def query(self, query: Query) -> Rows:
        """vx: a readout's cotangent, or -Z."""
        if query.write is None:
            return Rows(self.cotangents[query.name])
        return Rows(self.b.neg(self.solved(query.write), name="minus_Z"))

    def written(self, j: int) -> Rows:
        """u: a plain write's value, or the pseudo-value."""
        if self.form.writes[j].read is None:
            return self.chunk.form.values[j]
        access = token_access(values_name(self.form.state, j), self.form.value)
        return Rows(self.b.load("U", access, ("c", *self.form.value)))

    def add(self, name: str, amount: Value) -> Value:
        """The amount's sum over all tiles, after the loop."""
        zero = self.outer.zeros(amount.axes, f"{name}_0")
        phi = self.b.phi(name, zero)
        self.carries.append(Carry(phi, zero, self.b.add(phi, amount, name=name)))
        return phi

    def close(self) -> None:
        self.outer.loop("tiles", self.b, tuple(self.carries), axis=self.form.value[0])


@dataclass
class FormPhases:
    """One form's phases: its queries, its writes, its decays."""

    body: Body
    form: MatrixForm
    amounts: dict[tuple[bool, ...], Row] = field(default_factory=dict)
    whole: list[Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b = self.body.b
        self.queries = queries_of(self.form)
        self.positions = [self.form.events.index(w) for w in self.form.writes]
        self.has_decay = bool(class_decays(self.form, "key"))

    def phases(self) -> list[Phase]:
        found = [Phase((q.node,), lambda q=q: self.emit_query(q)) for q in self.queries]  # type: ignore[misc]
        for j, write in enumerate(self.form.writes):
            found.append(Phase((write.key,), lambda j=j: self.emit_write(j)))  # type: ignore[misc]
        logs = tuple(d.log for _, d in class_decays(self.form, "key") if d.log is not None)
        return [*found, Phase(logs, self.emit_decays)] if logs else found

    def open_chunk(self) -> Chunk:
        """Gates and rows loaded anew: registers are for sums, not for what a later phase can read again."""
        tiles = Tiles(self.b)
        self.key_gates = load_gates(tiles, self.form, "key")
        return Chunk(tiles, FormTiles(self.form, {}, {}, {}, {}, self.key_gates, None))

    def key(self, chunk: Chunk, j: int) -> Vector:
        return key_vector(chunk.tiles, self.key_gates, self.form.writes[j].key, self.positions[j], "b")

    def emit_query(self, query: Query) -> None:
        loop, b = ValueLoop(self.body.shape, self.form, self.b), self.b
        vx = loop.query(query)
        pairs = self._evidence(loop, [(query, j) for j in range(len(self.form.writes))])
        read = loop.chunk.times(loop.b.contract(vx.tile, loop.state(), self.form.value, name="V_S"), vx.scale)
        from_state = loop.add("V_S", read)
        loop.close()
        chunk = self.open_chunk()
        total = self._decayed(chunk, from_state, query.position, "start", "d_inter")
        for (_, j), evidence in pairs.items():
            key = self.key(chunk, j)
            masked = chunk.masked(evidence, query.position, key.position, "E")
            total = b.add(total, chunk.spread_keys(masked, key, query.position, key.position), name="d_kx")
        self._add_vector(chunk, query.node, query.position, total, "q", b.add)

    def emit_write(self, j: int) -> None:
        loop, b = ValueLoop(self.body.shape, self.form, self.b), self.b
        position = self.positions[j]
        pairs = self._evidence(loop, [(query, j) for query in self.queries])
        u, adjoint = loop.written(j), loop.adjoint()
        kept = loop.chunk.times(loop.b.contract(u.tile, adjoint, self.form.value, name="U_R"), u.scale)
        to_adjoint = loop.add("U_R", kept)
        if j == 0 and self.has_decay:
            both = loop.b.sum(loop.b.mul(loop.state(), adjoint, name="S_R"), self.form.value, name="S_R")
            across = loop.add("S_R", both)
        loop.close()
        chunk = self.open_chunk()
        if j == 0 and self.key_gates is not None:
            self.whole.append(b.mul(across, chunk.over_chunk(self.key_gates), name="S_R"))
        after = self._decayed(chunk, to_adjoint, position, "end", "d_after")
        if self.key_gates is not None:
            key = self.key(chunk, j)
            self.whole.append(b.sum(b.mul(chunk.full(key), after, name="kept"), ("c",), name="kept"))
        total = after
        for (query, _), evidence in pairs.items():
            kx = key_vector(chunk.tiles, self.key_gates, query.node, query.position, "q")
            masked = chunk.masked(evidence, query.position, position, "E")
            total = b.add(total, chunk.gather_keys(masked, kx, query.position, position), name="d_b")
        self._add_vector(chunk, self.form.writes[j].key, position, total, "b", b.sub)

    def _evidence(self, loop: ValueLoop, wanted: list[tuple[Query, int]]) -> dict[tuple[Query, int], Value]:
        """E of each query and write, over all tiles."""
        found = {}
        for query, j in wanted:
            vx, u = loop.query(query), loop.written(j)
            pairs = loop.chunk.value_scores(vx, query.position, u, self.positions[j], name="E")
            found[query, j] = loop.add("E", pairs)
        return found

    def _decayed(self, chunk: Chunk, tile: Value, position: int, which: str, name: str) -> Value:
        return chunk.times(tile, *chunk.factors(self.key_gates, position, which), name=name)

    def _add_vector(
        self, chunk: Chunk, node: Node, position: int, cotangent: Value, name: str, grow: Callable[..., Value]
    ) -> None:
        """A finished cotangent of the signed vector: the decays' share of it, and the expression's own cotangent."""
        b = self.b
        if self.key_gates is not None:
            vector = key_vector(chunk.tiles, self.key_gates, node, position, name)
            amount = b.mul(chunk.full(vector), cotangent, name="amount")
            key = tuple(position > i for i, _ in class_decays(self.form, "key"))
            known = self.amounts.get(key)
            start = known.amount if known is not None else b.zeros(amount.axes, "amount_0")
            self.amounts[key] = Row(grow(start, amount, name="taken"), position)
        rows = signed(b, self.key_gates, position, Rows(cotangent))
        self.body.cotangents.add(node, chunk.full(rows))

    def emit_decays(self) -> None:
        """Each decay has what comes after it, and what outlives the chunk."""
        b = self.b
        for i, decay in class_decays(self.form, "key"):
            total = self.whole[0]
            for more in self.whole[1:]:
                total = b.add(total, more, name="at_end")
            for row in self.amounts.values():
                total = b.add(total, later_sum(b, row, i), name="d_log")
            add_decay(self.body.cotangents, b, decay, total, self.form.key)


# --- values ----------------------------------------------------------------------------------------------------------

VALUE_EQUATIONS = ("dy = P^T vx + B R for plain writes, Z for the others;   B = 2^(G_C - G) b",)


def emit_value_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' values, a program a chunk."""
    b = Builder(complex_buffers=shape.complex_buffers)
    loops = [ValueLoop(shape, form, b) for form in shape.forms]
    sums: dict[Node, Value] = {}
    for loop in loops:
        cotangents = Cotangents()
        sides = readout_keys(loop.chunk, loop.cotangents) + read_keys(loop.chunk)
        values = {query.name: loop.query(query) for query in queries_of(loop.form)}
        for j, write in enumerate(loop.form.writes):
            if write.read is not None:
                cotangents.add(write.value, loop.solved(j))
            else:
                cotangents.add(write.value, adjoint_values(loop.chunk, j, sides, values, loop.adjoint())[0])
        for source, tile in cotangents.pull_each(loop.tiles, argument_leaves(cotangents.nodes)):
            if set(loop.form.value) & set(source.dims):
                store_gradient(loop.b, source, tile, buffer_of(source, f"values_{loop.form.state}", ""))
            else:
                total = loop.add(f"d_{source.attrs[1]}", tile)
                known = sums.get(source)
                sums[source] = total if known is None else b.add(known, total, name=total.name)
        loop.close()
    for source, tile in sums.items():
        store_gradient(b, source, tile, buffer_of(source, "values", ""))
    widths = tile_widths(shape, shape.value, stored_chunk_length(shape))
    return Kernel(
        "value_gradients", ("batch", "head", "chunk"), looped_values(shape), tuple(b.statements), VALUE_EQUATIONS,
        "value_gradients", widths, 4,
    )  # fmt: skip

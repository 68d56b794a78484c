"""Gradients where the key side of every chunk lies in memory: a program for a chunk and a tile of the key dims.

With (kx, vx) the queries (readouts (q, dO), reads (a, -Z)) and (b, u) the writes,

    dkx = 2^G (vx S^T) + sum over the writes of E b^,   db = 2^(G_C - G) (u R^T) + sum over the queries of E^T kx~
    E[c, s] = vx[c] u[s], s written before c

A loop over the tiles of the value dims gives vx S^T and u R^T; the pairs are those of blocks.py, and where its rows are
far, of the levels of halves.py. What the decays take from each vector, kx dkx and -b db, is added up in float32 on the
way: their cotangents are running sums of it, anchored at the chunk's end.

The writes' values have a kernel of their own, whose programs hold the key dims whole: dy = P^T vx + B R where a write
is plain, else Z. It has all of vx and u at hand, and leaves E in memory, in parts and in the operand type: so the
products that E enters find their operand there, and registers hold none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recur.ir.core import Node
from recur.ir.normal import MatrixForm
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import Query, adjoint_values, queries_of, read_keys, readout_keys
from recur.strategies.chunk.blocks import BLOCK, Blocks
from recur.strategies.chunk.equations import carry_sum, sum_of
from recur.strategies.chunk.gates import Gates, class_decays
from recur.strategies.chunk.gradients import (
    BufferOf,
    Cotangents,
    add_decay,
    adjoint_name,
    load_cotangents,
    store_gradient,
)
from recur.strategies.chunk.halves import own_products, own_weight
from recur.strategies.chunk.kernels import values_name
from recur.strategies.chunk.key_side import (
    KeyRows,
    StoredChunk,
    chunks_are_blocks,
    has_few_vectors,
    held_chunk,
    stored_chunk_length,
)
from recur.strategies.chunk.pairs import evidence_name
from recur.strategies.chunk.shape import (
    Shape,
    chunk_access,
    load_turned,
    looped_values,
    pair_access,
    placed_axes,
    tile_widths,
    token_access,
)
from recur.strategies.chunk.tiles import Rows, Tiles, load_values, signed
from recur.strategies.operands import argument_leaves
from recur.strategies.order import IN_ORDER

Evidence = dict[tuple[str, int], Value]  # E by a query's name and the number of a write
NameOf = Callable[[MatrixForm, Query, int], str]

TILE = 2048  # entries of a chunk's rows in a tile of the dims that a kernel's vectors have
WIDTH = 64  # entries of the value dims in a tile beside these

EQUATIONS = (
    "dkx = 2^G vx S^T + E B^,   db = E^T kx~ + 2^(G_C - G) u R^T,   E = tril(vx u^T)",
    "(kx, vx): (q, dO) for readouts, (a, -Z) for reads",
    "dg = reverse running sum of kx dkx - b db, plus 2^G_C <S, R> and what the writes leave to R",
)


def own_name(form: MatrixForm, query: Query, j: int) -> str:
    return f"own_{evidence_name(form, query, j)}"


def across_name(form: MatrixForm, query: Query, j: int) -> str:
    return f"across_{evidence_name(form, query, j)}"


def part_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """Parts of E of every query and write, beside that within blocks, between the kernels that write and read them:
    the diagonal, and where a chunk is two blocks, that of pairs of both.
    """
    forms = [f for f in shape.forms if class_decays(f, "key")]
    pairs = [(f, q, j) for f in forms for q in queries_of(f) for j in range(len(f.writes))]
    own = tuple(Buffer(own_name(*pair), ("B", "T", "H")) for pair in pairs)
    if chunks_are_blocks(shape):
        return own
    return own + tuple(Buffer(across_name(*pair), ("B", "T", "H", "C"), "operand") for pair in pairs)


def emit_key_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The key side's cotangents, pulled back to the inputs."""
    b = Builder(complex_buffers=shape.complex_buffers)
    cotangents = Cotangents()
    for form in shape.forms:
        FormKeyGradients(shape, form, b, cotangents).emit()
    for source, tile in cotangents.pull_each(Tiles(b), argument_leaves(cotangents.nodes)):
        store_share(b, shape, source, tile, buffer_of)
    (key,) = shape.key
    axes = placed_axes(shape, looped_values(shape) | {key: "grid"})
    grid = ("batch", "head", "chunk", f"tile:{key}")
    widths = tile_widths(shape, shape.key, TILE // stored_chunk_length(shape))
    widths += tile_widths(shape, shape.value, WIDTH)
    # Each vector's cotangent stays in registers, and so does what the decays take from it.
    warps = 4 if has_few_vectors(shape) else 8
    return Kernel("gradients", grid, axes, tuple(b.statements), EQUATIONS, IN_ORDER, widths, warps)


def store_share(b: Builder, shape: Shape, source: Node, tile: Value, buffer_of: BufferOf) -> None:
    """The gradient of a source; of one without key dims, this tile's share."""
    (key,) = shape.key
    if key in source.dims:
        store_gradient(b, source, tile, buffer_of(source, "keys", ""))
        return
    buffer = buffer_of(source, "keys", key)
    if source.attrs[0] == "param":
        access = Access(buffer, ("batch", "chunk", "head", f"tile:{key}", *source.dims))
        b.store(access, b.sum(tile, ("c",), name=tile.name), "one partial sum a chunk and tile")
    else:
        access = Access(buffer, ("batch", "time", "head", f"tile:{key}", *source.dims), "c")
        b.store(access, tile, "one partial sum a tile")


@dataclass
class ValueLoop:
    """A loop over the tiles of the value dims and the sums that it carries."""

    shape: Shape
    form: MatrixForm
    outer: Builder
    carries: list[Carry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b = self.outer.nested()
        held = held_chunk(self.outer, self.form)
        self.tiles = held.tiles.inside(self.b)
        self.chunk = StoredChunk(self.tiles, load_values(self.tiles, held.form))
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

    def pairs(self, query: Query, j: int) -> Value:
        """E of a query and a write on the value dims at hand, not masked."""
        position = self.form.events.index(self.form.writes[j])
        return self.chunk.value_scores(self.query(query), query.position, self.written(j), position, name="E")

    def against(self, rows: Rows, state: Value, name: str) -> Value:
        """Rows on the value dims contracted with a state: on the key dims."""
        return self.chunk.times(self.b.contract(rows.tile, state, self.form.value, name=name), rows.scale)

    def add(self, name: str, amount: Value) -> Value:
        """The amount's sum over all tiles, after the loop."""
        self.carries.append(carry_sum(self.outer, self.b, name, amount))
        return self.carries[-1].phi

    def close(self) -> None:
        self.outer.loop("tiles", self.b, tuple(self.carries), axis=self.form.value[0])


@dataclass
class FormKeyGradients:
    """One form's cotangents, in order.

    ``grown``: the cotangent of every vector so far, by position; ``taken``: what the decays get from the vectors, by
    which of the token's decays come before these; ``at_end``: what all of a chunk's decays get.
    """

    shape: Shape
    form: MatrixForm
    b: Builder
    cotangents: Cotangents
    grown: dict[int, Value] = field(default_factory=dict)
    taken: dict[tuple[bool, ...], Value] = field(default_factory=dict)
    at_end: list[Value] = field(default_factory=list)

    def emit(self) -> None:
        form, b = self.form, self.b
        self.queries = queries_of(form)
        self.writes = [form.events.index(w) for w in form.writes]
        self.pairs = [(query, j) for query in self.queries for j in range(len(form.writes))]
        side = KeyRows(Tiles(b), form)  # loads what it needs before the walk, and finds it there afterwards
        gates, self.vectors, self.chunk = side.gates, side.vectors, side.chunk
        self.rows = side.rows
        evidence = self._load_pairs(evidence_name)
        turned = self._load_turned(evidence_name) if gates is not None else {}
        self._walk_values()
        if gates is None:
            self._add_plain_pairs(evidence)
        else:
            self._add_ends(gates)
            self._add_own_pairs(gates)
            self._add_pairs(side.blocks(chunks_are_blocks(self.shape)), evidence, turned)
        for position, total in self.grown.items():
            rows = self.chunk.full(signed(b, gates, position, Rows(total)))
            self.cotangents.add(self.vectors[position].node, rows)
        if gates is not None:
            self._add_decays()

    def _load_pairs(self, name_of: NameOf) -> Evidence:
        """E[c, s] of every query and write."""
        accesses = {(q.name, j): pair_access(name_of(self.form, q, j)) for q, j in self.pairs}
        return {pair: self.b.load("E", access, ("c", "s")) for pair, access in accesses.items()}

    def _load_turned(self, name_of: NameOf) -> Evidence:
        """E[s, c]."""
        return {(q.name, j): load_turned(self.b, "E", name_of(self.form, q, j)) for q, j in self.pairs}

    def _walk_values(self) -> None:
        """vx S^T and u R^T, over all value dims, and <S, R> over them."""
        loop = ValueLoop(self.shape, self.form, self.b)
        state, adjoint = loop.state(), loop.adjoint()
        for query in self.queries:
            self._grow(query.position, loop.add("V_S", loop.against(loop.query(query), state, "V_S")))
        for j, position in enumerate(self.writes):
            self._grow(position, loop.add("U_R", loop.against(loop.written(j), adjoint, "U_R")))
        if class_decays(self.form, "key"):
            both = loop.b.sum(loop.b.mul(state, adjoint, name="S_R"), self.form.value, name="S_R")
            self.at_end.append(loop.add("S_R", both))
        loop.close()

    def _grow(self, position: int, amount: Value, comment: str = "") -> None:
        """A comment keeps the addition where it is: later ones then find its operands' registers free."""
        known = self.grown.get(position)
        total = amount if known is None else self.b.add(known, amount, name=known.name, comment=comment)
        self.grown[position] = total

    def _passed(self, position: int) -> tuple[bool, ...]:
        return tuple(position > i for i, _ in class_decays(self.form, "key"))

    def _take(self, position: int, amount: Value, comment: str = "") -> None:
        """What a row at a position adds to the cotangents of the decays before it (a write: takes off)."""
        key, grow = self._passed(position), self.b.sub if position in self.writes else self.b.add
        before = self.taken.get(key, self.b.zeros(amount.axes, "taken_0"))
        self.taken[key] = grow(before, amount, name="taken", comment=comment)

    def _add_ends(self, gates: Gates) -> None:
        """The state at the chunk's start to what reads it; what is written to the adjoint at the chunk's end."""
        b = self.b
        self.at_end[0] = b.mul(self.at_end[0], self.chunk.over_chunk(gates), name="S_R")
        for position, total in self.grown.items():
            is_write = position in self.writes
            _, entry = self.chunk.factors(gates, position, "end" if is_write else "start")
            self.grown[position] = self.chunk.times(total, entry)
            amount = b.mul(self.rows[position], self.grown[position], name="amount")
            self._take(position, amount)
            if is_write:
                self.at_end.append(b.sum(amount, ("c",), name="kept"))

    def _add_own_pairs(self, gates: Gates) -> None:
        """Those of a token's reads and its writes before them."""
        b = self.b
        for query, j in self.pairs:
            pair = (query.position, self.writes[j])
            if pair[1] > pair[0]:
                continue
            own = b.load("E_own", token_access(own_name(self.form, query, j), ()), ("c",))
            weight = own_weight(b, gates, pair)
            for position, other in (pair, pair[::-1]):
                rows = self.chunk.times(self.rows[other], own, weight, name="own")
                self._grow(position, rows)
            if self._passed(pair[0]) != self._passed(pair[1]):
                amount = b.mul(own_products(b, gates, self.rows, pair), own, name="amount")
                self._take(pair[0], amount)
                self._take(pair[1], amount)

    def _add_pairs(self, blocks: Blocks, evidence: Evidence, turned: Evidence) -> None:
        """Pairs of different tokens: see blocks.py, and halves.py for those of rows that are not near."""
        across = {} if blocks.is_one else self._load_pairs(across_name)
        across_turned = {} if blocks.is_one else self._load_turned(across_name)
        for j, position in enumerate(self.writes):
            self._add_write(blocks, j, position, turned, across_turned)
        for query in self.queries:
            self._add_reader(blocks, query, evidence, across)
        self._add_levels(blocks)

    def _add_write(self, blocks: Blocks, j: int, position: int, beside: Evidence, across: Evidence) -> None:
        """E^T X of all queries with one write."""
        b, zero = self.b, self.b.const(0.0, name="zero")

        def gathered(pairs: Evidence, only_near: bool) -> Value:
            terms = []
            for query in self.queries:
                x = blocks.reader(query.position)
                x = b.where(blocks.is_near, x, zero, name="X_near") if only_near else x
                terms.append(b.contract(pairs[query.name, j], b.rename(x, "c", "s"), ("s",), name="Z"))
            return sum_of(b, terms, "Z")

        self._add_pairs_of(position, blocks.up(position), blocks.write(position), gathered(beside, True))
        if across:
            tile = blocks.write_before(position)
            self._add_pairs_of(position, blocks.onward(position), tile, gathered(across, False))

    def _add_reader(self, blocks: Blocks, query: Query, beside: Evidence, across: Evidence) -> None:
        """E Y of one query with all writes."""
        b = self.b

        def spread(pairs: Evidence, tile_of: Callable[[int], Value]) -> Value:
            tiles = [b.rename(tile_of(position), "c", "s") for position in self.writes]
            terms = [b.contract(pairs[query.name, j], y, ("s",), name="Z") for j, y in enumerate(tiles)]
            return sum_of(b, terms, "Z")

        z = b.where(blocks.is_near, spread(beside, blocks.write), b.const(0.0, name="zero"), name="Z")
        z = b.add(z, spread(across, blocks.write_before), name="Z") if across else z
        self._add_pairs_of(query.position, blocks.down(query.position), blocks.reader(query.position), z)

    def _add_pairs_of(self, position: int, factor: Value, tile: Value, z: Value) -> None:
        self._grow(position, self.b.mul(factor, z, name="decayed"), "the pairs'")
        self._take(position, self.b.mul(tile, z, name="amount"), "the pairs'")

    def _add_levels(self, blocks: Blocks) -> None:
        inner = self.b.nested()
        halves = KeyRows(Tiles(inner), self.form).halves(inner, blocks.is_near)  # seldom gone through: loads for itself
        start: dict[tuple[str, object], Value] = {("grown", p): total for p, total in self.grown.items()}
        start |= {("taken", passed): total for passed, total in self.taken.items()}
        phis = {key: inner.phi(total.name, total) for key, total in start.items()}
        sums = dict(phis)
        zero = inner.const(0.0, name="zero")

        def grow(right: tuple[str, object], left: tuple[str, object], amount: Value, less: bool) -> None:
            """Adds to one sum in right halves, and to the other in left halves or takes it off."""
            before, is_right = dict(sums), halves.is_right
            more = inner.add(before[right], amount, name="more")
            other = (inner.sub if less else inner.add)(before[left], amount, name="other")
            if left == right:
                sums[right] = inner.where(is_right, more, other, name=before[right].name)
                return
            sums[right] = inner.where(is_right, more, before[right], name=before[right].name)
            sums[left] = inner.where(is_right, before[left], other, name=before[left].name)

        for query, j in self.pairs:
            pair = (query.position, self.writes[j])
            tile, factor = halves.tile(pair), halves.factor(pair)
            pairs = inner.load("E", pair_access(evidence_name(self.form, query, j)), ("c", "s"))
            apart = inner.where(halves.is_apart, pairs, zero, name="E_apart")
            of_right = inner.contract(apart, inner.rename(tile, "c", "s"), ("s",), name="Z")
            of_left = inner.rename(inner.contract(apart, tile, ("c",), name="Z"), "s", "c")
            z = inner.add(of_right, of_left, name="Z")
            both = inner.mul(factor, z, name="decayed")
            grow(("grown", pair[0]), ("grown", pair[1]), both, less=False)
            right, left = (("taken", self._passed(p)) for p in pair)
            grow(right, left, inner.mul(tile, z, name="amount"), less=True)
        carries = tuple(Carry(phis[key], start[key], sums[key]) for key in start)
        self.b.loop("levels", inner, carries, rows=BLOCK, needed=blocks.has_far)
        self.grown = {p: phis["grown", p] for p in self.grown}
        self.taken = {key: phis["taken", key] for key in self.taken}

    def _add_plain_pairs(self, evidence: Evidence) -> None:
        """Without decays: E b and E^T kx."""
        chunk = self.chunk
        for query, j in self.pairs:
            pair = (query.position, self.writes[j])
            x, y = (self.vectors[p] for p in pair)
            pairs = chunk.masked(evidence[query.name, j], *pair, "E")
            self._grow(pair[0], chunk.spread_keys(pairs, y, *pair))
            self._grow(pair[1], chunk.gather_keys(pairs, x, *pair))

    def _add_decays(self) -> None:
        """Each decay has what comes after it in the chunk, and what outlives the chunk."""
        b = self.b
        total = sum_of(b, list(self.taken.values()), "taken")
        whole = sum_of(b, [*self.at_end, b.sum(total, ("c",), name="in_all")], "whole")
        after = b.sub(whole, b.cumsum(total, "c", exclusive=True, name="before"), name="d_log")
        for number, (_, decay) in enumerate(class_decays(self.form, "key")):
            before = [amount for passed, amount in self.taken.items() if not passed[number]]
            d_log = after
            for amount in before:
                d_log = b.sub(d_log, amount, name="d_log")
            add_decay(self.cotangents, b, decay, d_log, self.form.key)


# --- values ----------------------------------------------------------------------------------------------------------

VALUE_EQUATIONS = (
    "dy = P^T vx + B R for plain writes, Z for the others;   B = 2^(G_C - G) b",
    "E + E^T,   E[c, s] = vx[c] u[s], s not after c",
)


def store_evidence(b: Builder, shape: Shape, form: MatrixForm, query: Query, j: int, pairs: Value) -> None:
    """E in parts: where a write comes before its query in a block, the diagonal, and where a write is in an earlier
    block. Without decays, whole.
    """
    zero = b.const(0.0, name="zero")
    if not class_decays(form, "key"):
        b.store(pair_access(evidence_name(form, query, j)), pairs)
        return
    is_one = chunks_are_blocks(shape)
    is_beside = b.after("c", "s", 1) if is_one else b.beside("c", "s", BLOCK)
    b.store(pair_access(evidence_name(form, query, j)), b.where(is_beside, pairs, zero, name="E_beside"))
    if not is_one:
        is_across = b.across("c", "s", BLOCK)
        b.store(pair_access(across_name(form, query, j)), b.where(is_across, pairs, zero, name="E_across"))
    diagonal = b.mul(pairs, b.let("is_own", "eye", (), ("c", "s")), name="E_own")
    b.store(token_access(own_name(form, query, j), ()), b.sum(diagonal, ("s",), name="E_own"))


def emit_value_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' values, and E + E^T for every query and write; a program a chunk."""
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
        queries, writes = queries_of(loop.form), range(len(loop.form.writes))
        evidence = {(query, j): loop.add("E", loop.pairs(query, j)) for query in queries for j in writes}
        loop.close()
        for (query, j), pairs in evidence.items():
            store_evidence(b, shape, loop.form, query, j, pairs)
    for source, tile in sums.items():
        store_gradient(b, source, tile, buffer_of(source, "values", ""))
    widths = tile_widths(shape, shape.value, TILE // stored_chunk_length(shape))
    grid, axes = ("batch", "head", "chunk"), placed_axes(shape, looped_values(shape))
    return Kernel(
        "value_gradients", grid, axes, tuple(b.statements), VALUE_EQUATIONS, "value_gradients", widths, 4
    )

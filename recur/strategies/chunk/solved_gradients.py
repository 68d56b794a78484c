"""Gradients where every write has read the state, under scalar decays or none: two kernels, programs for each chunk.

With the queries (kx, vx): (q, dO) for readouts and (a, -Z) for reads, the writes (b, u), S at the chunk's start and R
at its end,

    E[c, s] = D vx[c] u[s], s written before c     dkx = 2^G vx S^T + sum over the writes of E b
    dy = Z                                         db = 2^(G_C - G) u R^T + sum over the queries of E^T kx

The first kernel has what the key dims are only summed over for: E, which it leaves in memory (a product's left operand
should come from there on Hopper), dy, and the decays' share in pairs inside the chunk. A program of the second holds a
tile of the key dims; it takes one vector after the other, so that registers hold the sums of few.

A decay's cotangent is the sum of all pairs on either side of it (see decay_gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from recur.ir.core import Node, topological
from recur.ir.normal import MatrixForm
from recur.ir.tile import Access, Builder, Carry, Kernel, Value, next_power_of_two
from recur.strategies.chunk.adjoint import Query, queries_of, read_keys, readout_keys
from recur.strategies.chunk.decay_gradient import Row, Straddling
from recur.strategies.chunk.equations import Chunk, carry_sum, sum_of
from recur.strategies.chunk.gates import class_decays, is_plain_factor, whole_chunk
from recur.strategies.chunk.gradients import (
    BufferOf,
    Cotangents,
    add_decay,
    adjoint_name,
    load_cotangents,
    store_gradient,
    store_gradients,
)
from recur.strategies.chunk.kernels import values_name
from recur.strategies.chunk.pairs import evidence_name
from recur.strategies.chunk.shape import (
    LEAST_WIDTH,
    Shape,
    chunk_access,
    key_side_nodes,
    mixed_dims,
    pair_access,
    placed_axes,
    token_access,
)
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_keys, signed
from recur.strategies.operands import argument_leaves
from recur.strategies.order import IN_ORDER

PAIR_EQUATIONS = ("E = tril(Vx U^T) D,   dY = Z                  (kx, vx): (q, dO) for readouts, (a, -Z) for reads",)
EQUATIONS = ("dKx = 2^G Vx S^T + E B,   dB = E^T Kx + 2^(G_C - G) U R^T", "dg = the sum of all pairs on either side")
WIDEST_VALUES = 128  # of a tile of the value dims
TILE = 64 * 64  # entries in a tile of the key dims of every write's rows: four warps hold three of them


def takes_solved_gradients(shape: Shape) -> bool:
    """Whether all decays are real scalars, every write has a read, and the state is read along the key dims alone."""
    return all(
        f.key
        and f.value
        and not f.is_complex
        and all(r.axis == "key" for r in f.readouts)
        and all(w.read is not None for w in f.writes)
        and all(not d.factor.dims and d.angle is None for d in f.decays)
        for f in shape.forms
    )


def emit_pair_gradients(shape: Shape, buffer_of: BufferOf, chunk_length: int) -> Kernel:
    """E, the cotangents of what is written, and those of the decays from pairs inside the chunk."""
    body = Body(shape)
    values, cotangents = body.values(), Cotangents()
    forms = [PairGradients(body, form) for form in shape.forms]
    sums: dict[Node, list[Value]] = {}
    for form in forms:
        form.add_values(values, cotangents)
    for source, tile in cotangents.pull_each(values.tiles, argument_leaves(cotangents.nodes)):
        if set(shape.value) & set(source.dims):
            store_gradient(values.b, source, tile, buffer_of(source, "values", ""))
        else:
            sums[source] = [values.add(f"d_{source.attrs[1]}", tile)]
    values.close()
    cotangents = Cotangents()
    for form in forms:
        form.add_pairs(cotangents)
    for source, tile in cotangents.pull_each(body.tiles(), argument_leaves(cotangents.nodes)):
        sums.setdefault(source, []).append(tile)
    for source, parts in sums.items():
        store_gradient(body.b, source, sum_of(body.b, parts, f"d_{source.attrs[1]}"), buffer_of(source, "pairs", ""))
    return body.kernel("pair_gradients", PAIR_EQUATIONS, chunk_length, "loop")


def emit_vector_gradients(shape: Shape, buffer_of: BufferOf, chunk_length: int) -> Kernel:
    """The cotangents of reads, queries and keys, and those of the decays from pairs with other chunks.

    A source's gradient is stored as soon as no later phase adds to it.
    """
    body, cotangents = Body(shape), Cotangents()
    phases = [phase for form in shape.forms for phase in VectorGradients(body, form).phases(cotangents)]
    stored: set[Node] = set()
    for number, phase in enumerate(phases):
        phase.emit()
        still_open = set(argument_leaves([n for later in phases[number + 1 :] for n in later.nodes]))
        ready = [s for s in argument_leaves(cotangents.nodes) if s not in still_open | stored]
        stored.update(ready)
        store_gradients(body.tiles(), cotangents, buffer_of, "keys", shape.key[0], ready)
        cotangents.drop(still_open)
    return body.kernel("gradients", EQUATIONS, chunk_length, "grid")


def mixes_keys(shape: Shape) -> bool:
    """Whether an expression of the key side mixes the entries of the key dims, so that none stands without the rest."""
    roots = [n for f in shape.forms for e in f.events for n in key_side_nodes(f, e)]
    return any(set(shape.key) & mixed_dims(n) for n in topological(roots))


@dataclass
class Sweep:
    """A loop over the tiles of a dim and what is summed in it; ``whole``: one tile, in the surrounding body itself."""

    shape: Shape
    outer: Builder
    dim: str
    whole: bool
    carries: list[Carry] = field(default_factory=list)
    loaded: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.b = self.outer if self.whole else self.outer.nested()
        self.tiles = Tiles(self.b, stored=scalar_gates(self.shape))

    def load(self, name: str, access: Access, axes: tuple[str, ...]) -> Value:
        if access.buffer not in self.loaded:
            self.loaded[access.buffer] = self.b.load(name, access, axes)
        return self.loaded[access.buffer]

    def add(self, name: str, amount: Value) -> Value:
        """The amount's sum over all tiles, once the sweep is closed."""
        if self.whole:
            return amount
        self.carries.append(carry_sum(self.outer, self.b, name, amount))
        return self.carries[-1].phi

    def close(self) -> None:
        if not self.whole:
            self.outer.loop("tiles", self.b, tuple(self.carries), axis=self.dim)


@dataclass
class Body:
    """A kernel's outermost body, and the tiles of the value dims."""

    shape: Shape

    def __post_init__(self) -> None:
        self.b = Builder(complex_buffers=self.shape.complex_buffers)
        sizes = dict(self.shape.sizes)
        fits = all(next_power_of_two(sizes[d]) <= WIDEST_VALUES for d in self.shape.value)
        self.whole_values = self.shape.whole_values or fits
        self._whole = Sweep(self.shape, self.b, self.shape.value[0], whole=True)

    def values(self) -> Sweep:
        """The value side: loaded once where it is one tile."""
        return self._whole if self.whole_values else Sweep(self.shape, self.b, self.shape.value[0], whole=False)

    def tiles(self) -> Tiles:
        """The key side loaded anew: registers are for sums, not for what can be read again."""
        return Tiles(self.b, stored=scalar_gates(self.shape))

    def kernel(self, name: str, equations: tuple[str, ...], chunk_length: int, keys: Literal["loop", "grid"]) -> Kernel:
        """With the tiles of the key dims in a loop or on the grid."""
        (key,) = self.shape.key
        size = next_power_of_two(dict(self.shape.sizes)[key])
        held = chunk_length * max(len(f.writes) for f in self.shape.forms)
        most = max(LEAST_WIDTH, 1 << (TILE // held).bit_length() - 1)  # a power of two
        width = size if mixes_keys(self.shape) else min(size, most)
        widths = {key: width} | ({} if self.whole_values else dict.fromkeys(self.shape.value, WIDEST_VALUES))
        axes = placed_axes(self.shape, {d: keys if d == key else "loop" for d in widths})
        warps = 4 if chunk_length * width <= 2 * TILE else 8
        grid = ("batch", "head", "chunk", *((f"tile:{key}",) if keys == "grid" else ()))
        return Kernel(name, grid, axes, tuple(self.b.statements), equations, IN_ORDER, tuple(widths.items()), warps)


@dataclass
class FormValues:
    """One form's tiles."""

    body: Body
    form: MatrixForm

    def open_chunk(self, tiles: Tiles | None = None) -> Chunk:
        tiles = tiles or self.body.tiles()
        return Chunk(tiles, load_keys(tiles, self.form))

    def solved(self, values: Sweep, j: int) -> Value:
        """Z of a write."""
        return values.load(
            "Z", token_access(adjoint_name(self.form.state, j), self.form.value), ("c", *self.form.value)
        )

    def written(self, values: Sweep, j: int) -> Value:
        """U of a write."""
        return values.load("U", token_access(values_name(self.form.state, j), self.form.value), ("c", *self.form.value))

    def query_against(self, values: Sweep, query: Query, other: Value, name: str) -> Value:
        """vx, a readout's cotangent or -Z, contracted with a tile over the value dims."""
        b, over = values.b, self.form.value
        if query.write is not None:
            return b.neg(b.contract(self.solved(values, query.write), other, over, name=name), name=name)
        if f"dO of {query.name}" not in values.loaded:
            cotangents = load_cotangents(b, self.body.shape, self.form)
            values.loaded.update({f"dO of {readout}": rows for readout, rows in cotangents.items()})
        return b.contract(values.loaded[f"dO of {query.name}"], other, over, name=name)

    def straddling(self) -> dict[tuple[int, int], Straddling]:
        """Of every decay, by its position and the number of cuts crossed: see `add_decay`."""
        decays = class_decays(self.form, "key")
        crossings = (0, 1) if any(is_plain_factor(d) for _, d in decays) else (0,)
        return {(i, n): Straddling(self.body.b, i) for i, _ in decays for n in crossings}

    def add_decays(self, cotangents: Cotangents, totals: dict[tuple[int, int], Value]) -> None:
        for i, decay in class_decays(self.form, "key"):
            d_log, *at_cut = (total for (j, _), total in totals.items() if j == i)
            add_decay(cotangents, self.body.b, decay, d_log, (), *at_cut)


# --- pairs inside the chunk ------------------------------------------------------------------------------------------


class PairGradients(FormValues):
    """One form's E, and what it makes of it."""

    def add_values(self, values: Sweep, cotangents: Cotangents) -> None:
        for j, write in enumerate(self.form.writes):
            cotangents.add(write.value, self.solved(values, j))

    def add_pairs(self, cotangents: Cotangents) -> None:
        b, straddling = self.body.b, self.straddling()
        for query in queries_of(self.form):
            products = self._products(query) if straddling else []
            found = self._evidence(query)
            chunk = self.open_chunk()
            vector = side_of(chunk, query)
            for j, key in chunk.form.keys.items():
                later, earlier = vector.position, key.position
                pairs = chunk.masked(found[j], later, earlier, "E")
                for (_, crossing), part in straddling.items():
                    scores = chunk.times(products[j], vector.scale, chunk.column(key.scale), name="P")
                    scores = chunk.decay_pairs(scores, later, earlier, crossing)
                    part.add_pairs(b.mul(pairs, scores, name="M"), later, earlier)
                b.store(pair_access(evidence_name(self.form, query, j)), chunk.decay_pairs(pairs, later, earlier))
        self.add_decays(cotangents, {key: part.total() for key, part in straddling.items()})

    def _evidence(self, query: Query) -> list[Value]:
        """vx[c] u[s] summed over the value dims, for every write."""
        values = self.body.values()
        found = []
        for j in range(len(self.form.writes)):
            columns = values.b.rename(self.written(values, j), "c", "s")
            found.append(values.add("E", self.query_against(values, query, columns, "E")))
        values.close()
        return found

    def _products(self, query: Query) -> list[Value]:
        """kx[c] b[s] summed over the key dims, without scales and decays, for every write."""
        keys = Sweep(self.body.shape, self.body.b, self.body.shape.key[0], whole=False)
        chunk = self.open_chunk(keys.tiles)
        rows = side_of(chunk, query).tile
        products = []
        for key in chunk.form.keys.values():
            columns = keys.b.rename(key.tile, "c", "s")
            products.append(keys.add("P", keys.b.contract(rows, columns, self.form.key, name="P")))
        keys.close()
        return products


# --- vectors, and pairs with other chunks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """The expressions whose cotangents it adds to, and its emitter."""

    nodes: tuple[Node, ...]
    emit: Callable[[], None]


@dataclass
class VectorGradients(FormValues):
    """One form's cotangents in a tile of the key dims."""

    def phases(self, cotangents: Cotangents) -> list[Phase]:
        """The pairs across the chunk, each query, each write, and the decays."""
        self.cotangents, self.parts = cotangents, self.straddling()
        found = [Phase((), self.emit_across)] if self.parts else []
        for query in queries_of(self.form):
            found.append(Phase((query.node,), partial(self.emit_query, query)))
        for j, write in enumerate(self.form.writes):
            found.append(Phase((write.key,), partial(self.emit_write, j)))
        factors = tuple(d.factor for _, d in class_decays(self.form, "key"))
        return [*found, Phase(factors, self.emit_decays)] if factors else found

    def _state(self, values: Sweep, name: str, buffer: str) -> Value:
        """S or R."""
        axes = self.body.shape.state_axes(self.form)
        return values.load(name, chunk_access(f"{buffer}{self.form.state}", axes), axes)

    def _pairs(self, query: Query, j: int) -> Value:
        return self.body.b.load("E", pair_access(evidence_name(self.form, query, j)), ("c", "s"))

    def emit_across(self) -> None:
        """2^G_C <S, R>."""
        values = self.body.values()
        axes = self.body.shape.state_axes(self.form)
        adjoint = values.b.load("R", chunk_access(f"chunk_R_{self.form.state}", axes), axes)
        products = values.b.mul(self._state(values, "S", "chunk_"), adjoint, name="S_R")
        both = values.add("S_R", values.b.sum(products, self.form.value, name="S_R"))
        values.close()
        self.across = self.body.b.sum(both, self.form.key, name="S_R")

    def emit_query(self, query: Query) -> None:
        """dkx = 2^G vx S^T + sum over the writes of E b."""
        b, values = self.body.b, self.body.values()
        product = self.query_against(values, query, self._state(values, "S", "chunk_"), "V_S")
        from_state = values.add("V_S", product)
        values.close()
        chunk = self.open_chunk()
        vector = side_of(chunk, query)
        total = self._from_outside(chunk, from_state, vector, "start", Straddling.add_read)
        for j, key in chunk.form.keys.items():
            rows = b.rename(chunk.full(key), "c", "s")
            total = b.add(total, b.contract(self._pairs(query, j), rows, ("s",), name="intra"), name="d_kx")
        self._add_vector(chunk, vector, total)

    def emit_write(self, j: int) -> None:
        """db = 2^(G_C - G) u R^T + sum over the queries of E^T kx."""
        b, values = self.body.b, self.body.values()
        adjoint = self._state(values, "R", "chunk_R_")
        product = values.b.contract(self.written(values, j), adjoint, self.form.value, name="U_R")
        to_adjoint = values.add("U_R", product)
        values.close()
        chunk = self.open_chunk()
        key = chunk.form.keys[j]
        total = self._from_outside(chunk, to_adjoint, key, "end", Straddling.add_written)
        for query in queries_of(self.form):
            rows = chunk.full(side_of(chunk, query))
            intra = b.contract(self._pairs(query, j), rows, ("c",), name="intra")
            total = b.add(total, b.rename(intra, "s", "c", name="intra"), name="d_b")
        self._add_vector(chunk, key, total)

    def _from_outside(
        self, chunk: Chunk, tile: Value, vector: Vector, which: str, credit: Callable[[Straddling, Row], None]
    ) -> Value:
        """What a vector has from other chunks, decayed from the chunk's "start" or to its "end", and credited."""

        def decayed(crossing: int) -> Value:
            row, _ = chunk.factors(chunk.form.key_gates, vector.position, which, crossing)
            return chunk.times(tile, row, name="outside")

        outside = decayed(0)
        for (_, crossing), part in self.parts.items():
            worth = chunk.b.mul(chunk.full(vector), decayed(crossing) if crossing else outside, name="worth")
            credit(part, Row(chunk.b.sum(worth, self.form.key, name="worth"), vector.position))
        return outside

    def _add_vector(self, chunk: Chunk, vector: Vector, cotangent: Value) -> None:
        rows = signed(chunk.b, chunk.form.key_gates, vector.position, Rows(cotangent))
        self.cotangents.add(vector.node, chunk.full(rows))

    def emit_decays(self) -> None:
        b, gates = self.body.b, self.open_chunk().form.key_gates
        assert gates is not None
        totals = {}
        for (i, crossing), part in self.parts.items():
            across = b.mul(self.across, whole_chunk(b, gates.end, crossing), name="across")
            totals[i, crossing] = b.add(across, part.total(), name="d_log")
        self.add_decays(self.cotangents, totals)


def side_of(chunk: Chunk, query: Query) -> Vector:
    """A query's key side."""
    return next(s.vector for s in readout_keys(chunk, {}) + read_keys(chunk) if s.name == query.name)

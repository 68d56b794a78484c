"""Gradients where every write has read the state, under scalar decays or none: one kernel, a program for each chunk.

With the queries (kx, vx): (q, dO) for readouts and (a, -Z) for reads, the writes (b, u), S at the chunk's start and R
at its end,

    E[c, s] = D vx[c] u[s], s written before c     dkx = 2^G vx S^T + sum over the writes of E b
    dy = Z                                         db = 2^(G_C - G) u R^T + sum over the queries of E^T kx

First comes what the key dims are only summed over for: dy, the decays' share in pairs inside the chunk, and E, which
goes through memory (a product's left operand should come from there on Hopper). A loop over tiles of the key dims has
the rest: registers hold the sums of a narrow tile, and the value side is loaded once for all of them.

A decay's cotangent is the sum of all pairs on either side of it (see decay_gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_gates, load_keys, signed
from recur.strategies.operands import argument_leaves
from recur.strategies.order import IN_ORDER

EQUATIONS = (
    "E = tril(Vx U^T) D,   dY = Z                  (kx, vx): (q, dO) for readouts, (a, -Z) for reads",
    "dKx = 2^G Vx S^T + E B,   dB = E^T Kx + 2^(G_C - G) U R^T",
    "dg = the sum of all pairs on either side",
)
WIDEST_VALUES = 128  # of a tile of the value dims
TILE = 64 * 32  # entries in a tile of the key dims of every write's rows
STAGES = 1  # two programs on a multiprocessor hide each other's loads; tiles in flight besides would spill


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


def emit_solved_gradients(shape: Shape, buffer_of: BufferOf, chunk_length: int) -> Kernel:
    """All cotangents of a chunk, pulled back to the inputs."""
    body = Body(shape, chunk_length)
    forms = [SolvedGradients(body, form) for form in shape.forms]
    sums: dict[Node, list[Value]] = {}
    values, cotangents = body.values(body.b), Cotangents()
    for form in forms:
        form.add_values(values, cotangents)
    for source, tile in cotangents.pull_each(values.tiles, argument_leaves(cotangents.nodes)):
        keep_gradient(values, shape.value, sums, source, tile, buffer_of)
    values.close()
    for form in forms:
        form.emit_pairs()
    keys, cotangents = body.keys(), Cotangents()
    phases = [phase for form in forms for phase in form.phases(keys, cotangents)]
    stored: set[Node] = set()
    for number, phase in enumerate(phases):
        phase.emit()
        still_open = set(argument_leaves([n for later in phases[number + 1 :] for n in later.nodes]))
        ready = [s for s in argument_leaves(cotangents.nodes) if s not in still_open | stored]
        stored.update(ready)
        for source, tile in cotangents.pull_each(keys.tiles, ready):
            keep_gradient(keys, shape.key, sums, source, tile, buffer_of)
        cotangents.drop(still_open)
    keys.close()
    cotangents = Cotangents()
    for form in forms:
        form.add_decays(cotangents)
    for source, tile in cotangents.pull_each(Tiles(body.b), argument_leaves(cotangents.nodes)):
        sums.setdefault(source, []).append(tile)
    for source, parts in sums.items():
        store_gradient(body.b, source, sum_of(body.b, parts, f"d_{source.attrs[1]}"), buffer_of(source, "", ""))
    return body.kernel()


def keep_gradient(
    sweep: Sweep, dims: tuple[str, ...], sums: dict[Node, list[Value]], source: Node, tile: Value, buffer_of: BufferOf
) -> None:
    """A source's gradient from the tiles of ``dims``: stored for each tile where it has them, else added up."""
    if set(dims) & set(source.dims):
        store_gradient(sweep.b, source, tile, buffer_of(source, "", ""))
    else:
        sums.setdefault(source, []).append(sweep.add(f"d_{source.attrs[1]}", tile))


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
    """The kernel's outermost body, and the tiles of the key and value dims."""

    shape: Shape
    chunk_length: int

    def __post_init__(self) -> None:
        self.b = Builder(complex_buffers=self.shape.complex_buffers)
        self.rows = Tiles(self.b, stored=scalar_gates(self.shape))
        sizes = dict(self.shape.sizes)
        fits = all(next_power_of_two(sizes[d]) <= WIDEST_VALUES for d in self.shape.value)
        self.whole_values = self.shape.whole_values or fits
        self.loaded: dict[str, Value] = {}
        (key,) = self.shape.key
        held = self.chunk_length * max(len(f.writes) for f in self.shape.forms)
        most = max(LEAST_WIDTH, 1 << (TILE // held).bit_length() - 1)  # a power of two
        self.size = next_power_of_two(sizes[key])
        self.width = self.size if mixes_keys(self.shape) else min(self.size, most)

    def values(self, b: Builder) -> Sweep:
        """The value side in a body; where it is one tile, with what the outermost body has loaded."""
        loaded = self.loaded if b is self.b else dict(self.loaded)
        return Sweep(self.shape, b, self.shape.value[0], self.whole_values, loaded=loaded if self.whole_values else {})

    def keys(self) -> Sweep:
        """The key side; what rows have without the key dims is at hand as far as the outermost body has loaded it."""
        sweep = Sweep(self.shape, self.b, self.shape.key[0], whole=self.width == self.size)
        sweep.tiles = self.rows.inside(sweep.b, without=self.shape.key)
        return sweep

    def kernel(self) -> Kernel:
        widths = {self.shape.key[0]: self.width}
        widths |= {} if self.whole_values else dict.fromkeys(self.shape.value, WIDEST_VALUES)
        axes = placed_axes(self.shape, dict.fromkeys(widths, "loop"))
        warps = 4 if self.chunk_length * self.width <= 2 * TILE else 8
        grid, body = ("batch", "head", "chunk"), tuple(self.b.statements)
        return Kernel("gradients", grid, axes, body, EQUATIONS, IN_ORDER, tuple(widths.items()), warps, STAGES)


@dataclass(frozen=True)
class Phase:
    """The expressions whose cotangents it adds to, and its emitter."""

    nodes: tuple[Node, ...]
    emit: Callable[[], None]


@dataclass
class SolvedGradients:
    """One form's tiles and cotangents: `add_values`, `emit_pairs`, `phases` in a tile of the key dims, `add_decays`."""

    body: Body
    form: MatrixForm

    def __post_init__(self) -> None:
        decays = class_decays(self.form, "key")
        crossings = (0, 1) if any(is_plain_factor(d) for _, d in decays) else (0,)
        # Of every decay, by its position and the number of cuts crossed: see `add_decay`.
        self.parts = {(i, n): Straddling(self.body.b, i) for i, _ in decays for n in crossings}
        self.pairs: dict[tuple[str, int], Value] = {}

    def open_chunk(self, tiles: Tiles) -> Chunk:
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

    def add_values(self, values: Sweep, cotangents: Cotangents) -> None:
        for j, write in enumerate(self.form.writes):
            cotangents.add(write.value, self.solved(values, j))

    # --- pairs inside the chunk --------------------------------------------------------------------------------------

    def emit_pairs(self) -> None:
        """E of every query and write: through memory, and into the decays' cotangents."""
        b = self.body.b
        found = {query.name: self._evidence(query) for query in queries_of(self.form)}
        products = self._products() if self.parts else {}
        chunk = self.open_chunk(self.body.rows)
        for query in queries_of(self.form):
            vector = side_of(chunk, query)
            for j, key in chunk.form.keys.items():
                later, earlier = vector.position, key.position
                pairs = chunk.masked(found[query.name][j], later, earlier, "E")
                for (_, crossing), part in self.parts.items():
                    scores = chunk.times(products[query.name, j], vector.scale, chunk.column(key.scale), name="P")
                    scores = chunk.decay_pairs(scores, later, earlier, crossing)
                    part.add_pairs(b.mul(pairs, scores, name="M"), later, earlier)
                b.store(pair_access(evidence_name(self.form, query, j)), chunk.decay_pairs(pairs, later, earlier))
        for query in queries_of(self.form):
            for j in chunk.form.keys:
                access = pair_access(evidence_name(self.form, query, j))
                self.pairs[query.name, j] = b.load("E", access, ("c", "s"))

    def _evidence(self, query: Query) -> list[Value]:
        """vx[c] u[s] summed over the value dims, for every write."""
        values = self.body.values(self.body.b)
        found = []
        for j in range(len(self.form.writes)):
            columns = values.b.rename(self.written(values, j), "c", "s")
            found.append(values.add("E", self.query_against(values, query, columns, "E")))
        values.close()
        return found

    def _products(self) -> dict[tuple[str, int], Value]:
        """kx[c] b[s] summed over the key dims, without scales and decays, for every query and write."""
        keys = self.body.keys()
        chunk = self.open_chunk(keys.tiles)
        products = {}
        for query in queries_of(self.form):
            for j, key in chunk.form.keys.items():
                columns = keys.b.rename(key.tile, "c", "s")
                product = keys.b.contract(side_of(chunk, query).tile, columns, self.form.key, name="P")
                products[query.name, j] = keys.add("P", product)
        keys.close()
        return products

    # --- vectors, and pairs with other chunks, in a tile of the key dims ---------------------------------------------

    def phases(self, keys: Sweep, cotangents: Cotangents) -> list[Phase]:
        """The pairs across the chunk, each query, and each write."""
        self.sweep, self.cotangents = keys, cotangents
        self.chunk, self.inside = self.open_chunk(keys.tiles), self.body.values(keys.b)
        found = [Phase((), self.emit_across)] if self.parts else []
        found += [Phase((query.node,), partial(self.emit_query, query)) for query in queries_of(self.form)]
        return found + [Phase((write.key,), partial(self.emit_write, j)) for j, write in enumerate(self.form.writes)]

    def _values(self) -> Sweep:
        """The value side: one tile for all phases, or tiles in a loop for each."""
        return self.inside if self.body.whole_values else self.body.values(self.sweep.b)

    def _state(self, values: Sweep, name: str, buffer: str) -> Value:
        """S or R."""
        axes = self.body.shape.state_axes(self.form)
        return values.load(name, chunk_access(f"{buffer}{self.form.state}", axes), axes)

    def emit_across(self) -> None:
        """2^G_C <S, R>."""
        values = self._values()
        products = values.b.mul(self._state(values, "S", "chunk_"), self._state(values, "R", "chunk_R_"), name="S_R")
        both = values.add("S_R", values.b.sum(products, self.form.value, name="S_R"))
        values.close()
        self.across = self.sweep.add("S_R", self.sweep.b.sum(both, self.form.key, name="S_R"))

    def emit_query(self, query: Query) -> None:
        """dkx = 2^G vx S^T + sum over the writes of E b."""
        b, values = self.sweep.b, self._values()
        product = self.query_against(values, query, self._state(values, "S", "chunk_"), "V_S")
        from_state = values.add("V_S", product)
        values.close()
        vector = side_of(self.chunk, query)
        total = self._from_outside(from_state, vector, "start", Straddling.add_read)
        for j, key in self.chunk.form.keys.items():
            rows = b.rename(self.chunk.full(key), "c", "s")
            total = b.add(total, b.contract(self.pairs[query.name, j], rows, ("s",), name="intra"), name="d_kx")
        self._add_vector(vector, total)

    def emit_write(self, j: int) -> None:
        """db = 2^(G_C - G) u R^T + sum over the queries of E^T kx."""
        b, values = self.sweep.b, self._values()
        product = values.b.contract(
            self.written(values, j), self._state(values, "R", "chunk_R_"), self.form.value, name="U_R"
        )
        to_adjoint = values.add("U_R", product)
        values.close()
        key = self.chunk.form.keys[j]
        total = self._from_outside(to_adjoint, key, "end", Straddling.add_written)
        for query in queries_of(self.form):
            rows = self.chunk.full(side_of(self.chunk, query))
            intra = b.contract(self.pairs[query.name, j], rows, ("c",), name="intra")
            total = b.add(total, b.rename(intra, "s", "c", name="intra"), name="d_b")
        self._add_vector(key, total)

    def _from_outside(
        self, tile: Value, vector: Vector, which: str, credit: Callable[[Straddling, Row], None]
    ) -> Value:
        """What a vector has from other chunks, decayed from the chunk's "start" or to its "end", and credited."""
        chunk, b = self.chunk, self.sweep.b

        def decayed(crossing: int) -> Value:
            row, _ = chunk.factors(chunk.form.key_gates, vector.position, which, crossing)
            return chunk.times(tile, row, name="outside")

        outside = decayed(0)
        for (_, crossing), part in self.parts.items():
            worth = b.mul(chunk.full(vector), decayed(crossing) if crossing else outside, name="worth")
            amount = self.sweep.add("worth", b.sum(worth, self.form.key, name="worth"))
            credit(part, Row(amount, vector.position))
        return outside

    def _add_vector(self, vector: Vector, cotangent: Value) -> None:
        rows = signed(self.sweep.b, self.chunk.form.key_gates, vector.position, Rows(cotangent))
        self.cotangents.add(vector.node, self.chunk.full(rows))

    # --- decays ------------------------------------------------------------------------------------------------------

    def add_decays(self, cotangents: Cotangents) -> None:
        b = self.body.b
        gates = load_gates(self.body.rows, self.form, "key")
        if gates is None:
            return
        totals = {}
        for key, part in self.parts.items():
            across = b.mul(self.across, whole_chunk(b, gates.end, key[1]), name="across")
            totals[key] = b.add(across, part.total(), name="d_log")
        for i, decay in class_decays(self.form, "key"):
            d_log, *at_cut = (total for (j, _), total in totals.items() if j == i)
            add_decay(cotangents, b, decay, d_log, (), *at_cut)


def side_of(chunk: Chunk, query: Query) -> Vector:
    """A query's key side."""
    return next(s.vector for s in readout_keys(chunk, {}) + read_keys(chunk) if s.name == query.name)

"""The backward pass as walks that hold a tile of the state, or of its adjoint: no gradient needs all of either at once.

For states that nothing written depends on, under scalar decays. With (q, dO) the readouts, (b, U) the writes of a
family (see families),

    queries    first to last, tiles of S over the key dims      dQ = 2^G dO S^T + E B
    writes     last to first, R whole or in two tiles           dU = P^T dO + 2^(G_C - G) B R
                                                                dB = E^T Q + 2^(G_C - G) U R^T
    values     else the same in two walks, tiles of R over the value dims
    keys       and tiles of R over the key dims

with P = tril(Q B^T) D and E = tril(dO U^T) D. For the gradients of decays and of factors of rows the walks leave a few
numbers a token: what its vectors are worth in pairs (see worths).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from recur.ir.core import is_const, topological
from recur.ir.normal import MatrixForm
from recur.ir.tile import Axis, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, adjoint_values, previous_adjoint, readout_keys, readout_values
from recur.strategies.chunk.families import (
    Family,
    holds_whole,
    infer_families,
    matrix_part,
    vector_part,
    write_dims,
    write_tiles,
    write_width,
)
from recur.strategies.chunk.gradients import (
    ROWS,
    BufferOf,
    Cotangents,
    add_rests,
    load_cotangents,
    store_gradients,
)
from recur.strategies.chunk.kernels import STATE_ENTRIES, STATE_EQUATION, fit_whole, load_starts
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.segments import walks
from recur.strategies.chunk.shape import LEAST_WIDTH, Shape, mixed_dims, placed_axes
from recur.strategies.chunk.tiles import Rows, Tiles, Vector
from recur.strategies.chunk.weights import Own, WeightedChunk, weighted_chunk
from recur.strategies.chunk.worths import (
    Credited,
    credited_vectors,
    inner_access,
    outer_access,
    own_access,
    own_partners,
    write_name,
)
from recur.strategies.operands import argument_leaves, entries
from recur.strategies.order import IN_ORDER

WIDEST = 64  # of a tile of the state
WIDEST_VALUES = 128  # of which two chunks of values and cotangents leave room for a second program
GATES = "for the gradients of gates"

QUERY_EQUATIONS = ("dQ = 2^G dO S^T + E B,   E = tril(dO U^T) D", STATE_EQUATION)
WRITE_EQUATIONS = (
    "dU = P^T dO + 2^(G_C - G) B R,   P = tril(Q B^T) D",
    "dB = E^T Q + 2^(G_C - G) U R^T,   E = tril(dO U^T) D",
    "R <- 2^G_C R + Q~^T dO",
)
VALUE_EQUATIONS = ("dU = P^T dO + 2^(G_C - G) B R,   P = tril(Q B^T) D", "R <- 2^G_C R + Q~^T dO")
KEY_EQUATIONS = ("dB = E^T Q + 2^(G_C - G) U R^T,   E = tril(dO U^T) D", "R <- 2^G_C R + Q~^T dO")


# --- a family in one chunk -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FormPass:
    """One form in one chunk of a walk: its equations, and its readouts' two sides (q, dO), by readout the second.

    ``cotangents``: the readouts' as they are in memory.
    """

    form: MatrixForm
    chunk: WeightedChunk
    sides: list[KeySide]
    values: dict[str, Rows]
    cotangents: dict[str, Value]

    @classmethod
    def load(cls, shape: Shape, tiles: Tiles, form: MatrixForm, tiled: str) -> FormPass:
        chunk = weighted_chunk(shape, tiles, form, tiled)
        cotangents = load_cotangents(tiles.b, shape, form)
        return cls(form, chunk, readout_keys(chunk, cotangents), readout_values(chunk, cotangents), cotangents)

    def cotangent(self, n: int) -> Rows:
        """dO of the readout number n."""
        return self.values[self.form.readouts[n].name]

    def is_one(self, j: int) -> bool:
        """Whether a write's value is the number one."""
        value = self.form.writes[j].value
        return value is not None and is_const(value, 1.0)

    def written(self, j: int) -> Rows:
        return self.chunk.form.values[j]

    def rounded_scores(self) -> dict[tuple[str, int], Value]:
        """P of every readout and write, as products take it."""
        chunk, keys = self.chunk, self.chunk.form.keys
        return {
            (side.name, j): chunk.b.rounded(chunk.scores(side.vector, key))
            for side in self.sides
            for j, key in keys.items()
        }

    def next_state(self, state: Value) -> Value:
        return self.chunk.next_state(state, dict(self.chunk.form.values))

    def previous_adjoint(self, adjoint: Value) -> Value:
        return previous_adjoint(self.chunk, self.sides, self.values, adjoint)


@dataclass(frozen=True)
class FamilyPass:
    """A family in one chunk of a walk; the vectors, gates and weights that its forms share are the lead's."""

    family: Family
    forms: list[FormPass]

    @classmethod
    def load(cls, shape: Shape, tiles: Tiles, family: Family) -> FamilyPass:
        return cls(family, [FormPass.load(shape, tiles, f, "key") for f in family.forms])

    @property
    def chunk(self) -> WeightedChunk:
        return self.forms[0].chunk

    @property
    def sides(self) -> list[KeySide]:
        return self.forms[0].sides

    @property
    def rows(self) -> tuple[str, ...]:
        return ("c", *self.chunk.key)

    def pairs(self, n: int, j: int, own: Own) -> Value:
        """E = tril(dO U^T) D of the readout number n and the write number j."""
        chunk, query, key = self.chunk, self.sides[n].vector, self.chunk.form.keys[j]
        weights = chunk.weights.pairs_name(query.position, key.position, own) if chunk.weights is not None else ""
        return chunk.once(("E", self.family.name, str(n), str(j), weights), lambda: self._pairs(n, j, own))

    def _pairs(self, n: int, j: int, own: Own) -> Value:
        chunk, query, key = self.chunk, self.sides[n].vector, self.chunk.form.keys[j]
        products = chunk.once(("dO_U", self.family.name, str(n), str(j)), lambda: self._products(n, j))
        return chunk.weighted(products, query, key, "E", own)

    def _products(self, n: int, j: int) -> Value:
        """dO U^T."""
        query, key = self.sides[n].vector, self.chunk.form.keys[j]
        terms = [
            form.cotangent(n).tile
            if form.is_one(j)
            else form.chunk.value_scores(form.cotangent(n), query.position, form.written(j), key.position, "E")
            for form in self.forms
        ]
        return self.chunk.b.expand(self.chunk.sum_of(terms, "E"), ("c", "s"), "E")

    def worths(self, n: int, j: int, own: Own) -> Value:
        """M = P * E, the weights once."""
        pairs, products = self.pairs(n, j, own), self.chunk.products(self.sides[n].vector, self.chunk.form.keys[j])
        return self.chunk.once(("M", pairs.name), lambda: self.chunk.b.mul(pairs, products, name="M"))

    def from_states(self, n: int, states: list[Value]) -> Value:
        """dO S^T of the readout number n."""
        terms = [self._against(f, f.cotangent(n), s) for f, s in zip(self.forms, states, strict=True)]
        return self.chunk.b.expand(self.chunk.sum_of(terms, "d_inter"), self.rows, "d_inter")

    def to_adjoints(self, j: int, adjoints: list[Value]) -> Value:
        """U R^T of a write."""
        terms = [
            adjoint if form.is_one(j) else self._against(form, form.written(j), adjoint)
            for form, adjoint in zip(self.forms, adjoints, strict=True)
        ]
        return self.chunk.b.expand(self.chunk.sum_of(terms, "d_after"), self.rows, "d_after")

    def _against(self, form: FormPass, rows: Rows, state: Value) -> Value:
        """Where there are decays, what these products are worth goes into sums over chunks: none is rounded off."""
        precision = "split" if self.family.lead.decays else "operand"
        product = self.chunk.b.contract(rows.tile, state, form.form.value, name="U_R", precision=precision)
        return self.chunk.times(product, rows.scale)

    @property
    def credited(self) -> dict[str, Credited]:
        return {v.name: v for v in credited_vectors(self.family)}

    def settle(
        self, shape: Shape, cotangents: Cotangents, own: Vector, name: str, kind: Own, raw: Value, inner: list[Value]
    ) -> None:
        """A key-side vector's cotangent, from other chunks and from its own: what the first is worth, and the pull to
        its expression. ``raw``: the first without the weights to the chunk's start or end."""
        chunk, b = self.chunk, self.chunk.b
        if name in self.credited:
            worth = b.sum(b.mul(chunk.reaching(own, own.position, kind), raw, name="worth"), chunk.key, "worth")
            b.store(outer_access(shape, self.family, self.credited[name]), worth, GATES)
        outer = chunk.times(raw, chunk.reach(own.position, own.scale, kind), name="outer")
        total = chunk.sum_of([outer, *inner], "total")
        cotangents.add(split_scale(own.node)[1], chunk.times(total, chunk.unless_zero(own.position)))


# --- walks -----------------------------------------------------------------------------------------------------------


def emit_query_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the readouts' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    forward = walks(shape)
    first = load_starts(b, forward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    states = {w.form.state: inner.phi(w.form.state, start) for w, start in zip(forward, first, strict=True)}
    following: dict[str, Value] = {}
    for family in infer_families(shape):
        part = FamilyPass.load(shape, tiles, family)
        members = [states[f.state] for f in family.forms]
        for n, side in enumerate(part.sides):
            query_cotangent(shape, part, cotangents, n, side, members)
        following |= {f.form.state: f.next_state(s) for f, s in zip(part.forms, members, strict=True)}
    carries = [Carry(states[s], start, following[s]) for s, start in zip(states, first, strict=True)]
    store_gradients(tiles, cotangents, buffer_of, "queries", shape.key[0])
    b.loop("chunks", inner, tuple(carries))
    kernel = pass_kernel("query_gradients", shape, b, QUERY_EQUATIONS, shape.key)
    return replace(kernel, widths=((shape.key[0], query_width(shape)),), warps=8 if is_alone(shape) else 4)


def query_cotangent(
    shape: Shape, part: FamilyPass, cotangents: Cotangents, n: int, side: KeySide, states: list[Value]
) -> None:
    """2^G dO S^T, and E B of every write."""
    chunk, own = part.chunk, side.vector
    raw = part.from_states(n, states)
    inner = [chunk.spread(part.pairs(n, j, "query"), key) for j, key in chunk.form.keys.items()]
    part.settle(shape, cotangents, own, side.name, "query", raw, inner)


def emit_value_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of what is written, and of the initial states."""
    matrices = matrix_part(shape)
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(matrices, adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    carries, loaded = [], dict[str, Value]()
    for walk, start in zip(backward, last, strict=True):
        adjoint = inner.phi(walk.state, start)
        part = FormPass.load(shape, tiles, walk.form, "value")
        value_cotangents(part, cotangents, adjoint, None)
        carries.append(Carry(adjoint, start, part.previous_adjoint(adjoint)))
        loaded |= part.cotangents
    if has_rests_at_hand(shape):
        add_rests(shape, inner, cotangents, loaded)
    store_gradients(tiles, cotangents, buffer_of, "values", shape.value[0])
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk, carry in zip(backward, carries, strict=True):
        b.store(walk.end, carry.phi)
    return pass_kernel("value_gradients", shape, b, VALUE_EQUATIONS, shape.value)


def has_rests_at_hand(shape: Shape) -> bool:
    """Whether the walk with the values' gradients has the epilogue's too, where results only add what is read.

    It has rows of the values and dO in its hands; in a tile of the value dims, entries must not mix.
    """
    rests = [node for _, node in shape.rests]
    written = argument_leaves([w.value for f in shape.forms for w in f.writes if w.value is not None])
    held = {x for x in argument_leaves(rests) if x.attrs[0] != "param"} <= set(written)
    mixed = {d for n in topological(rests) for d in mixed_dims(n)} & set(shape.value)
    return held and not shape.inner_readouts and (holds_whole(shape) or not mixed)


def value_cotangents(
    part: FormPass, cotangents: Cotangents, adjoint: Value, scores: dict[tuple[str, int], Value] | None
) -> None:
    """P^T dO + 2^(G_C - G) B R of every write."""
    for j, write in enumerate(part.form.writes):
        d_u, _ = adjoint_values(part.chunk, j, part.sides, part.values, adjoint, scores)
        cotangents.add(write.value, d_u)


def emit_key_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(shape, adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    adjoints = {w.form.state: inner.phi(w.state, start) for w, start in zip(backward, last, strict=True)}
    previous: dict[str, Value] = {}
    for family in infer_families(shape):
        part = FamilyPass.load(shape, tiles, family)
        members = [adjoints[f.state] for f in family.forms]
        key_cotangents(shape, part, cotangents, members)
        previous |= {f.form.state: f.previous_adjoint(r) for f, r in zip(part.forms, members, strict=True)}
    carries = [Carry(adjoints[s], start, previous[s]) for s, start in zip(adjoints, last, strict=True)]
    store_gradients(tiles, cotangents, buffer_of, "keys", shape.key[0])
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk in walks(vector_part(shape), adjoint=True):
        b.store(walk.end, adjoints[walk.form.state])
    return pass_kernel("key_gradients", shape, b, KEY_EQUATIONS, shape.key)


def key_cotangents(shape: Shape, part: FamilyPass, cotangents: Cotangents, adjoints: list[Value]) -> None:
    """2^(G_C - G) U R^T + E^T Q of every write, and what else the walk leaves for the gates."""
    for credited in part.credited.values():
        store_inner(shape, part, credited)
    chunk = part.chunk
    pairs = {
        (n, j): chunk.b.rounded(part.pairs(n, j, "key")) for n in range(len(part.sides)) for j in chunk.form.keys
    }
    for j, key in chunk.form.keys.items():
        raw = part.to_adjoints(j, adjoints)
        inner = [chunk.gather(pairs[n, j], side.vector) for n, side in enumerate(part.sides)]
        part.settle(shape, cotangents, key, write_name(j), "key", raw, inner)


def store_inner(shape: Shape, part: FamilyPass, of: Credited) -> None:
    """What a vector's rows are worth in pairs of its chunk: with other tokens, and with their own."""
    b, form = part.chunk.b, part.chunk.form
    partners = range(len(part.sides)) if of.is_write else form.keys
    pairs = {i: part.worths(*((i, of.number) if of.is_write else (of.number, i)), of.own) for i in partners}
    apart = part.chunk.once(("apart",), lambda: b.after("c", "s", 1, "apart"))
    zero = b.const(0.0, name="zero")
    total = b.where(apart, part.chunk.sum_of(list(pairs.values()), "M"), zero, name="M")
    b.store(inner_access(shape, part.family, of), along(b, total, of.is_write, "inner"), GATES)
    for i in own_partners(part.family, of):
        own = along(b, b.where(apart, zero, pairs[i], name="own"), of.is_write, "own")
        b.store(own_access(shape, part.family, of, i), own, GATES)


def along(b: Builder, pairs: Value, is_write: bool, name: str) -> Value:
    """The sums of pairs [c, s] for every c, or, of a write, for every s, as rows c."""
    if not is_write:
        return b.sum(pairs, ("s",), name=name)
    return b.rename(b.sum(pairs, ("c",), name=name), "s", "c", name=name)


def emit_write_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of values and keys, and of the initial state: the walk of a stage's one matrix, R whole or in
    tiles of the value dim.

    In this order, in which registers suffice: what the epilogue's numbers get from a token is left as it is, not
    summed over tokens; pairs are rounded before the products that need them; keys are stored before values come.
    """
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(shape, adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    adjoints = {w.form.state: inner.phi(w.state, start) for w, start in zip(backward, last, strict=True)}
    parts = [FamilyPass.load(shape, tiles, family) for family in infer_families(shape)]
    forms = [form for part in parts for form in part.forms]
    (matrix,) = (form for form in forms if form.form.value)
    of_values = argument_leaves([w.value for w in matrix.form.writes if w.value is not None])
    rests = Cotangents()
    if has_rests_at_hand(shape):
        add_rests(shape, inner, rests, matrix.cotangents)
    of_rests = [x for x in argument_leaves(rests.nodes) if x not in of_values]
    (tiled,) = write_dims(shape) or ("",)
    numbers = [x for x in of_rests if not x.dims and not tiled]
    store_gradients(tiles, rests, buffer_of, "writes", ROWS, numbers)
    scores = matrix.rounded_scores()
    for part in parts:
        key_cotangents(shape, part, cotangents, [adjoints[f.state] for f in part.family.forms])
    last_ones = of_values + [x for x in of_rests if x not in numbers]
    keys = [x for x in argument_leaves(cotangents.nodes) if x not in last_ones]
    store_gradients(tiles, cotangents, buffer_of, "writes", tiled, keys)
    value_cotangents(matrix, cotangents, adjoints[matrix.form.state], scores)
    cotangents.pairs += rests.pairs
    store_gradients(tiles, cotangents, buffer_of, "writes", tiled, last_ones)
    previous = {f.form.state: f.previous_adjoint(adjoints[f.form.state]) for f in forms}
    carries = [Carry(adjoints[s], start, previous[s]) for s, start in zip(adjoints, last, strict=True)]
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk in backward:
        b.store(walk.end, adjoints[walk.form.state])
    return write_kernel(shape, b)


def pass_kernel(name: str, shape: Shape, b: Builder, equations: tuple[str, ...], tiled: tuple[str, ...]) -> Kernel:
    """A walk of four warps in tiles of the dims ``tiled``."""
    axes, grid = tiled_state(shape, tiled)
    widths = ((tiled[0], tile_width(shape, tiled)),)
    role = name.replace("_", " ")
    return Kernel(name, grid, axes, tuple(b.statements), equations, role, widths, 4, pass_stages(shape))


def write_kernel(shape: Shape, b: Builder) -> Kernel:
    """The walk with all of the state, or of eight warps with a tile of it."""
    tiled = shape.value if write_tiles(shape) > 1 else ()
    axes, grid = tiled_state(shape, tiled)
    kernel = Kernel("write_gradients", grid, axes, tuple(b.statements), WRITE_EQUATIONS, IN_ORDER, rows_last=True)
    if not tiled:
        return fit_whole(shape, kernel, pass_stages(shape))
    return replace(kernel, widths=((tiled[0], write_width(shape)),), warps=8, stages=pass_stages(shape))


def tiled_state(shape: Shape, tiled: tuple[str, ...]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """The axes and the grid of a walk over segments, in tiles of the dims ``tiled``.

    Tiled dims, or else the keys, come last: a product of scaled rows with the user's rows then has the user's on its
    left.
    """
    last = tiled or shape.key
    axes = tuple(sorted(placed_axes(shape, dict.fromkeys(tiled, "grid")), key=lambda a: a.name in last))
    return axes, ("batch", "head", "segment", *(f"tile:{d}" for d in tiled))


def pass_stages(shape: Shape) -> int:
    """Of a walk's pipeline: the weights of pairs take shared memory too."""
    return 2 if any(f.decays for f in shape.forms) else 3


def query_width(shape: Shape) -> int:
    """Of a tile of the state over the key dims, in the walk over queries."""
    return tile_width(shape, shape.key) * (2 if is_alone(shape) else 1)


def is_alone(shape: Shape) -> bool:
    """Whether a chunk's rows of values leave a multiprocessor's shared memory to one program of the walk over queries:
    eight warps with a tile twice as wide then. (A walk over keys has tiles of the same width, and more to hold.)"""
    return write_tiles(shape) > 0 and entries(shape.value, dict(shape.sizes)) > WIDEST_VALUES


def tile_width(shape: Shape, tiled: tuple[str, ...]) -> int:
    """Of a tile of the state, whole along its other dims, that four warps hold."""
    sizes = dict(shape.sizes)
    others = entries(shape.value if tiled == shape.key else shape.key, sizes)
    width = WIDEST
    while width > LEAST_WIDTH and (width * others > STATE_ENTRIES or width >= 2 * entries(tiled, sizes)):
        width //= 2
    return width

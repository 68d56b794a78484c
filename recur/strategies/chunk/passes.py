"""The backward pass as walks that hold a tile of the state, or of its adjoint: no gradient needs all of either at once.

For states that nothing written depends on, under scalar decays. With (q, dO) the readouts, (b, U) the writes of a
family (see families),

    queries    first to last, tiles of S over the key dims      dQ = 2^G dO S^T + E B
    values     last to first, tiles of R over the value dims    dU = P^T dO + 2^(G_C - G) B R
    keys       last to first, tiles of R over the key dims      dB = E^T Q + 2^(G_C - G) U R^T
    gates      all chunks at once, a number a token

with P = tril(Q B^T) D and E = tril(dO U^T) D. The cotangent of a token's log decay is the sum of all pairs (write,
readout) on either side of it:

    across the chunk             2^G_C <S, R>, S at its start and R at its end
    from before, to a readout    q . (2^G dO S^T), of the readouts after the token
    from a write, to after       b . (2^(G_C - G) U R^T), of the writes before the token
    inside the chunk             q . (E B) of the readouts after it less b . (E^T Q) of the writes after it

The last are rounded alike in both walks, so that they cancel. Nothing else is taken as a difference: what is left of
large sums would be their rounding.

A factor f of a vector's rows belongs to E, and what the vector is worth in pairs is f df. A walk takes the factor of
the vector whose cotangent it finds as one where it is zero, and divides by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.core import Node, apply, const, is_const, leaves, neg, where
from recur.ir.normal import Decay, MatrixForm, Write
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, adjoint_values, previous_adjoint, readout_keys, readout_values
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum
from recur.strategies.chunk.families import (
    MOST_ENTRIES,
    Family,
    bounded_modulus,
    infer_families,
    kept_axes,
    matrix_part,
)
from recur.strategies.chunk.gates import class_decays, is_plain_factor
from recur.strategies.chunk.gradients import (
    BufferOf,
    Cotangents,
    add_decay,
    load_cotangents,
    store_gradient,
    store_gradients,
)
from recur.strategies.chunk.kernels import STATE_ENTRIES, STATE_EQUATION, load_starts
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.segments import walks
from recur.strategies.chunk.shape import LEAST_WIDTH, Shape, chunk_access, placed_axes
from recur.strategies.chunk.tiles import Rows, Tiles, Vector
from recur.strategies.chunk.weights import Own, WeightedChunk, nonzero, unless_zero, weighted_chunk
from recur.strategies.operands import argument_leaves, entries

WIDEST = 64  # of a tile of the state

QUERY_EQUATIONS = ("dQ = 2^G dO S^T + E B,   E = tril(dO U^T) D", STATE_EQUATION)
VALUE_EQUATIONS = ("dU = P^T dO + 2^(G_C - G) B R,   P = tril(Q B^T) D", "R <- 2^G_C R + Q~^T dO")
KEY_EQUATIONS = ("dB = E^T Q + 2^(G_C - G) U R^T,   E = tril(dO U^T) D", "R <- 2^G_C R + Q~^T dO")
GATE_EQUATIONS = (
    "dg = 2^G_C <S, R> + sum after of q . (2^G dO S^T) + sum before of b . (2^(G_C - G) U R^T)",
    "     + sum after of q . (E B) - sum after of b . (E^T Q)",
)
PARTS = ("outer", "inner")  # of what a readout or a write is worth: in pairs with other chunks, and with its own


# --- what the walks leave for gates ----------------------------------------------------------------------------------


def credited_vectors(family: Family) -> list[tuple[str, int, Node]]:
    """Those whose pairs' worth something needs: (name, position, expression)."""
    events = family.lead.events
    vectors = [(r.name, events.index(r), r.vector) for r in family.lead.readouts]
    vectors += [(write_name(j), events.index(w), w.key) for j, w in enumerate(family.lead.writes)]
    return [v for v in vectors if family.lead.decays or leaves([split_scale(v[2])[0]])]


def write_name(j: int) -> str:
    return f"write_{j}"


def has_gates(shape: Shape) -> bool:
    """Whether there are decays, or factors that differ from token to token."""
    return any(credited_vectors(f) for f in infer_families(shape))


def worth_buffer(family: Family, name: str, part: str) -> str:
    return f"{part}_{family.name}_{name}"


def across_buffer(family: Family) -> str:
    return f"across_{family.name}"


def pass_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """What the walks leave for the gates' gradients: numbers for every tile of the key dim."""
    tiles = f"tiles:{shape.key[0]}"
    families = infer_families(shape)
    names = [worth_buffer(f, n, part) for f in families for n, _, _ in credited_vectors(f) for part in PARTS]
    worths = [Buffer(name, ("B", "T", "H", tiles), doc="what it is worth in pairs") for name in names]
    decaying = [f for f in families if f.lead.decays]
    return (*worths, *(Buffer(across_buffer(f), ("B", "N", "H", tiles), doc="2^G_C <S, R>") for f in decaying))


def worth_access(family: Family, name: str, part: str, key: str) -> Access:
    return Access(worth_buffer(family, name, part), ("batch", "time", "head", f"tile:{key}"), "c")


def across_access(family: Family, key: str) -> Access:
    return Access(across_buffer(family), ("batch", "chunk", "head", f"tile:{key}"))


# --- a family in one chunk -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FormPass:
    """One form in one chunk of a walk: its equations, and its readouts' two sides (q, dO), by readout the second."""

    form: MatrixForm
    chunk: WeightedChunk
    sides: list[KeySide]
    values: dict[str, Rows]

    @classmethod
    def load(cls, shape: Shape, tiles: Tiles, form: MatrixForm, tiled: str) -> FormPass:
        chunk = weighted_chunk(shape, tiles, form, tiled)
        cotangents = load_cotangents(tiles.b, shape, form)
        return cls(form, chunk, readout_keys(chunk, cotangents), readout_values(chunk, cotangents))

    def cotangent(self, n: int) -> Rows:
        """dO of the readout number n."""
        return self.values[self.form.readouts[n].name]

    def is_one(self, j: int) -> bool:
        """Whether a write's value is the number one."""
        value = self.form.writes[j].value
        return value is not None and is_const(value, 1.0)

    def written(self, j: int) -> Rows:
        return self.chunk.form.values[j]

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
        terms = [
            form.cotangent(n).tile
            if form.is_one(j)
            else form.chunk.value_scores(form.cotangent(n), query.position, form.written(j), key.position, "E")
            for form in self.forms
        ]
        pairs = chunk.b.expand(chunk.sum_of(terms, "E"), ("c", "s"), "E")
        return chunk.weighted(pairs, query, key, "E", own)

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
        return self.chunk.times(self.chunk.b.contract(rows.tile, state, form.form.value, name="U_R"), rows.scale)

    def settle(self, cotangents: Cotangents, own: Vector, name: str, outer: Value, inner: list[Value]) -> None:
        """A key-side vector's cotangent, from other chunks and from its own: what the two are worth in pairs, and the
        pull to its expression."""
        chunk, b = self.chunk, self.chunk.b
        total = chunk.sum_of([outer, *inner], "total")
        if name in [n for n, _, _ in credited_vectors(self.family)]:
            first, both = (b.sum(b.mul(own.tile, x, name="worth"), chunk.key, "worth") for x in (outer, total))
            for part, worth in zip(PARTS, (first, b.sub(both, first, name="worth")), strict=True):
                b.store(worth_access(self.family, name, part, chunk.key[0]), worth, "for the gradient of the gates")
        cotangents.add(split_scale(own.node)[1], chunk.times(total, chunk.unless_zero(own.position)))


def load_states(b: Builder, family: Family, prefix: str, walked: dict[str, Value]) -> list[Value]:
    """Every form's state: those that are walked, and what the vectors' own walks have left."""
    return [walked[f.state] if f.value else b.load(f.state, kept_access(f, prefix), f.key) for f in family.forms]


def kept_access(form: MatrixForm, prefix: str) -> Access:
    return chunk_access(f"{prefix}_{form.state}", kept_axes(form))


# --- walks -----------------------------------------------------------------------------------------------------------


def emit_query_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the readouts' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    forward = walks(matrix_part(shape))
    first = load_starts(b, forward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    states = {w.form.state: inner.phi(w.form.state, start) for w, start in zip(forward, first, strict=True)}
    for walk in forward:
        if walk.form.decays:
            access = kept_access(walk.form, "chunk")
            inner.store(access, states[walk.form.state], "for that of the decays")
    following: dict[str, Value] = {}
    for family in infer_families(shape):
        part = FamilyPass.load(shape, tiles, family)
        members = load_states(inner, family, "chunk", states)
        for n, side in enumerate(part.sides):
            query_cotangent(part, cotangents, n, side, members)
        matrices = [(f, s) for f, s in zip(part.forms, members, strict=True) if f.form.value]
        following |= {f.form.state: f.next_state(s) for f, s in matrices}
    carries = [Carry(states[s], start, following[s]) for s, start in zip(states, first, strict=True)]
    store_gradients(tiles, cotangents, buffer_of, "queries", shape.key[0])
    b.loop("chunks", inner, tuple(carries))
    return pass_kernel("query_gradients", shape, b, QUERY_EQUATIONS, shape.key)


def query_cotangent(part: FamilyPass, cotangents: Cotangents, n: int, side: KeySide, states: list[Value]) -> None:
    """2^G dO S^T, and E B of every write."""
    chunk, own = part.chunk, side.vector
    outer = chunk.times(part.from_states(n, states), chunk.reach(own.position, own.scale, "query"), name="outer")
    inner = [chunk.spread(part.pairs(n, j, "query"), key) for j, key in chunk.form.keys.items()]
    part.settle(cotangents, own, side.name, outer, inner)


def emit_value_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of what is written, and of the initial states."""
    matrices = matrix_part(shape)
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(matrices, adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    carries = []
    for walk, start in zip(backward, last, strict=True):
        adjoint = inner.phi(walk.state, start)
        part = FormPass.load(shape, tiles, walk.form, "value")
        for j, write in enumerate(walk.form.writes):
            d_u, _ = adjoint_values(part.chunk, j, part.sides, part.values, adjoint)
            cotangents.add(write.value, d_u)
        carries.append(Carry(adjoint, start, part.previous_adjoint(adjoint)))
    store_gradients(tiles, cotangents, buffer_of, "values", shape.value[0])
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk, carry in zip(backward, carries, strict=True):
        b.store(walk.end, carry.phi)
    return pass_kernel("value_gradients", shape, b, VALUE_EQUATIONS, shape.value)


def emit_key_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(matrix_part(shape), adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    adjoints = {w.form.state: inner.phi(w.state, start) for w, start in zip(backward, last, strict=True)}
    previous: dict[str, Value] = {}
    for family in infer_families(shape):
        part = FamilyPass.load(shape, tiles, family)
        members = load_states(inner, family, "chunk_R", adjoints)
        for j, key in part.chunk.form.keys.items():
            key_cotangent(part, cotangents, j, key, members)
        if family.lead.decays:
            store_across(shape, part, members)
        matrices = [(f, r) for f, r in zip(part.forms, members, strict=True) if f.form.value]
        previous |= {f.form.state: f.previous_adjoint(r) for f, r in matrices}
    carries = [Carry(adjoints[s], start, previous[s]) for s, start in zip(adjoints, last, strict=True)]
    store_gradients(tiles, cotangents, buffer_of, "keys", shape.key[0])
    b.loop("chunks", inner, tuple(carries), reverse=True)
    return pass_kernel("key_gradients", shape, b, KEY_EQUATIONS, shape.key)


def key_cotangent(part: FamilyPass, cotangents: Cotangents, j: int, key: Vector, adjoints: list[Value]) -> None:
    """2^(G_C - G) U R^T + E^T Q."""
    chunk = part.chunk
    outer = chunk.times(part.to_adjoints(j, adjoints), chunk.reach(key.position, key.scale, "key"), name="outer")
    inner = [chunk.gather(part.pairs(n, j, "key"), side.vector) for n, side in enumerate(part.sides)]
    part.settle(cotangents, key, write_name(j), outer, inner)


def store_across(shape: Shape, part: FamilyPass, adjoints: list[Value]) -> None:
    """2^G_C <S, R> of a tile of the key dims."""
    chunk, b = part.chunk, part.chunk.b
    both = []
    for form, adjoint in zip(part.family.forms, adjoints, strict=True):
        state = b.load("S", kept_access(form, "chunk"), kept_axes(form))
        both.append(b.sum(b.mul(state, adjoint, name="S_R"), kept_axes(form), name="S_R"))
    across = b.mul(chunk.sum_of(both, "S_R"), chunk.class_over_chunk("key"), name="across")
    b.store(across_access(part.family, shape.key[0]), across, "for the gradient of the gates")


def pass_kernel(name: str, shape: Shape, b: Builder, equations: tuple[str, ...], tiled: tuple[str, ...]) -> Kernel:
    # Tiled dims come last: a product of scaled rows of a tile with the user's rows then has the user's on its left.
    axes = tuple(sorted(placed_axes(shape, {tiled[0]: "grid"}), key=lambda a: a.name in tiled))
    width = tile_width(shape, tiled)
    others = shape.value if tiled == shape.key else shape.key
    warps = 4 if width * entries(others, dict(shape.sizes)) <= STATE_ENTRIES else 8
    grid = ("batch", "head", "segment", f"tile:{tiled[0]}")
    widths = ((tiled[0], width),)
    return Kernel(name, grid, axes, tuple(b.statements), equations, name.replace("_", " "), widths, warps)


def tile_width(shape: Shape, tiled: tuple[str, ...]) -> int:
    """Of a tile of the state, whole along its other dims."""
    sizes = dict(shape.sizes)
    others = entries(shape.value if tiled == shape.key else shape.key, sizes)
    width = WIDEST
    while width > LEAST_WIDTH and (width * others > MOST_ENTRIES or width >= 2 * entries(tiled, sizes)):
        width //= 2
    return width


# --- gates -----------------------------------------------------------------------------------------------------------


def emit_gate_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of decays and of factors of rows, from what the walks found every vector to be worth."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles, cotangents = Tiles(b), Cotangents()
    for family in infer_families(shape):
        gate_cotangents(shape, tiles, cotangents, family)
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes)):
        store_gradient(b, source, tile, buffer_of(source, "gates", ""))
    key = shape.key[0]
    widths = ((key, tile_width(shape, shape.key)),)
    grid, axes = ("batch", "head", "chunk"), placed_axes(shape, {key: "loop"})
    return Kernel("gate_gradients", grid, axes, tuple(b.statements), GATE_EQUATIONS, "gate gradients", widths, 1)


def gate_cotangents(shape: Shape, tiles: Tiles, cotangents: Cotangents, family: Family) -> None:
    """The cotangents of every factor and decay of a family in a chunk."""
    b, key = tiles.b, shape.key[0]
    written = [i for i, e in enumerate(family.lead.events) if isinstance(e, Write)]
    readouts: list[tuple[Value, Value, int]] = []
    writes: list[tuple[Value, Value, int]] = []
    for name, position, node in credited_vectors(family):
        outer, inner = (over_tiles(shape, b, worth_access(family, name, p, key), ("c",), p) for p in PARTS)
        scale = split_scale(node)[0]
        if leaves([scale]):
            factor = tiles.node(scale, "scale")
            both = b.add(outer, inner, name="worth")
            cotangents.add(scale, b.map("div", both, nonzero(b, factor), name="d_scale"))
            outer, inner = (b.mul(x, unless_zero(b, factor), name=x.name) for x in (outer, inner))
        (writes if position in written else readouts).append((outer, inner, position))
    across = over_tiles(shape, b, across_access(family, key), (), "across") if family.lead.decays else None
    for i, decay in class_decays(family.lead, "key"):
        d_log = across
        assert d_log is not None
        for outer, inner, position in readouts:
            d_log = b.add(d_log, later_sum(b, Row(b.add(outer, inner, name="worth"), position), i), name="d_log")
        for outer, inner, position in writes:
            d_log = b.add(d_log, earlier_sum(b, Row(outer, position), i), name="d_log")
            d_log = b.sub(d_log, later_sum(b, Row(inner, position), i), name="d_log")
        if is_plain_factor(decay):
            cotangents.add(decay.factor, over_factor(tiles, decay, d_log))
        else:
            add_decay(cotangents, b, decay, d_log, ())


def over_factor(tiles: Tiles, decay: Decay, d_log: Value) -> Value:
    """The cotangent of a decay that is a factor, from its log's."""
    modulus = bounded_modulus(decay)
    signed = modulus if decay.sign is None else where(apply("lt", decay.sign, const(0)), neg(modulus), modulus)
    return tiles.b.map("div", d_log, tiles.node(signed, "factor", fill=1.0), name="d_factor")


def over_tiles(shape: Shape, b: Builder, access: Access, axes: tuple[str, ...], name: str) -> Value:
    """The sum of what the tiles of the key dim have left."""
    body = b.nested()
    zero = b.zeros(axes, name)
    total = b.phi(name, zero)
    following = body.add(total, body.load(f"{name}_of_tile", access, axes), name=name)
    b.loop("tiles", body, (Carry(total, zero, following),), axis=shape.key[0])
    return total

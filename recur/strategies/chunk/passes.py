"""The backward pass as walks that hold a tile of the state, or of its adjoint: no gradient needs all of either at once.

For states that nothing written depends on, under scalar decays. With (q, dO) the readouts, (b, U) the writes,
P = tril(Q B^T) D and E = tril(dO U^T) D,

    queries    first to last, tiles of S over the key dims      dQ = 2^G dO S^T + E B
    values     last to first, tiles of R over the value dims    dU = P^T dO + 2^(G_C - G) B R
    keys       last to first, tiles of R over the key dims      dB = E^T Q + 2^(G_C - G) U R^T
    decays     all chunks at once, a number a token

The cotangent of a token's log decay is the sum of all pairs (write, readout) on either side of it:

    across the chunk             2^G_C <S, R>, S at its start and R at its end
    from before, to a readout    q . (2^G dO S^T), of the readouts after the token
    from a write, to after       b . (2^(G_C - G) U R^T), of the writes before the token
    inside the chunk             q . (E B) of the readouts after it less b . (E^T Q) of the writes after it

The last are rounded alike in both walks, so that they cancel. Nothing else is taken as a difference: what is left of
large sums would be their rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recur.ir.core import Node, topological
from recur.ir.normal import MatrixForm
from recur.ir.tile import Access, Axis, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, adjoint_values, previous_adjoint, readout_keys, readout_values
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import class_decays, is_plain_factor
from recur.strategies.chunk.gradients import Cotangents, add_decay, load_cotangents, store_gradient
from recur.strategies.chunk.kernels import LEAST_WIDTH, STATE_EQUATION, known_values, load_starts
from recur.strategies.chunk.segments import Walk, walks
from recur.strategies.chunk.shape import Shape, chunk_access, mixed_dims
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_keys, load_values, signed
from recur.strategies.operands import argument_leaves, entries

WIDEST = 64  # of a tile of the state
FOUR_WARPS = 64 * 128  # entries of a tile of the state that four warps hold beside a chunk's rows
MOST_ENTRIES = 128 * 128

QUERY_EQUATIONS = ("dQ = 2^G dO S^T + E B,   E = tril(dO U^T) D", STATE_EQUATION)
VALUE_EQUATIONS = ("dU = P^T dO + 2^(G_C - G) B R,   P = tril(Q B^T) D", "R <- 2^G_C R + Q~^T dO")
KEY_EQUATIONS = ("dB = E^T Q + 2^(G_C - G) U R^T,   E = tril(dO U^T) D", "R <- 2^G_C R + Q~^T dO")
DECAY_EQUATIONS = (
    "dg = 2^G_C <S, R> + sum after of q . (2^G dO S^T) + sum before of b . (2^(G_C - G) U R^T)",
    "     + sum after of q . (E B) - sum after of b . (E^T Q)",
)
PARTS = ("outer", "inner")  # of what a readout or a write is worth: in pairs with other chunks, and with its own

BufferOf = Callable[[Node, str, str], str]  # the buffer of a source's gradient from a part, partial over tiles of a dim


def takes_passes(shape: Shape) -> bool:
    """Whether these walks hold the stage: else every chunk's states go to memory."""
    is_plain = all(
        f.key
        and not f.is_complex
        and all(r.axis == "key" for r in f.readouts)
        and all(not d.factor.dims and d.angle is None and not is_plain_factor(d) for d in f.decays)
        for f in shape.forms
    )
    tiled = set(shape.key + shape.value)
    mixes = any(tiled & mixed_dims(n) for n in topological(shape.nodes))
    sizes = dict(shape.sizes)
    fits = LEAST_WIDTH * max(entries(shape.key, sizes), entries(shape.value, sizes)) <= MOST_ENTRIES
    return shape.splits and not shape.whole_values and not shape.fused and is_plain and not mixes and fits


def worth_buffer(form: MatrixForm, name: str, part: str) -> str:
    return f"{part}_{form.state}_{name}"


def across_buffer(form: MatrixForm) -> str:
    return f"across_{form.state}"


def pass_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """What the walks leave for the decays' gradients: numbers for every tile of the key dim."""
    tiles = f"tiles:{shape.key[0]}"
    decaying = [f for f in shape.forms if f.decays]
    names = [worth_buffer(f, n, part) for f in decaying for n in _credited(f) for part in PARTS]
    worths = [Buffer(name, ("B", "T", "H", tiles), doc="what it is worth in pairs") for name in names]
    return (*worths, *(Buffer(across_buffer(f), ("B", "N", "H", tiles), doc="2^G_C <S, R>") for f in decaying))


def worth_access(form: MatrixForm, name: str, part: str, key: str) -> Access:
    return Access(worth_buffer(form, name, part), ("batch", "time", "head", f"tile:{key}"), "c")


def across_access(form: MatrixForm, key: str) -> Access:
    return Access(across_buffer(form), ("batch", "chunk", "head", f"tile:{key}"))


def _credited(form: MatrixForm) -> list[str]:
    return [r.name for r in form.readouts] + [_write_name(j) for j in range(len(form.writes))]


def _write_name(j: int) -> str:
    return f"write_{j}"


@dataclass(frozen=True)
class ChunkPass:
    """One form in one chunk of a walk: its equations, and the readouts' two sides."""

    chunk: Chunk
    u: dict[int, Rows]
    sides: list[KeySide]
    values: dict[str, Rows]

    @classmethod
    def load(cls, shape: Shape, tiles: Tiles, form: MatrixForm) -> ChunkPass:
        chunk = Chunk(tiles, load_values(tiles, load_keys(tiles, form)))
        cotangents = load_cotangents(tiles.b, shape, form)
        sides, values = readout_keys(chunk, cotangents), readout_values(chunk, cotangents)
        return cls(chunk, known_values(tiles.b, chunk.form), sides, values)

    def pairs(self, side: KeySide, j: int) -> Value:
        """tril(dO U^T) of a readout and a write."""
        later, earlier = side.vector.position, self.chunk.form.keys[j].position
        e = self.chunk.value_scores(self.values[side.name], later, self.u[j], earlier, name="E")
        return self.chunk.masked(e, later, earlier, "E")

    def settle(self, cotangents: Cotangents, form: MatrixForm, vector: Vector, name: str, terms: list[Value]) -> None:
        """A key-side vector's cotangent, from other chunks and from its own: what the two are worth in pairs, and the
        pull to its expression."""
        chunk, b = self.chunk, self.chunk.b
        total = chunk.sum_of(terms, "total")
        if form.decays:
            outer, both = (b.sum(b.mul(vector.tile, x, name="worth"), chunk.key, "worth") for x in (terms[0], total))
            for part, worth in zip(PARTS, (outer, b.sub(both, outer, name="worth")), strict=True):
                access = worth_access(form, name, part, chunk.key[0])
                b.store(access, chunk.times(worth, vector.scale), "for the gradient of the decays")
        unsigned = chunk.full(signed(b, chunk.form.key_gates, vector.position, Rows(total)))
        cotangents.add(vector.node, unsigned)


def emit_query_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the readouts' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    first = load_starts(b, walks(shape))
    inner = b.nested()
    tiles, cotangents = Tiles(inner, stored=scalar_gates(shape)), Cotangents()
    carries = []
    for form, start in zip(shape.forms, first, strict=True):
        state = inner.phi(form.state, start)
        if form.decays:
            inner.store(chunk_access(f"chunk_{form.state}", shape.state_axes(form)), state, "for that of the decays")
        part = ChunkPass.load(shape, tiles, form)
        for side in part.sides:
            part.settle(cotangents, form, side.vector, side.name, query_cotangent(part, side, state))
        carries.append(Carry(state, start, part.chunk.next_state(state, part.u)))
    store_gradients(shape, tiles, cotangents, buffer_of, "queries", shape.key[0])
    b.loop("chunks", inner, tuple(carries))
    return pass_kernel("query_gradients", shape, b, QUERY_EQUATIONS, shape.key)


def query_cotangent(part: ChunkPass, side: KeySide, state: Value) -> list[Value]:
    """2^G dO S^T, and E B of every write."""
    chunk, position = part.chunk, side.vector.position
    terms = [chunk.against_state(part.values[side.name], position, "start", state, "value", "d_inter")]
    for j, key in chunk.form.keys.items():
        terms.append(chunk.spread_keys(part.pairs(side, j), key, position, key.position))
    return terms


def emit_value_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of what is written, and of the initial state."""
    return emit_reverse_pass(shape, "value", buffer_of)


def emit_key_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' vectors; and of what is written where the state has no value dim to tile."""
    return emit_reverse_pass(shape, "key", buffer_of)


def emit_reverse_pass(shape: Shape, tiled: str, buffer_of: BufferOf) -> Kernel:
    """A walk from the last chunk to the first with tiles of R over the "key" or the "value" dims."""
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = [w for w in walks(shape, adjoint=True) if tiled == "key" or w.form.value]
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner, stored=scalar_gates(shape)), Cotangents()
    carries, adjoints = [], []
    for walk, start in zip(backward, last, strict=True):
        adjoint = inner.phi(walk.state, start)
        adjoints.append(adjoint)
        part = ChunkPass.load(shape, tiles, walk.form)
        if tiled == "key":
            write_key_cotangents(part, cotangents, walk.form, adjoint)
            if walk.form.decays:
                store_across(shape, part.chunk, walk, adjoint)
        if (tiled == "value") == bool(walk.form.value):
            for j in part.chunk.form.keys:
                d_u, _ = adjoint_values(part.chunk, j, part.sides, part.values, adjoint)
                cotangents.add(walk.form.writes[j].value, d_u)
        carries.append(Carry(adjoint, start, previous_adjoint(part.chunk, part.sides, part.values, adjoint)))
    dims = shape.key if tiled == "key" else shape.value
    store_gradients(shape, tiles, cotangents, buffer_of, f"{tiled}s", dims[0])
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk, adjoint in zip(backward, adjoints, strict=True):
        if (tiled == "value") == bool(walk.form.value):
            b.store(walk.end, adjoint)
    equations = KEY_EQUATIONS if tiled == "key" else VALUE_EQUATIONS
    return pass_kernel(f"{tiled}_gradients", shape, b, equations, dims)


def write_key_cotangents(part: ChunkPass, cotangents: Cotangents, form: MatrixForm, adjoint: Value) -> None:
    """2^(G_C - G) U R^T + E^T Q."""
    chunk = part.chunk
    for j, key in chunk.form.keys.items():
        terms = [chunk.against_state(part.u[j], key.position, "end", adjoint, "value", "d_after")]
        for side in part.sides:
            terms.append(chunk.gather_keys(part.pairs(side, j), side.vector, side.vector.position, key.position))
        part.settle(cotangents, form, key, _write_name(j), terms)


def store_across(shape: Shape, chunk: Chunk, walk: Walk, adjoint: Value) -> None:
    """2^G_C <S, R> of a tile of the key dims."""
    b, form = chunk.b, walk.form
    state = b.load("S", chunk_access(f"chunk_{form.state}", walk.axes), walk.axes)
    both = b.sum(b.mul(state, adjoint, name="S_R"), walk.axes, name="S_R")
    across = b.mul(both, chunk.class_over_chunk("key"), name="across")
    b.store(across_access(form, shape.key[0]), across, "for the gradient of the decays")


def store_gradients(
    shape: Shape,
    tiles: Tiles,
    cotangents: Cotangents,
    buffer_of: BufferOf,
    part: str,
    dim: str,
    sources: list[Node] | None = None,
) -> None:
    """The sources' gradients (all of them, or some); where one lacks the dim that is tiled, a partial sum for every
    tile."""
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes) if sources is None else sources):
        is_partial = dim not in source.dims
        buffer = buffer_of(source, part, dim if is_partial else "")
        partial = (f"tile:{dim}",) if is_partial else ()
        if source.attrs[0] == "param":
            rows = tiles.b.sum(tile, ("c",), name=tile.name)
            access = Access(buffer, ("batch", "chunk", "head", *partial, *source.dims))
            tiles.b.store(access, rows, "one partial sum a chunk")
        else:
            tiles.b.store(Access(buffer, ("batch", "time", "head", *partial, *source.dims), "c"), tile)


def pass_kernel(name: str, shape: Shape, b: Builder, equations: tuple[str, ...], tiled: tuple[str, ...]) -> Kernel:
    axes = tuple(Axis(a.name, a.kind, a.extent, "grid" if a.name in tiled else "whole") for a in shape.axes)
    width = tile_width(shape, tiled)
    others = shape.value if tiled == shape.key else shape.key
    warps = 4 if width * entries(others, dict(shape.sizes)) <= FOUR_WARPS else 8
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


# --- decays ----------------------------------------------------------------------------------------------------------


def emit_decay_pass(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the decays, from what the walks found every readout and write to be worth."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles, cotangents = Tiles(b), Cotangents()
    for form in shape.forms:
        if form.decays:
            decay_cotangents(shape, b, cotangents, form)
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes)):
        store_gradient(b, source, tile, buffer_of(source, "decays", ""))
    key = shape.key[0]
    axes = tuple(Axis(a.name, a.kind, a.extent, "loop" if a.name == key else "whole") for a in shape.axes)
    widths = ((key, tile_width(shape, shape.key)),)
    grid = ("batch", "head", "chunk")
    return Kernel("decay_gradients", grid, axes, tuple(b.statements), DECAY_EQUATIONS, "decay gradients", widths, 1)


def decay_cotangents(shape: Shape, b: Builder, cotangents: Cotangents, form: MatrixForm) -> None:
    """Every decay's cotangent in a chunk."""
    key = shape.key[0]
    across = over_tiles(shape, b, across_access(form, key), (), "across")

    def worths(name: str, position: int) -> tuple[Value, Value, int]:
        outer, inner = (over_tiles(shape, b, worth_access(form, name, p, key), ("c",), p) for p in PARTS)
        return outer, inner, position

    readouts = [worths(r.name, form.events.index(r)) for r in form.readouts]
    writes = [worths(_write_name(j), form.events.index(w)) for j, w in enumerate(form.writes)]
    for i, decay in class_decays(form, "key"):
        d_log = across
        for outer, inner, position in readouts:
            d_log = b.add(d_log, later_sum(b, Row(b.add(outer, inner, name="worth"), position), i), name="d_log")
        for outer, inner, position in writes:
            d_log = b.add(d_log, earlier_sum(b, Row(outer, position), i), name="d_log")
            d_log = b.sub(d_log, later_sum(b, Row(inner, position), i), name="d_log")
        add_decay(cotangents, b, decay, d_log, ())


def over_tiles(shape: Shape, b: Builder, access: Access, axes: tuple[str, ...], name: str) -> Value:
    """The sum of what the tiles of the key dim have left."""
    body = b.nested()
    zero = b.zeros(axes, name)
    total = b.phi(name, zero)
    following = body.add(total, body.load(f"{name}_of_tile", access, axes), name=name)
    b.loop("tiles", body, (Carry(total, zero, following),), axis=shape.key[0])
    return total

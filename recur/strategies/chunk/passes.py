"""The backward pass as two walks that hold the state and its adjoint in registers: no chunk's state goes to memory.

For states that nothing written depends on, under scalar decays. With (q, dO) the readouts and (b, U) the writes,

    queries    first to last, with S     dQ = 2^G dO S^T + (tril(dO U^T) D) B
    writes     last to first, with R     dU = (P^T) dO + 2^(G_C - G) B R      P = tril(Q B^T) D
                                         dB = (tril(dO U^T) D)^T Q + 2^(G_C - G) U R^T

The cotangent of a token's log decay is the sum M of all pairs (write, readout) on either side of it. With A_n that
over the end of chunk n, read = q . (2^G dO S^T), kept = U . (2^(G_C - G) B R), and M = P * tril(dO U^T),

    across the chunk      A_n - sum of kept  =  A_{n-1} - sum of read
    at a token            across + later reads + earlier kept + the pairs of M that straddle it

A is <S, R> at a segment's end and goes from chunk to chunk by these sums, so that nothing large cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recur.ir.core import Node
from recur.ir.normal import MatrixForm
from recur.ir.tile import Axis, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, adjoint_values, previous_adjoint, readout_keys, readout_values
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum, straddling_sum
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import class_decays, is_plain_factor
from recur.strategies.chunk.gradients import Cotangents, add_decay, load_cotangents, store_gradient
from recur.strategies.chunk.kernels import known_values, load_starts
from recur.strategies.chunk.segments import Walk, segment_access, walks
from recur.strategies.chunk.shape import Shape, token_access
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.tiles import Rows, Tiles, load_keys, load_values, signed
from recur.strategies.operands import argument_leaves, entries

LARGEST_STATE = 128 * 128  # entries of S or R that eight warps hold beside a chunk's gradients

QUERY_EQUATIONS = ("dQ = 2^G dO S^T + (tril(dO U^T) D) B", "S <- 2^G_C S + (2^(G_C - G) B)^T U")
WRITE_EQUATIONS = (
    "dU = P^T dO + 2^(G_C - G) B R,   P = tril(Q B^T) D",
    "dB = (tril(dO U^T) D)^T Q + 2^(G_C - G) U R^T",
    "R <- 2^G_C R + Q~^T dO",
)

BufferOf = Callable[[Node, str], str]


def takes_passes(shape: Shape) -> bool:
    """Whether these walks hold the stage: else every chunk's states go to memory."""
    sizes = dict(shape.sizes)
    plain = all(
        not f.is_complex
        and all(r.axis == "key" for r in f.readouts)
        and all(not d.factor.dims and d.angle is None and not is_plain_factor(d) for d in f.decays)
        and entries((*f.key, *f.value), sizes) <= LARGEST_STATE
        for f in shape.forms
    )
    return shape.splits and plain


def read_buffer(form: MatrixForm, readout: str) -> str:
    return f"read_{form.state}_{readout}"


def pass_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """What the first walk leaves for the second: a number for each readout."""
    return tuple(
        Buffer(read_buffer(f, r.name), ("B", "T", "H"), doc="q . (2^G dO S^T)")
        for f in shape.forms
        for r in f.readouts
        if f.decays
    )


@dataclass(frozen=True)
class ChunkPass:
    """One form in one chunk of either walk: its equations, and the readouts' two sides."""

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
        chunk, later, earlier = self.chunk, side.vector.position, self.chunk.form.keys[j].position

        def emit() -> Value:
            e = chunk.value_scores(self.values[side.name], later, self.u[j], earlier, name="E")
            return chunk.masked(e, later, earlier, "E")

        return chunk.once(("E", chunk.form.form.state, side.name, str(j)), emit)

    def unsigned(self, rows: Value, position: int) -> Value:
        chunk = self.chunk
        return chunk.full(signed(chunk.b, chunk.form.key_gates, position, Rows(rows)))

    def summed(self, rows: Rows, tile: Value, over: tuple[str, ...], name: str) -> Value:
        b = self.chunk.b
        return b.sum(b.mul(self.chunk.full(rows), tile, name=name), over, name=name)


def emit_query_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The first walk: the cotangents of the readouts' vectors."""
    b = Builder(complex_buffers=shape.complex_buffers)
    first = load_starts(b, walks(shape))
    inner = b.nested()
    tiles, cotangents = Tiles(inner, stored=scalar_gates(shape)), Cotangents()
    carries = []
    for form, start in zip(shape.forms, first, strict=True):
        state = inner.phi(form.state, start)
        part = ChunkPass.load(shape, tiles, form)
        for side in part.sides:
            cotangents.add(side.vector.node, query_cotangent(part, form, side, state))
        carries.append(Carry(state, start, part.chunk.next_state(state, part.u)))
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes)):
        store_gradient(inner, source, tile, buffer_of(source, "queries"))
    b.loop("chunks", inner, tuple(carries))
    return pass_kernel("query_gradients", shape, b, QUERY_EQUATIONS)


def query_cotangent(part: ChunkPass, form: MatrixForm, side: KeySide, state: Value) -> Value:
    chunk, position = part.chunk, side.vector.position
    inter = chunk.against_state(part.values[side.name], position, "start", state, "value", "d_inter")
    if form.decays:
        read = part.summed(side.vector, inter, chunk.key, "read")
        chunk.b.store(token_access(read_buffer(form, side.name), ()), read, "for the gradient of the decays")
    terms = [inter]
    for j, key in chunk.form.keys.items():
        terms.append(chunk.spread_keys(part.pairs(side, j), key, position, key.position))
    return part.unsigned(chunk.sum_of(terms, "d_q"), position)


def emit_write_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The second walk: the cotangents of what is written, of the decays, and of the initial state."""
    b = Builder(complex_buffers=shape.complex_buffers)
    backward = walks(shape, adjoint=True)
    last = load_starts(b, backward)
    inner = b.nested()
    tiles, cotangents = Tiles(inner, stored=scalar_gates(shape)), Cotangents()
    carries, adjoints = [], []
    for walk, start in zip(backward, last, strict=True):
        adjoint = inner.phi(walk.state, start)
        adjoints.append(adjoint)
        part = ChunkPass.load(shape, tiles, walk.form)
        kept = write_cotangents(part, cotangents, adjoint)
        if walk.form.decays:
            carries.append(decay_cotangents(part, cotangents, walk.form, kept, straddling_end(b, shape, walk, start)))
        previous = previous_adjoint(part.chunk, part.sides, part.values, adjoint)
        carries.append(Carry(adjoint, start, previous))
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes)):
        store_gradient(inner, source, tile, buffer_of(source, "writes"))
    b.loop("chunks", inner, tuple(carries), reverse=True)
    for walk, adjoint in zip(backward, adjoints, strict=True):
        b.store(walk.end, adjoint)
    return pass_kernel("write_gradients", shape, b, WRITE_EQUATIONS)


def write_cotangents(part: ChunkPass, cotangents: Cotangents, adjoint: Value) -> dict[int, Value]:
    """dU and dB of every write; gives each write's ``kept``."""
    chunk, kept = part.chunk, {}
    for j, key in chunk.form.keys.items():
        d_u, outliving = adjoint_values(chunk, j, part.sides, part.values, adjoint)
        cotangents.add(chunk.form.form.writes[j].value, d_u)
        kept[j] = part.summed(part.u[j], outliving, chunk.value, "kept")
        after = chunk.against_state(part.u[j], key.position, "end", adjoint, "value", "d_after")
        terms = [after]
        for side in part.sides:
            terms.append(chunk.gather_keys(part.pairs(side, j), side.vector, side.vector.position, key.position))
        cotangents.add(key.node, part.unsigned(chunk.sum_of(terms, "d_b"), key.position))
    return kept


def straddling_end(b: Builder, shape: Shape, walk: Walk, adjoint: Value) -> Value:
    """A at a segment's end: <S, R>."""
    state = b.load("S_end", segment_access(f"end_{walk.form.state}", walk.axes), walk.axes)
    return b.sum(b.mul(state, adjoint, name="S_R"), walk.axes, name="A")


def decay_cotangents(
    part: ChunkPass, cotangents: Cotangents, form: MatrixForm, kept: dict[int, Value], at_end: Value
) -> Carry:
    """Every decay's cotangent, and A carried from the chunk's end to its start."""
    chunk, b = part.chunk, part.chunk.b
    gates = chunk.form.key_gates
    assert gates is not None
    ends = b.phi("A", at_end)
    outlive = chunk.sum_of([b.sum(k, ("c",), name="outlive") for k in kept.values()], "outlive")
    across = b.sub(ends, outlive, name="across")
    if gates.end.cuts is not None:
        zero = b.const(0.0, name="zero")
        across = b.where(b.map("eq", gates.end.cuts, zero, name="uncut"), across, zero, name="across")
    reads = {s.name: b.load("read", token_access(read_buffer(form, s.name), ()), ("c",)) for s in part.sides}
    for i, decay in class_decays(form, "key"):
        terms = [across]
        terms += [later_sum(b, Row(reads[s.name], s.vector.position), i) for s in part.sides]
        terms += [earlier_sum(b, Row(kept[j], key.position), i) for j, key in chunk.form.keys.items()]
        for side in part.sides:
            for j, key in chunk.form.keys.items():
                amount = b.mul(part.pairs(side, j), chunk.scores(side.vector, key), name="M")
                terms.append(straddling_sum(b, amount, side.vector.position, key.position, i))
        add_decay(cotangents, b, decay, chunk.sum_of(terms, "d_log"), ())
    arrived = chunk.sum_of([b.sum(r, ("c",), name="arrived") for r in reads.values()], "arrived")
    return Carry(ends, at_end, b.add(across, arrived, name="A"))


def pass_kernel(name: str, shape: Shape, b: Builder, equations: tuple[str, ...]) -> Kernel:
    """Whole states: their gradients sum over both dims."""
    axes = tuple(Axis(a.name, a.kind, a.extent) for a in shape.axes)
    grid = ("batch", "head", "segment")
    return Kernel(name, grid, axes, tuple(b.statements), equations, name.replace("_", " "), warps=8)

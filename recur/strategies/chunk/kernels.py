"""The kernels of the chunkwise schedule, forward: the triangular systems, and the walk over chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from recur.ir.core import Node, leaves
from recur.ir.normal import MatrixForm
from recur.ir.tile import Builder, Carry, Kernel, Value, next_power_of_two
from recur.strategies.chunk.equations import Blocks, Chunk, invert_system
from recur.strategies.chunk.families import holds_whole
from recur.strategies.chunk.kept_scales import kept_scales, store_scales
from recur.strategies.chunk.pairs import pairs_name, stored_pairs
from recur.strategies.chunk.scales import scale_last
from recur.strategies.chunk.segments import Advance, Walk, walks
from recur.strategies.chunk.shape import (
    LEAST_WIDTH,
    Shape,
    chunk_access,
    key_only,
    pair_access,
    tile_widths,
    token_access,
)
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.tiles import FormTiles, Rows, Tiles, load_keys, load_values
from recur.strategies.pointwise import emit_nodes

STATE_EQUATION = "S <- 2^G_C S + (2^(G_C - G) B)^T U"
FORWARD_EQUATIONS = (
    "L = strictly lower part of A~ B^T,  Tm = (I + L)^-1,  U = Tm (Y - A~ S)",
    "O = Q~ S + tril(Q~ B^T) U",
    STATE_EQUATION,
)


STATE_ENTRIES = 64 * 128  # of a tile of the state that four warps hold beside a chunk's rows
WIDE, NARROW = 64, 32  # of tiles of the value dims

ChunkOf = Callable[[Tiles, MatrixForm], Chunk]  # a chunk's equations with their tiles, wherever those come from


def computed_chunk(tiles: Tiles, form: MatrixForm) -> Chunk:
    """A chunk's tiles from the stage's inputs."""
    return Chunk(tiles, load_values(tiles, load_keys(tiles, form)))


def inverse_name(form_state: str, i: int, j: int) -> str:
    return f"Tm_{form_state}_{i}{j}"


def values_name(form_state: str, j: int) -> str:
    return f"U_{form_state}_{j}"


def emit_prepare(shape: Shape) -> Kernel:
    """Tm = (I + L)^{-1} for every chunk at once, and the pairs outside the system: none depends on a state."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b, stored=scalar_gates(shape))
    for form in shape.forms:
        part = load_keys(tiles, form)
        chunk = Chunk(tiles, part)
        vectors = {v.position: v for v in [*part.queries.values(), *part.reads.values(), *part.keys.values()]}
        for later, earlier in stored_pairs(form):
            pairs = chunk.scores(vectors[later], vectors[earlier])
            b.store(pair_access(pairs_name(form, later, earlier)), pairs)
        for (i, j), block in invert_system(b, chunk.system(), part.solved).items():
            b.store(pair_access(inverse_name(form.state, i, j)), block)
    store_scales(shape, tiles)
    equations = ("L = strictly lower part of A~ B^T", "Tm = (I + L)^-1")
    return Kernel("prepare", ("batch", "head", "chunk"), key_only(shape), tuple(b.statements), equations, "prepare")


def load_inverse(b: Builder, state: str, solved: list[int]) -> Blocks:
    return {(i, j): b.load("Tm", pair_access(inverse_name(state, i, j)), ("c", "s")) for i in solved for j in solved}


def emit_walk(shape: Shape, chunk_of: ChunkOf) -> Kernel:
    """One program owns (batch, head, tile of the value dims), keeps every state in registers and walks the chunks.

    It leaves them in memory at every chunk's start, unless walks do the backward pass too.
    """
    b = Builder(complex_buffers=shape.complex_buffers)
    first = load_starts(b, walks(shape))
    inner = b.nested()
    states = [inner.phi(f.state, s) for f, s in zip(shape.forms, first, strict=True)]
    tiles = Tiles(inner, stored=scalar_gates(shape), kept=kept_scales(shape))
    readouts: dict[Node, Value] = {}
    following: list[Value] = []
    for form, state in zip(shape.forms, states, strict=True):
        chunk = chunk_of(tiles, form)
        part = chunk.form
        u = chunk.pseudo_values(state, load_inverse(inner, form.state, part.solved))
        for j in part.solved:
            access = token_access(values_name(form.state, j), form.value)
            inner.store(access, u[j].tile, "kept for the backward pass")
        if not shape.pass_forms:
            inner.store(chunk_access(f"chunk_{form.state}", shape.state_axes(form)), state)
        readouts.update(emit_readouts(shape, chunk, state, u))
        following.append(chunk.next_state(state, u))
    store_results(shape, tiles, readouts)
    carries = tuple(Carry(p, i, n) for p, i, n in zip(states, first, following, strict=True))
    b.loop("chunks", inner, carries)
    for walk, state in zip(walks(shape), states, strict=True):
        b.store(walk.end, state)
    return Kernel("forward", shape.segment_grid, shape.axes, tuple(b.statements), FORWARD_EQUATIONS, "walk")


def emit_readouts(shape: Shape, chunk: Chunk, state: Value, u: dict[int, Rows]) -> dict[Node, Value]:
    """A form's readouts in a chunk, stored where the backward pass needs them."""
    b, form = chunk.b, chunk.form.form
    readouts: dict[Node, Value] = {}
    for readout in form.readouts:
        rows = chunk.read_out(readout, state, u)
        dims = form.value if readout.axis == "key" else form.key
        node = next(x for x in shape.readouts if x.attrs[1] == readout.name)
        readouts[node] = b.expand(rows, ("c", *dims), "o")
        if node in shape.inner_readouts:
            b.store(token_access(readout.name, dims), readouts[node], "kept for the epilogue's gradient")
    return readouts


def store_results(shape: Shape, tiles: Tiles, readouts: dict[Node, Value]) -> None:
    tiles.values.update(readouts)
    for result, node in shape.epilogue:
        (tile,) = emit_epilogue(tiles, [node], "o")
        tiles.b.store(token_access(result, node.dims), tile)


def emit_epilogue(tiles: Tiles, nodes: list[Node], name: str) -> list[Value]:
    """Expressions over readouts and inputs, as tiles [c, dims]."""
    nodes = [scale_last(n) for n in nodes]
    for x in leaves(nodes):
        if x not in tiles.values:
            tiles.leaf(x)
    values = emit_nodes(tiles.b, nodes, tiles.values, name)
    return [tiles.b.expand(v, ("c", *n.dims), name) for v, n in zip(values, nodes, strict=True)]


def fit_walk(shape: Shape, kernel: Kernel) -> Kernel:
    """A walk in tiles of the value dims whose state four warps hold, loading two chunks ahead.

    Narrow ones where a program walks a whole sequence: few heads fill a GPU with many programs only, and each step is
    slow for being a chain of products, not for their size.
    """
    if shape.pass_forms and (shape.whole_values or holds_whole(shape)):
        return fit_whole(shape, replace(kernel, rows_last=True))
    if shape.whole_values:
        return kernel
    sizes = dict(shape.sizes)
    keys = max(1, math.prod(next_power_of_two(sizes[d]) for d in shape.key))
    widest = max(LEAST_WIDTH, min(WIDE if shape.splits else NARROW, STATE_ENTRIES // keys))
    widths = tile_widths(shape, shape.value, widest)
    stages = 2 if shape.pass_forms and any(f.decays for f in shape.forms) else 3
    return replace(kernel, widths=widths, warps=4 if keys * widest <= STATE_ENTRIES else 8, stages=stages)


def fit_whole(shape: Shape, kernel: Kernel, stages: int = 3) -> Kernel:
    """A walk whose programs hold a whole state.

    Eight warps are alone on a multiprocessor, and load two chunks ahead for it; of four there are several.
    """
    sizes = dict(shape.sizes)
    entries = math.prod(next_power_of_two(sizes[d]) for d in shape.key + shape.value)
    widths = tile_widths(shape, shape.value, entries) if any(g.startswith("tile:") for g in kernel.grid) else ()
    warps, stages = (4, 2) if entries <= STATE_ENTRIES else (8, stages)
    return replace(kernel, widths=widths, warps=warps, stages=stages)


def fit_chunk(shape: Shape, kernel: Kernel) -> Kernel:
    """A kernel of all chunks at once, in tiles of the value dims of which four warps hold several beside pairs."""
    widths = tile_widths(shape, shape.value, WIDE)
    whole = math.prod(next_power_of_two(dict(shape.sizes)[d]) for d in shape.value) if shape.whole_values else 0
    return replace(kernel, widths=() if whole else widths, warps=8 if whole > WIDE else 4)


def emit_states(shape: Shape, chunk_of: ChunkOf) -> Kernel:
    """The states alone, at every chunk's start and a walk's end: the readouts are another kernel's."""
    b = Builder(complex_buffers=shape.complex_buffers)
    first = load_starts(b, walks(shape))
    inner = b.nested()
    states = [inner.phi(f.state, s) for f, s in zip(shape.forms, first, strict=True)]
    advance = begin_states(shape, chunk_of, inner)
    following = []
    for i, (form, state) in enumerate(zip(shape.forms, states, strict=True)):
        inner.store(chunk_access(f"chunk_{form.state}", shape.state_axes(form)), state)
        following.append(advance(i, state)[0])
    carries = tuple(Carry(p, i, n) for p, i, n in zip(states, first, following, strict=True))
    b.loop("chunks", inner, carries)
    for walk, state in zip(walks(shape), states, strict=True):
        b.store(walk.end, state)
    return Kernel("states", shape.segment_grid, shape.axes, tuple(b.statements), (STATE_EQUATION,), "states")


def load_starts(b: Builder, of: list[Walk]) -> list[Value]:
    return [b.load(w.state, w.start, w.axes) for w in of]


def begin_states(shape: Shape, chunk_of: ChunkOf, b: Builder) -> Advance:
    """The step S <- 2^G_C S + (2^(G_C - G) B)^T U in a body, with the pseudo-values as the forward pass kept them."""
    tiles = Tiles(b, stored=scalar_gates(shape), kept=kept_scales(shape))

    def advance(index: int, state: Value) -> tuple[Value, Chunk]:
        chunk = chunk_of(tiles, shape.forms[index])
        return chunk.next_state(state, known_values(b, chunk.form)), chunk

    return advance


def known_values(b: Builder, part: FormTiles) -> dict[int, Rows]:
    """U by write: plain values from the inputs, solved ones as the forward pass kept them."""
    form = part.form
    axes = ("c", *form.value)
    u: dict[int, Rows] = {}
    for j in range(len(form.writes)):
        if j in part.solved:
            u[j] = Rows(b.load("U", token_access(values_name(form.state, j), form.value), axes))
        else:
            u[j] = part.values[j]
    return u

"""The key side of every chunk in memory, decays included: what remains of a chunk is products of plain matrices.

Where a decay runs over the key dims, a row's decay is no factor that could be taken out of a product. One kernel, all
chunks at once, writes

    x 2^G of every query and read     b 2^(G_C - G) of every write     2^{G_C}
    P[c, s] = sum over K of x[c] b[s] 2^(G_c - G_s), s written before c reads; in place of the system's pairs Tm

and every other kernel loads these, in the operand type, for as many tiles of the value dims as there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from recur.ir.core import topological
from recur.ir.normal import Decay, MatrixForm, Read, Readout, Write
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.blocks import BLOCK, Blocks
from recur.strategies.chunk.equations import Chunk, carry_sum, invert_system, sum_of
from recur.strategies.chunk.gates import Gate, Gates, class_decays, decay_steps, is_plain_factor, whole_chunk
from recur.strategies.chunk.halves import Halves, Pair, emit_scores, own_products
from recur.strategies.chunk.kept_scales import store_scales
from recur.strategies.chunk.kernels import inverse_name
from recur.strategies.chunk.pairs import PairedChunk, pair_buffers, pairs_name, stored_pairs
from recur.strategies.chunk.shape import (
    Shape,
    chunk_access,
    key_only,
    key_side_nodes,
    mixed_dims,
    pair_access,
    solved_writes,
    tile_widths,
    token_access,
)
from recur.strategies.chunk.tiles import (
    FormTiles,
    KeyEvent,
    Tiles,
    Vector,
    key_symbol,
    key_tiles,
    key_vector,
    load_gates,
    load_values,
)

KEY_SIDE_EQUATIONS = (
    "X = x 2^G for queries and reads,  B = b 2^(G_C - G) for writes",
    "P[c, s] = sum over the key dims of x[c] b[s] 2^(G_c - G_s), s written before c",
)


def has_stored_key_side(shape: Shape) -> bool:
    """Whether the stage's decays run over the key dims, and all of its states are read along them alone.

    Decays given as factors are left to kernels that see the pairs on either side of each: their gradient leaves it out.
    """
    over_keys = [any(d.factor.dims for _, d in class_decays(f, "key")) for f in shape.forms]
    scalar = [bool(class_decays(f, "key")) and not over for f, over in zip(shape.forms, over_keys, strict=True)]
    plain = all(_is_plain(f) for f in shape.forms) and _mixes_rows_only(shape)
    return any(over_keys) and not any(scalar) and plain


def _is_plain(form: MatrixForm) -> bool:
    along_keys = all(r.axis == "key" for r in form.readouts)
    by_logs = not any(is_plain_factor(d) for d in form.decays) and not class_decays(form, "value")
    return bool(form.key and form.value) and along_keys and not form.is_complex and by_logs


def _mixes_rows_only(shape: Shape) -> bool:
    """Whether every expression of the key side that mixes entries of the key dims has those dims: see rows_kept.py."""
    key = set(shape.key)
    roots = [n for f in shape.forms for e in f.events for n in key_side_nodes(f, e)]
    return all(key & set(n.dims) or not any(mixed_dims(m) & key for m in topological([n])) for n in roots)


def vector_name(form: MatrixForm, position: int) -> str:
    """The rows of the event at a position, decayed from the chunk's start or to its end."""
    event = form.events[position]
    return f"{'to_end' if isinstance(event, Write) else 'from_start'}_{form.state}_{position}"


def system_name(form: MatrixForm, i: int, j: int) -> str:
    return f"L_{form.state}_{i}{j}"


def decay_name(form: MatrixForm) -> str:
    return f"over_chunk_{form.state}"


def key_side_buffers(shape: Shape) -> tuple[Buffer, ...]:
    buffers = []
    for form in shape.forms:
        vectors = [i for i, e in enumerate(form.events) if isinstance(e, Read | Write | Readout)]
        buffers += [Buffer(vector_name(form, i), ("B", "T", "H", *form.key), "operand") for i in vectors]
        buffers += pair_buffers(form)
        if form.decays:
            buffers.append(Buffer(decay_name(form), ("B", "N", "H", *form.key), doc="2^G_C"))
            buffers.append(Buffer(log_name(form), ("B", "N", "H", "C", *form.key), doc="G"))
    return tuple(buffers)


def system_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """L in float32, between the kernels that write and invert it."""
    return tuple(
        Buffer(system_name(f, i, j), ("B", "T", "H", "C"))
        for f in shape.forms
        for i in solved_writes(f)
        for j in solved_writes(f)
    )


def emit_key_side(shape: Shape) -> Kernel:
    """All chunks at once; a program goes through the key dims tile by tile and adds up the pairs."""
    b = Builder(complex_buffers=shape.complex_buffers)
    body = b.nested()
    sides = [FormKeySide(b, Tiles(body), form, chunks_are_blocks(shape)) for form in shape.forms]
    b.loop("tiles", body, tuple(c for side in sides for c in side.carries), axis=shape.key[0])
    for side in sides:
        side.store_pairs()
    axes = tuple(replace(a, place="loop") if a.name in shape.key else a for a in key_only(shape))
    rows = stored_chunk_length(shape)
    width = rows if has_few_vectors(shape) else rows // 2
    return Kernel(
        "key_side", ("batch", "head", "chunk"), axes, tuple(b.statements), KEY_SIDE_EQUATIONS, "key_side",
        tile_widths(shape, shape.key, width), rows // WARP_ROWS,
    )  # fmt: skip


def has_few_vectors(shape: Shape) -> bool:
    """Whether registers have room for all vectors of a token in wide tiles, and for what their gradients need."""
    return sum(not isinstance(e, Decay) for f in shape.forms for e in f.events) <= FEW_VECTORS


@dataclass
class FormKeySide:
    """One form's part: a tile of its rows in the loop's body, and the sums that the loop carries."""

    b: Builder
    tiles: Tiles
    form: MatrixForm
    is_one: bool  # whether a chunk is one block
    carries: list[Carry] = field(default_factory=list)
    sums: dict[Pair, Value] = field(default_factory=dict)
    own: dict[Pair, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store_logs(self.tiles, self.form)
        side = KeyRows(self.tiles, self.form)
        self.gates, self.vectors, self.chunk = side.gates, side.vectors, side.chunk
        self._store_rows()
        pairs = [*stored_pairs(self.form), *system_pairs(self.form).values()]
        if side.gates is None:
            for pair in pairs:
                later, earlier = (self.vectors[p] for p in pair)
                self.sums[pair] = self._add("P", self.chunk.scores(later, earlier))
        else:
            self._add_pairs(pairs, side)

    def _store_rows(self) -> None:
        body, form = self.tiles.b, self.form
        for position, vector in self.vectors.items():
            end = "end" if isinstance(form.events[position], Write) else "start"
            _, entry = self.chunk.factors(self.gates, position, end)
            rows = self.chunk.times(self.chunk.full(vector), entry)
            body.store(token_access(vector_name(form, position), form.key), rows)
        if self.gates is not None:
            body.store(chunk_access(decay_name(form), form.key), whole_chunk(body, self.gates.end))

    def _add_pairs(self, pairs: list[Pair], side: KeyRows) -> None:
        body, form = self.tiles.b, self.form
        blocks = side.blocks(self.is_one)
        for pair in pairs:
            if pair[1] < pair[0]:
                own = body.sum(own_products(body, blocks.gates, blocks.rows, pair), form.key, name="own")
                self.own[pair] = self._add("own", own)
        scores = emit_scores(body, blocks, side.halves(body.nested()), pairs)
        self.sums = {pair: self._add("P", tile) for pair, tile in scores.items()}

    def _add(self, name: str, amount: Value) -> Value:
        """The amount's sum over all tiles, after the loop."""
        self.carries.append(carry_sum(self.b, self.tiles.b, name, amount))
        return self.carries[-1].phi

    def store_pairs(self) -> None:
        for pair in stored_pairs(self.form):
            self.b.store(pair_access(pairs_name(self.form, *pair)), self._pairs(pair, "P"))
        for (i, j), pair in system_pairs(self.form).items():
            self.b.store(pair_access(system_name(self.form, i, j)), self._pairs(pair, "L"))

    def _pairs(self, pair: Pair, name: str) -> Value:
        b, total = self.b, self.sums[pair]
        if self.gates is None:
            return total
        below = b.where(b.after("c", "s", 1), total, b.const(0.0, name="zero"), name=name)
        if pair not in self.own:
            return below
        diagonal = b.let("is_own", "eye", (), ("c", "s"))
        return b.add(below, b.mul(diagonal, self.own[pair], name="own"), name=name)


# --- running logs in memory ------------------------------------------------------------------------------------------


def log_name(form: MatrixForm) -> str:
    return f"log_{form.state}"


def log_access(form: MatrixForm) -> Access:
    return Access(log_name(form), ("batch", "chunk", "head", "c", *form.key))


def load_log(b: Builder, form: MatrixForm) -> Value | None:
    """G after every token's last decay; None for a form without decays."""
    return b.load("G", log_access(form), ("c", *form.key)) if class_decays(form, "key") else None


def store_logs(tiles: Tiles, form: MatrixForm) -> None:
    """Leaves G in memory, where each row can be had by all others; nothing for a form without decays."""
    steps = list(key_steps(tiles, form).values())
    if steps:
        token = sum_of(tiles.b, steps, "log2_token")
        tiles.b.store(log_access(form), tiles.b.cumsum(token, "c", name="G"))


def key_steps(tiles: Tiles, form: MatrixForm) -> dict[int, Value]:
    """The log2 of every decay on [c, key dims], by position."""
    decays = class_decays(form, "key")
    logs = {i: tiles.node(d.log, "g") for i, d in decays if d.log is not None}
    _, steps, _ = decay_steps(tiles.b, form, "key", logs)
    return {i: tiles.b.expand(step, ("c", *form.key), name="log2_decay") for i, step in steps.items()}


def load_key_gates(tiles: Tiles, form: MatrixForm, log: Value | None) -> Gates | None:
    """The gates of every event: G, less what a token decays after the event."""
    signs = load_gates(tiles, form, "key")
    if signs is None or log is None:
        return None
    b, steps = tiles.b, key_steps(tiles, form)
    end = Gate(b.last(log, "c", name="G_C"), None, signs.end.unit)
    at: dict[int, Gate] = {}
    for i in reversed(range(len(form.events))):
        if i in steps:
            log = b.sub(log, steps[i], name="G_before")
        at[i] = Gate(log, None, signs.at[i].unit)
    return Gates(form.key, at, end)


@dataclass
class KeyRows:
    """What a form's pairs are made of, loaded in one body: G, the gates and every event's rows."""

    tiles: Tiles
    form: MatrixForm

    def __post_init__(self) -> None:
        self.log = load_log(self.tiles.b, self.form)
        self.gates = load_key_gates(self.tiles, self.form, self.log)
        self.vectors = key_vectors(self.tiles, self.form, self.gates)
        self.chunk = Chunk(self.tiles, FormTiles(self.form, {}, {}, {}, {}, self.gates, None))

    @property
    def rows(self) -> dict[int, Value]:
        return {p: self.chunk.full(v) for p, v in self.vectors.items()}

    def blocks(self, is_one: bool) -> Blocks:
        assert self.gates is not None and self.log is not None
        return Blocks(self.tiles.b, self.gates, self.log, self.rows, self.form.key, is_one)

    def halves(self, b: Builder, done: Value | None = None) -> Halves:
        """``b``: the loop's body."""
        assert self.gates is not None and self.log is not None
        return Halves(b, self.gates, self.log, self.rows, done)


def key_vectors(tiles: Tiles, form: MatrixForm, gates: Gates | None) -> dict[int, Vector]:
    """Every read, write and readout by position: its rows on the key dims, signs included."""
    return {
        i: key_vector(tiles, gates, e, i) for i, e in enumerate(form.events) if isinstance(e, Read | Write | Readout)
    }


def emit_inverse(shape: Shape) -> Kernel:
    """Tm = (I + L)^{-1}, all chunks at once; and the factors of rows."""
    b = Builder(complex_buffers=shape.complex_buffers)
    for form in shape.forms:
        solved = solved_writes(form)
        system = {
            (i, j): b.load("L", pair_access(system_name(form, i, j)), ("c", "s")) for i in solved for j in solved
        }
        for (i, j), block in invert_system(b, system, solved).items():
            b.store(pair_access(inverse_name(form.state, i, j)), block)
    store_scales(shape, Tiles(b))
    axes = tuple(a for a in shape.axes if a.kind == "rows")
    is_one = all(len(solved_writes(f)) == 1 for f in shape.forms)
    return Kernel(
        "inverse", ("batch", "head", "chunk"), axes, tuple(b.statements), ("Tm = (I + L)^-1",), "inverse",
        warps=1 if is_one else None,  # a chain of products of small blocks: there is nothing to share
    )  # fmt: skip


def system_pairs(form: MatrixForm) -> dict[tuple[int, int], Pair]:
    """Of the system's blocks, by the numbers of their writes: the positions of the first one's read and the second."""
    reads = {e.name: i for i, e in enumerate(form.events) if isinstance(e, Read)}
    solved = solved_writes(form)
    return {
        (i, j): (reads[str(form.writes[i].read)], form.events.index(form.writes[j])) for i in solved for j in solved
    }


FEW_VECTORS = 3
WARP_ROWS = 16  # of a chunk, for each of a key side's warps: a product of matrices gives a warp so many


def stored_chunk_length(shape: Shape) -> int:
    """Systems are inverted in float32: longer ones spill."""
    return 32 if any(f.reads for f in shape.forms) else 64


def chunks_are_blocks(shape: Shape) -> bool:
    return stored_chunk_length(shape) <= BLOCK


@dataclass
class StoredChunk(PairedChunk):
    """The equations of a chunk whose key side lies in memory: its vectors are decayed already."""

    def decayed(self, state: Value, name: str = "S", adjoint: bool = False) -> Value:
        return self.b.mul(state, self.class_over_chunk("key"), name=name) if self.form.form.decays else state

    def class_over_chunk(self, which: str) -> Value:
        form = self.form.form
        load = partial(self.b.load, "D", chunk_access(decay_name(form), form.key), form.key)
        return self.once(("over", form.state), load)


def stored_chunk(tiles: Tiles, form: MatrixForm) -> StoredChunk:
    """A chunk's tiles, its key side as `emit_key_side` has left it."""
    return StoredChunk(tiles, load_values(tiles, stored_rows(tiles.b, form)))


def held_chunk(b: Builder, form: MatrixForm) -> StoredChunk:
    """The key side alone, pairs included, before a loop whose body is to find them loaded (`Tiles.inside`)."""
    part = stored_rows(b, form)
    chunk = StoredChunk(Tiles(b), part)
    vectors = {v.position: v for v in [*part.queries.values(), *part.reads.values(), *part.keys.values()]}
    for later, earlier in stored_pairs(form):
        chunk.scores(vectors[later], vectors[earlier])
    return chunk


def stored_rows(b: Builder, form: MatrixForm) -> FormTiles:
    def vector_of(event: KeyEvent, position: int) -> Vector:
        node, name = key_symbol(event)
        rows = b.load(name, token_access(vector_name(form, position), form.key), ("c", *form.key))
        return Vector(rows, None, node, position)

    return key_tiles(form, None, vector_of)

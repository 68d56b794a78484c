"""The key side of every chunk in memory, decays included: what remains of a chunk is products of plain matrices.

Where a decay runs over the key dims, a row's decay is no factor that could be taken out of a product. One kernel, all
chunks at once, writes

    x 2^G of every query and read     b 2^(G_C - G) of every write     2^{G_C}
    P[c, s] = sum over K of x[c] b[s] 2^(G_c - G_s), s written before c reads; in place of the system's pairs Tm

and every other kernel loads these, in the operand type, for as many tiles of the value dims as there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from recur.ir.normal import MatrixForm, Read, Readout, Write
from recur.ir.tile import Access, Buffer, Builder, Kernel, Value
from recur.strategies.chunk.equations import Chunk, invert_system
from recur.strategies.chunk.gates import class_decays, is_plain_factor, whole_chunk
from recur.strategies.chunk.kernels import inverse_name, key_only
from recur.strategies.chunk.shape import Shape, chunk_access, pair_access, token_access
from recur.strategies.chunk.tiles import FormTiles, Tiles, Vector, load_keys, load_values

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
    return any(over_keys) and not any(scalar) and all(_is_plain(f) for f in shape.forms)


def _is_plain(form: MatrixForm) -> bool:
    along_keys = all(r.axis == "key" for r in form.readouts)
    logs = not class_decays(form, "value") and not any(is_plain_factor(d) for d in form.decays)
    return bool(form.key and form.value) and along_keys and not form.is_complex and logs


def vector_name(form: MatrixForm, position: int) -> str:
    """The rows of the event at a position, decayed from the chunk's start or to its end."""
    event = form.events[position]
    return f"{'to_end' if isinstance(event, Write) else 'from_start'}_{form.state}_{position}"


def pairs_name(form: MatrixForm, later: int, earlier: int) -> str:
    return f"pairs_{form.state}_{later}_{earlier}"


def decay_name(form: MatrixForm) -> str:
    return f"over_chunk_{form.state}"


def key_side_buffers(shape: Shape) -> tuple[Buffer, ...]:
    buffers = []
    for form in shape.forms:
        vectors = [i for i, e in enumerate(form.events) if isinstance(e, Read | Write | Readout)]
        buffers += [Buffer(vector_name(form, i), ("B", "T", "H", *form.key), "operand") for i in vectors]
        buffers += [Buffer(pairs_name(form, *pair), ("B", "T", "H", "C"), "operand") for pair in stored_pairs(form)]
        if form.decays:
            buffers.append(Buffer(decay_name(form), ("B", "N", "H", *form.key), doc="2^G_C"))
    return tuple(buffers)


def stored_pairs(form: MatrixForm) -> list[tuple[int, int]]:
    """The positions (reader, write) whose pairs are kept: all but those of the system, which is kept inverted."""
    readers = [i for i, e in enumerate(form.events) if isinstance(e, Read | Readout)]
    writes = [(i, e) for i, e in enumerate(form.events) if isinstance(e, Write)]
    return [
        (r, w)
        for r in readers
        for w, write in writes
        if isinstance(form.events[r], Readout) or write.read is None
    ]


def emit_key_side(shape: Shape) -> Kernel:
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b)
    for form in shape.forms:
        chunk = Chunk(tiles, load_keys(tiles, form))
        part = chunk.form
        readers, keys = [*part.queries.values(), *part.reads.values()], part.keys
        for vectors, end in ((readers, "start"), (keys.values(), "end")):
            for vector in vectors:
                _, entry = chunk.factors(part.key_gates, vector.position, end)
                rows = chunk.times(chunk.full(vector), entry)
                b.store(token_access(vector_name(form, vector.position), form.key), rows)
        if part.key_gates is not None:
            b.store(chunk_access(decay_name(form), form.key), whole_chunk(b, part.key_gates.end))
        by_position = {v.position: v for v in [*readers, *keys.values()]}
        for later, earlier in stored_pairs(form):
            pairs = chunk.scores(by_position[later], by_position[earlier])
            b.store(pair_access(pairs_name(form, later, earlier)), pairs)
        if part.solved:
            for (i, j), block in invert_system(b, chunk.system(), part.solved).items():
                b.store(pair_access(inverse_name(form.state, i, j)), block)
    return Kernel(
        "key_side", ("batch", "head", "chunk"), key_only(shape), tuple(b.statements), KEY_SIDE_EQUATIONS, "key_side",
        warps=WARPS,
    )  # fmt: skip


WARPS = 8  # hold a chunk's rows of two vectors and their gates


@dataclass
class StoredChunk(Chunk):
    """The equations of a chunk whose key side lies in memory: its vectors are decayed already."""

    def _scores(self, x: Vector, y: Vector, name: str, crossing: int) -> Value:
        buffer = pairs_name(self.form.form, x.position, y.position)
        return self.b.load(name, pair_access(buffer), ("c", "s"))

    def decayed(self, state: Value, name: str = "S", adjoint: bool = False) -> Value:
        return self.b.mul(state, self.class_over_chunk("key"), name=name) if self.form.form.decays else state

    def class_over_chunk(self, which: str) -> Value:
        form = self.form.form
        load = partial(self.b.load, "D", chunk_access(decay_name(form), form.key), form.key)
        return self.once(("over", form.state), load)


def stored_chunk(tiles: Tiles, form: MatrixForm) -> StoredChunk:
    """A chunk's tiles, its key side as `emit_key_side` has left it."""
    reads: dict[str, Vector] = {}
    keys: dict[int, Vector] = {}
    queries: dict[str, Vector] = {}
    for i, event in enumerate(form.events):
        if isinstance(event, Read):
            reads[event.name] = _load_vector(tiles.b, form, i, "a")
        elif isinstance(event, Write):
            keys[len(keys)] = _load_vector(tiles.b, form, i, "b")
        elif isinstance(event, Readout):
            queries[event.name] = _load_vector(tiles.b, form, i, "q")
    return StoredChunk(tiles, load_values(tiles, FormTiles(form, reads, keys, {}, queries, None, None)))


def _load_vector(b: Builder, form: MatrixForm, position: int, name: str) -> Vector:
    event = form.events[position]
    node = event.key if isinstance(event, Write) else event.vector  # type: ignore[union-attr]
    access: Access = token_access(vector_name(form, position), form.key)
    return Vector(b.load(name, access, ("c", *form.key)), None, node, position)

"""The key side of every chunk in memory, decays included: what remains of a chunk is products of plain matrices.

Where a decay runs over the key dims, a row's decay is no factor that could be taken out of a product. One kernel, all
chunks at once, writes

    x 2^G of every query and read     b 2^(G_C - G) of every write     2^{G_C}
    P[c, s] = sum over K of x[c] b[s] 2^(G_c - G_s), s written before c reads; in place of the system's pairs Tm

and every other kernel loads these, in the operand type, for as many tiles of the value dims as there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from recur.ir.core import topological
from recur.ir.normal import Decay, MatrixForm, Read, Readout, Write
from recur.ir.tile import Access, Axis, Buffer, Builder, Carry, Kernel, Value, next_power_of_two
from recur.strategies.chunk.equations import Blocks, Chunk, invert_system
from recur.strategies.chunk.gates import class_decays, is_plain_factor, whole_chunk
from recur.strategies.chunk.kernels import inverse_name, key_only
from recur.strategies.chunk.pairs import PairedChunk, pair_buffers, pairs_name, stored_pairs
from recur.strategies.chunk.shape import Shape, chunk_access, key_side_nodes, mixed_dims, pair_access, token_access
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
    outer = Builder(complex_buffers=shape.complex_buffers)
    b = outer.nested()
    tiles = Tiles(b)
    carries: list[Carry] = []
    pairs: dict[tuple[str, int, int], Value] = {}
    systems: dict[str, Blocks] = {}

    def add(name: str, amount: Value) -> Value:
        zero = outer.zeros(amount.axes, f"{name}_0")
        phi = b.phi(name, zero)
        carries.append(Carry(phi, zero, b.add(phi, amount, name=name)))
        return phi

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
            pairs[form.state, later, earlier] = add("P", chunk.scores(by_position[later], by_position[earlier]))
        systems[form.state] = {ij: add("L", block) for ij, block in chunk.system().items()}
    outer.loop("tiles", b, tuple(carries), axis=shape.key[0])
    for form in shape.forms:
        for later, earlier in stored_pairs(form):
            outer.store(pair_access(pairs_name(form, later, earlier)), pairs[form.state, later, earlier])
        for (i, j), block in systems[form.state].items():
            outer.store(pair_access(system_name(form, i, j)), block)
    axes = tuple(place_keys(shape, a, "loop") for a in key_only(shape))
    return Kernel(
        "key_side", ("batch", "head", "chunk"), axes, tuple(outer.statements), KEY_SIDE_EQUATIONS, "key_side",
        tile_widths(shape, shape.key, rows_held(shape)), WARPS,
    )  # fmt: skip


def emit_inverse(shape: Shape) -> Kernel:
    """Tm = (I + L)^{-1}, all chunks at once."""
    b = Builder(complex_buffers=shape.complex_buffers)
    for form in shape.forms:
        solved = solved_writes(form)
        system = {
            (i, j): b.load("L", pair_access(system_name(form, i, j)), ("c", "s")) for i in solved for j in solved
        }
        for (i, j), block in invert_system(b, system, solved).items():
            b.store(pair_access(inverse_name(form.state, i, j)), block)
    axes = tuple(a for a in shape.axes if a.kind == "rows")
    return Kernel("inverse", ("batch", "head", "chunk"), axes, tuple(b.statements), ("Tm = (I + L)^-1",), "inverse")


def solved_writes(form: MatrixForm) -> list[int]:
    return [j for j, w in enumerate(form.writes) if w.read is not None]


TILE = 2048  # entries of a chunk's rows in a tile of the key or value dims
FEW_VECTORS = 3  # of which a program holds such tiles, beside the gates
WARPS = 8  # hold the gates, vectors and sums of such a tile


def rows_held(shape: Shape) -> int:
    """The rows of a chunk, twice where there are many vectors of them."""
    vectors = sum(not isinstance(e, Decay) for f in shape.forms for e in f.events)
    return stored_chunk_length(shape) * (1 if vectors <= FEW_VECTORS else 2)


def tile_widths(shape: Shape, dims: tuple[str, ...], rows: int) -> tuple[tuple[str, int], ...]:
    sizes = dict(shape.sizes)
    return tuple((d, max(16, min(TILE // rows, next_power_of_two(sizes[d])))) for d in dims)


def stored_chunk_length(shape: Shape) -> int:
    """Systems are inverted in float32: longer ones spill."""
    return 32 if any(f.reads for f in shape.forms) else 64


def place_keys(shape: Shape, axis: Axis, place: Literal["grid", "loop"]) -> Axis:
    return replace(axis, place=place) if axis.name in shape.key else axis


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

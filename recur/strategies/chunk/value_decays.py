"""Decays over the value dims: pairs of rows are plain, and what they carry decays.

    o[c, v] = 2^G_c S_0 q_c + sum over s of P[c, s] 2^(G_c - G_s) y[s, v]        P[c, s] = q_c . k_s, s written before c

With a constant h, 2^(G_c - G_s) = 2^(G_c + h) 2^(-h - G_s). While -G_c <= 2 h both factors are between 2^-h and 2^h,
which floats hold well: one product is enough,

    o = 2^(G + h) (P Y + 2^-h Q S),    Y = 2^(-h - G) y                           rows c with -G_c <= 2 h

Pairs whose reader's row has decayed further go by halves of blocks (see halves.py). Which these are depends on a row
and what is before it: no output depends on a later decay. Where a chunk has none, as is usual, nothing is done.

Backward the bilinear form has its sides exchanged: pairs of the key dims weigh, those of the value dims decay. With vx
the cotangents of what was read and X = 2^(G + h) vx,

    E = X Y^T,     Z = P Y,     dY = P^T X,     the decays' log: X Z - Y dY, summed over the rows on its later side

with X and Y rounded as the products have them: a pair that does not straddle a decay leaves nothing in its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from recur.ir.core import Node
from recur.ir.normal import MatrixForm, Readout
from recur.ir.tile import Builder, Carry, Kernel, Value
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import Gates, class_decays, is_plain_factor
from recur.strategies.chunk.halves import own_weight
from recur.strategies.chunk.kernels import emit_readouts, known_values, store_results
from recur.strategies.chunk.shape import Shape, chunk_access
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.sums import sum_of, sum_rows
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_keys, load_values

Pair = tuple[int, int]  # the positions of a reader and a write


def has_value_decays(shape: Shape) -> bool:
    """Whether decays run over the value dims of the stage's states, by their logs alone, and none over key dims."""
    return bool(shape.value) and all(map(_is_plain, shape.forms))


def _is_plain(form: MatrixForm) -> bool:
    along_keys = all(r.axis == "key" for r in form.readouts)
    over_keys = any(d.factor.dims for _, d in class_decays(form, "key"))
    over_values = [d for _, d in class_decays(form, "value")]
    by_logs = all(d.log and d.sign is None and d.angle is None and not is_plain_factor(d) for d in over_values)
    plain = bool(form.key) and along_keys and not form.reads and not form.is_complex
    return plain and bool(over_values) and by_logs and not over_keys


@dataclass
class Pairs:
    """The pairs of a reader and a write, and the decays to go with them, in one body.

    Each tile is emitted where it is first asked for.
    """

    b: Builder
    gates: Gates
    pair: Pair

    @property
    def _later(self) -> Value:
        return self.gates.at[self.pair[0]].log

    @property
    def _earlier(self) -> Value:
        return self.gates.at[self.pair[1]].log

    @property
    def sees_own(self) -> bool:
        """Whether a token's read sees its own write."""
        return self.pair[1] < self.pair[0]

    @cached_property
    def is_near(self) -> Value:
        """Of rows that have not decayed beyond reach."""
        return self.b.map("le", self._elapsed, self._reach, name="is_near")

    @cached_property
    def has_far(self) -> Value:
        """Whether the chunk has other rows."""
        most = self.b.amax(self._elapsed, ("c",), name="most")
        return self.b.map("gt", most, self._reach, name="has_far")

    @cached_property
    def _elapsed(self) -> Value:
        """The most that each row's value dims have decayed."""
        return self.b.amax(self.b.neg(self._later, name="elapsed"), self.gates.axes, name="elapsed")

    @cached_property
    def _reach(self) -> Value:
        return self.b.mul(self.b.const(2.0), self.b.room(), name="reach")

    @cached_property
    def down(self) -> Value:
        """2^(G + h) of the reads."""
        return self.b.exp2(self.b.add(self._later, self.b.room(), name="since"), name="down")

    @cached_property
    def up(self) -> Value:
        """2^(-h - G) of the writes."""
        b, room = self.b, self.b.room()
        until = b.neg(b.add(self._earlier, room, name="until"), name="until")
        return b.exp2(b.map("min", until, room, name="until"), name="up")

    def from_start(self, tile: Value) -> Value:
        """2^-h of rows that read the chunk's start."""
        return self.b.mul(tile, self.b.exp2(self.b.neg(self.b.room(), name="less"), name="unit"), name=tile.name)

    def near(self, tile: Value, name: str) -> Value:
        """The pairs of near rows; ``tile`` holds no other but those that are seen."""
        return self.b.where(self.is_near, tile, self.b.const(0.0, name="zero"), name=name)

    def far(self, tile: Value, name: str) -> Value:
        return self.b.where(self.is_near, self.b.const(0.0, name="zero"), tile, name=name)


@dataclass
class Level:
    """One level of far pairs, in the body of the loop over levels: a tile X has both sides (see halves.py).

    Its decays are sums of the tokens' in one half: up to a row of a right half, and after a row of a left half.
    """

    b: Builder
    pairs: Pairs

    def __post_init__(self) -> None:
        b, gates, zero = self.b, self.pairs.gates, self.b.const(0.0, name="zero")
        self.is_right, self.is_apart = b.right("c"), b.apart("c", "s")
        elapsed = sum_rows(b, self._passed(), sum_of(b, list(gates.steps.values()), "log2_token"), "elapsed")
        for is_reader, position in zip((True, False), self.pairs.pair, strict=True):
            rest = [step for i, step in gates.steps.items() if i > position]
            if rest:
                shift = b.sub if is_reader else b.add
                shifted = shift(elapsed, sum_of(b, rest, "rest"), name="elapsed")
                sides = (shifted, elapsed) if is_reader else (elapsed, shifted)
                elapsed = b.where(self.is_right, *sides, name="elapsed")
        self.factor = b.exp2(b.map("min", elapsed, zero, name="elapsed"), name="factor")

    def _passed(self) -> Value:
        b, zero, one = self.b, self.b.const(0.0, name="zero"), self.b.const(1.0, name="one")
        up_to = b.after("c", "s", 0)
        in_right, in_left = b.where(up_to, one, zero, name="up_to"), b.where(up_to, zero, one, name="after")
        passed = b.where(self.is_right, in_right, in_left, name="passed")
        return b.where(b.together("c", "s"), passed, zero, name="passed")

    def apart(self, tile: Value, name: str) -> Value:
        """A tile of pairs, where rows are apart at this level."""
        return self.b.where(self.is_apart, tile, self.b.const(0.0, name="zero"), name=name)


def is_own(b: Builder) -> Value:
    return b.let("is_own", "eye", (), ("c", "s"))


def own_weights(b: Builder, pairs: Value) -> Value:
    """Those of each token's read with its own write, which are of no level."""
    return b.sum(b.mul(pairs, is_own(b), name="own"), ("s",), name="own")


@dataclass
class ValueDecayChunk(Chunk):
    """The equations of a chunk whose pairs act on decaying values."""

    def pairs(self, later: int, earlier: int) -> Pairs:
        assert self.form.value_gates is not None
        return Pairs(self.b, self.form.value_gates, (later, earlier))

    def without_decays(self) -> Chunk:
        """The same without those over the value dims."""
        return Chunk(self.tiles, replace(self.form, value_gates=None))

    def again(self, b: Builder) -> ValueDecayChunk:
        """The same in a body that is seldom needed: nothing of it is held until then."""
        return value_decay_chunk(Tiles(b, stored=self.tiles.stored, kept=self.tiles.kept), self.form.form)

    def weights(self, query: Vector, j: int) -> Value:
        """P of a query and a write, as its value's tile takes it."""
        values = self.form.values[j]
        return self.times(self.scores(query, self.form.keys[j]), self.column(values.scale))

    def read_out(self, readout: Readout, state: Value, u: dict[int, Rows]) -> Value:
        b, query = self.b, self.form.queries[readout.name]
        weights = {j: self.weights(query, j) for j in u}
        inter = self.without_decays().against_state(query, query.position, "start", state, "key", "inter")
        pairs = {j: self.pairs(query.position, self.form.keys[j].position) for j in u}
        first = next(iter(pairs.values()))
        total = first.from_start(inter)
        for j, of_write in pairs.items():
            y = b.mul(u[j].tile, of_write.up, name="Y")
            total = b.add(total, spread(b, of_write.near(weights[j], "P_near"), y, "P_Y"), name="o")
        o = b.mul(total, first.down, name="o")
        for j in u:
            o = self._add_far_pairs(readout, j, pairs[j], o)
        return o

    def _add_far_pairs(self, readout: Readout, j: int, pairs: Pairs, o: Value) -> Value:
        body = self.b.nested()
        chunk, before = self.again(body), body.phi("o", o)
        query, y = chunk.form.queries[readout.name], chunk.form.values[j].tile
        of_body = chunk.pairs(*pairs.pair)
        weights, start = of_body.far(chunk.weights(query, j), "P_far"), before
        if pairs.sees_own:
            own_decay = own_weight(body, of_body.gates, of_body.pair)
            own = chunk.times(y, own_weights(body, weights), own_decay, name="own")
            start = body.add(before, own, name="o")
        inner = body.nested()
        level, phi = Level(inner, of_body), inner.phi("o", start)
        rows = inner.mul(y, level.factor, name="Y")
        amount = inner.mul(level.factor, spread(inner, level.apart(weights, "P_level"), rows, "P_Y"), name="intra")
        body.loop("levels", inner, (Carry(phi, start, inner.add(phi, amount, name="o")),))
        self.b.loop("once", body, (Carry(before, o, phi),), needed=pairs.has_far)
        return before


def spread(b: Builder, weights: Value, rows: Value, name: str) -> Value:
    """The sum over s of weights[c, s] rows[s]."""
    return b.contract(weights, b.rename(rows, "c", "s"), ("s",), name=name)


def gather(b: Builder, weights: Value, rows: Value, name: str) -> Value:
    """The sum over c of weights[c, s] rows[c], as rows c again."""
    return b.rename(b.contract(weights, rows, ("c",), name=name), "s", "c", name=name)


def value_decay_chunk(tiles: Tiles, form: MatrixForm) -> ValueDecayChunk:
    return ValueDecayChunk(tiles, load_values(tiles, load_keys(tiles, form)))


OUTPUT_EQUATIONS = (
    "O = 2^(G + h) (P Y + 2^-h Q S),   P = tril(Q B^T),   Y = 2^(-h - G) y",
)


def emit_outputs(shape: Shape) -> Kernel:
    """Readouts and results, all chunks at once, from the states at the chunks' starts."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b, stored=scalar_gates(shape))
    readouts: dict[Node, Value] = {}
    for form in shape.forms:
        chunk, axes = value_decay_chunk(tiles, form), shape.state_axes(form)
        state = b.load(form.state, chunk_access(f"chunk_{form.state}", axes), axes)
        readouts.update(emit_readouts(shape, chunk, state, known_values(b, chunk.form)))
    store_results(shape, tiles, readouts)
    tiled = () if shape.whole_values else tuple(f"tile:{d}" for d in shape.value)
    return Kernel(
        "outputs", ("batch", "head", "chunk", *tiled), shape.axes, tuple(b.statements), OUTPUT_EQUATIONS, "outputs"
    )

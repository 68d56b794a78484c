"""Decays over the value dims: pairs of rows are plain, and what they carry decays.

    o[c, v] = 2^G_c S_0 q_c + sum over s of P[c, s] 2^(G_c - G_s) y[s, v]        P[c, s] = q_c . k_s, s written before c

No product of matrices holds the exponent of every pair and entry, but few do. With A the running sum over the left
half of the chunk, and G' counted from the start of a row's own half, the pairs are

    across     c right, s left      2^(G_c - G_s) = 2^G'_c 2^(A - G_s)           no exponent above 0
    beside     c, s in one half     2^(G_c - G_s) = 2^G'_c 2^-G'_s               while -G'_c is within a float's range
    inner      c, s in one half     by halves of blocks (see halves.py)          the other rows, where there are any

each a product with what the other side has: sum of P (2^(A - G) y), times 2^G'. Which pairs are inner depends on a row
and what is before it, so no output depends on a later decay. Where none are, the loop over the levels is left out.

Backward the bilinear form has its sides exchanged: pairs of the key dims weigh, those of the value dims decay. With vx
the cotangents of what was read, X = 2^G' vx and Y = 2^-G' y or 2^(A - G) y, each kind of pairs has

    E = X Y^T,     Z = P Y,     dY = P^T X,     the decays' log: X Z - Y dY, summed over the rows on its later side

with X and Y rounded as the products have them: a pair that does not straddle a decay leaves nothing in its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from recur.strategies.chunk.tiles import Rows, Tiles, load_keys, load_values


Pair = tuple[int, int]  # the positions of a reader and a write


def has_value_halves(shape: Shape) -> bool:
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
    """The pairs of a reader and a write by kinds, and the decays to go with each, in one body.

    A token's own pair is of no kind: it is a product of rows.
    """

    b: Builder
    gates: Gates
    pair: Pair

    def __post_init__(self) -> None:
        b, room = self.b, self.b.room()
        self.zero = b.const(0.0, name="zero")
        later, earlier = (self.gates.at[p].log for p in self.pair)
        self.token = sum_of(b, list(self.gates.steps.values()), "log2_token")
        self.late = b.late("c")
        left = b.sum(b.where(self.late, self.zero, self.token, name="in_left"), ("c",), name="A")
        before = b.where(self.late, left, self.zero, name="before")
        since = b.sub(later, before, name="since")
        self.down = b.exp2(since, name="down")
        self.beside_up = b.exp2(b.map("min", b.sub(before, earlier, name="until"), room, name="until"), name="up")
        self.across_up = b.exp2(b.map("min", b.sub(left, earlier, name="left"), self.zero, name="left"), name="to_left")
        elapsed = b.amax(b.neg(since, name="elapsed"), self.gates.axes, name="elapsed")
        self.is_near = b.map("le", elapsed, room, name="is_near")

    @property
    def has_inner(self) -> Value:
        """Above 0 where any pair of the chunk is an inner one."""
        far = self.b.where(self.is_near, self.zero, self.b.const(1.0, name="one"), name="is_far")
        return self.b.amax(far, ("c",), name="is_far")

    @property
    def has_own(self) -> bool:
        """Whether a token's read sees its own write."""
        return self.pair[1] < self.pair[0]

    @property
    def plain_kinds(self) -> tuple[tuple[Callable[[Builder, Value, str], Value], Value], ...]:
        """What picks the pairs of a kind, and the decays of its writes. Those of its reads are ``down``."""
        return (self.beside, self.beside_up), (self.across, self.across_up)

    def across(self, b: Builder, tile: Value, name: str) -> Value:
        return b.where(self.late, self._of_columns(b, self.zero, tile, name), self.zero, name=name)

    def beside(self, b: Builder, tile: Value, name: str) -> Value:
        return b.where(self.is_near, self._in_one_half(b, tile, name), self.zero, name=name)

    def inner(self, b: Builder, tile: Value, name: str) -> Value:
        return b.where(self.is_near, self.zero, self._in_one_half(b, tile, name), name=name)

    def _in_one_half(self, b: Builder, tile: Value, name: str) -> Value:
        """Of different tokens."""
        apart = b.where(b.after("c", "s", 1), tile, self.zero, name=name)
        return b.where(self.late, self._of_columns(b, apart, self.zero, name), apart, name=name)

    def _of_columns(self, b: Builder, late: Value, early: Value, name: str) -> Value:
        return b.where(b.rename(self.late, "c", "s"), late, early, name=name)


@dataclass
class Level:
    """One level of inner pairs, in the body of the loop over levels: a tile X has both sides (see halves.py).

    Its decays are sums of the tokens' in one half: up to a row of a right half, and after a row of a left half.
    """

    b: Builder
    pairs: Pairs

    def __post_init__(self) -> None:
        b, zero = self.b, self.pairs.zero
        self.is_right, self.is_apart = b.right("c"), b.apart("c", "s")
        elapsed = sum_rows(b, self._passed(), self.pairs.token, "elapsed")
        for is_reader, position in zip((True, False), self.pairs.pair, strict=True):
            rest = [step for i, step in self.pairs.gates.steps.items() if i > position]
            if rest:
                shift = b.sub if is_reader else b.add
                shifted = shift(elapsed, sum_of(b, rest, "rest"), name="elapsed")
                sides = (shifted, elapsed) if is_reader else (elapsed, shifted)
                elapsed = b.where(self.is_right, *sides, name="elapsed")
        self.factor = b.exp2(b.map("min", elapsed, zero, name="elapsed"), name="factor")

    def _passed(self) -> Value:
        b, zero, one = self.b, self.pairs.zero, self.b.const(1.0, name="one")
        up_to = b.after("c", "s", 0)
        in_right, in_left = b.where(up_to, one, zero, name="up_to"), b.where(up_to, zero, one, name="after")
        passed = b.where(self.is_right, in_right, in_left, name="passed")
        return b.where(b.together("c", "s"), passed, zero, name="passed")

    def apart(self, tile: Value, name: str) -> Value:
        """A tile of inner pairs, where rows are apart at this level."""
        return self.b.where(self.is_apart, tile, self.pairs.zero, name=name)


@dataclass
class HalvedChunk(Chunk):
    """The equations of a chunk whose pairs act on decaying values by kinds."""

    def read_out(self, readout: Readout, state: Value, u: dict[int, Rows]) -> Value:
        gates, query = self.form.value_gates, self.form.queries[readout.name]
        if gates is None:
            return super().read_out(readout, state, u)
        rows = self.against_state(query, query.position, "start", state, "key", "inter")
        for j, values in u.items():
            key = self.form.keys[j]
            weights = self.times(self.scores(query, key), self.column(values.scale))
            rows = self._spread(gates, weights, values.tile, (query.position, key.position), rows)
        return rows

    def _spread(self, gates: Gates, weights: Value, y: Value, pair: Pair, start: Value) -> Value:
        """``start`` and the sum over s of weights[c, s] 2^(G_c - G_s) y[s]."""
        b, pairs = self.b, Pairs(self.b, gates, pair)

        def spread(body: Builder, tile: Value, factor: Value) -> Value:
            return body.contract(tile, body.rename(body.mul(y, factor, name="Y"), "c", "s"), ("s",), name="P_Y")

        terms = [spread(b, kind(b, weights, "P_kind"), up) for kind, up in pairs.plain_kinds]
        o = b.add(start, b.mul(pairs.down, sum_of(b, terms, "P_Y"), name="intra"), name="o")
        if pairs.has_own:
            own = b.sum(b.mul(weights, b.let("is_own", "eye", (), ("c", "s")), name="own"), ("s",), name="own")
            o = b.add(o, self.times(y, own, own_weight(b, gates, pair), name="own"), name="o")
        remaining = pairs.inner(b, weights, "P_inner")
        inner = b.nested()
        level, phi = Level(inner, pairs), inner.phi("o", o)
        amount = inner.mul(level.factor, spread(inner, level.apart(remaining, "P_level"), level.factor), name="intra")
        carry = Carry(phi, o, inner.add(phi, amount, name="o"))
        b.loop("inner levels", inner, (carry,), needed=pairs.has_inner)
        return phi


def halved_chunk(tiles: Tiles, form: MatrixForm) -> HalvedChunk:
    return HalvedChunk(tiles, load_values(tiles, load_keys(tiles, form)))


OUTPUT_EQUATIONS = (
    "O = 2^G Q S + 2^G' (P Y),  P = tril(Q B^T)",
    "Y = 2^-G' y in one half,  2^(A - G) y from the left half to the right one",
)


def emit_outputs(shape: Shape) -> Kernel:
    """Readouts and results, all chunks at once, from the states at the chunks' starts."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b, stored=scalar_gates(shape))
    readouts: dict[Node, Value] = {}
    for form in shape.forms:
        chunk, axes = halved_chunk(tiles, form), shape.state_axes(form)
        state = b.load(form.state, chunk_access(f"chunk_{form.state}", axes), axes)
        readouts.update(emit_readouts(shape, chunk, state, known_values(b, chunk.form)))
    store_results(shape, tiles, readouts)
    tiled = () if shape.whole_values else tuple(f"tile:{d}" for d in shape.value)
    return Kernel(
        "outputs", ("batch", "head", "chunk", *tiled), shape.axes, tuple(b.statements), OUTPUT_EQUATIONS, "outputs"
    )

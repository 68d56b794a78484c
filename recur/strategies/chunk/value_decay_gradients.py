"""Gradients where decays run over the value dims: see value_decays.py for the mathematics.

Two kernels, since one would hold E, dy and what the decays get at once: the key side's, with E, and the value side's,
with P = q k^T once more. Both loads and this product cost less than E's way through memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.normal import MatrixForm, Write
from recur.ir.tile import Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, readout_keys, readout_values
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import class_decays
from recur.strategies.chunk.gradients import (
    BufferOf,
    Cotangents,
    FormGradients,
    add_decay,
    load_cotangents,
    load_states,
    store_gradients,
)
from recur.strategies.chunk.halves import own_products, own_weight
from recur.strategies.chunk.kernels import WIDE, known_values
from recur.strategies.chunk.shape import Shape, looped_values, placed_axes, tile_widths
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.sums import ones_where, sum_of, sum_rows
from recur.strategies.chunk.tiles import Rows, Tiles, load_values
from recur.strategies.chunk.value_decays import (
    Level,
    Pairs,
    ValueDecayChunk,
    gather,
    is_own,
    own_weights,
    spread,
    value_decay_chunk,
)

KEY_EQUATIONS = (
    "dkx = 2^G vx S^T + E B,   db = E^T kx + 2^(G_C - G) y R^T,   E = tril(X Y^T)",
    "X = 2^(G + h) vx,   Y = 2^(-h - G) y",
)
VALUE_EQUATIONS = (
    "dy = 2^(-h - G) (P^T X) + 2^(G_C - G) b R",
    "dg = running sum from the end of X (P Y) - Y (P^T X), and of the same with the states at the chunk's ends",
)


@dataclass
class FormKeyGradients(FormGradients):
    """One form's cotangents of the key side."""

    def enter(self, b: Builder, tiles: Tiles, cotangents: Cotangents) -> None:
        chunk = ValueDecayChunk(tiles, load_values(tiles, self.part))
        values = readout_values(chunk, load_cotangents(b, self.shape, self.form))
        states = load_states(b, self.shape, self.form)
        self.accumulate(b, chunk, *states, known_values(b, chunk.form), values)

    def add_evidence(self, b: Builder, chunk: Chunk, side: KeySide, u: dict[int, Rows], vx: Rows) -> None:
        assert isinstance(chunk, ValueDecayChunk)
        for j, rows in u.items():
            pairs = chunk.pairs(side.vector.position, self.part.keys[j].position)
            x = b.mul(chunk.full(vx), pairs.down, name="X")
            columns = b.rename(b.mul(chunk.full(rows), pairs.up, name="Y"), "c", "s")
            evidence = pairs.near(b.contract(x, columns, self.form.value, name="X_Y"), "E")
            self.pairs[side.name, j] = self._carry(b, "E", self._add_far_pairs(b, chunk, pairs, side, j, evidence))

    def _add_far_pairs(
        self, b: Builder, chunk: ValueDecayChunk, pairs: Pairs, side: KeySide, j: int, evidence: Value
    ) -> Value:
        body = b.nested()
        again, before = chunk.again(body), body.phi("E", evidence)
        values = readout_values(again, load_cotangents(body, self.shape, self.form))
        vx, y = again.full(values[side.name]), again.full(again.form.values[j])
        of_body, value, start = again.pairs(*pairs.pair), self.form.value, before
        if pairs.sees_own:
            products = own_products(body, of_body.gates, dict(zip(pairs.pair, (vx, y), strict=True)), pairs.pair)
            own = body.mul(is_own(body), body.sum(products, value, name="E_own"), name="E_own")
            start = body.add(before, of_body.far(own, "E_own"), name="E")
        inner = body.nested()
        level, phi = Level(inner, of_body), inner.phi("E", start)
        x = inner.mul(inner.where(level.is_right, vx, y, name="x"), level.factor, name="X")
        found = level.apart(inner.contract(x, inner.rename(x, "c", "s"), value, name="X_X"), "E_level")
        found = inner.where(of_body.is_near, inner.const(0.0, name="zero"), found, name="E_far")
        body.loop("levels", inner, (Carry(phi, start, inner.add(phi, found, name="E")),))
        b.loop("once", body, (Carry(before, evidence, phi),), needed=pairs.has_far)
        return before


def emit_key_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the key side; a program a chunk and tile of the key dims.

    Each goes through the tiles of the value dims. What has no key dims is the sum of what all tiles of them give.
    """
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles, cotangents = Tiles(b, stored=scalar_gates(shape)), Cotangents()
    parts = [FormKeyGradients(shape, form) for form in shape.forms]
    inner = b.nested()
    inner_tiles = tiles.inside(inner)
    for part in parts:
        part.load(tiles)
        part.enter(inner, inner_tiles, cotangents)
    b.loop("tiles", inner, tuple(c for part in parts for c in part.carries), axis=shape.value[0])
    for part in parts:
        part.finish(cotangents)
    (key,), (value,) = shape.key, shape.value
    store_gradients(tiles, cotangents, buffer_of, "keys", key)
    axes = placed_axes(shape, looped_values(shape) | {key: "grid"})
    sizes = dict(shape.sizes)
    width = 2 * WIDE if sizes[value] <= WIDE else WIDE  # the sums stay in registers only if there are several tiles
    widths = tile_widths(shape, shape.key, width) + tile_widths(shape, shape.value, WIDE)
    grid = ("batch", "head", "chunk", f"tile:{key}")
    return Kernel("gradients", grid, axes, tuple(b.statements), KEY_EQUATIONS, "gradients", widths, 4)


def emit_value_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' values and of the decays; a program a chunk and tile of the value dims."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles, cotangents = Tiles(b, stored=scalar_gates(shape)), Cotangents()
    for form in shape.forms:
        FormValueGradients(b, shape, form, value_decay_chunk(tiles, form)).emit(cotangents)
    (value,) = shape.value
    store_gradients(Tiles(b, stored=scalar_gates(shape)), cotangents, buffer_of, "values", value)
    grid, role = ("batch", "head", "chunk", *shape.grid[2:]), "value_gradients"
    return Kernel("value_gradients", grid, shape.axes, tuple(b.statements), VALUE_EQUATIONS, role)


@dataclass
class Sums:
    """Tiles that grow. ``grown``: the cotangent of every write's values, by position; ``taken``: what the decays get
    from the rows, by which of the token's decays come before these."""

    form: MatrixForm
    grown: dict[int, Value] = field(default_factory=dict)
    taken: dict[tuple[bool, ...], Value] = field(default_factory=dict)

    def grow(self, b: Builder, write: int, amount: Value) -> None:
        known = self.grown.get(write)
        self.grown[write] = amount if known is None else b.add(known, amount, name="dy")

    def take(self, b: Builder, position: int, amount: Value) -> None:
        """What a row at a position adds to the cotangents of the decays before it (a write: takes off)."""
        key = passed_decays(self.form, position)
        known = self.taken[key] if key in self.taken else b.zeros(amount.axes, "taken_0")
        is_write = isinstance(self.form.events[position], Write)
        self.taken[key] = (b.sub if is_write else b.add)(known, amount, name="taken")

    def entered(self, b: Builder) -> Sums:
        """The same in a loop's body, as the loop carries them."""
        grown = {w: b.phi("dy", x) for w, x in self.grown.items()}
        return Sums(self.form, grown, {key: b.phi("taken", x) for key, x in self.taken.items()})

    def copy(self) -> Sums:
        return Sums(self.form, dict(self.grown), dict(self.taken))

    def carries(self, phis: Sums, following: Sums) -> tuple[Carry, ...]:
        grown = [Carry(phis.grown[w], x, following.grown[w]) for w, x in self.grown.items()]
        return (*grown, *(Carry(phis.taken[key], x, following.taken[key]) for key, x in self.taken.items()))


def passed_decays(form: MatrixForm, position: int) -> tuple[bool, ...]:
    return tuple(position > i for i, _ in class_decays(form, "value"))


@dataclass
class FormValueGradients:
    """One form's. ``at_end``: what all of a chunk's decays get."""

    b: Builder
    shape: Shape
    form: MatrixForm
    chunk: ValueDecayChunk
    at_end: list[Value] = field(default_factory=list)

    def emit(self, cotangents: Cotangents) -> None:
        b, form, chunk = self.b, self.form, self.chunk
        cotangent = load_cotangents(b, self.shape, form)
        self.readers = {side.vector.position: side for side in readout_keys(chunk, cotangent)}
        self.writes = {key.position: j for j, key in chunk.form.keys.items()}
        self.pairs = {(r, w): chunk.pairs(r, w) for r in self.readers for w in self.writes}
        self.sums = Sums(form)
        state, adjoint = load_states(b, self.shape, form)
        self.at_end.append(b.mul(self._products(state, adjoint), chunk.class_over_chunk("value"), name="S_R"))
        values = readout_values(chunk, cotangent)
        for w in self.writes:
            self._add_outlived(w, adjoint)
        for r, side in self.readers.items():
            self._add_near_pairs(r, chunk.full(values[side.name]), state)
        for r, w in self.pairs:
            self._add_far_pairs(r, w)
        for w, j in self.writes.items():
            cotangents.add(form.writes[j].value, self.sums.grown[w])
        self._add_decays(cotangents)

    def _products(self, state: Value, adjoint: Value) -> Value:
        """The sum over the key dims of S R, as the diagonal of a product: no tile of a state in registers."""
        b, (value,) = self.b, self.form.value
        column = f"{value}_of_R"
        products = b.contract(state, b.rename(adjoint, value, column), self.form.key, name="S_R")
        return b.sum(b.mul(products, b.let("is_own", "eye", (), (value, column)), name="S_R"), (column,), name="S_R")

    def _add_outlived(self, w: int, adjoint: Value) -> None:
        """What a write gets from after the chunk."""
        b, chunk, j = self.b, self.chunk, self.writes[w]
        kept = chunk.against_state(chunk.form.keys[j], w, "end", adjoint, "key", "b_R")
        amount = b.mul(chunk.full(chunk.form.values[j]), kept, name="written")
        self.at_end.append(b.sum(amount, ("c",), name="kept"))
        self.sums.take(b, w, amount)
        self.sums.grow(b, w, kept)

    def _add_near_pairs(self, r: int, vx: Value, state: Value) -> None:
        """What a reader gets from the chunk's start, and its pairs with every write."""
        b, chunk, side = self.b, self.chunk, self.readers[r]
        pairs = {w: self.pairs[r, w] for w in self.writes}
        first = next(iter(pairs.values()))
        x = multiply_rounded(b, vx, first.down, "X")
        terms: list[tuple[Value, Value]] = []
        for w, j in self.writes.items():
            y = multiply_rounded(b, chunk.full(chunk.form.values[j]), pairs[w].up, "Y")
            weights = pairs[w].near(chunk.scores(side.vector, chunk.form.keys[j]), "P_near")
            back = gather(b, weights, x, "dY")
            self.sums.take(b, w, b.mul(y, back, name="written"))
            self.sums.grow(b, w, b.mul(pairs[w].up, back, name="decayed"))
            terms.append((weights, y))
        inter = chunk.without_decays().against_state(side.vector, r, "start", state, "key", "inter")
        z = sum_of(b, [first.from_start(inter), *(spread(b, *term, "P_Y") for term in terms)], "Z")
        self.sums.take(b, r, b.mul(x, z, name="read"))

    def _add_far_pairs(self, r: int, w: int) -> None:
        """Level by level, where there are any."""
        body, side, j = self.b.nested(), self.readers[r], self.writes[w]
        chunk = self.chunk.again(body)
        pairs, values = chunk.pairs(r, w), readout_values(chunk, load_cotangents(body, self.shape, self.form))
        rows = {r: chunk.full(values[side.name]), w: chunk.full(chunk.form.values[j])}
        weights = pairs.far(chunk.scores(chunk.form.queries[side.name], chunk.form.keys[j]), "P_far")
        entered = self.sums.entered(body)
        start = entered.copy()
        if pairs.sees_own:
            add_own_pairs(chunk, pairs, rows, own_weights(body, weights), start)
        inner = body.nested()
        phis = start.entered(inner)
        following = phis.copy()
        add_level(inner, pairs, rows, weights, following)
        body.loop("levels", inner, start.carries(phis, following))
        self.b.loop("once", body, self.sums.carries(entered, phis), needed=self.pairs[r, w].has_far)
        self.sums = entered

    def _add_decays(self, cotangents: Cotangents) -> None:
        """Each decay has what comes after it in the chunk, and what outlives the chunk."""
        b, whole = self.b, sum_of(self.b, self.at_end, "whole")
        for number, (_, decay) in enumerate(class_decays(self.form, "value")):
            d_log = whole
            for offset in (0, 1):
                amounts = [x for passed, x in self.sums.taken.items() if passed[number] == (offset == 0)]
                if amounts:
                    later = ones_where(b, b.after("s", "c", offset), "later")
                    d_log = b.add(d_log, sum_rows(b, later, sum_of(b, amounts, "taken"), "later"), name="d_log")
            add_decay(cotangents, b, decay, d_log, self.form.value)


def multiply_rounded(b: Builder, rows: Value, factor: Value, name: str) -> Value:
    return b.rounded(b.mul(rows, factor, name=name), name=name)


def add_own_pairs(chunk: ValueDecayChunk, pairs: Pairs, rows: dict[int, Value], own: Value, sums: Sums) -> None:
    """Those of a token's read and its write before it, beyond reach."""
    b, (r, w) = pairs.b, pairs.pair
    sums.grow(b, w, chunk.times(rows[r], own, own_weight(b, pairs.gates, pairs.pair), name="own"))
    if passed_decays(chunk.form.form, r) != passed_decays(chunk.form.form, w):
        amount = b.mul(own_products(b, pairs.gates, rows, pairs.pair), own, name="amount")
        sums.take(b, r, amount)
        sums.take(b, w, amount)


def add_level(b: Builder, pairs: Pairs, rows: dict[int, Value], weights: Value, sums: Sums) -> None:
    """Far pairs at one level, in the body of the loop over levels."""
    (r, w), level = pairs.pair, Level(b, pairs)
    x = multiply_rounded(b, b.where(level.is_right, rows[r], rows[w], name="x"), level.factor, "X")
    apart = level.apart(weights, "P_level")
    back = gather(b, apart, x, "dY")
    sums.take(b, r, b.mul(x, spread(b, apart, x, "Z"), name="amount"))
    sums.take(b, w, b.mul(x, back, name="amount"))
    sums.grow(b, w, b.mul(level.factor, back, name="decayed"))

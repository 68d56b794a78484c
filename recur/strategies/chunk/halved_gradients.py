"""Gradients where decays run over the value dims: see value_halves.py for the mathematics.

Two kernels, since one would hold E, dy and what the decays get at once: the key side's, with E, and the value side's,
with P = q k^T once more. Both loads and this product cost less than E's way through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recur.ir.core import Node
from recur.ir.normal import MatrixForm
from recur.ir.tile import Builder, Carry, Kernel, Value
from recur.strategies.chunk.adjoint import KeySide, readout_keys, readout_values
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import Gates, class_decays
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
from recur.strategies.chunk.kernels import computed_chunk, known_values
from recur.strategies.chunk.shape import Shape
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.sums import ones_where, sum_of, sum_rows
from recur.strategies.chunk.tiles import Rows, Tiles, load_values
from recur.strategies.chunk.value_halves import Level, Pairs

VALUE_EQUATIONS = (
    "dy = 2^-G' (P^T X) + 2^(G_C - G) b R,   X = 2^G' vx",
    "dg = running sum from the end of X (P Y) - Y (P^T X), and of the same with the states at the chunk's ends",
)


@dataclass
class HalvedKeyGradients(FormGradients):
    """One form's cotangents of the key side."""

    def enter(self, b: Builder, tiles: Tiles, cotangents: Cotangents) -> None:
        part = load_values(tiles, self.part)
        chunk, cotangent = Chunk(tiles, part), load_cotangents(b, self.shape, self.form)
        states = load_states(b, self.shape, self.form)
        self.accumulate(b, chunk, *states, known_values(b, part), readout_values(chunk, cotangent))

    def add_evidence(self, b: Builder, chunk: Chunk, side: KeySide, u: dict[int, Rows], vx: Rows) -> None:
        gates = chunk.form.value_gates
        assert gates is not None
        for j, rows in u.items():
            pairs = Pairs(b, gates, (side.vector.position, self.part.keys[j].position))
            evidence = self._evidence(b, pairs, chunk.full(vx), chunk.full(rows))
            self.pairs[side.name, j] = self._carry(b, "E", evidence)

    def _evidence(self, b: Builder, pairs: Pairs, vx: Value, y: Value) -> Value:
        """E of the tile of the value dims at hand."""
        value, terms = self.form.value, []
        x = b.mul(vx, pairs.down, name="X")
        for kind, up in pairs.plain_kinds:
            columns = b.rename(b.mul(y, up, name="Y"), "c", "s")
            terms.append(kind(b, b.contract(x, columns, value, name="X_Y"), "E"))
        if pairs.has_own:
            rows = dict(zip(pairs.pair, (vx, y), strict=True))
            own = b.sum(own_products(b, pairs.gates, rows, pairs.pair), value, name="E_own")
            terms.append(b.mul(b.let("is_own", "eye", (), ("c", "s")), own, name="E_own"))
        total = sum_of(b, terms, "E")
        inner = b.nested()
        level, phi = Level(inner, pairs), inner.phi("E", total)
        both = inner.mul(inner.where(level.is_right, vx, y, name="x"), level.factor, name="X")
        products = inner.contract(both, inner.rename(both, "c", "s"), value, name="X_X")
        found = level.apart(pairs.inner(inner, products, "E_inner"), "E_level")
        carry = Carry(phi, total, inner.add(phi, found, name="E"))
        b.loop("inner levels", inner, (carry,), needed=pairs.has_inner)
        return phi


def emit_value_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The cotangents of the writes' values and of the decays; a program a chunk and tile of the value dims."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles, cotangents = Tiles(b, stored=scalar_gates(shape)), Cotangents()
    for form in shape.forms:
        FormValueGradients(b, shape, form, computed_chunk(tiles, form)).emit(cotangents)
    (value,) = shape.value
    store_gradients(tiles, cotangents, buffer_of, "values", value)
    grid = ("batch", "head", "chunk", *shape.grid[2:])
    return Kernel("value_gradients", grid, shape.axes, tuple(b.statements), VALUE_EQUATIONS, "value_gradients")


@dataclass
class FormValueGradients:
    """One form's. ``grown``: the cotangent of every write's values, by position; ``taken``: what the decays get from
    the rows, by which of the token's decays come before these."""

    b: Builder
    shape: Shape
    form: MatrixForm
    chunk: Chunk
    grown: dict[int, Value] = field(default_factory=dict)
    taken: dict[tuple[bool, ...], Value] = field(default_factory=dict)

    def emit(self, cotangents: Cotangents) -> None:
        b, form, chunk = self.b, self.form, self.chunk
        cotangent = load_cotangents(b, self.shape, form)
        values = readout_values(chunk, cotangent)
        self.readers = {side.vector.position: side for side in readout_keys(chunk, cotangent)}
        self.writes = {key.position: j for j, key in chunk.form.keys.items()}
        u = known_values(b, chunk.form)
        self.rows = {r: chunk.full(values[side.name]) for r, side in self.readers.items()}
        self.rows |= {w: chunk.full(u[j]) for w, j in self.writes.items()}
        at_end = self._add_ends()
        gates = chunk.form.value_gates
        assert gates is not None
        for r, side in self.readers.items():
            for w, j in self.writes.items():
                pairs, weights = Pairs(b, gates, (r, w)), chunk.scores(side.vector, chunk.form.keys[j])
                self._add_own_pairs(pairs, weights)
                self._add_plain_kinds(pairs, weights)
                self._add_inner_pairs(pairs, weights)
        for w, j in self.writes.items():
            cotangents.add(form.writes[j].value, self.grown[w])
        self._add_decays(cotangents, at_end)

    def _passed(self, position: int) -> tuple[bool, ...]:
        return tuple(position > i for i, _ in class_decays(self.form, "value"))

    def _take(self, position: int, amount: Value) -> None:
        """What a row at a position adds to the cotangents of the decays before it (a write: takes off)."""
        b, key = self.b, self._passed(position)
        known = self.taken[key] if key in self.taken else b.zeros(amount.axes, "taken_0")
        self.taken[key] = (b.sub if position in self.writes else b.add)(known, amount, name="taken")

    def _add_ends(self) -> list[Value]:
        """The state at the chunk's start to what reads it, what is written to the adjoint at the chunk's end.

        The result: what all of a chunk's decays get.
        """
        b, chunk = self.b, self.chunk
        state, adjoint = load_states(b, self.shape, self.form)
        at_end = [b.mul(self._products(state, adjoint), chunk.class_over_chunk("value"), name="S_R")]
        for r, side in self.readers.items():
            inter = chunk.against_state(side.vector, r, "start", state, "key", "inter")
            self._take(r, b.mul(self.rows[r], inter, name="read"))
        for w, j in self.writes.items():
            self.grown[w] = chunk.against_state(chunk.form.keys[j], w, "end", adjoint, "key", "b_R")
            amount = b.mul(self.rows[w], self.grown[w], name="written")
            self._take(w, amount)
            at_end.append(b.sum(amount, ("c",), name="kept"))
        return at_end

    def _products(self, state: Value, adjoint: Value) -> Value:
        """The sum over the key dims of S R, as the diagonal of a product: no tile of a state in registers."""
        b, (value,) = self.b, self.form.value
        column = f"{value}_of_R"
        products = b.contract(state, b.rename(adjoint, value, column), self.form.key, name="S_R")
        return b.sum(b.mul(products, b.let("is_own", "eye", (), (value, column)), name="S_R"), (column,), name="S_R")

    def _add_own_pairs(self, pairs: Pairs, weights: Value) -> None:
        """Those of a token's read and its write before it."""
        if not pairs.has_own:
            return
        b, (r, w) = self.b, pairs.pair
        own = b.sum(b.mul(weights, b.let("is_own", "eye", (), ("c", "s")), name="own"), ("s",), name="own")
        back = self.chunk.times(self.rows[r], own, own_weight(b, pairs.gates, pairs.pair), name="own")
        self.grown[w] = b.add(self.grown[w], back, name="dy")
        if self._passed(r) != self._passed(w):
            amount = b.mul(own_products(b, pairs.gates, self.rows, pairs.pair), own, name="amount")
            self._take(r, amount)
            self._take(w, amount)

    def _add_plain_kinds(self, pairs: Pairs, weights: Value) -> None:
        """Pairs beside and across, each one product."""
        b, (r, w) = self.b, pairs.pair
        x = b.rounded(b.mul(self.rows[r], pairs.down, name="X"), name="X")
        for kind, up in pairs.plain_kinds:
            y, of_kind = b.rounded(b.mul(self.rows[w], up, name="Y"), name="Y"), kind(b, weights, "P_kind")
            z = b.contract(of_kind, b.rename(y, "c", "s"), ("s",), name="Z")
            self._take(r, b.mul(x, z, name="read"))
            back = b.rename(b.contract(of_kind, x, ("c",), name="dY"), "s", "c", name="dY")
            self._take(w, b.mul(y, back, name="written"))
            self.grown[w] = b.add(self.grown[w], b.mul(up, back, name="decayed"), name="dy")

    def _add_inner_pairs(self, pairs: Pairs, weights: Value) -> None:
        """Level by level."""
        b, (r, w) = self.b, pairs.pair
        remaining, inner = pairs.inner(b, weights, "P_inner"), b.nested()
        dy = inner.phi("dy", self.grown[w])
        taken = {passed: inner.phi("taken", total) for passed, total in self.taken.items()}
        level, sums = Level(inner, pairs), dict(taken)
        chosen = inner.where(level.is_right, self.rows[r], self.rows[w], name="x")
        x = inner.rounded(inner.mul(chosen, level.factor, name="X"), name="X")
        of_level = level.apart(remaining, "P_level")
        z = inner.contract(of_level, inner.rename(x, "c", "s"), ("s",), name="Z")
        back = inner.rename(inner.contract(of_level, x, ("c",), name="dY"), "s", "c", name="dY")
        for position, amount, grow in ((r, z, inner.add), (w, back, inner.sub)):
            key = self._passed(position)
            sums[key] = grow(sums[key], inner.mul(x, amount, name="amount"), name="taken")
        grown = inner.add(dy, inner.mul(level.factor, back, name="decayed"), name="dy")
        carries = [Carry(dy, self.grown[w], grown)]
        carries += [Carry(phi, self.taken[key], sums[key]) for key, phi in taken.items()]
        b.loop("inner levels", inner, tuple(carries), needed=pairs.has_inner)
        self.grown[w], self.taken = dy, taken

    def _add_decays(self, cotangents: Cotangents, at_end: list[Value]) -> None:
        """Each decay has what comes after it in the chunk, and what outlives the chunk."""
        b, whole = self.b, sum_of(self.b, at_end, "whole")
        for number, (_, decay) in enumerate(class_decays(self.form, "value")):
            d_log = whole
            for offset in (0, 1):
                amounts = [x for passed, x in self.taken.items() if passed[number] == (offset == 0)]
                if amounts:
                    later = ones_where(b, b.after("s", "c", offset), "later")
                    d_log = b.add(d_log, sum_rows(b, later, sum_of(b, amounts, "taken"), "later"), name="d_log")
            add_decay(cotangents, b, decay, d_log, self.form.value)

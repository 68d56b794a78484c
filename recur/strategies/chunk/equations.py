"""One chunk of the forward pass. With x~ = x 2^G and x^ = x 2^-G, which never appear alone:

    L = strictly lower part of A~ B^T      Tm = (I + L)^{-1}      U = Tm (Y - A~ S_0)
    O = Q~ S_0 + tril(Q~ B^T) U            S_C = 2^{G_C} S_0 + (2^{G_C - G} B)^T U

"tril" keeps the writes already made at the row's position. Writes without a read stay out of the system: U = Y there,
and they enter the right-hand side, Y - A~ S_0 - tril(A~ B_plain^T) Y_plain.

What scales whole rows (scalar decays, signs, a write's strength) is applied to the results of products, or to the
operand that was computed anyway: the other operand is the user's tensor as it lies in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recur.ir.normal import Readout
from recur.ir.tile import Builder, Carry, Value
from recur.strategies.chunk.gates import Gates, between, from_start, to_end, uncut, whole_chunk
from recur.strategies.chunk.sums import sum_of as sum_of
from recur.strategies.chunk.tiles import FormTiles, Rows, Tiles, Vector, conj, conj_rows, signed

Blocks = dict[tuple[int, int], Value]


@dataclass
class Chunk:
    """The equations of one form in one body. Masks, decays and scores that recur are emitted once."""

    tiles: Tiles
    form: FormTiles

    @property
    def b(self) -> Builder:
        return self.tiles.b

    @property
    def key(self) -> tuple[str, ...]:
        return self.form.form.key

    @property
    def value(self) -> tuple[str, ...]:
        return self.form.form.value

    def times(self, tile: Value, *factors: Value | None, name: str | None = None) -> Value:
        """The tile times each factor, in order; neighbours that are smaller than the tile are multiplied first."""
        merged: list[Value] = []
        for factor in (f for f in factors if f is not None):
            if merged and {*merged[-1].axes, *factor.axes} < set(tile.axes):
                merged[-1] = self.b.mul(merged[-1], factor, name="factor")
            else:
                merged.append(factor)
        for factor in merged:
            tile = self.b.mul(tile, factor, name=name or tile.name)
        return tile

    def full(self, rows: Rows) -> Value:
        return self.times(rows.tile, rows.scale)

    def sum_of(self, terms: list[Value], name: str) -> Value:
        return sum_of(self.b, terms, name)

    def once(self, key: tuple[str, ...], emit: Callable[[], Value]) -> Value:
        shared = self.tiles.shared
        if key not in shared:
            shared[key] = emit()
        return shared[key]

    def column(self, value: Value | None) -> Value | None:
        """A factor of rows as a factor of columns."""
        return self.b.rename(value, "c", "s") if value is not None and value.axes else value

    # --- pairs of rows: tiles [c, s], c the later row ------------------------------------------------------------

    def seen(self, later: int, earlier: int) -> Value:
        """Whether the event at position ``earlier`` of token s has happened at position ``later`` of token c."""
        offset = 0 if earlier < later else 1
        return self.once(("after", str(offset)), lambda: self.b.after("c", "s", offset))

    def decay_pairs(self, pairs: Value, later: int, earlier: int, crossing: int = 0, name: str | None = None) -> Value:
        """Pairs [c, s] times the scalar decay D between their rows; as they are without one."""
        gates, b, name = self.form.key_gates, self.b, name or pairs.name
        if gates is None or gates.axes:
            return pairs
        x, y = gates.at[later], gates.at[earlier]
        pairs = b.mul(pairs, self.once(("D", x.log.name, y.log.name), lambda: between(b, x, y)), name=name)
        is_uncut = uncut(b, x, y, crossing)
        return pairs if is_uncut is None else b.where(is_uncut, pairs, b.const(0.0, name="zero"), name=name)

    def masked(self, pairs: Value, later: int, earlier: int, name: str) -> Value:
        zero = self.b.const(0.0, name="zero")
        return self.b.where(self.seen(later, earlier), pairs, zero, name=name)

    def scores(self, x: Vector, y: Vector, name: str = "P", crossing: int = 0) -> Value:
        """P[c, s] = sum over the key dims of x~[c] y^[s], for the pairs in which y has happened."""
        scales = [r.scale.name if r.scale is not None else "" for r in (x, y)]
        logs = [g.at[p].log.name for g in (self.form.key_gates,) if g is not None for p in (x.position, y.position)]
        offset = str(int(y.position > x.position))
        key = ("P", x.tile.name, y.tile.name, *scales, *logs, offset, str(crossing))
        return self.once(key, lambda: self._scores(x, y, name, crossing))

    def _scores(self, x: Vector, y: Vector, name: str, crossing: int) -> Value:
        gates = self.form.key_gates
        pairs = self._products(gates, x.tile, x.position, y.tile, y.position, self.key, name)
        pairs = self.times(pairs, x.scale, self.column(y.scale), name=name)
        pairs = self.decay_pairs(pairs, x.position, y.position, crossing, name)
        return self.masked(pairs, x.position, y.position, name)

    def value_scores(self, x: Rows, later: int, y: Rows, earlier: int, name: str = "P") -> Value:
        """The same over the value dims: sum of x[c] y[s] under the value class's decays, not masked."""
        pairs = self._products(self.form.value_gates, x.tile, later, y.tile, earlier, self.value, name)
        return self.times(pairs, x.scale, self.column(y.scale), name=name)

    def _products(
        self, gates: Gates | None, x: Value, later: int, y: Value, earlier: int, over: tuple[str, ...], name: str
    ) -> Value:
        y_rows = self.b.rename(y, "c", "s")
        if gates is None or not gates.axes:
            return self.b.contract(x, y_rows, over, name=name)
        earlier_log = self.b.rename(gates.at[earlier].log, "c", "s")
        return self.b.weigh(x, y_rows, gates.at[later].log, earlier_log, over, name=name)

    def spread_values(self, pairs: Value, y: Rows, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over s of pairs[c, s] y[s], y on value dims, under the value class's decays."""
        return self._spread(self.form.value_gates, pairs, y, later, earlier, name)

    def spread_keys(self, pairs: Value, y: Rows, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over s of pairs[c, s] y[s], y on key dims, under the key class's decays (``pairs`` without them)."""
        pairs = self.decay_pairs(pairs, later, earlier)
        return self._spread(self.form.key_gates, pairs, y, later, earlier, name)

    def gather_keys(self, pairs: Value, x: Rows, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over c of pairs[c, s] conj(x[c]), x on key dims, as rows c again: the adjoint of scores in y."""
        pairs = self.decay_pairs(pairs, later, earlier)
        return self._gather(self.form.key_gates, pairs, conj_rows(self.b, x), later, earlier, name)

    def gather_values(self, pairs: Value, x: Rows, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over c of conj(pairs[c, s]) x[c], x on value dims, as rows c again: the adjoint of spread_values."""
        return self._gather(self.form.value_gates, conj(self.b, pairs), x, later, earlier, name)

    def _spread(self, gates: Gates | None, pairs: Value, y: Rows, later: int, earlier: int, name: str) -> Value:
        b = self.b
        pairs = self.times(pairs, self.column(y.scale))
        y_rows = b.rename(y.tile, "c", "s")
        if gates is None or not gates.axes:
            return b.contract(pairs, y_rows, ("s",), name=name)
        return b.weigh(pairs, y_rows, gates.at[later].log, b.rename(gates.at[earlier].log, "c", "s"), ("s",), name=name)

    def _gather(self, gates: Gates | None, pairs: Value, x: Rows, later: int, earlier: int, name: str) -> Value:
        b = self.b
        constant = x.scale if x.scale is not None and not x.scale.axes else None
        pairs = pairs if constant is not None else self.times(pairs, x.scale)
        if gates is None or not gates.axes:
            result = b.contract(pairs, x.tile, ("c",), name=name)
        else:
            earlier_log = b.rename(gates.at[earlier].log, "c", "s")
            result = b.weigh(pairs, x.tile, gates.at[later].log, earlier_log, ("c",), name=name)
        return self.times(b.rename(result, "s", "c", name=name), constant, name=name)

    # --- rows against the chunk's ends -------------------------------------------------------------------------------

    def factors(
        self, gates: Gates | None, position: int, which: str, crossing: int = 0
    ) -> tuple[Value | None, Value | None]:
        """2^G ("start"), or 2^{G_C - G} with the unit of the chunk's end ("end"): (factor of rows, of entries)."""
        if gates is None:
            return None, None
        gate, end, b = gates.at[position], gates.end, self.b

        def emit() -> Value:
            if which == "start":
                return from_start(b, gate, crossing)
            factor = to_end(b, gate, end, crossing)
            return factor if end.unit is None else b.mul(factor, end.unit, name="to_end")

        factor = self.once((which, gate.log.name, str(crossing)), emit)
        return (None, factor) if gates.axes else (factor, None)

    def against_state(
        self, rows: Rows, position: int, which: str, state: Value, side: str, name: str, adjoint: bool = False
    ) -> Value:
        """Rows on the ``side`` ("key" or "value") dims contracted with a state at the chunk's "start" or "end".

        The result is on the other side's dims, under both classes' decays between the row and that end. ``adjoint``:
        rows and decays conjugated.
        """
        b, form = self.b, self.form
        own, other = (form.key_gates, form.value_gates) if side == "key" else (form.value_gates, form.key_gates)
        row, entry = self.factors(own, position, which)
        other_row, other_entry = self.factors(other, position, which)
        if adjoint:
            rows = conj_rows(b, rows)
            row, entry = (None if x is None else conj(b, x) for x in (row, entry))
        result = b.contract(self.times(rows.tile, entry), state, self.key if side == "key" else self.value, name=name)
        return self.times(result, rows.scale, row, other_row, other_entry, name=name)

    def into_state(self, keys: Rows, values: Rows, position: int, which: str, name: str) -> Value:
        """The outer products of rows, summed over the chunk, as they stand at its "start" or "end"."""
        key_row, key_entry = self.factors(self.form.key_gates, position, which)
        value_row, value_entry = self.factors(self.form.value_gates, position, which)
        k = self.times(keys.tile, key_entry)
        v = self.times(values.tile, values.scale, keys.scale, key_row, value_row, value_entry)
        return self.b.contract(k, v, ("c",), name=name)

    def decayed(self, state: Value, name: str = "S", adjoint: bool = False) -> Value:
        """The state over the whole chunk, 2^{G_C} S; or its adjoint, under the conjugate."""
        for gates in (self.form.key_gates, self.form.value_gates):
            if gates is not None:
                factor = self.over_chunk(gates)
                state = self.b.mul(state, conj(self.b, factor) if adjoint else factor, name=name)
        return state

    def class_over_chunk(self, which: str) -> Value:
        """The decay of the "key" or "value" class over the whole chunk, where the form has one."""
        gates = self.form.key_gates if which == "key" else self.form.value_gates
        assert gates is not None
        return self.over_chunk(gates)

    def over_chunk(self, gates: Gates, crossing: int = 0) -> Value:
        key = ("over", gates.end.log.name, str(crossing))
        return self.once(key, lambda: whole_chunk(self.b, gates.end, crossing))

    # --- forward -----------------------------------------------------------------------------------------------------

    def system(self) -> Blocks:
        """L[i, j]: the writes' reads i against the writes j that read."""
        form = self.form
        return {(i, j): self.scores(form.read_of(i), form.keys[j], name="L") for i in form.solved for j in form.solved}

    def pseudo_values(self, state: Value, inverse: Blocks) -> dict[int, Rows]:
        """U by write: the plain values as they are, the solved ones by U = Tm (Y - A~ S_0 - tril(A~ B^T) Y_plain)."""
        b, form = self.b, self.form
        u: dict[int, Rows] = {j: form.values[j] for j in form.plain}
        right: dict[int, Value] = {}
        for i in form.solved:
            a = form.read_of(i)
            read = self.against_state(a, a.position, "start", state, "key", "a_S")
            x = b.sub(self.full(form.values[i]), read, name="X") if i in form.values else b.neg(read, name="X")
            for p in form.plain:
                seen = self.spread_values(self.scores(a, form.keys[p]), u[p], a.position, form.keys[p].position, "own")
                x = b.sub(x, seen, name="X")
            right[i] = x
        for i in form.solved:
            u[i] = Rows(self._combine(inverse, i, right, "U"))
        return u

    def _combine(self, blocks: Blocks, i: int, right: dict[int, Value], name: str) -> Value:
        b = self.b
        terms = [b.contract(blocks[i, j], b.rename(right[j], "c", "s"), ("s",), name=name) for j in self.form.solved]
        return self.sum_of(terms, name)

    def read_out(self, readout: Readout, state: Value, u: dict[int, Rows]) -> Value:
        """A readout's rows: on value dims where it reads along the key dims, and the other way round."""
        query = self.form.queries[readout.name]
        terms = [self.against_state(query, query.position, "start", state, readout.axis, "inter")]
        for j, values in u.items():
            key = self.form.keys[j]
            if readout.axis == "key":
                pairs = self.scores(query, key)
                terms.append(self.spread_values(pairs, values, query.position, key.position))
            else:
                pairs = self.value_scores(query, query.position, values, key.position)
                pairs = self.masked(pairs, query.position, key.position, "P")
                terms.append(self.spread_keys(pairs, key, query.position, key.position))
        rows = Rows(self.sum_of(terms, "o"))
        if readout.axis == "value":
            rows = signed(self.b, self.form.key_gates, query.position, rows)
        return self.full(rows)

    def next_state(self, state: Value, u: dict[int, Rows]) -> Value:
        """S_C = 2^{G_C} S_0 + (2^{G_C - G} B)^T U."""
        new = self.decayed(state)
        for j, values in u.items():
            key = self.form.keys[j]
            new = self.b.add(new, self.into_state(key, values, key.position, "end", "written"), name="S_next")
        return new


def carry_sum(outer: Builder, body: Builder, name: str, amount: Value) -> Carry:
    """An amount in a loop's body, added up over the loop: its ``phi`` is the total once the loop is closed."""
    zero = outer.zeros(amount.axes, f"{name}_0", amount.is_complex)
    phi = body.phi(name, zero)
    return Carry(phi, zero, body.add(phi, amount, name=name))


def invert_system(b: Builder, blocks: Blocks, order: list[int]) -> Blocks:
    """Tm = (I + L)^{-1} by blocks, one write at a time; each step inverts a unit lower triangular Schur complement.

    With T the inverse of the leading blocks, c the new block column and r the new block row of L:
    S = (I + L_kk - r T c)^{-1};   new blocks  S,  -S r T,  -T c S,  T + T c S r T.
    """
    inverse: Blocks = {}
    done: list[int] = []

    def times(x: Value, y: Value, name: str) -> Value:
        moved = b.rename(b.rename(y, "s", "u"), "c", "s")
        return b.rename(b.contract(x, moved, ("s",), name=name, precision="full"), "u", "s", name=name)

    for k in order:
        column = {i: sum_of(b, [times(inverse[i, j], blocks[j, k], "Tc") for j in done], "Tc") for i in done}
        row = {j: sum_of(b, [times(blocks[k, i], inverse[i, j], "rT") for i in done], "rT") for j in done}
        schur = blocks[k, k]
        for i in done:
            schur = b.sub(schur, times(blocks[k, i], column[i], "rTc"), name="schur")
        solved = b.inverse(schur, "c", "s", comment="the UT transform")
        update = {j: times(solved, row[j], "SrT") for j in done}
        for i in done:
            inverse[i, k] = b.neg(times(column[i], solved, "TcS"), name="Tm")
            for j in done:
                inverse[i, j] = b.add(inverse[i, j], times(column[i], update[j], "TcSrT"), name="Tm")
        for j in done:
            inverse[k, j] = b.neg(update[j], name="Tm")
        inverse[k, k] = solved
        done.append(k)
    return inverse

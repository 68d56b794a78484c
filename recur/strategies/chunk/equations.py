"""One chunk, written once (mathematics.md, sections 2 and 3). With x~ = x 2^G and x^ = x 2^-G, which never appear alone:

    L = strictly lower part of A~ B^T      Tm = (I + L)^{-1}      U = Tm (Y - A~ S_0)
    O = Q~ S_0 + tril(Q~ B^T) U            S_C = 2^{G_C} S_0 + (2^{G_C - G} B)^T U

"tril" keeps the writes already made at the row's position. Writes without a read stay out of the system: U = Y there,
and they enter the right-hand side, Y - A~ S_0 - tril(A~ B_plain^T) Y_plain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.normal import Readout
from recur.ir.tile import Builder, Value
from recur.strategies.chunk.gates import Gate, Gates, between, from_start, to_end, whole_chunk
from recur.strategies.chunk.tiles import FormTiles, Vector


@dataclass
class Chunk:
    """The equations of one form in one body. Masks and decay matrices that recur are emitted once."""

    b: Builder
    form: FormTiles
    key: tuple[str, ...]
    value: tuple[str, ...]
    shared: dict[tuple[str, ...], Value] = field(default_factory=dict)

    # --- pairs of rows: tiles [c, s], c the later row -------------------------------------------------------------------

    def seen(self, later: int, earlier: int) -> Value:
        """Whether the event at position ``earlier`` of token s has happened at position ``later`` of token c."""
        offset = 0 if earlier < later else 1
        return self._once(("after", str(offset)), lambda: self.b.after("c", "s", offset))

    def decay(self, later: int, earlier: int, crossing: int = 0) -> Value | None:
        """D[c, s], the scalar decay between two rows; None without decay."""
        gates = self.form.key_gates
        if gates is None or gates.axes:
            return None
        x, y = gates.at[later], gates.at[earlier]
        key = ("D", x.log.name, y.log.name, str(crossing))
        return self._once(key, lambda: between(self.b, x, y, self.seen(1, 0), crossing))

    def masked(self, pairs: Value, later: int, earlier: int, name: str) -> Value:
        zero = self.b.const(0.0, name="zero")
        return self.b.where(self.seen(later, earlier), pairs, zero, name=name)

    def scores(self, x: Vector, y: Vector, name: str = "P", crossing: int = 0) -> Value:
        """P[c, s] = sum over the key dims of x~[c] y^[s], for the pairs in which y has happened."""
        b = self.b
        y_rows = b.rename(y.tile, "c", "s")
        gates = self.form.key_gates
        if gates is not None and gates.axes:
            later, earlier = gates.at[x.position].log, b.rename(gates.at[y.position].log, "c", "s")
            pairs = b.weigh(x.tile, y_rows, later, earlier, self.key, name=name)
        else:
            pairs = b.contract(x.tile, y_rows, self.key, name=name)
            decay = self.decay(x.position, y.position, crossing)
            if decay is not None:
                pairs = b.mul(pairs, decay, name=name)
        return self.masked(pairs, x.position, y.position, name)

    def value_scores(self, x: Value, later: int, y: Value, earlier: int, name: str = "P") -> Value:
        """The same over the value dims: sum of x[c] y[s] under the value class's decays, not masked."""
        b = self.b
        y_rows = b.rename(y, "c", "s")
        gates = self.form.value_gates
        if gates is None:
            return b.contract(x, y_rows, self.value, name=name)
        return b.weigh(x, y_rows, gates.at[later].log, b.rename(gates.at[earlier].log, "c", "s"), self.value, name=name)

    def spread_values(self, pairs: Value, y: Value, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over s of pairs[c, s] y[s], y on value dims, under the value class's decays."""
        return self._spread(self.form.value_gates, pairs, y, later, earlier, name)

    def spread_keys(self, pairs: Value, y: Value, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over s of pairs[c, s] y[s], y on key dims, under the key class's decays (``pairs`` without them)."""
        decay = self.decay(later, earlier)
        if decay is not None:
            pairs = self.b.mul(pairs, decay, name=pairs.name)
        gates = self.form.key_gates
        return self._spread(gates if gates is not None and gates.axes else None, pairs, y, later, earlier, name)

    def gather_keys(self, pairs: Value, x: Value, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over c of pairs[c, s] x[c], x on key dims, as rows c again: the transpose of spread_keys."""
        decay = self.decay(later, earlier)
        if decay is not None:
            pairs = self.b.mul(pairs, decay, name=pairs.name)
        gates = self.form.key_gates
        return self._gather(gates if gates is not None and gates.axes else None, pairs, x, later, earlier, name)

    def gather_values(self, pairs: Value, x: Value, later: int, earlier: int, name: str = "intra") -> Value:
        """sum over c of pairs[c, s] x[c], x on value dims, as rows c again: the transpose of spread_values."""
        return self._gather(self.form.value_gates, pairs, x, later, earlier, name)

    def _spread(self, gates: Gates | None, pairs: Value, y: Value, later: int, earlier: int, name: str) -> Value:
        b = self.b
        y_rows = b.rename(y, "c", "s")
        if gates is None:
            return b.contract(pairs, y_rows, ("s",), name=name)
        return b.weigh(pairs, y_rows, gates.at[later].log, b.rename(gates.at[earlier].log, "c", "s"), ("s",), name=name)

    def _gather(self, gates: Gates | None, pairs: Value, x: Value, later: int, earlier: int, name: str) -> Value:
        b = self.b
        if gates is None:
            result = b.contract(pairs, x, ("c",), name=name)
        else:
            earlier_log = b.rename(gates.at[earlier].log, "c", "s")
            result = b.weigh(pairs, x, gates.at[later].log, earlier_log, ("c",), name=name)
        return b.rename(result, "s", "c", name=name)

    # --- rows against the chunk's ends ----------------------------------------------------------------------------------

    def key_from_start(self, x: Value, position: int, name: str, crossing: int = 0) -> Value:
        return self._scaled(self.form.key_gates, x, position, "start", name, crossing)

    def value_from_start(self, x: Value, position: int, name: str) -> Value:
        return self._scaled(self.form.value_gates, x, position, "start", name)

    def key_to_end(self, x: Value, position: int, name: str, crossing: int = 0) -> Value:
        """x 2^{G_C - G}, with the sign from the position to the chunk's end."""
        gates = self.form.key_gates
        scaled = self._scaled(gates, x, position, "end", name, crossing)
        if gates is not None and gates.end.unit is not None:
            scaled = self.b.mul(scaled, gates.end.unit, name=name)
        return scaled

    def value_to_end(self, x: Value, position: int, name: str) -> Value:
        return self._scaled(self.form.value_gates, x, position, "end", name)

    def _scaled(
        self, gates: Gates | None, x: Value, position: int, which: str, name: str, crossing: int = 0
    ) -> Value:
        if gates is None:
            return x
        gate, b = gates.at[position], self.b
        start, end = lambda: from_start(b, gate, crossing), lambda: to_end(b, gate, gates.end, crossing)
        factor = self._once((which, gate.log.name, str(crossing)), start if which == "start" else end)
        return self.b.mul(x, factor, name=name)

    def decayed(self, state: Value, name: str = "S") -> Value:
        """The state, or its adjoint, over the whole chunk: 2^{G_C} S."""
        for gates in (self.form.key_gates, self.form.value_gates):
            if gates is not None:
                end: Gate = gates.end
                factor = self._once(("over", end.log.name), lambda end=end: whole_chunk(self.b, end))  # type: ignore[misc]
                state = self.b.mul(state, factor, name=name)
        return state

    def _once(self, key: tuple[str, ...], emit) -> Value:  # type: ignore[no-untyped-def]
        if key not in self.shared:
            self.shared[key] = emit()
        return self.shared[key]

    # --- forward --------------------------------------------------------------------------------------------------------

    def read_state(self, x: Vector, state: Value, name: str) -> Value:
        """x~ S_0 along the key dims: a tile on value dims."""
        b = self.b
        inter = b.contract(self.key_from_start(x.tile, x.position, x.tile.name), state, self.key, name=name)
        return self.value_from_start(inter, x.position, name)

    def read_state_by_values(self, x: Value, position: int, state: Value, name: str) -> Value:
        """S_0 x along the value dims: a tile on key dims."""
        b = self.b
        inter = b.contract(self.value_from_start(x, position, x.name), state, self.value, name=name)
        return self.key_from_start(inter, position, name)

    def system(self) -> dict[tuple[int, int], Value]:
        """L[i, j]: the writes' reads i against the writes j that read."""
        form = self.form
        return {(i, j): self.scores(form.read_of(i), form.keys[j], name="L") for i in form.solved for j in form.solved}

    def pseudo_values(self, state: Value, inverse: dict[tuple[int, int], Value]) -> dict[int, Value]:
        """U by write: the plain values as they are, the solved ones by U = Tm (Y - A~ S_0 - tril(A~ B^T) Y_plain)."""
        b, form = self.b, self.form
        u = {j: form.values[j].tile for j in form.plain}
        right: dict[int, Value] = {}
        for i in form.solved:
            a = form.read_of(i)
            x = b.neg(self.read_state(a, state, "a_S"), name="X")
            if i in form.values:
                x = b.add(form.values[i].tile, x, name="X", comment="what the write adds, before the chunk's own writes")
            for p in form.plain:
                seen = self.spread_values(self.scores(a, form.keys[p]), u[p], a.position, form.keys[p].position, "own")
                x = b.sub(x, seen, name="X")
            right[i] = x
        for i in form.solved:
            u[i] = self._combine(inverse, i, right, "U")
        return u

    def _combine(self, blocks: dict[tuple[int, int], Value], i: int, right: dict[int, Value], name: str) -> Value:
        terms = [self.b.contract(blocks[i, j], self.b.rename(right[j], "c", "s"), ("s",), name=name) for j in self.form.solved]
        return self.sum_of(terms, name)

    def read_out(self, name: str, state: Value, u: dict[int, Value]) -> Value:
        """A readout's rows: on value dims where it reads along the key dims, and the other way round."""
        query = self.form.queries[name]
        readout = next(r for r in self.form.form.readouts if r.name == name)
        terms = [self._read_out_state(readout, query, state)]
        for j, values in u.items():
            key = self.form.keys[j]
            if readout.axis == "key":
                pairs = self.scores(query, key)
                terms.append(self.spread_values(pairs, values, query.position, key.position))
            else:
                pairs = self.value_scores(query.tile, query.position, values, key.position)
                pairs = self.masked(pairs, query.position, key.position, "P")
                terms.append(self.spread_keys(pairs, key.tile, query.position, key.position))
        return self.unsigned(readout, query, self.sum_of(terms, "o"))

    def _read_out_state(self, readout: Readout, query: Vector, state: Value) -> Value:
        if readout.axis == "key":
            return self.read_state(query, state, "inter")
        return self.read_state_by_values(query.tile, query.position, state, "inter")

    def unsigned(self, readout: Readout, query: Vector, rows: Value) -> Value:
        """A value-axis readout ends on key dims, whose rows carry the running sign: take it off again (or put it on)."""
        gates = self.form.key_gates
        unit = gates.at[query.position].unit if gates is not None else None
        return rows if readout.axis == "key" or unit is None else self.b.mul(unit, rows, name=rows.name)

    def next_state(self, state: Value, u: dict[int, Value]) -> Value:
        """S_C = 2^{G_C} S_0 + (2^{G_C - G} B)^T U."""
        b = self.b
        new = self.decayed(state)
        for j, values in u.items():
            key = self.form.keys[j]
            written = b.contract(
                self.key_to_end(key.tile, key.position, "b_end"),
                self.value_to_end(values, key.position, "u_end"),
                ("c",),
                name="written",
            )
            new = b.add(new, written, name="S_next")
        return new

    def sum_of(self, terms: list[Value], name: str) -> Value:
        result = terms[0]
        for term in terms[1:]:
            result = self.b.add(result, term, name=name)
        return result


def invert_system(b: Builder, blocks: dict[tuple[int, int], Value], order: list[int]) -> dict[tuple[int, int], Value]:
    """Tm = (I + L)^{-1} by blocks, one write at a time; each step inverts a unit lower triangular Schur complement.

    With T the inverse of the leading blocks, c the new block column and r the new block row of L:
    S = (I + L_kk - r T c)^{-1};   new blocks  S,  -S r T,  -T c S,  T + T c S r T.
    """
    inverse: dict[tuple[int, int], Value] = {}
    done: list[int] = []

    def times(x: Value, y: Value, name: str) -> Value:
        moved = b.rename(b.rename(y, "s", "u"), "c", "s")
        return b.rename(b.contract(x, moved, ("s",), name=name, precision="full"), "u", "s", name=name)

    def total(terms: list[Value], name: str) -> Value:
        result = terms[0]
        for term in terms[1:]:
            result = b.add(result, term, name=name)
        return result

    for k in order:
        column = {i: total([times(inverse[i, j], blocks[j, k], "Tc") for j in done], "Tc") for i in done}
        row = {j: total([times(blocks[k, i], inverse[i, j], "rT") for i in done], "rT") for j in done}
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

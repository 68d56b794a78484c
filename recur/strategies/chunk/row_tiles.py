"""Chunks longer than a tile: gates in memory, and pairs of a tile of query rows with a tile of key rows.

A chunk of L tokens is cut into tiles of R rows. With G the running log2 decay from the chunk's start (counted from
where nothing later can change it) every decay is a difference of what is held at two places:

    from s to t    2^(G_t - G_s)        from s to the end    2^(G_C - G_s)        from the start to t    2^G_t

Rows past the sequence's end hold G = -1e30: nothing decays less on the way to them, so no exponent overflows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.core import Node
from recur.ir.normal import MatrixForm, Readout
from recur.ir.tile import Builder, Value
from recur.strategies.chunk import gates as chunk_gates
from recur.strategies.chunk.gates import Gate, Gates, between, uncut
from recur.strategies.chunk.once import Once
from recur.strategies.chunk.stored_gates import StoredGates, distinct
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, signed

PAST_THE_END = -1e30


def to_end(b: Builder, gate: Gate, end: Gate, rows: str, crossing: int = 0) -> Value:
    """2^(G_C - G): the decay from the row to the chunk's end; with the whole chunk's sign. Zero past the sequence."""
    factor = b.valid(chunk_gates.to_end(b, gate, end, crossing), rows, name="to_end")
    return factor if end.unit is None else b.mul(factor, end.unit, name="to_end")


# --- coefficients of a tile's rows -----------------------------------------------------------------------------------


@dataclass
class RowTile:
    """The coefficients of one tile of rows, "c" for queries or "s" for keys; ``ends``: the chunk's, by family."""

    tiles: Tiles
    stored: dict[str, StoredGates]
    ends: dict[str, Gate]
    loaded: dict[str, Gates] = field(default_factory=dict)

    @property
    def b(self) -> Builder:
        return self.tiles.b

    @property
    def rows(self) -> str:
        return self.tiles.rows_axis

    def gates(self, form: MatrixForm) -> Gates | None:
        family = self.stored.get(form.state)
        if family is None:
            return None
        if family.name not in self.loaded:
            self.loaded[family.name] = family.load_rows(
                self.b, self.rows, self.ends[family.name], PAST_THE_END
            )
        return self.loaded[family.name]

    def vector(self, form: MatrixForm, node: Node, position: int, name: str) -> Vector:
        """Rows on key dims, times the running sign."""
        rows = signed(self.b, self.gates(form), position, self.tiles.rows(node, name))
        return Vector(rows.tile, rows.scale, node, position)

    def query(self, form: MatrixForm, readout: Readout) -> Vector:
        return self.vector(form, readout.vector, form.events.index(readout), "q")

    def keys(self, form: MatrixForm) -> list[Vector]:
        return [self.vector(form, w.key, form.events.index(w), "k") for w in form.writes]

    def values(self, form: MatrixForm) -> list[Rows]:
        return [self.tiles.rows(w.value, "v") for w in form.writes if w.value is not None]

    def factor(self, form: MatrixForm, position: int, which: str, crossing: int = 0) -> Value | None:
        """The decay between the rows and the chunk's "start" or "end"; None without decay."""
        gates = self.gates(form)
        if gates is None:
            return None
        key = (which, gates.at[position].log.name, str(crossing))
        if key not in self.tiles.shared:
            gate = gates.at[position]
            self.tiles.shared[key] = (
                chunk_gates.from_start(self.b, gate, crossing)
                if which == "start"
                else to_end(self.b, gate, gates.end, self.rows, crossing)
            )
        return self.tiles.shared[key]


def load_ends(b: Builder, stored: dict[str, StoredGates]) -> dict[str, Gate]:
    return {family.name: family.load_end(b) for family in distinct(stored)}


def whole_chunk(
    b: Builder, stored: dict[str, StoredGates], ends: dict[str, Gate], state: str, crossing: int = 0
) -> Value | None:
    """2^G_C with its sign; None without decay."""
    return chunk_gates.whole_chunk(b, ends[stored[state].name], crossing) if state in stored else None


def times(b: Builder, tile: Value, *factors: Value | None, name: str | None = None) -> Value:
    for factor in factors:
        if factor is not None:
            tile = b.mul(tile, factor, name=name or tile.name)
    return tile


def joint(b: Builder, *factors: Value | None) -> Value | None:
    """The product of factors of rows; None where there are none."""
    known = [f for f in factors if f is not None]
    return times(b, known[0], *known[1:], name="scale") if known else None


def full(b: Builder, rows: Rows) -> Value:
    return times(b, rows.tile, rows.scale)


# --- pairs of rows ---------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Tiles [c, s] of a query tile and a key tile, in one body, each emitted once and without the rows' scales."""

    b: Builder
    queries: RowTile
    keys: RowTile
    once: Once = field(default_factory=Once)

    def seen(self, later: int, earlier: int) -> Value:
        """Whether the event at position ``earlier`` of token s has happened at position ``later`` of token c."""
        offset = 0 if earlier < later else 1
        return self.once(("after", offset), lambda: self.b.after("c", "s", offset))

    def products(self, x: Value, y: Value, over: tuple[str, ...], name: str) -> Value:
        return self.once(("dot", x.name, y.name), lambda: self.b.contract(x, y, over, name=name))

    def decayed(self, form: MatrixForm, pairs: Value, later: int, earlier: int, crossing: int = 0) -> Value:
        """The pairs under the decay between their rows; zero where s has not happened."""
        decay = self.decay(form, later, earlier, crossing)
        key = ("decayed", pairs.name, "" if decay is None else decay.name, earlier < later)
        if decay is not None:
            return self.once(key, lambda: self.b.mul(pairs, decay, name=pairs.name))
        zero = self.b.const(0.0, name="zero")
        return self.once(key, lambda: self.b.where(self.seen(later, earlier), pairs, zero, name=pairs.name))

    def decay(self, form: MatrixForm, later: int, earlier: int, crossing: int) -> Value | None:
        """D[c, s] = 2^(G_c - G_s), zero where s has not happened."""
        after, before = self.queries.gates(form), self.keys.gates(form)
        if after is None or before is None:
            return None
        x, y = after.at[later], before.at[earlier]

        def emit() -> Value:
            seen = self.seen(later, earlier)
            zero = self.b.const(0.0, name="zero")
            factor = between(self.b, x, y)
            is_uncut = uncut(self.b, x, y, crossing)
            if is_uncut is not None:
                factor = self.b.where(is_uncut, factor, zero, name="D")
            return self.b.where(seen, factor, zero, name="D")

        return self.once(("D", x.log.name, y.log.name, earlier < later, crossing), emit)

    def scores(self, form: MatrixForm, q: Vector, k: Vector, crossing: int = 0) -> Value:
        """P[c, s] = D q_c . k_s, without the rows' scales."""
        products = self.products(q.tile, k.tile, form.key, "P")
        return self.decayed(form, products, q.position, k.position, crossing)

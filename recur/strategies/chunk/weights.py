"""Decays of a chunk in memory as the weights they give, where a stage takes passes (see families).

    D[c, s] = 2^(G_c - G_s), zero where s has not happened or a cut lies between        [C, C] for every chunk
    2^G, 2^(G_C - G), 2^G_C                                                             zero across cuts

Every walk, and every tile of the state in it, multiplies by them; one kernel works them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.normal import MatrixForm, Readout, Write
from recur.ir.tile import Access, Buffer, Builder, Value
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import Gate, Gates, between, from_start, to_end, uncut
from recur.strategies.chunk.shape import Shape, pair_access
from recur.strategies.chunk.stored_gates import StoredGates, distinct, end_access, rows_access, scalar_gates
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_keys, load_values


@dataclass(frozen=True)
class Weights:
    """The weights of forms that have their decays in common; ``gates`` names them and numbers their positions."""

    gates: StoredGates

    def rows_name(self, which: str, position: int) -> str:
        """Of 2^G ("start") or 2^(G_C - G) ("end")."""
        return self.gates.buffer(f"to_{which}", self.gates.stage(position))

    @property
    def chunk_name(self) -> str:
        return self.gates.buffer("over", "chunk")

    def pairs_name(self, later: int, earlier: int) -> str:
        stages = f"{self.gates.stage(later)}_{self.gates.stage(earlier)}"
        return self.gates.buffer("D" if earlier < later else "D_before", stages)

    @property
    def pairs(self) -> dict[str, tuple[int, int]]:
        """The positions (readout, write) of every D, by its name."""
        events = list(enumerate(self.gates.form.events))
        readouts = [i for i, e in events if isinstance(e, Readout)]
        writes = [i for i, e in events if isinstance(e, Write)]
        return {self.pairs_name(r, w): (r, w) for r in readouts for w in writes}

    @property
    def rows(self) -> dict[str, tuple[str, int]]:
        """("start", a readout's position) or ("end", a write's), by the name of the weights."""
        kinds = {Readout: "start", Write: "end"}
        events = [(kinds[type(e)], i) for i, e in enumerate(self.gates.form.events) if type(e) in kinds]
        return {self.rows_name(*event): event for event in events}

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        pairs = [Buffer(name, ("B", "T", "H", "C"), "operand", doc="decays of pairs") for name in self.pairs]
        rows = [Buffer(name, ("B", "N", "H", "C")) for name in self.rows]
        return (*pairs, *rows, Buffer(self.chunk_name, ("B", "N", "H")))

    def store(self, b: Builder, gates: Gates) -> None:
        for name, (later, earlier) in self.pairs.items():
            b.store(pair_access(name), pair_weights(b, gates.at[later], gates.at[earlier], earlier < later))
        for name, (which, position) in self.rows.items():
            gate = gates.at[position]
            b.store(rows_access(name), from_start(b, gate) if which == "start" else to_end(b, gate, gates.end))
        b.store(end_access(self.chunk_name), from_start(b, gates.end))


def pair_weights(b: Builder, later: Gate, earlier: Gate, is_written_first: bool) -> Value:
    """D[c, s]."""
    weights, zero = between(b, later, earlier), b.const(0.0, name="zero")
    is_uncut = uncut(b, later, earlier)
    if is_uncut is not None:
        weights = b.where(is_uncut, weights, zero, name="D")
    return b.where(b.after("c", "s", 0 if is_written_first else 1), weights, zero, name="D")


def stored_weights(shape: Shape) -> list[Weights]:
    return [Weights(gates) for gates in distinct(scalar_gates(shape))] if shape.pass_forms else []


@dataclass
class WeightedChunk(Chunk):
    """The equations of a chunk whose decays lie in memory as weights; of its gates, only signs are loaded.

    ``tiled``: the side, "key" or "value", whose dims the walk has in tiles.
    """

    tiled: str = "value"

    @property
    def weights(self) -> Weights | None:
        gates = self.tiles.stored.get(self.form.form.state)
        return Weights(gates) if gates is not None else None

    def _load(self, name: str, buffer: str, access: Access, axes: tuple[str, ...]) -> Value:
        return self.once(("weights", buffer), lambda: self.b.load(name, access, axes))

    def weighted(self, pairs: Value, later: int, earlier: int, name: str) -> Value:
        """tril(pairs) D."""
        if self.weights is None:
            return self.masked(pairs, later, earlier, name)
        buffer = self.weights.pairs_name(later, earlier)
        return self.b.mul(pairs, self._load("D", buffer, pair_access(buffer), ("c", "s")), name=name)

    def _scores(self, x: Vector, y: Vector, name: str, crossing: int) -> Value:
        pairs = self.b.contract(x.tile, self.b.rename(y.tile, "c", "s"), self.key, name=name)
        pairs = self.times(pairs, x.scale, self.column(y.scale), name=name)
        return self.weighted(pairs, x.position, y.position, name)

    def spread(self, pairs: Value, y: Rows) -> Value:
        """sum over s of pairs[c, s] y[s], the factors of rows in the pairs already."""
        return self.b.contract(pairs, self.b.rename(y.tile, "c", "s"), ("s",), name="intra")

    def gather(self, pairs: Value, x: Rows) -> Value:
        """sum over c of pairs[c, s] x[c], as rows c again."""
        return self.b.rename(self.b.contract(pairs, x.tile, ("c",), name="intra"), "s", "c", name="intra")

    def into_state(self, keys: Rows, values: Rows, position: int, which: str, name: str) -> Value:
        """The outer products of rows, summed over the chunk: the tile is scaled, being narrower than what is whole."""
        if self.tiled == "value":
            return super().into_state(keys, values, position, which, name)
        row, _ = self.factors(self.form.key_gates, position, which)
        scaled = self.times(keys.tile, keys.scale, values.scale, row, name=keys.tile.name)
        return self.b.contract(scaled, values.tile, ("c",), name=name)

    def factors(
        self, gates: Gates | None, position: int, which: str, crossing: int = 0
    ) -> tuple[Value | None, Value | None]:
        if self.weights is None or gates is None:
            return None, None
        buffer = self.weights.rows_name(which, position)
        factor = self._load(f"to_{which}", buffer, rows_access(buffer), ("c",))
        if which == "end" and gates.end.unit is not None:
            unit = gates.end.unit
            return self.once((buffer, "signed"), lambda: self.b.mul(factor, unit, name="to_end")), None
        return factor, None

    def over_chunk(self, gates: Gates, crossing: int = 0) -> Value:
        assert self.weights is not None
        buffer = self.weights.chunk_name
        factor = self._load("over", buffer, end_access(buffer), ())
        unit = gates.end.unit
        return factor if unit is None else self.once((buffer, "signed"), lambda: self.b.mul(factor, unit, name="over"))


def weighted_chunk(tiles: Tiles, form: MatrixForm, tiled: str = "value") -> WeightedChunk:
    return WeightedChunk(tiles, load_values(tiles, load_keys(tiles, form)), tiled)

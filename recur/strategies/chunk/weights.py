"""Decays, signs and factors of rows of every chunk in memory as the weights they give, where a stage takes passes.

For a family (see families) with queries f q and keys f b, f their factors without dims, at positions t and s,

    D[c, s] = f_c f_s 2^(G_c - G_s), zero where s has not happened or a cut lies between        [C, C] for every chunk
    f 2^G of a query, f 2^(G_C - G) of a key, 2^G_C                                             zero across cuts

with the signs from place to place. Every walk, and every tile of the state in it, multiplies by these numbers; one
kernel works them out. A vector's own weights, where its cotangent is wanted, have ones for factors that are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from recur.ir.core import Node, is_const, leaves
from recur.ir.normal import MatrixForm, Readout, Write
from recur.ir.tile import Buffer, Builder, Kernel, Value
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.families import Family, infer_families, sums_access
from recur.strategies.chunk.gates import Gate, Gates, between, class_decays, from_start, to_end, uncut
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.shape import Shape, key_only, pair_access
from recur.strategies.chunk.stored_gates import end_access, rows_access
from recur.strategies.chunk.tiles import (
    FormTiles,
    KeyEvent,
    Rows,
    Tiles,
    Vector,
    key_symbol,
    key_tiles,
    load_gates,
    load_keys,
    load_values,
)

Own = Literal["", "query", "key"]  # whose cotangent is wanted

EQUATIONS = ("D[c, s] = f_c f_s 2^(G_c - G_s), zero where s has not happened", "f 2^G,  f 2^(G_C - G),  2^G_C")


@dataclass(frozen=True)
class Weights:
    """The weights of a family: which there are, their buffers, and how they come about."""

    family: Family

    @property
    def exist(self) -> bool:
        """Whether there is more than constants."""
        return bool(self.family.lead.decays) or any(self.varies(i) for i in (*self.queries, *self.keys))

    def _positions(self, kind: type) -> list[int]:
        return [i for i, e in enumerate(self.family.lead.events) if isinstance(e, kind)]

    @property
    def queries(self) -> list[int]:
        return self._positions(Readout)

    @property
    def keys(self) -> list[int]:
        return self._positions(Write)

    def scale(self, position: int) -> Node:
        """The factor of a vector's rows."""
        event = self.family.lead.events[position]
        assert isinstance(event, (Readout, Write))
        return split_scale(key_symbol(event)[0])[0]

    def varies(self, position: int) -> bool:
        """Whether the factor differs from token to token."""
        return bool(leaves([self.scale(position)]))

    def has_rows(self, position: int) -> bool:
        """Whether a vector's weight to the chunk's start or end is more than a constant."""
        return bool(self.family.lead.decays) or self.varies(position)

    def _first(self, position: int) -> int:
        """The first position of its kind with the same weights."""

        def features(i: int) -> tuple[Node, int]:
            return self.scale(i), sum(j < i for j, _ in class_decays(self.family.lead, "key"))

        kind = self.queries if position in self.queries else self.keys
        return next(i for i in kind if features(i) == features(position))

    def pairs_name(self, query: int, key: int, own: Own = "") -> str:
        suffix = ("" if key < query else "_before") + self._own((query, "query"), (key, "key"), own=own)
        return f"D_{self.family.name}_{self._first(query)}_{self._first(key)}{suffix}"

    def rows_name(self, position: int, own: Own = "") -> str:
        which, kind = ("start", "query") if position in self.queries else ("end", "key")
        return f"to_{which}_{self.family.name}_{self._first(position)}{self._own((position, kind), own=own)}"

    def _own(self, *vectors: tuple[int, str], own: str) -> str:
        return f"_own_{own}" if any(kind == own and self.varies(i) for i, kind in vectors) else ""

    def mask_name(self, position: int) -> str:
        """Of what tells rows whose factor is zero."""
        return f"unless_zero_{self.family.name}_{self._first(position)}"

    @property
    def chunk_name(self) -> str:
        return f"over_{self.family.name}_chunk"

    def _pairs(self) -> dict[str, tuple[int, int, Own]]:
        owns: tuple[Own, ...] = ("", "query", "key")
        return {self.pairs_name(q, k, own): (q, k, own) for q in self.queries for k in self.keys for own in owns}

    def _rows(self) -> dict[str, tuple[int, Own]]:
        owns: tuple[Own, ...] = ("", "query", "key")
        positions = [i for i in (*self.queries, *self.keys) if self.has_rows(i)]
        return {self.rows_name(i, own): (i, own) for i in positions for own in owns}

    def _masks(self) -> dict[str, int]:
        return {self.mask_name(i): i for i in (*self.queries, *self.keys) if self.varies(i)}

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        pairs = [Buffer(name, ("B", "T", "H", "C"), "operand", doc="weights of pairs") for name in self._pairs()]
        rows = [Buffer(name, ("B", "N", "H", "C")) for name in (*self._rows(), *self._masks())]
        chunk = [Buffer(self.chunk_name, ("B", "N", "H"))] if self.family.lead.decays else []
        return (*pairs, *rows, *chunk)

    def store(self, tiles: Tiles) -> None:
        b = tiles.b
        gates = load_gates(tiles, self.family.lead, "key")
        for name, (query, key, own) in self._pairs().items():
            b.store(pair_access(name), self._pair_weights(tiles, gates, query, key, own))
        for name, (position, own) in self._rows().items():
            b.store(rows_access(name), product(b, self._row_weights(tiles, gates, position, own)))
        for name, position in self._masks().items():
            b.store(rows_access(name), unless_zero(b, tiles.node(self.scale(position), "scale")))
        if gates is not None:
            over = from_start(b, gates.end)
            b.store(end_access(self.chunk_name), product(b, [over, *units(gates.end)]))

    def _row_weights(self, tiles: Tiles, gates: Gates | None, position: int, own: Own) -> list[Value]:
        factors = self._factors(tiles, gates, position, own in self._own_kind(position))
        if gates is None:
            return factors
        gate, end = gates.at[position], gates.end
        if position in self.queries:
            return [from_start(tiles.b, gate), *factors]
        return [to_end(tiles.b, gate, end), *factors, *units(end)]

    def _own_kind(self, position: int) -> tuple[Own]:
        return ("query",) if position in self.queries else ("key",)

    def _factors(self, tiles: Tiles, gates: Gates | None, position: int, is_own: bool) -> list[Value]:
        """The factor of a vector's rows and its sign, where they are not one."""
        scale, signs = self.scale(position), units(gates.at[position]) if gates is not None else []
        if is_const(scale, 1.0):
            return signs
        if not self.varies(position):
            return [tiles.scale(scale, "scale"), *signs]
        rows = tiles.node(scale, "scale")
        return [nonzero(tiles.b, rows) if is_own else rows, *signs]

    def _pair_weights(self, tiles: Tiles, gates: Gates | None, query: int, key: int, own: Own) -> Value:
        b, zero = tiles.b, tiles.b.const(0.0, name="zero")
        later = self._factors(tiles, gates, query, own == "query")
        earlier = self._factors(tiles, gates, key, own == "key")
        factors = later + [b.rename(x, "c", "s") if x.axes else x for x in earlier]
        if gates is not None:
            factors.insert(0, between(b, gates.at[query], gates.at[key]))
        weights = product(b, factors)
        is_uncut = uncut(b, gates.at[query], gates.at[key]) if gates is not None else None
        if is_uncut is not None:
            weights = b.where(is_uncut, weights, zero, name="D")
        return b.where(b.after("c", "s", 0 if key < query else 1), weights, zero, name="D")


def units(gate: Gate) -> list[Value]:
    return [gate.unit] if gate.unit is not None else []


def product(b: Builder, factors: list[Value]) -> Value:
    result = factors[0] if factors else b.const(1.0, name="one")
    for factor in factors[1:]:
        result = b.mul(result, factor, name="weights")
    return result


def nonzero(b: Builder, rows: Value) -> Value:
    """A factor of rows with ones for zeros."""
    return b.where(is_zero(b, rows), b.const(1.0, name="one"), rows, name="nonzero")


def unless_zero(b: Builder, rows: Value) -> Value:
    """Zero where a factor of rows is zero, else one."""
    return b.where(is_zero(b, rows), b.const(0.0, name="zero"), b.const(1.0, name="one"), name="unless_zero")


def is_zero(b: Builder, rows: Value) -> Value:
    return b.map("eq", rows, b.const(0.0, name="zero"), name="is_zero")


def infer_weights(shape: Shape) -> Iterator[Weights]:
    """Those of a stage that takes passes."""
    for family in infer_families(shape) if shape.pass_forms else []:
        weights = Weights(family)
        if weights.exist:
            yield weights


def weight_buffers(shape: Shape) -> tuple[Buffer, ...]:
    return tuple(b for weights in infer_weights(shape) for b in weights.buffers)


def emit_weights(shape: Shape) -> Kernel:
    """All chunks at once: a program holds the rows of a chunk."""
    b = Builder()
    tiles = Tiles(b)
    for weights in infer_weights(shape):
        weights.store(tiles)
    grid = ("batch", "head", "chunk")
    return Kernel("weights", grid, key_only(shape), tuple(b.statements), EQUATIONS, "gates", warps=4)


@dataclass
class WeightedChunk(Chunk):
    """The equations of a chunk with weights, which take the place of gates and of the vectors' factors.

    ``weights``: None where all that the vectors have is constant factors. ``tiled``: the side, "key" or "value", whose
    dims the walk has in tiles. ``is_summed``: whether a vector's sums over the chunk lie in memory (see families).
    """

    weights: Weights | None = None
    tiled: str = "value"
    is_summed: bool = True

    def weighted(self, pairs: Value, query: Vector, key: Vector, name: str, own: Own = "") -> Value:
        """tril(pairs) D."""
        if self.weights is None:
            pairs = self.times(pairs, query.scale, self.column(key.scale), name=name)
            return self.masked(pairs, query.position, key.position, name)
        buffer = self.weights.pairs_name(query.position, key.position, own)
        weights = self.once((buffer,), lambda: self.b.load("D", pair_access(buffer), ("c", "s")))
        return self.b.mul(pairs, weights, name=name)

    def reach(self, position: int, scale: Value | None, own: Own = "") -> Value | None:
        """The weight between a vector's rows and the chunk's start, for a query, or its end, for a key."""
        if self.weights is None:
            return scale
        if not self.weights.has_rows(position):
            constant = self.weights.scale(position)
            return None if is_const(constant, 1.0) else self.tiles.scale(constant, "scale")
        buffer = self.weights.rows_name(position, own)
        return self.once((buffer,), lambda: self.b.load("reach", rows_access(buffer), ("c",)))

    def unless_zero(self, position: int) -> Value | None:
        """One where a vector's factor of rows is not zero; None where it does not differ from token to token."""
        if self.weights is None or not self.weights.varies(position):
            return None
        return self.b.load("unless_zero", rows_access(self.weights.mask_name(position)), ("c",))

    def class_over_chunk(self, which: str) -> Value:
        assert self.weights is not None
        buffer = self.weights.chunk_name
        return self.once((buffer,), lambda: self.b.load("over", end_access(buffer), ()))

    def decayed(self, state: Value, name: str = "S", adjoint: bool = False) -> Value:
        return self.b.mul(state, self.class_over_chunk("key"), name=name) if self.form.form.decays else state

    def scores(self, x: Vector, y: Vector, name: str = "P", crossing: int = 0) -> Value:
        """P[c, s] of a query and a key; the products of their tiles are shared by what reads at several positions."""
        names, places = (x.tile.name, y.tile.name), (self.form.form.state, str(x.position), str(y.position))
        return self.once(("P", *names, *places), lambda: self.weighted(self.products(x, y), x, y, name))

    def products(self, x: Vector, y: Vector) -> Value:
        """q . b of all pairs, without their weights."""
        key = ("products", x.tile.name, y.tile.name)
        return self.once(key, lambda: self.b.contract(x.tile, self.b.rename(y.tile, "c", "s"), self.key, name="P"))

    def spread(self, pairs: Value, y: Rows) -> Value:
        """sum over s of pairs[c, s] y[s], the factors of rows in the pairs already."""
        return self.b.contract(pairs, self.b.rename(y.tile, "c", "s"), ("s",), name="intra")

    def gather(self, pairs: Value, x: Rows) -> Value:
        """sum over c of pairs[c, s] x[c], as rows c again."""
        return self.b.rename(self.b.contract(pairs, x.tile, ("c",), name="intra"), "s", "c", name="intra")

    def against_state(
        self, rows: Rows, position: int, which: str, state: Value, side: str, name: str, adjoint: bool = False
    ) -> Value:
        result = self.b.contract(rows.tile, state, self.key if side == "key" else self.value, name=name)
        return self.times(result, self.reach(position, rows.scale), name=name)

    def into_state(self, keys: Rows, values: Rows, position: int, which: str, name: str) -> Value:
        """The outer products of rows, summed over the chunk: the tile is scaled, being narrower than what is whole."""
        if not self.value and self.is_summed:
            return self.b.load(name, sums_access(self.form.form, position), self.key)
        if self.tiled == "value":
            factors = (values.scale, self.reach(position, keys.scale))
            return self.b.contract(keys.tile, self.times(values.tile, *factors), ("c",), name=name)
        return self.b.contract(self.reaching(keys, position), self.full(values), ("c",), name=name)

    def reaching(self, keys: Rows, position: int, own: Own = "") -> Value:
        """A vector's rows as they stand at the chunk's start or end, rounded as a state takes them."""
        factor = self.reach(position, keys.scale, own)
        return keys.tile if factor is None else self.b.rounded(self.times(keys.tile, factor))


def weighted_chunk(shape: Shape, tiles: Tiles, form: MatrixForm, tiled: str = "value") -> WeightedChunk:
    weights = next((w for w in infer_weights(shape) if form in w.family.forms), None)
    part = load_keys(tiles, form) if weights is None else load_vectors(tiles, form)
    return WeightedChunk(tiles, load_values(tiles, part), weights, tiled)


def load_vectors(tiles: Tiles, form: MatrixForm) -> FormTiles:
    """The keys and queries of a form without reads, without their factors and signs."""

    def vector_of(event: KeyEvent, position: int) -> Vector:
        node, name = key_symbol(event)
        return Vector(tiles.node(split_scale(node)[1], name), None, node, position)

    return key_tiles(form, None, vector_of)

"""The kernels of the chunkwise schedule, backward: the reverse walk, and every chunk's gradients at once.

The gradients here are the general ones, of every form that a chunk can hold; key_gradients.py, solved_gradients.py and
passes.py have those of the common forms in more kernels, with less in registers.

The reverse walk carries the adjoint state R from the last chunk to the first and solves for Z. With the states at the
chunks' starts and R at their ends in memory, all gradients of a chunk are local to it: one program a chunk, walking
the tiles of the value dims, then pulling the coefficients' cotangents back to the inputs where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recur.ir.core import Node, apply, const, div, is_const, leaf, leaves, mul, where
from recur.ir.normal import Decay, MatrixForm
from recur.ir.tile import Builder, Carry, Kernel, Value
from recur.passes.autodiff import pull_back
from recur.strategies.chunk.adjoint import (
    KeySide,
    adjoint_values,
    previous_adjoint,
    read_keys,
    readout_keys,
    readout_values,
    solved_adjoint,
)
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum, straddling_sum
from recur.strategies.chunk.equations import Chunk, carry_sum
from recur.strategies.chunk.factor_gradient import FactorGradient, Reader, Writer
from recur.strategies.chunk.gates import CUT, LOG2_E, can_cut, class_decays, is_plain_factor
from recur.strategies.chunk.kept_scales import kept_scales
from recur.strategies.chunk.kernels import ChunkOf, known_values, load_inverse, load_starts
from recur.strategies.chunk.segments import Advance, walks
from recur.strategies.chunk.shape import Shape, chunk_access, looped_values, placed_axes, token_access
from recur.strategies.chunk.stored_gates import scalar_gates
from recur.strategies.chunk.tiles import Rows, Tiles, conj, conj_rows, load_keys, load_values, signed
from recur.strategies.operands import argument_leaves


class BufferOf(Protocol):
    """The buffer of a source's gradient from a part; partial over tiles of an axis, where one is named."""

    def __call__(self, source: Node, part: str, tiles: str = "", /) -> str: ...


ROWS = "T"  # in place of an axis: a gradient's partial sums, one for every token

ADJOINT_EQUATION = "R <- 2^G_C R + Q~^T dO - A~^T Z"
REVERSE_EQUATIONS = ("dU = tril(Q~ B^T)^T dO + (2^(G_C - G) B) R,  Z = Tm^T dU", ADJOINT_EQUATION)
GRADIENT_EQUATIONS = (
    "dY = tril(Kx~ B^T)^T Vx + (2^(G_C - G) B) R          (kx, vx): (q, dO) for readouts, (a, -Z) for reads",
    "dKx = 2^G Vx S^T + E B^,   dB = E^T Kx~ + 2^(G_C - G) U R^T,   E = tril(Vx U^T)",
)


def adjoint_name(state: str, j: int) -> str:
    return f"Z_{state}_{j}"


def load_cotangents(b: Builder, shape: Shape, form: MatrixForm) -> dict[str, Value]:
    loaded = {}
    for r in form.readouts:
        dims = next(x.dims for x in shape.readouts if x.attrs[1] == r.name)
        canonical = form.value if r.axis == "key" else form.key
        rows = b.load("dO", token_access(shape.cotangent_of(r.name), dims), ("c", *dims))
        loaded[r.name] = b.expand(rows, ("c", *canonical), "dO")
    return loaded


def load_states(b: Builder, shape: Shape, form: MatrixForm) -> tuple[Value, Value]:
    """S at the chunk's start and R at its end."""
    axes = shape.state_axes(form)
    state = b.load(form.state, chunk_access(f"chunk_{form.state}", axes), axes)
    return state, b.load("R", chunk_access(f"chunk_R_{form.state}", axes), axes)


def emit_reverse_walk(shape: Shape, chunk_of: ChunkOf) -> Kernel:
    """R at every chunk's end, Z of the solved writes, and the initial state's gradient."""
    b = Builder(complex_buffers=shape.complex_buffers)
    last = load_starts(b, walks(shape, adjoint=True))
    inner = b.nested()
    adjoints = [inner.phi(f"R_{f.state}", r) for f, r in zip(shape.forms, last, strict=True)]
    advance = begin_adjoints(shape, chunk_of, inner)
    previous = []
    for i, (form, adjoint) in enumerate(zip(shape.forms, adjoints, strict=True)):
        inner.store(chunk_access(f"chunk_R_{form.state}", shape.state_axes(form)), adjoint)
        previous.append(advance(i, adjoint)[0])
    carries = tuple(Carry(p, i, n) for p, i, n in zip(adjoints, last, previous, strict=True))
    b.loop("chunks", inner, carries, reverse=True)
    for walk, adjoint in zip(walks(shape, adjoint=True), adjoints, strict=True):
        b.store(walk.end, adjoint)
    # Pairs are summed over their later rows: with those last, their tiles are operands as they come from memory. A tile
    # that is turned in registers is not loaded ahead: every step of the walk would wait for it.
    axes = tuple(sorted(shape.axes, key=lambda a: a.name != "s"))
    return Kernel("reverse", shape.segment_grid, axes, tuple(b.statements), REVERSE_EQUATIONS, "reverse_walk")


def begin_adjoints(shape: Shape, chunk_of: ChunkOf, inner: Builder) -> Advance:
    """The step of R over a chunk in a body; it leaves the solved writes' Z in memory."""
    tiles = Tiles(inner, stored=scalar_gates(shape), kept=kept_scales(shape))

    def advance(index: int, adjoint: Value) -> tuple[Value, Chunk]:
        form = shape.forms[index]
        chunk = chunk_of(tiles, form)
        cotangents = load_cotangents(inner, shape, form)
        sides = readout_keys(chunk, cotangents)
        values = readout_values(chunk, cotangents)
        solved = chunk.form.solved
        if solved:
            d_u = {j: adjoint_values(chunk, j, sides, values, adjoint)[0] for j in solved}
            z = solved_adjoint(chunk, load_inverse(inner, form.state, solved), d_u)
            for j in solved:
                inner.store(token_access(adjoint_name(form.state, j), form.value), z[j])
                values[f"solved_{j}"] = Rows(inner.neg(z[j], name="minus_Z"))
            sides = sides + read_keys(chunk)
        return previous_adjoint(chunk, sides, values, adjoint), chunk

    return advance


# --- gradients -------------------------------------------------------------------------------------------------------


@dataclass
class Cotangents:
    """Cotangents of coefficients as they come, to be pulled back together: (expression, its cotangent's tile)."""

    pairs: list[tuple[Node, Value]] = field(default_factory=list)
    factors: list[tuple[Node, Node]] = field(default_factory=list)
    tiles: dict[Node, Value] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        return [n for n, _ in self.pairs] + [n for n, _ in self.factors]

    def add(self, node: Node | None, tile: Value) -> None:
        if node is not None:
            self.pairs.append((node, tile))

    def add_factor(self, decay: Decay, d_log: Value, at_cut: Value | None) -> None:
        """d_log / factor; where the factor is below the cut, ``at_cut`` (times the sign that the pairs carry)."""
        dims = decay.factor.dims
        symbols = [leaf("tile", t.name, dims, t.is_complex) for t in (d_log, at_cut) if t is not None]
        self.tiles.update(zip(symbols, [d_log, at_cut] if at_cut is not None else [d_log], strict=True))
        small = apply("lt", apply("abs", decay.factor), const(2.0**CUT))
        across = symbols[1] if at_cut is not None else const(0)
        if decay.sign is not None and at_cut is not None:
            across = mul(where(apply("lt", decay.sign, const(0)), const(-1), const(1)), across)
        factor = apply("conj", decay.factor) if decay.factor.is_complex else decay.factor
        quotient = div(symbols[0], where(small, const(1), factor))
        self.factors.append((decay.factor, where(small, across, quotient)))

    def drop(self, needed: set[Node]) -> None:
        """Forgets the pairs from which none of the needed sources gets a share."""
        self.pairs = [(n, t) for n, t in self.pairs if needed & set(leaves([n]))]

    def pull(self, tiles: Tiles, sources: list[Node]) -> dict[Node, Value]:
        """The cotangents of those sources that the expressions depend on, as tiles (rows still in them)."""
        return dict(self.pull_each(tiles, sources))

    def pull_each(self, tiles: Tiles, sources: list[Node]) -> Iterator[tuple[Node, Value]]:
        """What `pull` gives, one after the other, so that each may be stored before the next one takes registers."""
        b = tiles.b
        self.pairs = [
            (n, t if n.is_complex or not t.is_complex else b.map("real", t, name=t.name)) for n, t in self.pairs
        ]
        symbols = [leaf("cotangent", f"{i}", n.dims, t.is_complex) for i, (n, t) in enumerate(self.pairs)]
        reached = set(leaves(self.nodes))
        wanted = [s for s in sources if s in reached]
        nodes = pull_back(self.nodes, symbols + [g for _, g in self.factors], wanted)
        for symbol, tile in self.tiles.items():
            tiles.values[symbol] = tiles.b.expand(tile, (tiles.rows_axis, *symbol.dims), tile.name)
        for symbol, (node, tile) in zip(symbols, self.pairs, strict=True):
            tiles.values[symbol] = tiles.b.expand(tile, (tiles.rows_axis, *node.dims), tile.name)
        for source, node in zip(wanted, nodes, strict=True):
            if not is_zero(node):
                # Rows past the end are not stored; a param's gradient is the sum over the rows.
                emit = tiles.node if source.attrs[0] == "param" else tiles.unmasked
                yield source, emit(node, f"d_{source.attrs[1]}")


def emit_gradients(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """Every coefficient's cotangent in a chunk, pulled back to the inputs.

    ``buffer_of(source, part)`` names the buffer of a source's gradient from "values" (per tile of the value dims) or
    "keys" (after all tiles).
    """
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b, stored=scalar_gates(shape))
    parts = [FormGradients(shape, form) for form in shape.forms]
    by_value, by_key = Cotangents(), Cotangents()
    for part in parts:
        part.load(tiles)
    inner = b.nested()
    inner_tiles = tiles.inside(inner)
    for part in parts:
        if part.form.value:
            part.enter(inner, inner_tiles, by_value)
    row_sums: dict[Node, Value] = {}
    for source, tile in by_value.pull_each(inner_tiles, argument_leaves(by_value.nodes)):
        if shape.value and set(shape.value) & set(source.dims):
            store_gradient(inner, source, tile, buffer_of(source, "values"))
        else:
            zero = b.zeros(tile.axes, f"d_{source.attrs[1]}_0", tile.is_complex)
            phi = inner.phi(f"d_{source.attrs[1]}_sum", zero)
            row_sums[source] = phi
            parts[0].carries.append(Carry(phi, zero, inner.add(phi, tile, name=phi.name)))
    if shape.value:
        b.loop("tiles", inner, tuple(c for part in parts for c in part.carries), axis=shape.value[0])
    # The loop's registers are for its sums: what comes after it loads its rows again.
    tiles = Tiles(b, stored=scalar_gates(shape))
    for part in parts:
        part.load(tiles)
        if not part.form.value:
            part.enter(b, tiles, by_key)
        part.finish(by_key)
    for source, tile in by_key.pull_each(tiles, argument_leaves(by_key.nodes)):
        from_values = row_sums.pop(source, None)
        total = tile if from_values is None else b.add(tile, from_values, name=tile.name)
        store_gradient(b, source, total, buffer_of(source, "keys"))
    for source, total in row_sums.items():
        store_gradient(b, source, total, buffer_of(source, "keys"))
    grid, axes = ("batch", "head", "chunk"), placed_axes(shape, looped_values(shape))
    return Kernel("gradients", grid, axes, tuple(b.statements), GRADIENT_EQUATIONS, "gradients")


def is_zero(node: Node) -> bool:
    """Whether no gradient flows: the source is only read through `stop`."""
    return is_const(node.args[0] if node.op == "expand" else node, 0.0)


def store_gradient(b: Builder, source: Node, tile: Value, buffer: str, tiled: str = "") -> None:
    """``tiled``: the dim over whose tiles the buffer has partial sums, or ROWS."""
    if tiled == ROWS:
        b.store(token_access(buffer, source.dims), tile, "one partial sum a token")
        return
    dims = (f"tile:{tiled}", *source.dims) if tiled else source.dims
    if source.attrs[0] == "param":
        rows = b.sum(tile, ("c",), name=tile.name)
        b.store(chunk_access(buffer, dims), rows, "one partial sum a chunk")
    else:
        b.store(token_access(buffer, dims), tile)


def store_gradients(
    tiles: Tiles,
    cotangents: Cotangents,
    buffer_of: BufferOf,
    part: str,
    dim: str,
    sources: list[Node] | None = None,
) -> None:
    """The sources' gradients (all of them, or some); where one lacks the dim that is tiled, a partial sum for every
    tile."""
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes) if sources is None else sources):
        tiled = "" if dim in source.dims else dim
        store_gradient(tiles.b, source, tile, buffer_of(source, part, tiled), tiled)


@dataclass
class FormGradients:
    """One form's cotangents: `load`, then `enter` inside a tile of the value dims; `load` and `finish` after them."""

    shape: Shape
    form: MatrixForm
    carries: list[Carry] = field(default_factory=list)
    pairs: dict[tuple[str, int], Value] = field(default_factory=dict)
    from_state: dict[str, Value] = field(default_factory=dict)
    to_adjoint: dict[int, Value] = field(default_factory=dict)

    def load(self, tiles: Tiles) -> None:
        """Key sides and scores P, which no value dim enters."""
        self.b = tiles.b
        self.part = load_keys(tiles, self.form)
        self.outer = Chunk(tiles, self.part)
        value_axis = any(r.axis == "value" for r in self.form.readouts)
        cotangents = load_cotangents(self.b, self.shape, self.form) if value_axis else {}
        self.sides = readout_keys(self.outer, cotangents) + read_keys(self.outer)
        writes = range(len(self.form.writes))
        self.scores = {
            (side.name, j): self.outer.scores(side.vector, self.part.keys[j]) for side in self.sides for j in writes
        }

    def enter(self, b: Builder, tiles: Tiles, cotangents: Cotangents) -> None:
        """One tile of the value dims: dY here; E, Vx S^T, U R^T and <S, R> accumulated."""
        shape, form = self.shape, self.form
        part = load_values(tiles, self.part)
        chunk = Chunk(tiles, part)
        state, adjoint = load_states(b, shape, form)
        u = known_values(b, part)
        values = readout_values(chunk, load_cotangents(b, shape, form))
        z = {}
        for j in part.solved:
            access = token_access(adjoint_name(form.state, j), form.value)
            z[j] = b.load("Z", access, ("c", *form.value))
            values[f"solved_{j}"] = Rows(b.neg(z[j], name="minus_Z"))
        d_u: dict[int, tuple[Value, Value]] = {}
        for j, write in enumerate(form.writes):
            if j in part.plain or self._needs_value_decays:
                d_u[j] = adjoint_values(chunk, j, self.sides, values, adjoint, self.scores)
            if write.value is not None:
                cotangents.add(write.value, z[j] if j in part.solved else d_u[j][0])
        self.accumulate(b, chunk, state, adjoint, u, values)
        d_vx = self._value_side_cotangents(chunk, state, u)
        for readout in form.readouts:
            if readout.axis == "value":
                cotangents.add(readout.vector, conj(b, d_vx[readout.name]))
        if self._needs_value_decays:
            self._value_decays(b, chunk, state, adjoint, u, values, d_u, d_vx, cotangents)

    @property
    def _needs_value_decays(self) -> bool:
        return bool(class_decays(self.form, "value"))

    def _carry(self, b: Builder, name: str, amount: Value) -> Value:
        """Accumulates an amount over the tiles; the total after the loop. A form without value dims has no loop."""
        if not self.form.value:
            return amount
        self.carries.append(carry_sum(self.b, b, name, amount))
        return self.carries[-1].phi

    def accumulate(
        self, b: Builder, chunk: Chunk, state: Value, adjoint: Value, u: dict[int, Rows], values: dict[str, Rows]
    ) -> None:
        """E, Vx S^T, U R^T and <S, R>."""
        for side in self.sides:
            self.add_evidence(b, chunk, side, u, values[side.name])
            read = self._against(chunk, values[side.name], side.vector.position, "start", conj(b, state), "V_S")
            self.from_state[side.name] = self._carry(b, "V_S", read)
        for j, rows in u.items():
            kept = self._against(chunk, conj_rows(b, rows), self.part.keys[j].position, "end", adjoint, "U_R")
            self.to_adjoint[j] = self._carry(b, "U_R", kept)
        if self.part.key_gates is not None:
            both = b.mul(conj(b, state), adjoint, name="S_R")
            if chunk.form.value_gates is not None:
                both = b.mul(both, chunk.over_chunk(chunk.form.value_gates), name="S_R")
            self.both = self._carry(b, "S_R", b.sum(both, self.form.value, name="S_R"))

    def add_evidence(self, b: Builder, chunk: Chunk, side: KeySide, u: dict[int, Rows], vx: Rows) -> None:
        """E of a query and every write."""
        for j, rows in u.items():
            earlier = self.part.keys[j].position
            pairs = chunk.value_scores(vx, side.vector.position, conj_rows(b, rows), earlier, name="E")
            self.pairs[side.name, j] = self._carry(b, "E", pairs)

    def _against(self, chunk: Chunk, rows: Rows, position: int, which: str, state: Value, name: str) -> Value:
        """Value-side rows contracted with a state, under the value class's decays; the key class's follow the loop."""
        row, entry = chunk.factors(chunk.form.value_gates, position, which)
        result = chunk.b.contract(chunk.times(rows.tile, entry), state, self.form.value, name=name)
        return chunk.times(result, rows.scale, row, name=name)

    def _value_side_cotangents(self, chunk: Chunk, state: Value, u: dict[int, Rows]) -> dict[str, Value]:
        """dVx = Kx~ S_0 + P U where something needs it: value-axis readouts, and decays over the value dims."""
        result = {}
        for side in self.sides:
            if not (
                self._needs_value_decays or any(r.name == side.name and r.axis == "value" for r in self.form.readouts)
            ):
                continue
            position = side.vector.position
            terms = [chunk.against_state(side.vector, position, "start", state, "key", "inter")]
            for j, rows in u.items():
                earlier = self.part.keys[j].position
                terms.append(chunk.spread_values(self.scores[side.name, j], rows, position, earlier))
            result[side.name] = chunk.sum_of(terms, "d_vx")
        return result

    def _value_decays(
        self,
        b: Builder,
        chunk: Chunk,
        state: Value,
        adjoint: Value,
        u: dict[int, Rows],
        values: dict[str, Rows],
        d_u: dict[int, tuple[Value, Value]],
        d_vx: dict[str, Value],
        cotangents: Cotangents,
    ) -> None:
        """Decays over the value dims: + vx dvx for reads, - u du for writes, + <S_C, dS_C> over the key dims."""
        gates = chunk.form.value_gates
        assert gates is not None
        reads = [
            Row(b.mul(conj(b, chunk.full(values[s.name])), d_vx[s.name], name="read"), s.vector.position)
            for s in self.sides
        ]
        writes = [Row(b.mul(conj(b, chunk.full(u[j])), d_u[j][0], name="write"), self.part.keys[j].position) for j in u]
        whole = b.sum(b.mul(conj(b, chunk.decayed(state)), adjoint, name="S_R"), self.form.key, name="S_R")
        for j in u:
            whole = b.add(
                whole,
                b.sum(b.mul(conj(b, chunk.full(u[j])), d_u[j][1], name="kept"), ("c",), name="kept"),
                name="at_end",
            )
        for i, decay in class_decays(self.form, "value"):
            rows = self._dims_sum(b, reads, writes, whole, i)
            add_decay(cotangents, b, decay, rows, self.form.value)

    def finish(self, cotangents: Cotangents) -> None:
        """After all tiles: the cotangents of reads, queries, keys and of the key class's decays."""
        b, chunk, form = self.b, self.outer, self.form
        masked = {
            (side.name, j): chunk.masked(
                self.pairs[side.name, j], side.vector.position, self.part.keys[j].position, "E"
            )
            for side in self.sides
            for j in self.to_adjoint
        }
        reads, writes = [], []
        for side in self.sides:
            inter = self._key_decayed(self.from_state[side.name], side.vector.position, "start", "d_inter")
            read = self._summed(side.vector, inter, "read")
            terms = [inter]
            for j in self.to_adjoint:
                key = self.part.keys[j]
                terms.append(
                    chunk.spread_keys(masked[side.name, j], conj_rows(b, key), side.vector.position, key.position)
                )
            d_kx = chunk.sum_of(terms, "d_kx")
            reads.append((side, read, d_kx))
            if not any(r.name == side.name and r.axis == "value" for r in form.readouts):
                cotangents.add(side.vector.node, self._unsigned(d_kx, side.vector.position, conjugate=True))
        for j in self.to_adjoint:
            key = self.part.keys[j]
            after = self._key_decayed(self.to_adjoint[j], key.position, "end", "d_after")
            kept = self._summed(key, after, "kept")
            terms = [after]
            for side in self.sides:
                terms.append(chunk.gather_keys(masked[side.name, j], side.vector, side.vector.position, key.position))
            d_b = chunk.sum_of(terms, "d_b")
            writes.append((j, kept, d_b))
            cotangents.add(key.node, self._unsigned(d_b, key.position))
        self._key_decays(cotangents, masked, reads, writes)

    def _key_decayed(self, tile: Value, position: int, which: str, name: str, crossing: int = 0) -> Value:
        factors = self.outer.factors(self.part.key_gates, position, which, crossing)
        row, entry = (None if x is None else conj(self.b, x) for x in factors)
        return self.outer.times(tile, row, entry, name=name)

    def _summed(self, vector: Rows, tile: Value, name: str) -> Value | None:
        """What the key class's decays take from a tile: its product with the vector, summed over the key dims under a
        scalar decay, over the tokens under one that runs over the dims. Right away: registers keep the sum alone."""
        gates, b = self.part.key_gates, self.b
        if gates is None:
            return None
        over = ("c",) if gates.axes else self.form.key
        return b.sum(b.mul(conj(b, self.outer.full(vector)), tile, name=name), over, name=name)

    def _unsigned(self, rows: Value, position: int, conjugate: bool = False) -> Value:
        return self.outer.full(signed(self.b, self.part.key_gates, position, Rows(rows), conjugate))

    def _key_decays(
        self,
        cotangents: Cotangents,
        masked: dict[tuple[str, int], Value],
        reads: list[tuple[KeySide, Value | None, Value]],
        writes: list[tuple[int, Value | None, Value]],
    ) -> None:
        gates = self.part.key_gates
        if gates is None:
            return
        b = self.b
        if gates.axes:
            whole = b.mul(self.both, conj(b, self.outer.over_chunk(gates)), name="S_R")
            inner_reads = [
                Row(b.mul(conj(b, self.outer.full(s.vector)), d, name="read"), s.vector.position) for s, _, d in reads
            ]
            inner_writes = [
                Row(b.mul(conj(b, self.outer.full(self.part.keys[j])), d, name="write"), self.part.keys[j].position)
                for j, _, d in writes
            ]
            for _, kept, _ in writes:
                assert kept is not None
                whole = b.add(whole, kept, name="at_end")
            for i, decay in class_decays(self.form, "key"):
                if is_plain_factor(decay):
                    self._add_factor(cotangents, decay, self._factor_gradient(masked, reads, writes).of(i))
                    continue
                rows = self._dims_sum(b, inner_reads, inner_writes, whole, i)
                add_decay(cotangents, b, decay, rows, self.form.key)
            return
        for i, decay in class_decays(self.form, "key"):
            d_log = self._straddling(masked, reads, writes, i, 0)
            at_cut = self._straddling(masked, reads, writes, i, 1) if gates.end.cuts is not None else None
            add_decay(cotangents, b, decay, d_log, (), at_cut)

    def _factor_gradient(
        self,
        masked: dict[tuple[str, int], Value],
        reads: list[tuple[KeySide, Value | None, Value]],
        writes: list[tuple[int, Value | None, Value]],
    ) -> FactorGradient:
        b, gates, keys = self.b, self.part.key_gates, self.part.keys
        assert gates is not None
        vectors = {j: conj(b, self.outer.full(keys[j])) for j, _, _ in writes}
        writers = [
            Writer(y, b.mul(y, self.to_adjoint[j], name="y_R"), keys[j].position) for j, y in vectors.items()
        ]
        readers = [
            Reader(
                conj(b, self.outer.full(side.vector)),
                tuple(masked[side.name, j] for j in vectors),
                self.from_state[side.name],
                side.vector.position,
            )
            for side, _, _ in reads
        ]
        return FactorGradient(b, gates, readers, writers, self.both)

    def _add_factor(self, cotangents: Cotangents, decay: Decay, d_modulus: Value) -> None:
        """The pairs carry the decay's own sign or phase: times it again, they are the factor's cotangent."""
        b, factor = self.b, decay.factor
        extra = tuple(d for d in self.form.key if d not in factor.dims)
        symbol = leaf("tile", d_modulus.name, factor.dims, d_modulus.is_complex)
        cotangents.tiles[symbol] = b.sum(d_modulus, extra, name="d_factor")
        unit: Node = const(1)
        if decay.sign is not None:
            unit = where(apply("lt", decay.sign, const(0)), const(-1), const(1))
        if decay.angle is not None:
            unit = mul(unit, apply("polar", const(1), decay.angle))
        cotangents.factors.append((factor, mul(unit, symbol)))

    def _straddling(
        self,
        masked: dict[tuple[str, int], Value],
        reads: list[tuple[KeySide, Value | None, Value]],
        writes: list[tuple[int, Value | None, Value]],
        decay: int,
        crossing: int,
    ) -> Value:
        """The sum of all pairs on either side of a scalar decay with ``crossing`` cuts between them."""
        gates, b, chunk, key = self.part.key_gates, self.b, self.outer, self.form.key
        assert gates is not None
        terms = [b.sum(b.mul(self.both, conj(b, chunk.over_chunk(gates, crossing)), name="S_R"), key, name="across")]
        for side, read, _ in reads:
            if crossing:
                inter = self._key_decayed(self.from_state[side.name], side.vector.position, "start", "d_inter", 1)
                read = self._summed(side.vector, inter, "read")
            assert read is not None
            terms.append(later_sum(b, Row(read, side.vector.position), decay))
        for j, kept, _ in writes:
            vector = self.part.keys[j]
            if crossing:
                after = self._key_decayed(self.to_adjoint[j], vector.position, "end", "d_after", 1)
                kept = self._summed(vector, after, "kept")
            assert kept is not None
            terms.append(earlier_sum(b, Row(kept, vector.position), decay))
        for (name, j), pairs in masked.items():
            later = next(s.vector for s in self.sides if s.name == name)
            scores = chunk.scores(later, self.part.keys[j], "P", crossing) if crossing else self.scores[name, j]
            amount = b.mul(pairs, conj(b, scores), name="M")
            terms.append(straddling_sum(b, amount, later.position, self.part.keys[j].position, decay))
        return chunk.sum_of(terms, "d_log")

    def _dims_sum(self, b: Builder, reads: list[Row], writes: list[Row], whole: Value, decay: int) -> Value:
        rows = whole
        for row in reads:
            rows = b.add(rows, later_sum(b, row, decay), name="d_log")
        for row in writes:
            rows = b.sub(rows, later_sum(b, row, decay), name="d_log")
        return rows


def add_decay(
    cotangents: Cotangents, b: Builder, decay: Decay, d_log: Value, dims: tuple[str, ...], at_cut: Value | None = None
) -> None:
    """The cotangent of a decay, given the cotangent of its log on ``dims``: summed to the decay's own dims.

    Where the user gave the factor itself, its cotangent is d_log / factor, and where the factor cuts, ``at_cut``: the
    pairs across it without it.
    """
    if decay.log is not None and is_plain_factor(decay):
        extra = tuple(d for d in dims if d not in decay.factor.dims)
        cotangents.add_factor(decay, b.sum(d_log, extra, name="d_log"), at_cut)
        return
    # A decay below the cut has no gradient: what is left of it in sums would be multiplied by its log's derivative.
    log = decay.log
    if log is not None and can_cut(log):
        log = apply("max", log, const(CUT / LOG2_E))
    parts = [(log, d_log)]
    if decay.angle is not None and d_log.is_complex:
        parts.append((decay.angle, b.map("imag", d_log, name="d_angle")))
    for node, rows in parts:
        if node is not None:
            cotangents.add(node, b.sum(rows, tuple(d for d in dims if d not in node.dims), name=rows.name))


# --- the epilogue ----------------------------------------------------------------------------------------------------


def add_rests(shape: Shape, b: Builder, cotangents: Cotangents, loaded: Mapping[str, Value]) -> None:
    """What the epilogue has beside readouts that results add as they are, with the results' cotangents.

    ``loaded``: of those, by readout, the ones at hand.
    """
    at_hand = {shape.cotangent_of(readout): tile for readout, tile in loaded.items()}
    for name, node in shape.rests:
        buffer = f"d_{name}"
        tile = at_hand.get(buffer) or b.load("dO", token_access(buffer, node.dims), ("c", *node.dims))
        cotangents.add(node, tile)


def emit_epilogue_gradient(
    shape: Shape,
    buffer_of: Callable[[Node, str], str],
    store: Callable[[Builder, Node, Value, str], None] = store_gradient,
) -> Kernel:
    """The results' cotangents pulled back to inner readouts, and to the inputs that the epilogue reads itself."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b)
    for x in shape.inner_readouts:
        tiles.values[x] = b.load(str(x.attrs[1]), token_access(str(x.attrs[1]), x.dims), ("c", *x.dims))
    cotangents = Cotangents()
    add_rests(shape, b, cotangents, {})
    flat = shape.inner_readouts
    sources = flat + argument_leaves(cotangents.nodes)
    for source, tile in cotangents.pull_each(tiles, sources):
        if source.attrs[0] == "readout":
            flat.remove(source)
            b.store(token_access(f"d_{source.attrs[1]}", source.dims), tile)
        else:
            store(b, source, tile, buffer_of(source, "epilogue"))
    for x in flat:
        zero = b.zeros(("c", *x.dims), f"d_{x.attrs[1]}", x.is_complex)
        b.store(token_access(f"d_{x.attrs[1]}", x.dims), zero, "no result's gradient reaches it")
    grid, axes = ("batch", "head", "chunk"), placed_axes(shape, {})
    return Kernel("epilogue_gradient", grid, axes, tuple(b.statements), (), "pointwise")

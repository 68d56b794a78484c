"""Chunks longer than a tile: gates in memory, and pairs of a tile of query rows with a tile of key rows.

A chunk of L tokens is cut into tiles of R rows. With G the running log2 decay from the chunk's start (counted from
where nothing later can change it) every decay is a difference of what is held at two places:

    from s to t    2^(G_t - G_s)        from s to the end    2^(G_C - G_s)        from the start to t    2^G_t

Rows past the sequence's end hold G = -1e30: nothing decays less on the way to them, so no exponent overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recur.ir.core import Node
from recur.ir.normal import Decay, MatrixForm, Readout
from recur.ir.tile import Access, Axis, Buffer, Builder, Kernel, Value
from recur.strategies.chunk import gates as chunk_gates
from recur.strategies.chunk.gates import Gate, Gates, between, can_cut, class_decays
from recur.strategies.chunk.shape import Shape, token_access
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, load_keys, signed

GATE_EQUATIONS = ("G_t: the running log2 decay from the chunk's start to token t",)
PAST_THE_END = -1e30


@dataclass(frozen=True)
class StoredGates:
    """The decays that forms have in common: where their gates lie in memory. ``form``: the first that has them."""

    form: MatrixForm

    @property
    def name(self) -> str:
        return self.form.state

    @property
    def decays(self) -> list[tuple[int, Decay]]:
        return class_decays(self.form, "key")

    @property
    def parts(self) -> tuple[str, ...]:
        """What is kept at a position: the log, and where there are any, the number of cuts and the sign."""
        cuts = any(can_cut(d.log) for _, d in self.decays)
        signs = any(d.sign is not None for _, d in self.decays)
        return ("log", *(("cuts",) if cuts else ()), *(("unit",) if signs else ()))

    def stage(self, position: int) -> int:
        """How many of a token's decays come before a position: positions with the same number share their gate."""
        return sum(i < position for i, _ in self.decays)

    @property
    def stages(self) -> list[int]:
        """Those at which something is written or read."""
        return sorted({self.stage(i) for i, e in enumerate(self.form.events) if not isinstance(e, Decay)})

    def buffer(self, part: str, where: int | str) -> str:
        return f"{part}_{self.name}_{where}"

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        tokens = [Buffer(self.buffer(p, n), ("B", "T", "H")) for n in self.stages for p in self.parts]
        return (*tokens, *(Buffer(self.buffer(p, "chunk"), ("B", "N", "H")) for p in self.parts))

    def load_end(self, b: Builder) -> Gate:
        """The whole chunk's: G_C, its cuts, its sign."""
        found = {p: b.load(f"{p}_C", end_access(self.buffer(p, "chunk")), ()) for p in self.parts}
        return Gate(found["log"], found.get("cuts"), found.get("unit"))

    def load_rows(self, b: Builder, rows: str, end: Gate) -> Gates:
        """The gates of a tile's rows."""
        at: dict[int, Gate] = {}
        for stage in self.stages:
            found = {p: b.load(p, token_access(self.buffer(p, stage), (), rows), (rows,)) for p in self.parts}
            log = b.valid(found["log"], rows, PAST_THE_END, name="log")
            gate = Gate(log, found.get("cuts"), found.get("unit"))
            at |= {i: gate for i in range(len(self.form.events)) if self.stage(i) == stage}
        return Gates((), at, end)


def end_access(buffer: str) -> Access:
    return Access(buffer, ("batch", "chunk", "head"))


def stored_gates(shape: Shape) -> dict[str, StoredGates]:
    """By state; forms with the same decays at the same positions share them."""
    known: dict[tuple[object, ...], StoredGates] = {}
    found: dict[str, StoredGates] = {}
    for form in shape.forms:
        decays = class_decays(form, "key")
        if decays:
            key = (len(form.events), *((i, d.log, d.sign) for i, d in decays))
            found[form.state] = known.setdefault(key, StoredGates(form))
    return found


def distinct(stored: dict[str, StoredGates]) -> list[StoredGates]:
    return list({s.name: s for s in stored.values()}.values())


def emit_gates_kernel(shape: Shape, stored: dict[str, StoredGates]) -> Kernel:
    """Every family's gates, all chunks at once: a program holds the L rows of a chunk."""
    b = Builder()
    tiles = Tiles(b)
    for family in distinct(stored):
        gates = load_keys(tiles, family.form).key_gates
        assert gates is not None
        store_gate(b, family, "chunk", gates.end, end_access)
        for stage in family.stages:
            gate = next(gates.at[i] for i in gates.at if family.stage(i) == stage)
            store_gate(b, family, stage, gate, lambda name: token_access(name, ()))
    axes = tuple(a for a in shape.axes if a.name not in shape.value)
    return Kernel("gates", ("batch", "head", "chunk"), axes, tuple(b.statements), GATE_EQUATIONS, "gates")


def store_gate(b: Builder, family: StoredGates, where: int | str, gate: Gate, access: Callable[[str], Access]) -> None:
    for part, value in (("log", gate.log), ("cuts", gate.cuts), ("unit", gate.unit)):
        if part in family.parts and value is not None:
            b.store(access(family.buffer(part, where)), value)


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
            self.loaded[family.name] = family.load_rows(self.b, self.rows, self.ends[family.name])
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


def placed(axis: Axis, place: str) -> Axis:
    return Axis(axis.name, axis.kind, axis.extent, place)  # type: ignore[arg-type]


# --- pairs of rows ---------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Tiles [c, s] of a query tile and a key tile, in one body, each emitted once and without the rows' scales."""

    b: Builder
    queries: RowTile
    keys: RowTile
    shared: dict[tuple[object, ...], Value] = field(default_factory=dict)

    def _once(self, key: tuple[object, ...], emit: Callable[[], Value]) -> Value:
        if key not in self.shared:
            self.shared[key] = emit()
        return self.shared[key]

    def seen(self, later: int, earlier: int) -> Value:
        """Whether the event at position ``earlier`` of token s has happened at position ``later`` of token c."""
        offset = 0 if earlier < later else 1
        return self._once(("after", offset), lambda: self.b.after("c", "s", offset))

    def products(self, x: Value, y: Value, over: tuple[str, ...], name: str) -> Value:
        return self._once(("dot", x.name, y.name), lambda: self.b.contract(x, y, over, name=name))

    def decayed(self, form: MatrixForm, pairs: Value, later: int, earlier: int, crossing: int = 0) -> Value:
        """The pairs under the decay between their rows; zero where s has not happened."""
        decay = self.decay(form, later, earlier, crossing)
        key = ("decayed", pairs.name, "" if decay is None else decay.name, earlier < later)
        if decay is not None:
            return self._once(key, lambda: self.b.mul(pairs, decay, name=pairs.name))
        zero = self.b.const(0.0, name="zero")
        return self._once(key, lambda: self.b.where(self.seen(later, earlier), pairs, zero, name=pairs.name))

    def decay(self, form: MatrixForm, later: int, earlier: int, crossing: int) -> Value | None:
        """D[c, s] = 2^(G_c - G_s), zero where s has not happened."""
        after, before = self.queries.gates(form), self.keys.gates(form)
        if after is None or before is None:
            return None
        x, y = after.at[later], before.at[earlier]

        def emit() -> Value:
            seen = self.seen(later, earlier)
            zero = self.b.const(0.0, name="zero")
            return self.b.where(seen, between(self.b, x, y, seen, crossing), zero, name="D")

        return self._once(("D", x.log.name, y.log.name, earlier < later, crossing), emit)

    def scores(self, form: MatrixForm, q: Vector, k: Vector, crossing: int = 0) -> Value:
        """P[c, s] = D q_c . k_s, without the rows' scales."""
        products = self.products(q.tile, k.tile, form.key, "P")
        return self.decayed(form, products, q.position, k.position, crossing)

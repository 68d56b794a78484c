"""Coefficients of a matrix form as tiles of one chunk: vectors [c, dims] at their events' positions, and gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from recur.ir.core import Node, apply, const, is_const, leaves, topological, where
from recur.ir.normal import MatrixForm, Read, Readout, Write
from recur.ir.tile import Access, Builder, Value
from recur.operators import OPERATORS
from recur.strategies.chunk.gates import Gates, class_decays, emit_gates
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.shape import solved_writes
from recur.strategies.chunk.stored_gates import StoredGates, rows_access
from recur.strategies.pointwise import emit_nodes

KeyEvent = Read | Write | Readout  # what has a vector along the key dims


@dataclass
class Tiles:
    """Evaluates per-token expressions in one body: each leaf is loaded, and each form's part computed, once.

    ``shared`` holds what the equations of several forms, or several equations of one, have in common (see `Chunk`);
    ``gates`` the gates of forms with the same decays at the same positions; ``rows_axis`` is the tokens' axis;
    ``stored``: by state, the gates of the key class that are loaded and not computed; ``kept``: the buffers of factors
    of rows that are.
    """

    b: Builder
    values: dict[Node, Value] = field(default_factory=dict)
    shared: dict[tuple[str, ...], Value] = field(default_factory=dict)
    gates: dict[tuple[object, ...], Gates | None] = field(default_factory=dict)
    rows_axis: str = "c"
    stored: dict[str, StoredGates] = field(default_factory=dict)
    kept: dict[Node, str] = field(default_factory=dict)

    def inside(self, b: Builder, without: tuple[str, ...] = ()) -> Tiles:
        """For a nested body: sees what is loaded here, but for tiles with certain axes, and keeps its own to itself."""
        values = {n: v for n, v in self.values.items() if not set(without) & set(v.axes)}
        shared = {key: v for key, v in self.shared.items() if not set(without) & set(v.axes)}
        return replace(self, b=b, values=values, shared=shared, gates=dict(self.gates))

    def leaf(self, node: Node) -> Value:
        if node not in self.values:
            kind, name = str(node.attrs[0]), str(node.attrs[1])
            index = ("head", *node.dims) if kind == "param" else ("batch", "time", "head", *node.dims)
            rows = None if kind == "param" else self.rows_axis
            axes = node.dims if kind == "param" else (self.rows_axis, *node.dims)
            buffer = f"prev.{name}" if kind == "prev" else name
            self.values[node] = self.b.load(name, Access(buffer, index, rows), axes)
        return self.values[node]

    def node(self, node: Node, name: str, fill: float = 0.0) -> Value:
        """The expression's tile with axes (c, *dims): ``fill`` on rows past the sequence's end."""
        value = self.unmasked(node, name)
        if fill == 0.0 and vanishes(node):
            return value
        key = ("valid", value.name, str(fill))
        if key not in self.shared:
            self.shared[key] = self.b.valid(value, self.rows_axis, fill, name)
        return self.shared[key]

    def unmasked(self, node: Node, name: str) -> Value:
        """The expression's tile with axes (c, *dims); whatever it may be on rows past the sequence's end."""
        for x in leaves([node]):
            self.leaf(x)
        (value,) = emit_nodes(self.b, [node], self.values, name)
        return self.b.expand(value, (self.rows_axis, *node.dims), name)

    def rows(self, node: Node, name: str) -> Rows:
        """The expression as rows, with what has no dims taken out of the tile."""
        scale, base = split_scale(node)
        tile = self.node(base, name)
        return Rows(tile, None if is_const(scale, 1.0) else self.scale(scale, f"{name}_scale"))

    def scale(self, node: Node, name: str) -> Value:
        """A factor of rows that vanish past the end already: constants stay numbers."""
        if node in self.kept:
            if node not in self.values:
                name = str(node.attrs[1]) if node.op == "leaf" else name
                self.values[node] = self.b.load(name, rows_access(self.kept[node], self.rows_axis), (self.rows_axis,))
            return self.values[node]
        for x in leaves([node]):
            self.leaf(x)
        return emit_nodes(self.b, [node], self.values, name)[0]


def vanishes(node: Node) -> bool:
    """Whether the expression is zero where all its per-token leaves are (and so on rows past the end)."""
    known: dict[Node, bool] = {}
    for n in topological([node]):
        known[n] = _vanishes_with(n, [known[a] for a in n.args])
    return known[node]


def _vanishes_with(node: Node, args: list[bool]) -> bool:
    """``args``: whether each argument vanishes."""
    if node.op == "leaf":
        return node.attrs[0] not in ("param", "cotangent", "tile")
    if node.op in ("mul", "contract"):
        return any(args)
    if node.op in ("sum", "rename", "expand", "index", "place", "hadamard", "stop", "version"):
        return args[0]
    row = OPERATORS.get(node.op)
    return row is not None and row.keeps_zero and bool(args) and all(args)


@dataclass(frozen=True)
class Rows:
    """scale * tile: a tile [c, dims] and a factor of its rows ([c], a number, or none)."""

    tile: Value
    scale: Value | None = None


@dataclass(frozen=True)
class Vector(Rows):
    """A family of rows: with the node it comes from, and the position of its event."""

    node: Node = field(default_factory=lambda: const(1))
    position: int = 0


@dataclass(frozen=True)
class FormTiles:
    """One form's coefficients in one chunk. Key-side vectors carry the running sign already (see gates).

    ``reads`` by the read's name; ``keys`` and ``values`` by the write's number (a value may be absent: zero);
    ``queries`` by the readout's name.
    """

    form: MatrixForm
    reads: dict[str, Vector]
    keys: dict[int, Vector]
    values: dict[int, Vector]
    queries: dict[str, Vector]
    key_gates: Gates | None
    value_gates: Gates | None

    @property
    def solved(self) -> list[int]:
        """The numbers of the writes that read the state: the rows of the triangular system."""
        return solved_writes(self.form)

    @property
    def plain(self) -> list[int]:
        return [j for j, w in enumerate(self.form.writes) if w.read is None]

    def read_of(self, j: int) -> Vector:
        read = self.form.writes[j].read
        assert read is not None
        return self.reads[read]


def load_keys(tiles: Tiles, form: MatrixForm) -> FormTiles:
    """Everything but the writes' values and the value-axis queries: what does not have value dims."""
    gates = load_gates(tiles, form, "key")
    return key_tiles(form, gates, lambda event, i: key_vector(tiles, gates, event, i))


def key_tiles(form: MatrixForm, gates: Gates | None, vector_of: Callable[[KeyEvent, int], Vector]) -> FormTiles:
    """The key side from the vector of every event and position that has one."""
    reads: dict[str, Vector] = {}
    keys: dict[int, Vector] = {}
    queries: dict[str, Vector] = {}
    for i, event in enumerate(form.events):
        if isinstance(event, Read):
            reads[event.name] = vector_of(event, i)
        elif isinstance(event, Write):
            keys[len(keys)] = vector_of(event, i)
        elif isinstance(event, Readout) and event.axis == "key":
            queries[event.name] = vector_of(event, i)
    return FormTiles(form, reads, keys, {}, queries, gates, None)


def load_values(tiles: Tiles, part: FormTiles) -> FormTiles:
    """Adds the value side: the writes' values, value-axis queries and decays over the value dims."""
    form = part.form
    values = {}
    queries = dict(part.queries)
    positions = [i for i, e in enumerate(form.events) if isinstance(e, Write)]
    for j, write in enumerate(form.writes):
        if write.value is not None:
            values[j] = _vector(tiles.rows(write.value, "y"), write.value, positions[j])
    for i, event in enumerate(form.events):
        if isinstance(event, Readout) and event.axis == "value":
            queries[event.name] = _vector(tiles.rows(event.vector, "x"), event.vector, i)
    return replace(part, values=values, queries=queries, value_gates=load_gates(tiles, form, "value"))


def _vector(rows: Rows, node: Node, position: int) -> Vector:
    return Vector(rows.tile, rows.scale, node, position)


def key_symbol(event: KeyEvent) -> tuple[Node, str]:
    """What an event has along the key dims, and its symbol in the equations."""
    if isinstance(event, Write):
        return event.key, "b"
    return event.vector, "a" if isinstance(event, Read) else "q"


def key_vector(tiles: Tiles, gates: Gates | None, event: KeyEvent, position: int) -> Vector:
    """An event's rows on the key dims, signs included."""
    node, name = key_symbol(event)
    rows = signed(tiles.b, gates, position, tiles.rows(node, name), conjugate=isinstance(event, Write))
    return _vector(rows, node, position)


def conj(b: Builder, value: Value) -> Value:
    """The complex conjugate; a real value as it is."""
    return b.map("conj", value, name=f"{value.name}_conj") if value.is_complex else value


def conj_rows(b: Builder, rows: Rows) -> Rows:
    return Rows(conj(b, rows.tile), None if rows.scale is None else conj(b, rows.scale))


def signed(b: Builder, gates: Gates | None, position: int, rows: Rows, conjugate: bool = False) -> Rows:
    """The rows times the running sign or phase at a position, or its conjugate, which takes it off again."""
    unit = gates.at[position].unit if gates is not None else None
    if unit is None:
        return rows
    if conjugate:
        unit = conj(b, unit)
    if len(unit.axes) == 1:
        return Rows(rows.tile, unit if rows.scale is None else b.mul(unit, rows.scale, name="signed"))
    return Rows(b.mul(unit, rows.tile, name=rows.tile.name), rows.scale)


def load_gates(tiles: Tiles, form: MatrixForm, which: str) -> Gates | None:
    decays = tuple((i, d.log, d.sign, d.angle, d.factor.dims) for i, d in class_decays(form, which))
    key = (len(form.events), which, *decays)
    if key not in tiles.gates:
        stored = tiles.stored.get(form.state) if which == "key" else None
        if stored is None:
            tiles.gates[key] = _emit_form_gates(tiles, form, which)
        else:
            tiles.gates[key] = stored.load_rows(tiles.b, tiles.rows_axis, stored.load_end(tiles.b))
    return tiles.gates[key]


def _emit_form_gates(tiles: Tiles, form: MatrixForm, which: str) -> Gates | None:
    logs, signs, angles = {}, {}, {}
    for i, decay in class_decays(form, which):
        if decay.log is not None:
            logs[i] = tiles.node(decay.log, "g")
        if decay.sign is not None:
            negative = apply("lt", decay.sign, const(0))
            signs[i] = tiles.node(where(negative, const(-1), const(1)), "sign", fill=1.0)
        if decay.angle is not None:
            angles[i] = tiles.node(decay.angle, "angle")
    return emit_gates(tiles.b, form, which, logs, signs, angles)

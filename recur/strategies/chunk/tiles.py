"""Coefficients of a matrix form as tiles of one chunk: vectors [c, dims] at the positions of their events, and gates."""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.core import Node, apply, const, leaves, where
from recur.ir.normal import MatrixForm, Read, Readout, Write
from recur.ir.tile import Access, Builder, Value
from recur.operators import OPERATORS
from recur.strategies.chunk.gates import Gates, class_decays, emit_gates
from recur.strategies.pointwise import emit_nodes


@dataclass
class Tiles:
    """Evaluates per-token expressions in one body, loading each leaf once."""

    b: Builder
    values: dict[Node, Value] = field(default_factory=dict)

    def inside(self, b: Builder) -> Tiles:
        """For a nested body: sees what is loaded here, keeps its own to itself."""
        return Tiles(b, dict(self.values))

    def leaf(self, node: Node) -> Value:
        if node not in self.values:
            kind, name = str(node.attrs[0]), str(node.attrs[1])
            index = ("head", *node.dims) if kind == "param" else ("batch", "time", "head", *node.dims)
            rows = None if kind == "param" else "c"
            axes = node.dims if kind == "param" else ("c", *node.dims)
            buffer = f"prev.{name}" if kind == "prev" else name
            self.values[node] = self.b.load(name, Access(buffer, index, rows), axes)
        return self.values[node]

    def node(self, node: Node, name: str, fill: float = 0.0) -> Value:
        """The expression's tile with axes (c, *dims): ``fill`` on rows past the sequence's end."""
        for x in leaves([node]):
            self.leaf(x)
        (value,) = emit_nodes(self.b, [node], self.values, name)
        axes = ("c", *node.dims)
        if value.axes != axes:
            value = self.b.expand(value, axes, name)
        if fill == 0.0 and vanishes(node):
            return value
        return self.b.valid(value, "c", fill, name)


def vanishes(node: Node) -> bool:
    """Whether the expression is zero where all its per-token leaves are (and so on rows past the end)."""
    if node.op == "leaf":
        return node.attrs[0] not in ("param", "cotangent", "tile")
    if node.op in ("mul", "contract"):
        return any(vanishes(a) for a in node.args)
    if node.op in ("sum", "rename", "expand", "index", "place", "hadamard", "stop", "version"):
        return vanishes(node.args[0])
    row = OPERATORS.get(node.op)
    return row is not None and row.keeps_zero and bool(node.args) and all(vanishes(a) for a in node.args)


@dataclass(frozen=True)
class Vector:
    """A family of rows: the tile, the node it comes from, and the position of its event."""

    tile: Value
    node: Node
    position: int


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
        return [j for j, w in enumerate(self.form.writes) if w.read is not None]

    @property
    def plain(self) -> list[int]:
        return [j for j, w in enumerate(self.form.writes) if w.read is None]

    def read_of(self, j: int) -> Vector:
        read = self.form.writes[j].read
        assert read is not None
        return self.reads[read]


def load_keys(tiles: Tiles, form: MatrixForm) -> FormTiles:
    """Everything but the writes' values and the value-axis queries: what does not have value dims."""
    b = tiles.b
    key_gates = _load_gates(tiles, form, "key")
    value_gates = None
    reads: dict[str, Vector] = {}
    keys: dict[int, Vector] = {}
    queries: dict[str, Vector] = {}
    for i, event in enumerate(form.events):
        if isinstance(event, Read):
            reads[event.name] = _signed(b, key_gates, tiles.node(event.vector, "a"), event.vector, i)
        elif isinstance(event, Write):
            keys[len(keys)] = _signed(b, key_gates, tiles.node(event.key, "b"), event.key, i)
        elif isinstance(event, Readout) and event.axis == "key":
            queries[event.name] = _signed(b, key_gates, tiles.node(event.vector, "q"), event.vector, i)
    return FormTiles(form, reads, keys, {}, queries, key_gates, value_gates)


def load_values(tiles: Tiles, part: FormTiles) -> FormTiles:
    """Adds the value side: the writes' values, value-axis queries and decays over the value dims."""
    form = part.form
    values = {}
    queries = dict(part.queries)
    positions = [i for i, e in enumerate(form.events) if isinstance(e, Write)]
    for j, write in enumerate(form.writes):
        if write.value is not None:
            values[j] = Vector(tiles.node(write.value, "y"), write.value, positions[j])
    for i, event in enumerate(form.events):
        if isinstance(event, Readout) and event.axis == "value":
            queries[event.name] = Vector(tiles.node(event.vector, "x"), event.vector, i)
    gates = _load_gates(tiles, form, "value")
    return FormTiles(form, part.reads, part.keys, values, queries, part.key_gates, gates)


def _signed(b: Builder, gates: Gates | None, tile: Value, node: Node, position: int) -> Vector:
    unit = gates.at[position].unit if gates is not None else None
    return Vector(tile if unit is None else b.mul(unit, tile, name=tile.name), node, position)


def _load_gates(tiles: Tiles, form: MatrixForm, which: str) -> Gates | None:
    logs = {}
    signs = {}
    for i, decay in class_decays(form, which):
        if decay.log is not None:
            logs[i] = tiles.node(decay.log, "g")
        if decay.sign is not None:
            negative = apply("lt", decay.sign, const(0))
            signs[i] = tiles.node(where(negative, const(-1), const(1)), "sign", fill=1.0)
    return emit_gates(tiles.b, form, which, logs, signs)

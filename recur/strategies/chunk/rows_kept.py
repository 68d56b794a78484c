"""Key-side rows that are worked out once: expressions that mix the entries of a key dim, such as l2norm(k).

Kernels that take the key dims tile by tile cannot evaluate them. Each becomes a tensor of its own, written by one
pointwise kernel, and its cotangent is pulled back to the inputs by another one after the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from recur.ir.core import Node, leaf, substitute, topological
from recur.ir.normal import Decay, MatrixForm, Read, Readout, Write
from recur.ir.tile import Buffer, Builder, Kernel
from recur.operators import OPERATORS
from recur.strategies.chunk.gradients import BufferOf, Cotangents, store_gradient
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.shape import Shape, key_only, key_side_nodes, mixed_dims, token_access
from recur.strategies.chunk.tiles import Tiles
from recur.strategies.operands import argument_leaves, tensor_name


@dataclass(frozen=True)
class KeptRows:
    """An expression and the tensor that stands for it; ``is_gate``: kept in float32, decays are sums of many."""

    node: Node
    symbol: Node
    is_gate: bool

    @property
    def buffer(self) -> Buffer:
        name = tensor_name(self.symbol)
        dtype = "accumulate" if self.is_gate else "operand"
        return Buffer(name, ("B", "T", "H", *self.node.dims), dtype)

    @property
    def gradient(self) -> Buffer:
        return replace(self.buffer, name=f"d_{self.buffer.name}")


def keep_rows(shape: Shape) -> tuple[Shape, tuple[KeptRows, ...]]:
    """The stage with rows that kernels shall not work out as leaves, and what those stand for: rows that mix their
    entries; where a stage takes passes, all that are computed, since every tile of the state would do it again."""
    key = set(shape.key)
    events = [(f, e) for f in shape.forms for e in f.events]
    gates = {n for f, e in events if isinstance(e, Decay) for n in _mixing(key_side_nodes(f, e), key)}
    roots = [n for f, e in events for n in key_side_nodes(f, e)]
    found = _computed(shape) if shape.pass_forms else _mixing(roots, key)
    kept = tuple(
        KeptRows(node, leaf("value", f"rows_{i}", node.dims), node in gates) for i, node in enumerate(found)
    )
    symbols = {k.node: k.symbol for k in kept}
    forms, pass_forms = (tuple(_with_symbols(f, symbols) for f in fs) for fs in (shape.forms, shape.pass_forms))
    return replace(shape, forms=forms, pass_forms=pass_forms), kept


def _computed(shape: Shape) -> list[Node]:
    """The keys and queries that are more than a tensor and factors without dims."""
    events = [(f, e) for f in shape.pass_forms for e in f.events if not isinstance(e, Decay)]
    rows = dict.fromkeys(split_scale(n)[1] for f, e in events for n in key_side_nodes(f, e))
    return [n for n in rows if any(x.op in OPERATORS for x in topological([n]))]


def _mixing(roots: list[Node], key: set[str]) -> list[Node]:
    """The smallest expressions over key dims that depend on an operation which mixes them."""
    depends: set[Node] = set()
    found: list[Node] = []
    inside: set[Node] = set()
    for node in topological(roots):
        if mixed_dims(node) & key or any(a in depends for a in node.args):
            depends.add(node)
            if any(a in inside for a in node.args):
                inside.add(node)
            elif key & set(node.dims) and node.op != "expand":
                inside.add(node)
                found.append(node)
    return found


def _with_symbols(form: MatrixForm, symbols: dict[Node, Node]) -> MatrixForm:
    def put(node: Node | None) -> Node | None:
        return None if node is None else substitute([node], symbols)[0]

    events: list[Decay | Read | Write | Readout] = []
    for event in form.events:
        if isinstance(event, Decay):
            parts = {name: put(getattr(event, name)) for name in ("factor", "log", "sign", "angle")}
            events.append(replace(event, **parts))  # type: ignore[arg-type]
        elif isinstance(event, Write):
            events.append(replace(event, key=put(event.key)))  # type: ignore[arg-type]
        else:
            events.append(replace(event, vector=put(event.vector)))  # type: ignore[arg-type]
    return replace(form, events=tuple(events))


def emit_rows(shape: Shape, kept: tuple[KeptRows, ...]) -> Kernel:
    """Writes them. ``shape``: the stage as it was."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b)
    for rows in kept:
        b.store(token_access(rows.buffer.name, rows.node.dims), tiles.node(rows.node, "rows"))
    return Kernel("rows", ("batch", "head", "chunk"), key_only(shape), tuple(b.statements), (), "pointwise")


def emit_rows_gradient(shape: Shape, kept: tuple[KeptRows, ...], buffer_of: BufferOf) -> Kernel:
    """Pulls their cotangents back to the inputs."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b)
    cotangents = Cotangents()
    for rows in kept:
        access = token_access(rows.gradient.name, rows.node.dims)
        cotangents.add(rows.node, b.load(rows.gradient.name, access, ("c", *rows.node.dims)))
    for source, tile in cotangents.pull_each(tiles, argument_leaves([r.node for r in kept])):
        store_gradient(b, source, tile, buffer_of(source, "rows"))
    return Kernel("rows_gradient", ("batch", "head", "chunk"), key_only(shape), tuple(b.statements), (), "pointwise")

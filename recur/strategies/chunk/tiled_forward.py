"""The kernels of the tiled schedule, forward: states once every L tokens, and outputs tile by tile inside a chunk."""

from __future__ import annotations

from dataclasses import replace

from recur.ir.core import Node
from recur.ir.normal import MatrixForm
from recur.ir.tile import Axis, Builder, Carry, Kernel, Place, Value
from recur.strategies.chunk.kernels import emit_epilogue
from recur.strategies.chunk.row_tiles import (
    Pairs,
    RowTile,
    StoredGates,
    joint,
    load_ends,
    times,
    whole_chunk,
)
from recur.strategies.chunk.shape import Shape, chunk_access, state_access, token_access
from recur.strategies.chunk.tiles import Tiles

STATE_EQUATIONS = ("S <- 2^G_C S + sum over the chunk's tiles of (2^(G_C - G) K)^T V",)
OUTPUT_EQUATIONS = (
    "O_i = 2^G Q_i S + sum over tiles j <= i of (Q_i K_j^T D_ij) V_j,   D[t, s] = 2^(G_t - G_s), s <= t",
)

Stored = dict[str, StoredGates]


def tiled_axes(shape: Shape, queries: Place | None, keys: Place | None, values: Place) -> tuple[Axis, ...]:
    """The rows axes c (queries) and s (keys) and the value dims at their places; an axis without one is left out."""
    rows = {"c": queries, "s": keys}
    found = []
    for axis in shape.axes:
        if axis.kind == "rows":
            place = rows.get(axis.name)
        else:
            place = values if axis.name in shape.value and not shape.whole_values else "whole"
        if place is not None:
            found.append(replace(axis, place=place))
    return tuple(found)


def load_state(b: Builder, shape: Shape, form: MatrixForm, name: str, buffer: str) -> Value:
    return b.load(name, chunk_access(buffer, shape.state_axes(form)), shape.state_axes(form))


def emit_tiled_states(shape: Shape, stored: Stored) -> Kernel:
    """One program owns (batch, head, tile of the value dims), keeps every state in registers and walks the chunks."""
    b = Builder()
    first = [b.load(f.state, state_access(f.state, shape.state_axes(f)), shape.state_axes(f)) for f in shape.forms]
    inner = b.nested()
    states = [inner.phi(f.state, s) for f, s in zip(shape.forms, first, strict=True)]
    for form, state in zip(shape.forms, states, strict=True):
        inner.store(chunk_access(f"chunk_{form.state}", shape.state_axes(form)), state)
    ends = load_ends(inner, stored)
    body = inner.nested()
    tile = RowTile(Tiles(body, rows_axis="s"), stored, ends)
    carries = []
    for form, state in zip(shape.forms, states, strict=True):
        decayed = times(inner, state, whole_chunk(inner, stored, ends, form.state), name=form.state)
        total = phi = body.phi(form.state, decayed)
        for key, value in zip(tile.keys(form), tile.values(form), strict=True):
            scale = joint(body, value.scale, key.scale, tile.factor(form, key.position, "end"))
            written = body.contract(key.tile, times(body, value.tile, scale), ("s",), name="written")
            total = body.add(total, written, name=form.state)
        carries.append(Carry(phi, decayed, total))
    inner.loop("tiles", body, tuple(carries), axis="s")
    b.loop("chunks", inner, tuple(Carry(p, i, c.phi) for p, i, c in zip(states, first, carries, strict=True)))
    for form, state in zip(shape.forms, states, strict=True):
        b.store(state_access(f"final_{form.state}", shape.state_axes(form)), state)
    axes = tiled_axes(shape, None, "loop", "grid")
    return Kernel("states", shape.grid, axes, tuple(b.statements), STATE_EQUATIONS, "states")


def emit_outputs(shape: Shape, stored: Stored) -> Kernel:
    """One program owns a tile of query rows (and of the value dims): readouts, then the epilogue."""
    b = Builder()
    ends = load_ends(b, stored)
    queries = RowTile(Tiles(b), stored, ends)
    body = b.nested()
    keys = RowTile(Tiles(body, rows_axis="s"), stored, ends)
    pairs = Pairs(body, queries, keys)
    carries: list[Carry] = []
    totals: list[tuple[Node, Value, Value | None]] = []
    for form in shape.forms:
        state = load_state(b, shape, form, form.state, f"chunk_{form.state}")
        writes = list(zip(keys.keys(form), keys.values(form), strict=True))
        for readout in form.readouts:
            q = queries.query(form, readout)
            inter = b.contract(q.tile, state, form.key, name="inter")
            inter = times(b, inter, queries.factor(form, q.position, "start"))
            total = phi = body.phi("o", inter)
            for k, v in writes:
                weights = times(body, pairs.scores(form, q, k), joint(body, k.scale, v.scale), name="P")
                total = body.add(total, body.contract(weights, v.tile, ("s",), name="intra"), name="o")
            carries.append(Carry(phi, inter, total))
            totals.append((next(x for x in shape.readouts if x.attrs[1] == readout.name), phi, q.scale))
    b.loop("tiles", body, tuple(carries), axis="s", last="c")
    for node, total, scale in totals:
        rows = b.expand(times(b, total, scale, name="o"), ("c", *node.dims), "o")
        queries.tiles.values[node] = rows
        if node in shape.inner_readouts:
            b.store(token_access(str(node.attrs[1]), node.dims), rows, "kept for the epilogue's gradient")
    for name, node in shape.epilogue:
        (result,) = emit_epilogue(queries.tiles, [node], "o")
        b.store(token_access(name, node.dims), result)
    grid = ("batch", "head", "chunk", "tile:c", *shape.grid[2:])
    return Kernel(
        "outputs", grid, tiled_axes(shape, "grid", "loop", "grid"), tuple(b.statements), OUTPUT_EQUATIONS, "outputs"
    )

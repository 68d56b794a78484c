"""Factors of rows in memory, chunk by chunk in float32, where a state is read by its own writes.

A walk waits for what it loads late: a number a token, with those of other heads between a chunk's, is no block that a
copy in the background could fetch.
"""

from __future__ import annotations

from recur.ir.core import Node, leaves
from recur.ir.normal import Decay
from recur.ir.tile import Buffer
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.shape import Shape, event_nodes
from recur.strategies.chunk.stored_gates import rows_access
from recur.strategies.chunk.tiles import Tiles


def kept_scales(shape: Shape) -> dict[Node, str]:
    """The buffer of every factor that differs from token to token."""
    if shape.splits:
        return {}
    vectors = [n for f in shape.forms for e in f.events if not isinstance(e, Decay) for n in event_nodes(e)]
    scales = dict.fromkeys(split_scale(n)[0] for n in vectors)
    return {scale: f"scale_{shape.forms[0].state}_{i}" for i, scale in enumerate(s for s in scales if leaves([s]))}


def scale_buffers(shape: Shape) -> tuple[Buffer, ...]:
    return tuple(Buffer(name, ("B", "N", "H", "C"), doc="a factor of rows") for name in kept_scales(shape).values())


def store_scales(shape: Shape, tiles: Tiles) -> None:
    for scale, name in kept_scales(shape).items():
        tiles.b.store(rows_access(name), tiles.b.expand(tiles.scale(scale, "scale"), ("c",), "scale"))

"""What a launch of a kernel does, counted from its body: bytes, products of matrices, programs and the steps of each.

From the bytes and the products follow the least times that the memory and the matrix units allow; a kernel that takes
much longer than both waits: for its steps that follow one another, or with too few programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from recur.codegen.segments import FULL, _scan_segments, _segments
from recur.codegen.triton_printer.config import StageConfig, is_dot
from recur.codegen.triton_printer.layout import Layout, accesses_of, all_buffers, resolve_dims
from recur.ir.plan import Plan
from recur.ir.tile import Buffer, Kernel, Let, Loop, Statement

SCAN_WALKS = 1056  # of one warp each, over tokens one by one: eight a multiprocessor


@dataclass(frozen=True)
class Work:
    """``bytes``: of the tensors that the kernel touches, each once. ``products``: additions and multiplications in
    products of matrices. ``steps``: chunks, tokens or segments that a program goes through one after the other.
    """

    bytes: float
    products: float
    programs: int
    steps: int


@dataclass(frozen=True)
class Extent:
    """The work at hand: batch, tokens, heads, segments, and the bytes of an entry of the operand type."""

    batch: int
    tokens: int
    heads: int
    segments: int = 1
    operand: int = 2


def count_segments(plan: Plan, config: StageConfig, sequences: int, tokens: int) -> int:
    """The segments of each of B * H sequences, as the printed stage cuts them where gradients are wanted."""
    walks = count_walks(plan, config)
    chunks = -(-tokens // config.chunk)
    if not walks:
        return 1
    if is_scan(plan):
        return _scan_segments(sequences * walks, chunks, SCAN_WALKS)[0]
    return _segments(sequences * walks, chunks, filling(plan, config), gradients_walk(plan))[0]


def count_walks(plan: Plan, config: StageConfig) -> int:
    """How many programs walk over a sequence that is one segment, 0 in a stage without segments."""
    kernel = walk_of(plan)
    if kernel is None:
        return 0
    axes = Layout(kernel, config).axes
    return math.prod(axes[entry.removeprefix("tile:")].tiles for entry in kernel.grid if entry.startswith("tile:"))


def walk_of(plan: Plan) -> Kernel | None:
    return next((k for k in plan.forward + plan.backward if "segment" in k.grid), None)


def filling(plan: Plan, config: StageConfig) -> int:
    """How many programs of the walks fill a GPU: of eight warps one is on a multiprocessor."""
    walk = walk_of(plan)
    return FULL if walk is not None and config.launch(walk.name).num_warps == 8 else 2 * FULL


def gradients_walk(plan: Plan) -> bool:
    """Whether gradients are taken in walks, which then have the most of the work: two segments halve it."""
    return any("segment" in k.grid and k.name.endswith("gradients") for k in plan.backward)


def is_scan(plan: Plan) -> bool:
    return any(k.role == "scan" for k in plan.forward)


def count_work(plan: Plan, kernel: Kernel, config: StageConfig, extent: Extent) -> Work:
    layout = Layout(kernel, config)
    chunks = -(-extent.tokens // config.chunk)
    counts = {"batch": extent.batch, "head": extent.heads, "segment": extent.segments, "chunk": chunks}
    places = (layout.axes[g.removeprefix("tile:")].tiles if g.startswith("tile:") else counts[g] for g in kernel.grid)
    programs = math.prod(places)
    trips = {
        "chunks": -(-chunks // extent.segments) if "segment" in kernel.grid else chunks,
        "segments": extent.segments,
        "steps": config.chunk if "chunk" in kernel.grid else extent.tokens,
    }

    def trips_of(loop: Loop) -> int:
        if loop.needed is not None:  # at least
            return 0
        if loop.over == "levels":
            return loop.count_levels(config.chunk)
        return trips[loop.over] if loop.axis is None else layout.axes[loop.axis].tiles

    products = sum(times * _product(let, layout) for let, times in _repeated(kernel.body, trips_of) if is_dot(let))
    walks = [s for s in kernel.body if isinstance(s, Loop) and s.axis is None and s.over not in ("levels", "once")]
    steps = max(map(trips_of, walks), default=1)
    return Work(_bytes(plan, kernel, config, extent), float(programs * products), programs, steps)


def _repeated(body: tuple[Statement, ...], trips_of: Callable[[Loop], int]) -> Iterator[tuple[Let, int]]:
    """Every operation with how often a program does it."""
    for statement in body:
        if isinstance(statement, Loop):
            for let, times in _repeated(statement.body, trips_of):
                yield let, times * trips_of(statement)
        elif isinstance(statement, Let):
            yield statement, 1


def _product(let: Let, layout: Layout) -> int:
    """Additions and multiplications of one product, padding included; a complex operand doubles them."""
    x, y = let.args[:2]
    real = 2 * math.prod(layout.axes[a].block for a in {*x.axes, *y.axes})
    return real * (1 + x.is_complex) * (1 + y.is_complex)


def _bytes(plan: Plan, kernel: Kernel, config: StageConfig, extent: Extent) -> float:
    sizes, buffers = dict(config.sizes), all_buffers(plan)
    dims = resolve_dims(plan, sizes)
    layout = Layout(kernel, config)
    chunks = -(-extent.tokens // config.chunk)
    counts = {
        "batch": extent.batch, "time": extent.tokens, "head": extent.heads, "segments": extent.segments,
        "chunks": chunks, "boundaries": chunks + 1, "rows": config.rows,
    }  # fmt: skip
    total = 0.0
    for name in {access.buffer for access in accesses_of(kernel)}:
        entries = 1
        for dim in dims[name]:
            if dim.kind == "tiles":
                entries *= layout.axes[dim.name].tiles
            elif dim.kind == "size":
                entries *= int(dim.name) if dim.name.isdigit() else sizes[dim.name]
            else:
                entries *= counts[dim.kind]
        total += entries * _entry_bytes(buffers[name], extent)
    return total


def _entry_bytes(buffer: Buffer, extent: Extent) -> int:
    """Arguments, and what has their type, are taken to be of the operand type."""
    width = 4 if buffer.dtype == "accumulate" else extent.operand
    return 8 if buffer.is_complex else width

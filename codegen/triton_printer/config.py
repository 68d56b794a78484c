"""What a stage is printed for: sizes, the chunk, and each kernel's blocks, warps and pipeline depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from recur.ir.plan import Plan
from recur.ir.tile import Axis, Kernel, Let, Loop, Statement

DEFAULT_CHUNK = 64
REGISTER_TILE = 4096  # elements of a tile that one program can carry in registers beside its operands


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched. ``blocks``: the tile widths of the axes placed on the grid or in a loop."""

    blocks: tuple[tuple[str, int], ...] = ()
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class StageConfig:
    """The numbers that a printed stage holds: dimension sizes, rows of a chunk C, and a launch for each kernel."""

    sizes: tuple[tuple[str, int], ...]
    chunk: int
    launches: tuple[tuple[str, Launch], ...]

    def launch(self, kernel: str) -> Launch:
        return dict(self.launches)[kernel]


def next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def extent_size(extent: str, sizes: Mapping[str, int]) -> int:
    """An axis's extent as a number: extents are names of dimensions, or numbers."""
    return int(extent) if extent.isdigit() else sizes[extent]


def statements_of(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """All statements, those inside loops included."""
    for statement in body:
        yield statement
        if isinstance(statement, Loop):
            yield from statements_of(statement.body)


def complete_sizes(plan: Plan, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes, with those of dimensions that passes have introduced: what a tile is renamed to has its size."""
    known = dict(sizes)
    extents = {a.name: a.extent for k in plan.forward + plan.backward for a in k.axes if a.kind == "size"}
    renamed = [
        (extents[str(s.attr("old"))], extents.get(str(s.attr("new")), str(s.attr("new"))))
        for k in plan.forward + plan.backward for s in statements_of(k.body)
        if isinstance(s, Let) and s.op == "rename" and str(s.attr("old")) in extents
    ]
    for _ in range(2):  # once more for names that are only known through later renamings
        for old, new in renamed:
            if old in known:
                known.setdefault(new, known[old])
            elif new in known:
                known[old] = known[new]
    return known


def default_config(plan: Plan, sizes: Mapping[str, int], chunk: int | None = None) -> StageConfig:
    """A launch for every kernel of the plan, by rules of thumb (no search).

    A walk over chunks keeps one tile of the state in registers, so the axis placed on the grid is cut to 64 columns
    where the other side is wide; wide tiles get more warps. Pipelines are at least two deep: a single stage with
    narrow tiles has been seen to fault on Hopper.
    """
    sizes = complete_sizes(plan, {**dict(plan.fixed_sizes), **sizes})
    rows = chunk or plan.chunk or DEFAULT_CHUNK
    kernels = plan.forward + plan.backward
    launches = tuple((kernel.name, default_launch(kernel, sizes, rows)) for kernel in kernels)
    return StageConfig(tuple(sizes.items()), rows, launches)


def default_launch(kernel: Kernel, sizes: Mapping[str, int], rows: int) -> Launch:
    whole = [
        next_power_of_two(extent_size(a.extent, sizes)) for a in kernel.axes
        if a.kind == "size" and a.place == "whole"
    ]
    has_rows = any(a.kind == "rows" for a in kernel.axes)
    blocks = tuple(
        (axis.name, dict(kernel.widths).get(axis.name) or default_block(axis, sizes, whole, has_rows))
        for axis in kernel.axes
        if axis.kind == "size" and axis.place != "whole"
    )
    widest = max([*whole, *(block for _, block in blocks), 16])
    tile = widest * (rows if has_rows else min([*whole, *(block for _, block in blocks)], default=1))
    return Launch(blocks, num_warps=kernel.warps or (8 if tile > 2 * REGISTER_TILE else 4), num_stages=2)


def default_block(axis: Axis, sizes: Mapping[str, int], whole: list[int], has_rows: bool) -> int:
    """The tile width of a grid or loop axis: what keeps (other side) x (tile) within a program's registers."""
    full = next_power_of_two(extent_size(axis.extent, sizes))
    beside = max(whole, default=1)
    fitting = max(REGISTER_TILE * 2 // max(beside, 64 if has_rows else 1), 16)
    return max(min(full, fitting, 128), 16 if has_rows else 1)

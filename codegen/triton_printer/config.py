"""What a stage is printed for: sizes, the chunk, and each kernel's blocks, warps and pipeline depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from recur.codegen.setting import USUAL, Setting
from recur.ir.plan import Plan
from recur.ir.tile import Axis, Kernel, Let, Loop, Statement, Value, next_power_of_two
from recur.operators import OPERATORS
from recur.strategies.elementwise_scan import VECTOR

DEFAULT_CHUNK = 64
DOT_TILE = 8192  # elements of the largest tile of a kernel of matrix products: 64 registers a thread in four warps
SCAN_TILE = 2048  # the same for elementwise kernels, which hold many tiles at once
WIDEST_BLOCK = 128
ROW_TILE = 32  # tokens in a tile of rows of a longer chunk: with 64, products of pairs read registers on Hopper
PRESCANS = ("prescan", "maxprescan")
SCANS = (*PRESCANS, "resume", "maxresume")
SCAN_REGISTERS = 128  # of a thread of a forward scan of one state: four programs of four warps a multiprocessor
WALK_ROWS, WALK_RUNS = 64, 8  # tokens in a chunk of a scan that one program walks, and runs of them: two in a warp
WALK_LANES = 16  # threads of a warp beside one another, each with VECTOR channels forward and half of them backward
WALK_STAGES = 3  # chunks in flight meanwhile
CHEAP_FUNCTIONS = 1  # so many are computed twice rather than held
MANY_DOTS = 4  # products with a largest tile that spill from four warps
HALF_TILE = 64  # of the value dims, in a walk of few: the rows of a product of a group of four warps


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched. ``blocks``: the tile widths of the axes placed on the grid or in a loop;
    ``registers``: a thread's at most, Triton's ``maxnreg`` (0: as many as the compiler takes).

    Kernels of scans: ``vector``: how many neighbours along the innermost axis a thread holds, at most (0: what Triton
    chooses); ``relay``: a program for every chunk, ``anew``: which computes its tiles of tokens twice (see relay.py).
    """

    blocks: tuple[tuple[str, int], ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    vector: int = 0
    relay: bool = False
    anew: bool = False
    registers: int = 0


@dataclass(frozen=True)
class StageConfig:
    """The numbers that a printed stage holds: dimension sizes, tokens of a chunk, and a launch for each kernel.

    ``steps``: of a token, each with a row of its own.
    """

    sizes: tuple[tuple[str, int], ...]
    chunk: int
    launches: tuple[tuple[str, Launch], ...]
    steps: int = 1

    @property
    def rows(self) -> int:
        """Rows of a chunk, C: those of its tokens, and maybe a few more that are empty."""
        return chunk_rows(self.chunk, self.steps)

    def launch(self, kernel: str) -> Launch:
        return dict(self.launches)[kernel]


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
        for k in plan.forward + plan.backward
        for s in statements_of(k.body)
        if isinstance(s, Let) and s.op == "rename" and str(s.attr("old")) in extents
    ]
    for _ in range(2):  # once more for names that are only known through later renamings
        for old, new in renamed:
            if old in known:
                known.setdefault(new, known[old])
            elif new in known:
                known[old] = known[new]
    return known


def default_config(
    plan: Plan, sizes: Mapping[str, int], chunk: int | None = None, setting: Setting = USUAL
) -> StageConfig:
    """A launch for every kernel of the plan, by rules of thumb (no search).

    Everything a kernel holds lives in registers, so the axes that may be tiled are cut by the size of the largest tile.
    """
    sizes = complete_sizes(plan, {**dict(plan.fixed_sizes), **sizes})
    tokens = chunk or (setting.wide and plan.wide_chunk) or plan.chunk or DEFAULT_CHUNK
    rows = chunk_rows(tokens, plan.steps)
    kernels = plan.forward + plan.backward
    scans = [s for k in kernels for s in statements_of(k.body) if isinstance(s, Let) and s.op in PRESCANS]
    sizes |= {runs: min(sizes[runs], rows) for runs in {str(s.attr("runs")): None for s in scans}}
    launches = {kernel.name: default_launch(kernel, sizes, rows) for kernel in kernels}
    is_simple = len(scans) == len(kernels) and all(x.relay and x.vector and x.blocks for x in launches.values())
    if setting.many_channels and chunk is None and is_simple:
        vectors = {k.name: VECTOR if k in plan.forward else VECTOR // 2 for k in kernels}
        launches = {k.name: as_walk(k, launches[k.name], vectors[k.name], sizes) for k in kernels}
        tokens, sizes = WALK_ROWS, sizes | {str(s.attr("runs")): WALK_RUNS for s in scans}
    if setting.few_walks:
        launches |= {kernel.name: halve_walk(kernel, launches[kernel.name], sizes) for kernel in kernels}
    return StageConfig(tuple(sizes.items()), tokens, tuple(launches.items()), plan.steps)


def chunk_rows(tokens: int, steps: int) -> int:
    return tokens if steps == 1 else next_power_of_two(tokens * steps)


def default_launch(kernel: Kernel, sizes: Mapping[str, int], rows: int) -> Launch:
    """Tiled axes are cut until the largest tile fits; what is still large, or much, is spread over eight warps.

    A kernel whose strategy knows what fits says so itself.
    """
    if kernel.role == "scan" and kernel.warps is not None:
        return scan_launch(kernel, sizes)
    if kernel.warps is not None:
        return Launch(kernel.widths, num_warps=kernel.warps, num_stages=kernel.stages)
    lets = [s for s in statements_of(kernel.body) if isinstance(s, Let)]
    shapes = sorted({(2 if out.is_complex else 1, tuple(sorted(out.axes))) for let in lets for out in let.outs})
    dots = sum(2 if let.out.is_complex else 1 for let in lets if is_dot(let))
    extents = {a.name: rows_of(a, rows) if a.kind == "rows" else extent_size(a.extent, sizes) for a in kernel.axes}
    for let in lets:
        if let.op == "rename":
            extents.setdefault(str(let.attr("new")), extents[str(let.attr("old"))])
    blocks = {name: next_power_of_two(extent) for name, extent in extents.items()}
    loops = {s.axis for s in statements_of(kernel.body) if isinstance(s, Loop)}
    tiled = [a.name for a in kernel.axes if f"tile:{a.name}" in kernel.grid or a.name in loops]
    fixed = [a.name for a in kernel.axes if a.kind == "rows"]
    least = 16 if dots else 1
    limit = DOT_TILE if dots else SCAN_TILE
    if any(name in loops for name in tiled if name not in fixed):
        limit //= 2  # beside its tiles, such a loop holds the sums of all tiles, one for every pair of vectors
    for name in (n for n in tiled if n not in fixed):
        blocks[name] = max(least, min(blocks[name], WIDEST_BLOCK))
        others = [parts * math.prod(blocks[a] for a in shape if a != name) for parts, shape in shapes if name in shape]
        while blocks[name] > least and blocks[name] * max(others, default=1) > limit:
            blocks[name] //= 2
    largest = max((parts * math.prod(blocks[a] for a in shape) for parts, shape in shapes), default=1)
    heavy = largest > limit or (dots >= MANY_DOTS and largest == limit)
    heavy = heavy or (not tiled and dots > MANY_DOTS and 2 * largest >= limit)  # nothing to cut
    return Launch(tuple((name, blocks[name]) for name in tiled), num_warps=8 if heavy else 4, num_stages=2)


def halve_walk(kernel: Kernel, launch: Launch, sizes: Mapping[str, int]) -> Launch:
    """Two programs of four warps for each walk over a sequence that one of eight makes with a whole state."""
    walks = any(isinstance(s, Loop) and s.over == "chunks" and s.carries for s in kernel.body)
    tiled = [a for a in kernel.axes if f"tile:{a.name}" in kernel.grid]
    if not (walks and launch.num_warps == 8 and [a.kind for a in tiled] == ["size"]):
        return launch
    name, width = tiled[0].name, dict(launch.blocks)[tiled[0].name]
    if not width == 2 * HALF_TILE >= extent_size(tiled[0].extent, sizes):
        return launch
    blocks = tuple((axis, HALF_TILE if axis == name else each) for axis, each in launch.blocks)
    return replace(launch, blocks=blocks, num_warps=4)


def scan_launch(kernel: Kernel, sizes: Mapping[str, int]) -> Launch:
    """Threads hold neighbouring channels where these are all that a row has; runs of tokens are the plan's.

    Backward scans are those that load the states that the forward pass left of every chunk.
    """
    assert kernel.warps is not None
    scans = [s for s in statements_of(kernel.body) if isinstance(s, Let) and s.op in PRESCANS]
    tiled = dict(kernel.widths)
    aside = {str(s.attr("runs")) for s in scans} | set(tiled)
    whole = math.prod(extent_size(a.extent, sizes) for a in kernel.axes if a.kind == "size" and a.name not in aside)
    relay = is_relayed(kernel)
    is_backward = any(isinstance(s, Let) and s.op == "load" and s.access is not None and "chunk" in s.access.index
                      for s in statements_of(kernel.body))  # fmt: skip
    anew = relay and is_backward and functions_before(scans, kernel) <= CHEAP_FUNCTIONS
    registers = SCAN_REGISTERS if whole == 1 and len(scans) == 1 and not is_backward else 0
    return Launch(kernel.widths, kernel.warps, kernel.stages, VECTOR if whole == 1 else 0, relay, anew, registers)


def as_walk(kernel: Kernel, launch: Launch, vector: int, sizes: Mapping[str, int]) -> Launch:
    """One program for all chunks of a few channels: it loads the next ones while it scans, and waits for no other."""
    *outer, (inner, _) = launch.blocks
    (extent,) = (extent_size(a.extent, sizes) for a in kernel.axes if a.name == inner)
    blocks = (*((name, 1) for name, _ in outer), (inner, min(WALK_LANES * vector, next_power_of_two(extent))))
    return replace(launch, blocks=blocks, num_stages=WALK_STAGES, vector=vector, relay=False, anew=False, registers=0)


def functions_before(scans: Sequence[Let], kernel: Kernel) -> int:
    """How many functions, such as exponentials, the scans' operands are made of."""
    needed = {v.name for scan in scans for v in scan.args}
    count = 0
    for s in reversed(list(statements_of(kernel.body))):
        if isinstance(s, Let) and needed & {out.name for out in s.outs}:
            needed |= {v.name for v in s.args}
            count += is_function(s)
    return count


def is_function(let: Let) -> bool:
    """Whether an operation costs many instructions, as an exponential does."""
    return let.op in OPERATORS and OPERATORS[let.op].symbol is None


def is_relayed(kernel: Kernel) -> bool:
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    return len(loops) == 1 and bool(loops[0].carries) and not {"chunk", "segment"} & set(kernel.grid)


def rows_of(axis: Axis, chunk: int) -> int:
    """Tokens that a tile holds along an axis of rows."""
    return chunk if axis.place == "whole" else min(chunk, ROW_TILE)


def is_dot(let: Let) -> bool:
    """Whether an operation is a product of two matrices, maybe weighted."""
    if let.op not in ("contract", "weigh"):
        return False
    return is_matrix_product(let.args[0], let.args[1], tuple(let.attr("over")))  # type: ignore[arg-type]


def is_matrix_product(x: Value, y: Value, over: tuple[str, ...]) -> bool:
    """Whether the sum over ``over`` of x * y is a product of two matrices: they share one axis, and it is summed."""
    return len(x.axes) == len(y.axes) == 2 and len(over) == 1 and set(x.axes) & set(y.axes) == set(over)

"""Where the axes of tiles lie: their order, their block sizes, and the names that stand for them."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from recur.codegen.triton_printer.config import (
    PRESCANS,
    SCANS,
    StageConfig,
    extent_size,
    is_dot,
    statements_of,
)
from recur.ir.plan import Plan
from recur.ir.tile import Access, Axis, Buffer, Kernel, Let, Loop, Store, next_power_of_two

DimKind = Literal["batch", "head", "time", "segments", "chunks", "boundaries", "rows", "tiles", "size"]
LETTERS: dict[str, DimKind] = {
    "B": "batch",
    "T": "time",
    "H": "head",
    "G": "segments",
    "N": "chunks",
    "N+1": "boundaries",
    "C": "rows",
}
INDEXED: dict[str, DimKind] = {"batch": "batch", "head": "head", "time": "time", "segment": "segments"}
DOT_SIDE = 16  # the least side of a matrix product


@dataclass(frozen=True)
class BufferDim:
    """One dimension of a buffer: its kind and, for sizes and tiles, the dimension or axis that it runs over."""

    kind: DimKind
    name: str


@dataclass(frozen=True)
class TileAxis:
    """A tile axis as printed: `block` lanes named `block_name`, over `extent` entries named `extent_name`.

    ``extent`` is None for rows, whose number depends on the sequence, in chunks of ``chunk``. ``root`` is the declared
    axis of which this is a renaming; ``word`` is the name as an identifier.
    """

    name: str
    word: str
    root: Axis
    block: int
    block_name: str
    extent: int | None
    extent_name: str
    chunk: int = 0

    @property
    def index(self) -> str:
        return f"i_{self.word}"

    @property
    def mask(self) -> str:
        return f"in_{self.word}"

    @property
    def padded(self) -> bool:
        return self.extent is None or self.extent % self.block != 0

    @property
    def tiles(self) -> int:
        return -(-(self.chunk if self.extent is None else self.extent) // self.block)


def accesses_of(kernel: Kernel) -> Iterator[Access]:
    for statement in statements_of(kernel.body):
        if isinstance(statement, Let | Store) and statement.access is not None:
            yield statement.access


def all_buffers(plan: Plan) -> dict[str, Buffer]:
    """Every buffer of the stage by name; a cotangent has the layout of what it belongs to."""
    named = (plan.arguments, plan.initial, plan.results, plan.final, plan.saved, plan.workspace)
    buffers = {b.name: b for group in named for b in group}
    for b in plan.results + plan.final:
        buffers.setdefault(f"d_{b.name}", Buffer(f"d_{b.name}", b.layout, b.dtype, b.is_complex))
    for line in plan.gradients:
        of = buffers[line.of]
        for part in line.contributions:
            buffers.setdefault(part.buffer, Buffer(part.buffer, of.layout, f"input:{of.name}", of.is_complex))
    return buffers


def resolve_dims(plan: Plan, sizes: Mapping[str, int]) -> dict[str, tuple[BufferDim, ...]]:
    """What every dimension of every buffer is.

    A recurrence may have a dimension called N or T, like a layout's letter: how kernels index it decides.
    """
    dims = {name: tuple(_dim_of(letter, sizes) for letter in b.layout) for name, b in all_buffers(plan).items()}
    for kernel in plan.forward + plan.backward:
        rows = {a.name for a in kernel.axes if a.kind == "rows"}
        for access in accesses_of(kernel):
            dims[access.buffer] = tuple(
                _indexed_dim(dim, entry, rows) for dim, entry in zip(dims[access.buffer], access.index, strict=True)
            )
    return dims


def _dim_of(letter: str, sizes: Mapping[str, int]) -> BufferDim:
    if letter.startswith("tiles:"):
        return BufferDim("tiles", letter.removeprefix("tiles:"))
    if letter in LETTERS and (letter not in sizes or letter in ("B", "T", "H")):
        return BufferDim(LETTERS[letter], letter)
    return BufferDim("size", letter.partition("'")[0])


def _indexed_dim(dim: BufferDim, entry: str, rows: set[str]) -> BufferDim:
    if entry in INDEXED:
        return BufferDim(INDEXED[entry], dim.name)
    if entry == "chunk":
        return BufferDim("boundaries" if dim.name == "N+1" else "chunks", dim.name)
    if entry.startswith("tile:"):
        return BufferDim("tiles", entry.removeprefix("tile:"))
    return BufferDim("rows", dim.name) if entry in rows else BufferDim("size", dim.name)


class Layout:
    """The axes of one kernel under one configuration, and the order in which tiles hold them."""

    def __init__(self, kernel: Kernel, config: StageConfig) -> None:
        self.sizes = dict(config.sizes)
        self.config = config
        self.kernel = kernel
        self.words = _words(self.sizes)
        lets = [s for s in statements_of(kernel.body) if isinstance(s, Let)]
        scans = [s for s in lets if s.op in SCANS]
        self.runs = str(scans[0].attr("runs")) if scans else None  # the axis of runs of rows, in a scan
        self.is_scan = bool(scans) and any(g.startswith("tile:") for g in kernel.grid)
        self.is_relay = config.launch(kernel.name).relay
        self.turned = _is_turned(lets)
        self.axes: dict[str, TileAxis] = {}
        roots = _roots(kernel)
        dotted = _dotted(kernel, roots)
        taken: set[str] = set()
        for name, root in roots.items():
            self.axes[name] = self._tile_axis(name, safe_name(name, taken), root, root.name in dotted)

    def _tile_axis(self, name: str, word: str, root: Axis, in_dot: bool) -> TileAxis:
        if root.kind == "rows":
            chunk, is_whole = self.config.rows, root.place == "whole"
            block = chunk if is_whole else dict(self.config.launch(self.kernel.name).blocks)[root.name]
            return TileAxis(name, word, root, block, self.words["C" if is_whole else "R"], None, self.words["T"], chunk)
        extent = extent_size(root.extent, self.sizes)
        if root.place == "whole":
            block = next_power_of_two(extent)
        else:
            block = dict(self.config.launch(self.kernel.name).blocks)[root.name]
        block = max(block, DOT_SIDE if in_dot else 1)
        fixed = root.extent.isdigit()
        block_name = (
            str(block)
            if fixed
            else root.extent
            if block == extent
            else f"B{self.axes[root.name].word if root.name in self.axes else word}"
        )
        return TileAxis(name, word, root, block, block_name, extent, root.extent)

    def order(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Rows before sizes, or after them, each in the order of the kernel's axes, a renaming after what it renames.

        In a scan the axes in tiles come last: Triton spreads the last axes over threads, and neighbouring channels lie
        side by side in memory, while several states of one channel are summed by the thread that holds them.
        """
        rank = {name: i for i, name in enumerate(self.axes)}
        return tuple(sorted(axes, key=lambda a: (self._place(a), rank[a])))

    def _place(self, axis: str) -> int:
        root = self.axes[axis].root
        if root.kind == "rows":
            return 3 if self.kernel.rows_last else 0
        return 1 if self.is_scan and root.place == "whole" else 2

    def shape(self, axes: tuple[str, ...]) -> str:
        blocks = [self.axes[a].block_name for a in axes]
        return f"({', '.join(blocks)}{',' if len(blocks) == 1 else ''})"

    def tile_index(self, axis: str) -> str:
        """The variable that holds which tile of the axis is at hand."""
        return f"tile_{self.axes[self.axes[axis].root.name].word}"


def align(tile: str, axes: tuple[str, ...], to: tuple[str, ...]) -> str:
    """The tile indexed so that it broadcasts against tiles with the axes ``to``, both in layout order."""
    if axes == to or not axes:
        return tile
    return f"{tile}[{', '.join(':' if a in axes else 'None' for a in to)}]"


def token_name(axis: TileAxis) -> str:
    """The variable that holds the rows' tokens, counted from the chunk's start."""
    return f"token_{axis.word}"


def step_name(axis: TileAxis) -> str:
    """The variable that holds the rows' numbers among those of their tokens."""
    return f"step_{axis.word}"


def _words(sizes: Mapping[str, int]) -> dict[str, str]:
    """The kernel's own names for counts, spelled out where a dimension of the recurrence has taken the letter."""
    plain = {"C": "CHUNK", "R": "ROWS", "T": "TOKENS", "H": "HEADS", "N": "CHUNKS", "G": "SEGMENTS", "L": "SEGMENT"}
    return {letter: word if letter in sizes else letter for letter, word in plain.items()}


def _roots(kernel: Kernel) -> dict[str, Axis]:
    """Declared axes and renamings, each with its declared axis, in the order of first mention."""
    loops = {s.axis for s in statements_of(kernel.body) if isinstance(s, Loop)}
    roots = {axis.name: axis for axis in kernel.axes}
    for axis in kernel.axes:  # an axis that nothing tiles here is whole, wherever other kernels place it
        if f"tile:{axis.name}" not in kernel.grid and axis.name not in loops:
            roots[axis.name] = replace(axis, place="whole")
    for statement in statements_of(kernel.body):
        if isinstance(statement, Let) and statement.op == "rename":
            roots.setdefault(str(statement.attr("new")), roots[str(statement.attr("old"))])
    return roots


def _is_turned(lets: Sequence[Let]) -> bool:
    """Whether rows, and runs of them, lie last first, so that threads scan forward: where scans go back in time."""
    ways = {bool(dict(let.attrs).get("reverse")) for let in lets if let.op in PRESCANS}
    if len(ways) > 1:
        raise ValueError("a kernel's scans between runs of rows go one way")
    return ways == {True}


def _dotted(kernel: Kernel, roots: Mapping[str, Axis]) -> set[str]:
    """The declared axes that take part in a matrix product, directly or under another name.

    Axes that are renamed into one another hold the same tile, so they are widened together.
    """
    group = {name: root.name for name, root in roots.items()}
    dotted: set[str] = set()
    for statement in statements_of(kernel.body):
        if not isinstance(statement, Let):
            continue
        if statement.op == "rename":
            old, new = group[str(statement.attr("old"))], group[str(statement.attr("new"))]
            group = {name: old if g == new else g for name, g in group.items()}
        elif statement.op in ("inverse", "weigh", "hadamard") or is_dot(statement):
            dotted |= {a for arg in statement.args for a in arg.axes}
    groups = {group[a] for a in dotted}
    return {roots[name].name for name in group if group[name] in groups}


def safe_name(name: str, taken: set[str]) -> str:
    """A Python identifier for ``name`` that is not taken, and takes it."""
    word = "".join(ch if ch.isalnum() or ch == "_" else "_" for ch in name)
    if not word or word[0].isdigit():
        word = f"x{word}"
    while word in taken or keyword.iskeyword(word):
        word += "_"
    taken.add(word)
    return word


def print_tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"

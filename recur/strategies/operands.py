"""What every kernel of a stage shares: its tensors, where they lie, which dims may be tiled, and sums over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recur.ir.core import Node, is_const, leaves, topological
from recur.ir.normal import LinearForm, NormalForm
from recur.ir.plan import Contribution, Gradient
from recur.ir.tile import Access, Axis, Buffer, Builder, Carry, Value
from recur.strategies.pointwise import emit_nodes

Dims = tuple[str, ...]

TENSOR_KINDS = ("input", "param", "prev", "value")

PROGRAM_ENTRIES = 128 * 128  # float32 values of one tile, of the largest that registers hold
WARP_ENTRIES = 256  # float32 values of one tile that a warp holds beside several others: 8 a thread

# A tensor's leading dimensions, by what it has one value for: (layout, access).
_PREFIX = {
    "token": (("B", "T", "H"), ("batch", "time", "head")),
    "chunk": (("B", "N", "H"), ("batch", "chunk", "head")),
    "segment": (("B", "G", "H"), ("batch", "segment", "head")),
    "sequence": (("B", "H"), ("batch", "head")),
    "head": (("H",), ("head",)),
}


# --- tensors ----------------------------------------------------------------------------------------------------------


def stage_name(normal: NormalForm) -> str:
    """What the stage's functions are named after: a log scale's stage has a dot in its name."""
    return normal.stage.name.replace(".", "_")


def alias_sizes(normal: NormalForm, sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Sizes of the names that linear forms give to their matrices' columns."""
    return tuple(
        (column, sizes[row])
        for form in normal.forms
        if isinstance(form, LinearForm)
        for row, column in zip(form.row, form.column, strict=True)
        if row in sizes and column not in sizes
    )


def argument_leaves(roots: Sequence[Node]) -> list[Node]:
    """The leaves that are tensors in memory, by first appearance."""
    return [n for n in leaves(roots) if n.attrs[0] in TENSOR_KINDS]


def tensor_name(leaf: Node) -> str:
    kind, name = leaf.attrs
    return f"prev.{name}" if kind == "prev" else str(name)


def argument_buffer(leaf: Node) -> Buffer:
    per = "head" if leaf.attrs[0] == "param" else "token"
    name = tensor_name(leaf)
    return make_buffer(name, per, leaf.dims, f"input:{name}", leaf.is_complex)


def make_buffer(name: str, per: str, dims: Dims, dtype: str = "accumulate", is_complex: bool = False) -> Buffer:
    """A tensor with one value of dims ``dims`` per "token", "chunk", "sequence" or "head"."""
    return Buffer(name, (*_PREFIX[per][0], *dims), dtype, is_complex)


def result_buffers(normal: NormalForm, outputs: frozenset[str]) -> tuple[Buffer, ...]:
    """The stage's exports: in the operand type where the user gets them, else in the accumulator's."""
    return tuple(
        make_buffer(name, "token", node.dims, "operand" if name in outputs else "accumulate", node.is_complex)
        for name, node in normal.epilogue
    )


def state_buffers(states: Sequence[Node], per: str, moment: str) -> tuple[Buffer, ...]:
    """A tensor for each state leaf: its value at the start or end of every sequence, chunk or token."""
    return tuple(make_buffer(moment_name(s, moment), per, s.dims, is_complex=s.is_complex) for s in states)


def moment_name(state: Node, moment: str) -> str:
    """The tensor that holds a state at a moment: "initial", "final", or one of the passes' own, such as "start"."""
    name = str(state.attrs[1])
    return {"initial": name, "final": f"final_{name}"}.get(moment, f"{name}.{moment}")


def complex_names(*groups: Sequence[Buffer]) -> frozenset[str]:
    return frozenset(b.name for group in groups for b in group if b.is_complex)


# --- placement --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """How a kernel's programs hold a stage: tokens as ``rows`` (None: one at a time), dims in ``tiled`` on the grid.

    ``chunked``: a program for every chunk of tokens, ``segmented``: one that walks a segment; else a program walks the
    whole sequence.
    """

    rows: str | None
    tiled: Dims
    dims: Dims
    chunked: bool = False
    segmented: bool = False

    @property
    def grid(self) -> tuple[str, ...]:
        part = ("chunk",) if self.chunked else ("segment",) if self.segmented else ()
        return ("batch", "head", *part, *(f"tile:{d}" for d in self.tiled))

    @property
    def axes(self) -> tuple[Axis, ...]:
        # A name such as K'2 is another name for K that a pass has introduced.
        sizes = tuple(Axis(d, "size", d.partition("'")[0], "grid" if d in self.tiled else "whole") for d in self.dims)
        return (Axis(self.rows, "rows", "T"), *sizes) if self.rows else sizes

    def token_axes(self, dims: Dims) -> Dims:
        return (self.rows, *dims) if self.rows else dims

    def access(self, name: str, per: str, dims: Dims) -> Access:
        return Access(name, (*_PREFIX[per][1], *dims), self.rows if per == "token" else None)

    def load(self, b: Builder, name: str, per: str, dims: Dims) -> Value:
        axes = self.token_axes(dims) if per == "token" else dims
        return b.load(name, self.access(name, per, dims), axes)

    def store(self, b: Builder, name: str, per: str, dims: Dims, value: Value, comment: str = "") -> None:
        axes = self.token_axes(dims) if per == "token" else dims
        b.store(self.access(name, per, dims), b.expand(value, axes), comment)

    def load_leaves(self, b: Builder, nodes: Sequence[Node], values: dict[Node, Value]) -> None:
        for leaf in nodes:
            per = "head" if leaf.attrs[0] == "param" else "token"
            values[leaf] = self.load(b, tensor_name(leaf), per, leaf.dims)

    def partial(self, dims: Dims) -> Dims:
        """The tiled dims that a tensor lacks: each program has its own part of such a tensor's gradient."""
        return tuple(d for d in self.tiled if d not in dims)

    def gradient_per(self, leaf: Node) -> str:
        """What an argument's gradient has one value for: a token, or for a param, this program's tokens together."""
        if leaf.attrs[0] != "param":
            return "token"
        return "chunk" if self.chunked else "segment" if self.segmented else "sequence"

    def store_gradient(self, b: Builder, leaf: Node, value: Value) -> None:
        per = self.gradient_per(leaf)
        prefix = _PREFIX[per][1] + tuple(f"tile:{d}" for d in self.partial(leaf.dims))
        axes = self.token_axes(leaf.dims) if per == "token" else leaf.dims
        access = Access(f"d_{tensor_name(leaf)}", (*prefix, *leaf.dims), self.rows if per == "token" else None)
        b.store(access, b.expand(value, axes))


def gradient_buffer(leaf: Node, frame: Frame) -> Buffer:
    """Where the programs leave an argument's gradient; sums over batches and tiles are taken afterwards, in order."""
    name, per = tensor_name(leaf), frame.gradient_per(leaf)
    tiles = tuple(f"tiles:{d}" for d in frame.partial(leaf.dims))
    dtype = f"input:{name}" if per == "token" and not tiles else "accumulate"
    return make_buffer(f"d_{name}", per, (*tiles, *leaf.dims), dtype, leaf.is_complex)


def gradient_line(leaf: Node, frame: Frame) -> Gradient:
    name, per = tensor_name(leaf), frame.gradient_per(leaf)
    programs = {"token": (), "sequence": ("B",), "chunk": ("B", "N"), "segment": ("B", "G")}[per]
    tiles = tuple(f"tiles:{d}" for d in frame.partial(leaf.dims))
    return Gradient(name, (Contribution(f"d_{name}", programs + tiles),))


def initial_line(state: Node) -> Gradient:
    name = str(state.attrs[1])
    return Gradient(name, (Contribution(f"d_{name}"),))


def all_dims(roots: Sequence[Node], *more: Dims) -> Dims:
    return tuple(dict.fromkeys(d for group in (*more, *(n.dims for n in topological(roots))) for d in group))


def tileable_dims(roots: Sequence[Node], owned: Sequence[Dims]) -> Dims:
    """Dims that split the work into independent programs: all of ``owned`` have them and no node mixes their entries.

    Then every cotangent has them too until it is summed for a tensor that lacks them; that sum is linear, so programs
    may each take their part of it.
    """
    mixed: set[str] = set()
    for node in topological(roots):
        if node.op in ("contract", "sum", "amax"):
            mixed.update(node.attrs[0])  # type: ignore[arg-type]
        elif node.op in ("rename", "eye", "index", "place", "hadamard"):
            mixed.update(a for a in node.attrs if isinstance(a, str))
    first = owned[0] if owned else ()
    return tuple(d for d in first if d not in mixed and all(d in dims for dims in owned))


def free_name(wanted: str, dims: Dims) -> str:
    """An axis name that no dimension has."""
    while wanted in dims:
        wanted += "_"
    return wanted


def carry_all(phis: Sequence[Value], inits: Sequence[Value], nexts: Sequence[Value]) -> tuple[Carry, ...]:
    return tuple(Carry(*c) for c in zip(phis, inits, nexts, strict=True))


# --- params -----------------------------------------------------------------------------------------------------------


def large_params(arguments: Sequence[Node], tiled: Dims, sizes: Mapping[str, int]) -> list[Node]:
    """Params that do not stay in registers beside the states and the sums of their gradients."""
    params = [n for n in arguments if n.attrs[0] == "param"]
    return [n for n in params if entries(tuple(d for d in n.dims if d not in tiled), sizes) > 4 * WARP_ENTRIES]


# Left where they are used: free there, and a sign change of a hoisted tile has crashed Triton's layout pass (3.6).
_FREE = ("neg", "conj", "real", "imag", "complex")


def per_head_nodes(roots: Sequence[Node], without: Sequence[Node] = ()) -> list[Node]:
    """The largest expressions of params alone: one value a head, so they are evaluated outside the loop over tokens.

    ``without``: params that are not at hand there.
    """
    order = topological(roots)
    varying = _varying(order)
    users = {a for n in order if n in varying or n.op in _FREE for a in n.args} | set(roots)
    fixed = [n for n in order if n not in varying and n in users and n.op not in _FREE]
    return [n for n in fixed if leaves([n]) and not set(leaves([n])) & set(without)]


def _varying(order: Sequence[Node]) -> set[Node]:
    found: set[Node] = set()
    for node in order:
        if (node.op == "leaf" and node.attrs[0] != "param") or any(a in found for a in node.args):
            found.add(node)
    return found


def emit_row_sum(b: Builder, node: Node, values: dict[Node, Value], rows: str, memo: dict[Node, Value]) -> Value:
    """The sum of a per-token node over the block's rows, those beyond the sequence left out.

    Linear parts are taken outside: sum_t x_t (x) y_t is one contraction over rows, and sum_t w x_t = w sum_t x_t for w
    that only depends on params. Otherwise a param's gradient would need a tile of rows times its own size.
    """
    if node not in memo:
        memo[node] = _emit_row_sum(b, node, values, rows, memo)
    return memo[node]


def _emit_row_sum(b: Builder, node: Node, values: dict[Node, Value], rows: str, memo: dict[Node, Value]) -> Value:
    args = node.args
    if node.op in ("add", "sub") and args[0].dims == args[1].dims == node.dims and _has_outer_part(node):
        return b.map(node.op, *(emit_row_sum(b, a, values, rows, memo) for a in args), name="dw")
    if node.op in ("neg", "real", "imag", "conj"):
        return b.map(node.op, emit_row_sum(b, args[0], values, rows, memo), name="dw")
    if node.op in ("expand", "rename", "sum", "hadamard", "place", "index"):
        total = emit_row_sum(b, args[0], values, rows, memo)
        return emit_nodes(b, [node], {args[0]: total}, name="dw")[0]
    if node.op in ("mul", "contract"):
        over: Dims = node.attrs[0] if node.op == "contract" else ()  # type: ignore[assignment]
        for factor, other in (args, args[::-1]):
            if not _varying(topological([factor])) and set(factor.dims) <= set(other.dims):
                total = emit_row_sum(b, other, values, rows, memo)
                weight = emit_nodes(b, [factor], values)[0]
                return b.contract(weight, total, over, "dw", "full") if over else b.mul(weight, total, name="dw")
        if over or args[0].dims != args[1].dims:
            left, right = emit_nodes(b, args, values)
            if rows in left.axes and rows in right.axes:
                return b.contract(b.valid(left, rows), b.valid(right, rows), (rows, *over), "dw", "full")
    tile = emit_nodes(b, [node], values)[0]
    if rows not in tile.axes:
        tile = b.expand(tile, (rows, *tile.axes))
    return b.sum(b.valid(tile, rows), (rows,), "dw")


def _has_outer_part(node: Node) -> bool:
    """Whether a sum over tokens leaves parts of the node outside; where it does not, one sum of all is less work."""
    if node.op in ("add", "sub", "neg", "real", "imag", "conj"):
        return any(_has_outer_part(a) for a in node.args)
    fixed = any(not _varying(topological([a])) for a in node.args)
    return node.op != "leaf" and (fixed or any(a.dims != node.dims for a in node.args))


def is_zero(node: Node) -> bool:
    """A gradient that is known to be zero (`pull_back` gives const(0), expanded)."""
    while node.op == "expand":
        node = node.args[0]
    return is_const(node, 0.0)


def gradient_buffers_of_states(states: Sequence[Node]) -> tuple[Buffer, ...]:
    return tuple(make_buffer(f"d_{s.attrs[1]}", "sequence", s.dims, is_complex=s.is_complex) for s in states)


# --- sizes ------------------------------------------------------------------------------------------------------------


def entries(dims: Dims, sizes: Mapping[str, int]) -> int:
    """How many values a tile of ``dims`` has; a dim of unknown size counts as 64."""
    return math.prod(sizes.get(d.partition("'")[0], 64) for d in dims)


def fit_tiles(
    per_program: int, tiled: Dims, sizes: Mapping[str, int], budget: int = WARP_ENTRIES
) -> tuple[tuple[tuple[str, int], ...], int]:
    """Widths of the tiled dims, and warps, so that tiles of ``per_program`` values times the widths fit registers.

    Four warps hold tiles of 4 * ``budget`` values, beside several others. The last dim, whose values lie next to one
    another in memory, is cut last.
    """
    room = max(4 * budget // per_program, 1)
    widths = []
    for dim in reversed(tiled):
        full = 1 << (entries((dim,), sizes) - 1).bit_length()
        width = min(full, 1 << (room.bit_length() - 1))
        widths.append((dim, width))
        room = max(room // width, 1)
    total = per_program * math.prod(width for _, width in widths)
    warps = next((w for w in (4, 8) if total <= w * budget), 16)
    return tuple(reversed(widths)), warps


def widest_tile(roots: Sequence[Node], tiled: Dims, sizes: Mapping[str, int], rows: bool = False) -> int:
    """The most values that one operation holds of untiled dims; ``rows``: that it holds for each row of tokens.

    A contraction holds what it sums as well, but for products with rows, which are left to the matrix units.
    """
    order = topological(roots)
    shapes = [n.dims for n in order if n in _varying(order)] if rows else [work_dims(n) for n in order]
    return max((entries(tuple(d for d in dims if d not in tiled), sizes) for dims in shapes), default=1)


def find_limits(roots: Sequence[Node], frame: Frame, sizes: Mapping[str, int], chunk: int = 1) -> tuple[str, ...]:
    """What one program would hold beyond its registers: a tile, or the sums of the params' gradients."""
    order = topological(roots)
    varying = _varying(order)
    held = [(n.dims if frame.rows else work_dims(n)) for n in order if n in varying or not frame.rows]
    untiled = [tuple(d for d in dims if d not in frame.tiled) for dims in held]
    widest = max(untiled, key=lambda dims: entries(dims, sizes), default=())
    limits = []
    if chunk * entries(widest, sizes) > 2 * PROGRAM_ENTRIES or entries(widest, sizes) > PROGRAM_ENTRIES:
        shape = " x ".join(str(entries((d,), sizes)) for d in widest)
        limits.append(f"a program would hold a tile of {shape} values ({', '.join(widest)})"
                      + (f" for each of {chunk} tokens" if chunk > 1 else ""))
    params = large_params(argument_leaves(roots), frame.tiled, sizes)
    own = [(n, tuple(d for d in n.dims if d not in frame.tiled)) for n in params]
    total = sum(entries(dims, sizes) * (2 if n.is_complex else 1) for n, dims in own)
    if total > 2 * PROGRAM_ENTRIES:
        names = ", ".join(tensor_name(n) for n in params)
        limits.append(f"a program would sum the gradients of {names}, {total} values, in its registers")
    return tuple(limits)


def work_dims(node: Node) -> Dims:
    """The dims that an operation runs over: its result's, and those that it sums."""
    inner = [d for a in node.args for d in a.dims] if node.op == "contract" else []
    return tuple(dict.fromkeys((*node.dims, *inner)))

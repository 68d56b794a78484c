"""Tile programs: the bodies of kernels, as single-assignment operations on tiles with named axes.

A kernel runs one program per point of its grid. A tile is a block of a tensor that a program holds; its axes have
names, elementwise operations align them by name and broadcast the rest, so no operation states a layout. The printers
decide orders, padding and data types: values are float32 (float64 where the inputs are), except that `contract` and
`weigh` may round their operands to the kernel's operand type. A program holds tokens

* as rows: an axis of kind "rows" is the block of `C` tokens of the current chunk (chunk n holds tokens n C + row), or
  a tile of R of them, where chunks are longer than what a tile holds (rows r R ... r R + R - 1 of the chunk); in a plan
  whose tokens have several steps, each has a row for every step, or
* one at a time, inside a loop over steps, with no axis at all.

Tokens past the end read as zero and are not stored. Padding of an axis is the printer's business: a reduction or a
contraction never sees it.

Operations (`Let.op`; any elementwise row of `recur.operators` is one too, by its name):

    const (value)                   a number
    size (dim)                      a dimension's size as a number
    load (buffer, shift)            reads the buffer's block for this program; see `Access`
    contract x, y (over, precision) sum over axes `over` of x * y (empty: the tensor product). precision "operand": on
                                    the matrix units with operands rounded to the operand type where the shapes allow;
                                    "split": y in two parts, the second what rounding has left of it; "full": float32
                                    throughout
    weigh x, y, gx, gy (over)       sum over axes `over` of x * y * exp2(gx - gy), exponents taken as differences.
                                    x and gx have the rows axis c, y and gy the rows axis s. Only pairs with
                                    row c >= row s count for the caller; the others may come out as anything finite
    sum x (over), amax x (over)     reductions
    cumsum x (axis, exclusive)      running sum along a rows axis
    scan a, x (axis)                two results: running products of a, and h_r = a_r h_{r-1} + x_r with h_{-1} = 0
                                    (an attr `reverse`: from the block's last row to its first, h_r = a_r h_{r+1} + x_r)
    prescan a, x (axis, runs)       four results: the running products of a and h_r = a_r h_{r-1} + x_r from h_{-1} = 0,
                                    both *before* every run of rows (the axis `runs` in the place of the rows: runs of
                                    equal length, in order), then both after the block's last row (`reverse`:
                                    h_r = a_r h_{r+1} + x_r, before is after in time, and the last row is the first)
    resume a, x, h (axis, runs)     h_r = a_r h_{r-1} + x_r *before* every row (an attr `inclusive`: after it) from h
                                    before every run (`reverse` as above)
    maxprescan g, x; maxresume      the same of running sums of g and m_r = max(m_{r-1} + g_r, x_r) from m_{-1} = -inf
    previous x, first (axis)        row r is x's row r - 1, row 0 is `first` (`reverse`: row r + 1, the last is `first`)
    last x (axis)                   x at the block's last row, padding included (`reverse`: at its first row)
    rename x (old, new)             the same tile with an axis renamed
    expand x (axes)                 broadcasts
    rounded x                       x in the kernel's operand type: what a product would make of it
    after x, y (axes c, s; offset)  a boolean tile: row index of c - row index of s >= offset, both counted from the
                                    chunk's start, also where the axes are tiles of rows
    middle x (axis), right (axis), apart (axes c, s), together (axes c, s)
                                    in a loop over levels, of rows axes that hold chunks whole: every row becomes x's
                                    last row before the middle of its block; whether a row is in the right half of its
                                    block; whether two rows are in the two halves of one block; in the same half of one
    start x (axis, rows), end x (axis, rows), beside (axes c, s; rows), across (axes c, s; rows)
                                    the chunk in blocks of `rows` rows: every row becomes x's last row before its block,
                                    0 in the first one; every row becomes the last row of its block; whether row s comes
                                    before row c in c's block; whether it does in an earlier one
    room                            a number r so that the operand type holds what is within 2^-r and 2^r, with digits
                                    of a float32 to spare on either side; 0 for a type that has no such r
    valid x (axis, fill)            x on rows within the sequence, `fill` elsewhere
    at_step x (axis, step, fill)    x on that row of each token, `fill` on its others
    inverse L (row, column)         (I + L)^{-1} for L strictly lower triangular in (row, column), in full precision
    select (fused, part, outer, inner)  one where the index of `fused`, which runs over all combinations of the axes
                                    outer, part, inner, row-major, has the index of `part`
    eye (row, column), index x (axis, i), place x (axis, i), hadamard x (axis)
    zeros (axes), full (axes, value)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Place = Literal["whole", "grid", "loop"]


@dataclass(frozen=True)
class Axis:
    """A named tile axis.

    kind "rows": the C tokens of a chunk. Otherwise the axis runs over a dimension of size `extent` (a name, or a
    number where the size is fixed). Either is whole in one tile, or in tiles whose index comes from the grid ("grid")
    or from a loop inside the program ("loop"). Tiles of rows have one width in a kernel, which divides C. Two
    axes of rows that are tiles hold different tokens: no tile is renamed from one to the other.
    """

    name: str
    kind: Literal["rows", "size"]
    extent: str
    place: Place = "whole"


@dataclass(frozen=True)
class Value:
    """A tile: its name in the printed program, and its axes."""

    name: str
    axes: tuple[str, ...]
    is_complex: bool = False
    is_bool: bool = False


Attr = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True)
class Access:
    """Which block of a buffer: per dimension of the buffer's layout, in order, one of

    "batch", "head"     this program's batch and head
    "time"              the current token(s): the rows axis `rows` where the tile has one, else the loop's step
    "chunk"             the current chunk's index plus `chunk_offset`
    "segment"           the current segment's index: the program's, or the loop's over segments
    an axis name        that tile axis
    "tile:X"            the index of this program's tile of axis X (for partial results)
    "step"              the row's number among its token's, where tokens have a row for each of several steps

    ``shift`` is added to the token: -1 reads the previous one. ``step``: the only row of a token's several that the
    buffer has; the others read as zero and are not stored.
    """

    buffer: str
    index: tuple[str, ...]
    rows: str | None = None
    shift: int = 0
    chunk_offset: int = 0
    step: int | None = None


@dataclass(frozen=True)
class Let:
    """out = op(args). `attrs` are (name, value) pairs; `comment` says why, or which line of the spec."""

    outs: tuple[Value, ...]
    op: str
    args: tuple[Value, ...] = ()
    attrs: tuple[tuple[str, Attr], ...] = ()
    access: Access | None = None
    comment: str = ""

    @property
    def out(self) -> Value:
        return self.outs[0]

    def attr(self, name: str) -> Attr:
        return dict(self.attrs)[name]


@dataclass(frozen=True)
class Store:
    """Writes a tile to its block of a buffer; rows past the sequence's end are left out."""

    access: Access
    value: Value
    comment: str = ""


@dataclass(frozen=True)
class Carry:
    """A value carried round a loop: `phi` is its value in the body and, after the loop, the final one."""

    phi: Value
    init: Value
    next: Value


@dataclass(frozen=True)
class Loop:
    """over "chunks": all chunks of the sequence, or of the grid's segment where the kernel has one; "segments": all
    segments of the sequence; "steps": the tokens of the sequence, or of the grid's chunk where the kernel has one;
    "tiles": the tiles of `axis`; "levels": l = 0, 1, ... while 2^l < C, at which a chunk falls into blocks of 2^(l+1)
    rows, each of two halves, of blocks of at most `rows` rows where that is given, else of all; "once": one iteration.
    `reverse`: from the last to the first. `needed`: a condition; where it does not hold, the loop changes nothing of
    what is carried, and may be left out.

    Tiles of rows: the loop starts at the tile of the rows axis `first` on the grid, and ends with that of `last`,
    where they are given. It may leave out tiles that lie past the sequence's end. A backend that holds chunks whole
    has one tile, and runs the body once.
    """

    over: Literal["chunks", "segments", "steps", "tiles", "levels", "once"]
    carries: tuple[Carry, ...]
    body: tuple[Statement, ...]
    reverse: bool = False
    axis: str | None = None
    first: str | None = None
    last: str | None = None
    rows: int | None = None
    needed: Value | None = None

    def count_levels(self, chunk: int) -> int:
        """How many levels a chunk of so many rows has."""
        return (min(chunk, self.rows or chunk) - 1).bit_length()


Statement = Let | Store | Loop


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory. `layout` names its dimensions:

    "B", "T", "H"   batch, tokens, heads;  "N" chunks of the sequence;  "N+1" their boundaries;  "C" rows of a chunk
    "G"             segments of the sequence (runs of whole chunks, which programs walk at the same time)
    "tiles:X"       one entry a tile of axis X;  any other name: a dimension of the recurrence

    B, T, G, N and "N+1" stand before "H" only, and what follows "H" is "C", "tiles:X" or a dimension, so that a
    recurrence may have a dimension named N or B.

    dtype: "input:NAME" that tensor's, "operand" the inputs' own type, "accumulate" float32 (float64 for float64).

    ``of``: the buffer without segments that the entry ``entry`` (0 the first, -1 the last) along "G" is. Where the
    sequence is one segment, the two are one tensor.
    """

    name: str
    layout: tuple[str, ...]
    dtype: str = "accumulate"
    is_complex: bool = False
    doc: str = ""
    of: str = ""
    entry: int = 0


@dataclass(frozen=True)
class Kernel:
    """One launch. `grid` in order: "batch", "head", "segment", "chunk" and "tile:X" for an axis X placed on the grid.

    `role`, `equations`: what the kernel does, and the mathematics that its body implements, a line each, for the header
    of the printed kernel.
    `widths`: for axes in tiles on the grid, the widths with which the body's tiles fit `warps` warps' registers, where
    the strategy knows them; `stages`: how many chunks a walk then has in flight. ``joins_segments``: it is launched
    only where the sequence has several segments. ``rows_last``: tiles have their dims before their rows, so that eight
    warps share a product of two whole sides, and do not each do a chunk's rows.
    """

    name: str
    grid: tuple[str, ...]
    axes: tuple[Axis, ...]
    body: tuple[Statement, ...]
    equations: tuple[str, ...] = ()
    role: str = ""
    widths: tuple[tuple[str, int], ...] = ()
    warps: int | None = None
    stages: int = 2
    joins_segments: bool = False
    rows_last: bool = False

    def axis(self, name: str) -> Axis:
        return next(a for a in self.axes if a.name == name)


@dataclass
class Builder:
    """Collects the statements of a body; each method adds one operation and returns its tile.

    Names are made unique by a suffix, so a builder may be handed the symbols of the paper.
    """

    statements: list[Statement] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    complex_buffers: frozenset[str] = frozenset()

    def name(self, wanted: str) -> str:
        count = self.taken.get(wanted, 0)
        self.taken[wanted] = count + 1
        return wanted if count == 0 else self.name(f"{wanted}_{count + 1}")

    def nested(self) -> Builder:
        """A builder for a loop's body: its own statements, the same names."""
        return Builder([], self.taken, self.complex_buffers)

    def let(
        self,
        name: str,
        op: str,
        args: tuple[Value, ...],
        axes: tuple[str, ...],
        attrs: tuple[tuple[str, Attr], ...] = (),
        access: Access | None = None,
        is_complex: bool | None = None,
        is_bool: bool = False,
        comment: str = "",
    ) -> Value:
        if is_complex is None:
            is_complex = any(a.is_complex for a in args)
        out = Value(self.name(name), axes, is_complex, is_bool)
        self.statements.append(Let((out,), op, args, attrs, access, comment))
        return out

    # memory

    def load(self, name: str, access: Access, axes: tuple[str, ...], comment: str = "") -> Value:
        is_complex = access.buffer in self.complex_buffers
        return self.let(name, "load", (), axes, access=access, is_complex=is_complex, comment=comment)

    def store(self, access: Access, value: Value, comment: str = "") -> None:
        self.statements.append(Store(access, value, comment))

    # elementwise

    def map(
        self, op: str, *args: Value, name: str = "x", attrs: tuple[tuple[str, Attr], ...] = (), comment: str = ""
    ) -> Value:
        from recur.operators import OPERATORS

        axes = tuple(dict.fromkeys(a for v in args for a in v.axes))
        widest = max(args, key=lambda v: len(v.axes)).axes
        axes = widest if set(widest) == set(axes) else axes
        row = OPERATORS[op]
        is_complex = row.result_is_complex(tuple(v.is_complex for v in args if not v.is_bool))
        is_bool = row.symbol in ("<", "<=", ">", ">=", "==", "!=")
        return self.let(name, op, args, axes, attrs, is_complex=is_complex, is_bool=is_bool, comment=comment)

    def const(self, value: float, name: str = "number") -> Value:
        return self.let(name, "const", (), (), (("value", float(value)),))

    def zeros(self, axes: tuple[str, ...], name: str = "zero", is_complex: bool = False) -> Value:
        return self.let(name, "zeros", (), axes, is_complex=is_complex)

    def full(self, axes: tuple[str, ...], value: float, name: str = "fill") -> Value:
        return self.let(name, "full", (), axes, (("value", value),))

    def add(self, x: Value, y: Value, name: str = "sum", comment: str = "") -> Value:
        return self.map("add", x, y, name=name, comment=comment)

    def sub(self, x: Value, y: Value, name: str = "difference", comment: str = "") -> Value:
        return self.map("sub", x, y, name=name, comment=comment)

    def mul(self, x: Value, y: Value, name: str = "product", comment: str = "") -> Value:
        return self.map("mul", x, y, name=name, comment=comment)

    def neg(self, x: Value, name: str = "minus") -> Value:
        return self.map("neg", x, name=name)

    def exp2(self, x: Value, name: str = "scale", comment: str = "") -> Value:
        return self.map("exp2", x, name=name, comment=comment)

    def where(self, condition: Value, x: Value, y: Value, name: str = "chosen", comment: str = "") -> Value:
        return self.map("where", condition, x, y, name=name, comment=comment)

    # structure

    def contract(
        self,
        x: Value,
        y: Value,
        over: tuple[str, ...],
        name: str = "dot",
        precision: str = "operand",
        comment: str = "",
    ) -> Value:
        axes = tuple(a for a in dict.fromkeys(x.axes + y.axes) if a not in over)
        return self.let(name, "contract", (x, y), axes, (("over", over), ("precision", precision)), comment=comment)

    def weigh(
        self, x: Value, y: Value, gx: Value, gy: Value, over: tuple[str, ...], name: str = "scores", comment: str = ""
    ) -> Value:
        axes = tuple(a for a in dict.fromkeys(x.axes + y.axes + gx.axes + gy.axes) if a not in over)
        return self.let(name, "weigh", (x, y, gx, gy), axes, (("over", over),), is_complex=x.is_complex or y.is_complex,
                        comment=comment)

    def sum(self, x: Value, over: tuple[str, ...], name: str = "total", comment: str = "") -> Value:
        if not over:
            return x
        kept = tuple(a for a in x.axes if a not in over)
        return self.let(name, "sum", (x,), kept, (("over", over),), comment=comment)

    def amax(self, x: Value, over: tuple[str, ...], name: str = "highest") -> Value:
        return self.let(name, "amax", (x,), tuple(a for a in x.axes if a not in over), (("over", over),))

    def cumsum(self, x: Value, axis: str, exclusive: bool = False, name: str = "running", comment: str = "") -> Value:
        return self.let(name, "cumsum", (x,), x.axes, (("axis", axis), ("exclusive", exclusive)), comment=comment)

    def scan(
        self, a: Value, x: Value, axis: str, names: tuple[str, str] = ("decay", "h"), reverse: bool = False
    ) -> tuple[Value, Value]:
        axes = tuple(dict.fromkeys(a.axes + x.axes))
        is_complex = a.is_complex or x.is_complex
        first = Value(self.name(names[0]), axes, is_complex)
        second = Value(self.name(names[1]), axes, is_complex)
        self.statements.append(Let((first, second), "scan", (a, x), _along(axis, reverse)))
        return first, second

    def prescan(
        self,
        a: Value,
        x: Value,
        axis: str,
        runs: str,
        op: str = "prescan",
        names: tuple[str, str] = ("decay", "h"),
        reverse: bool = False,
    ) -> tuple[Value, Value, Value, Value]:
        axes = tuple(runs if n == axis else n for n in dict.fromkeys(a.axes + x.axes))
        rest = tuple(n for n in axes if n != runs)
        is_complex = a.is_complex or x.is_complex
        decay, h = (Value(self.name(f"{n}_before"), axes, is_complex) for n in names)
        decay_end, h_end = (Value(self.name(f"{n}_all"), rest, is_complex) for n in names)
        outs = (decay, h, decay_end, h_end)
        self.statements.append(Let(outs, op, (a, x), (*_along(axis, reverse), ("runs", runs))))
        return outs

    def resume(
        self,
        a: Value,
        x: Value,
        h: Value,
        axis: str,
        runs: str,
        op: str = "resume",
        name: str = "h",
        reverse: bool = False,
        inclusive: bool = False,
        comment: str = "",
    ) -> Value:
        axes = tuple(axis if n == runs else n for n in h.axes)
        attrs: tuple[tuple[str, Attr], ...] = (*_along(axis, reverse), ("runs", runs))
        if inclusive:
            attrs += (("inclusive", True),)
        return self.let(name, op, (a, x, h), axes, attrs, comment=comment)

    def previous(
        self, x: Value, first: Value, axis: str, name: str = "previous", reverse: bool = False, comment: str = ""
    ) -> Value:
        return self.let(name, "previous", (x, first), x.axes, _along(axis, reverse), comment=comment)

    def last(self, x: Value, axis: str, name: str = "last", reverse: bool = False) -> Value:
        return self.let(name, "last", (x,), tuple(a for a in x.axes if a != axis), _along(axis, reverse))

    def rename(self, x: Value, old: str, new: str, name: str | None = None) -> Value:
        axes = tuple(new if a == old else a for a in x.axes)
        name = name or f"{x.name}_{new}"
        return self.let(name, "rename", (x,), axes, (("old", old), ("new", new)), is_bool=x.is_bool)

    def expand(self, x: Value, axes: tuple[str, ...], name: str | None = None) -> Value:
        return x if x.axes == axes else self.let(name or x.name, "expand", (x,), axes)

    def after(self, row: str, column: str, offset: int, name: str = "seen") -> Value:
        return self.let(name, "after", (), (row, column), (("offset", offset),), is_complex=False, is_bool=True)

    def middle(self, x: Value, axis: str, name: str = "middle") -> Value:
        return self.let(name, "middle", (x,), x.axes, (("axis", axis),))

    def right(self, axis: str, name: str = "is_right") -> Value:
        return self.let(name, "right", (), (axis,), (("axis", axis),), is_complex=False, is_bool=True)

    def apart(self, row: str, column: str, name: str = "is_apart") -> Value:
        return self.let(name, "apart", (), (row, column), is_complex=False, is_bool=True)

    def start(self, x: Value, axis: str, rows: int, name: str = "start") -> Value:
        return self.let(name, "start", (x,), x.axes, (("axis", axis), ("rows", rows)))

    def end(self, x: Value, axis: str, rows: int, name: str = "end") -> Value:
        return self.let(name, "end", (x,), x.axes, (("axis", axis), ("rows", rows)))

    def beside(self, row: str, column: str, rows: int, name: str = "is_beside") -> Value:
        return self.let(name, "beside", (), (row, column), (("rows", rows),), is_complex=False, is_bool=True)

    def across(self, row: str, column: str, rows: int, name: str = "is_across") -> Value:
        return self.let(name, "across", (), (row, column), (("rows", rows),), is_complex=False, is_bool=True)

    def together(self, row: str, column: str, name: str = "is_together") -> Value:
        return self.let(name, "together", (), (row, column), is_complex=False, is_bool=True)

    def room(self) -> Value:
        return self.let("room", "room", (), ())

    def rounded(self, x: Value, name: str | None = None) -> Value:
        return self.let(name or x.name, "rounded", (x,), x.axes)

    def valid(self, x: Value, axis: str, fill: float = 0.0, name: str | None = None) -> Value:
        return self.let(name or x.name, "valid", (x,), x.axes, (("axis", axis), ("fill", fill)))

    def inverse(self, lower: Value, row: str, column: str, name: str = "Tm", comment: str = "") -> Value:
        return self.let(name, "inverse", (lower,), (row, column), (("row", row), ("column", column)), comment=comment)

    # control

    def loop(
        self,
        over: Literal["chunks", "segments", "steps", "tiles", "levels", "once"],
        body: Builder,
        carries: tuple[Carry, ...],
        reverse: bool = False,
        axis: str | None = None,
        first: str | None = None,
        last: str | None = None,
        rows: int | None = None,
        needed: Value | None = None,
    ) -> None:
        statements = tuple(body.statements)
        self.statements.append(Loop(over, carries, statements, reverse, axis, first, last, rows, needed))

    def phi(self, name: str, like: Value) -> Value:
        """A name for a carried value, to be used inside the body and in its `Carry`."""
        return Value(self.name(name), like.axes, like.is_complex)


def _along(axis: str, reverse: bool) -> tuple[tuple[str, Attr], ...]:
    return (("axis", axis), ("reverse", True)) if reverse else (("axis", axis),)


def next_power_of_two(n: int) -> int:
    """The least width of a padded axis of n entries."""
    return 1 << max(n - 1, 0).bit_length()

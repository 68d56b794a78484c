"""Tile operations as Triton expressions, on values as values.py gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from recur.codegen.triton_printer import complex_numbers
from recur.codegen.triton_printer.complex_numbers import Pair
from recur.codegen.triton_printer.config import is_matrix_product
from recur.codegen.triton_printer.inlining import LONGEST
from recur.codegen.triton_printer.layout import Layout, TileAxis, align, step_name
from recur.codegen.triton_printer.padding import Fill, Fills
from recur.codegen.triton_printer.values import Tile, Values, bare
from recur.ir.tile import Let, Value
from recur.operators import OPERATORS

ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg"})
# Operations whose text needs no parentheses as an operation's left and right operand.
_SUMS, _PRODUCTS = frozenset({"add", "sub"}), frozenset({"mul", "div"})
LOOSER = {
    "add": (_SUMS | _PRODUCTS, _PRODUCTS),
    "sub": (_SUMS | _PRODUCTS, _PRODUCTS),
    "mul": (_PRODUCTS, frozenset()),
    "div": (_PRODUCTS, frozenset()),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), (_SUMS | _PRODUCTS, _SUMS | _PRODUCTS)),
}
IEEE_SIDE = 32  # larger float32 products go through the matrix units in three tf32 passes


class OperationPrinter(Values):
    """Prints single-assignment operations of one kernel; an operation `x` is printed by `_print_x`, if there is one."""

    def __init__(
        self, layout: Layout, names: Mapping[str, str], padding: Mapping[str, Fills], inlinable: frozenset[str]
    ) -> None:
        """``inlinable``: values that are written where they are used if that is short, or if they have no name."""
        super().__init__(layout, names, padding)
        self.inlinable = inlinable
        self.inlined: set[str] = set()
        self.selections: dict[str, Let] = {}

    def print_let(self, let: Let) -> list[str]:
        printer: Callable[[Let], list[str]] | None = getattr(self, f"_print_{let.op}", None)
        return printer(let) if printer is not None else self._print_elementwise(let)

    def _print_elementwise(self, let: Let) -> list[str]:
        if all(self.tile(arg).is_number for arg in let.args):
            return self._fold(let)
        axes = self.layout.order(tuple({a: None for arg in let.args for a in arg.axes}))
        args = [self.aligned(arg, axes) for arg in let.args]
        attrs = tuple(value for _, value in let.attrs)
        parts = complex_numbers.apply(let.op, args, attrs)
        if parts is None and let.op == "pow":
            parts = Pair(print_power(args[0].re, float(attrs[0])))  # type: ignore[arg-type]
        elif parts is None:
            tensors = [self._as_tensor(let.op, arg, p.re) for arg, p in zip(let.args, args, strict=True)]
            parts = Pair(OPERATORS[let.op].triton.format(*self._unwrapped(let, tensors)))
        if let.op in ("real", "imag"):
            return self.alias(let.out, parts, is_number(parts.re))
        out_axes = self.layout.order(let.out.axes)
        if let.out.is_complex:
            shape = self.layout.shape(out_axes)
            parts = Pair(
                *(f"tl.full({shape}, {p}, tl.float32)" if is_number(p) else p for p in (parts.re, parts.im or "0.0"))
            )
        if axes != out_axes:
            parts = parts.map(
                lambda part: f"tl.broadcast_to({align(part, axes, out_axes)}, {self.layout.shape(out_axes)})"
            )
        if let.out.name in self.inlinable and (len(parts.re) <= LONGEST or let.out.name not in self.names):
            self.inlined.add(let.out.name)
            self.tiles[let.out.name] = Tile(parts, out_axes, op=let.op)
            return []
        return self.bind(let.out, parts)

    def _unwrapped(self, let: Let, texts: list[str]) -> list[str]:
        """Operands without the parentheses that the operation around them does not need."""
        around = OPERATORS[let.op]
        if around.symbol is None and around.triton.startswith("tl."):
            return [bare(text) for text in texts]
        looser = LOOSER.get(let.op, (frozenset(), frozenset()))
        inner = [self.tile(arg).op for arg in let.args]
        return [
            bare(text) if op and op in looser[min(side, 1)] else text
            for side, (text, op) in enumerate(zip(texts, inner, strict=True))
        ]

    def _as_tensor(self, op: str, arg: Value, text: str) -> str:
        """Functions of Triton take tensors; operators take numbers as they are."""
        is_function = OPERATORS[op].symbol is None and op not in ("where", "max", "min")
        return f"tl.full((), {text}, tl.float32)" if is_function and self.tile(arg).is_number else text

    def _fold(self, let: Let) -> list[str]:
        """An operation on numbers: arithmetic stays as it was written, functions are evaluated."""
        texts = [self.tile(arg).parts.re for arg in let.args]
        if let.op in ARITHMETIC:
            return self.alias(let.out, Pair(OPERATORS[let.op].triton.format(*texts)), is_number=True)
        if let.op == "pow":
            return self.alias(let.out, Pair(f"({texts[0]} ** {let.attrs[0][1]})"), is_number=True)
        args = [f"tl.full((), {text}, tl.float32)" for text in texts]
        return self.bind(
            let.out,
            complex_numbers.apply(let.op, [Pair(a) for a in args], ()) or Pair(OPERATORS[let.op].triton.format(*args)),
        )

    def _print_const(self, let: Let) -> list[str]:
        return self.alias(let.out, Pair(number(float(let.attr("value")))), is_number=True)  # type: ignore[arg-type]

    def _print_size(self, let: Let) -> list[str]:
        return self.alias(let.out, Pair(str(let.attr("dim"))), is_number=True)

    def _print_zeros(self, let: Let) -> list[str]:
        return self._print_filled(let, 0.0)

    def _print_full(self, let: Let) -> list[str]:
        return self._print_filled(let, float(let.attr("value")))  # type: ignore[arg-type]

    def _print_filled(self, let: Let, value: float) -> list[str]:
        shape = self.layout.shape(self.layout.order(let.out.axes)) if let.out.axes else "()"
        zero = f"tl.full({shape}, 0.0, tl.float32)" if not let.out.axes else f"tl.zeros({shape}, tl.float32)"
        filled = zero if value == 0 else f"tl.full({shape}, {number(value)}, tl.float32)"
        return self.bind(let.out, Pair(filled, zero if let.out.is_complex else None))

    def _print_contract(self, let: Let) -> list[str]:
        x, y = let.args
        over = tuple(let.attr("over"))  # type: ignore[arg-type]
        reshaped = self._reshaped(let)
        if reshaped is not None:
            return self.bind(let.out, reshaped)
        left, right = self.summable(x, y, over)
        if is_matrix_product(x, y, over):
            return self._print_dot(let, left, right, over[0])
        axes = self.layout.order(tuple(dict.fromkeys(x.axes + y.axes)))
        product = complex_numbers.multiply(
            left.map(lambda part: align(part, self.tile(x).axes, axes)),
            right.map(lambda part: align(part, self.tile(y).axes, axes)),
        )
        return self.bind(let.out, product.map(lambda part: self._sum(part, axes, over)))

    def _print_dot(self, let: Let, left: Pair, right: Pair, over: str) -> list[str]:
        """The operand that holds the result's first axis goes left, so the result lies as it should."""
        x, y = let.args
        split = y.name if let.attr("precision") == "split" else None
        first = self.layout.order(let.out.axes)[0]
        if first not in x.axes:
            x, y, left, right = y, x, right, left
        in_full = let.attr("precision") == "full"
        cast = "" if in_full else ".to(DOT)"
        sides = [self.layout.axes[a].block for a in (*let.out.axes, over)]
        precision = "ieee" if max(sides) <= IEEE_SIDE else "tf32x3"
        # The cast comes first: a loaded tile's conversions to float32 and back then fold; it stays in shared memory.
        cast_left = lambda part: transposed(part + cast, self.tile(x).axes[1] != over)  # noqa: E731
        cast_right = lambda part: transposed(part + cast, self.tile(y).axes[0] != over)  # noqa: E731
        dot = lambda a, b, c="": f'tl.dot({a}, {b}{c}, input_precision="{precision}")'  # noqa: E731
        product = complex_numbers.multiply_with(dot, left.map(cast_left), right.map(cast_right))
        if split is not None:
            rest = f"_rest({bare((left if x.name == split else right).re)}, DOT)"
            first, second = (rest if z.name == split else side.re for z, side in ((x, left), (y, right)))
            product = Pair(dot(cast_left(first), cast_right(second), f", {product.re}"))
        return self.bind(let.out, product)

    def _print_weigh(self, let: Let) -> list[str]:
        x, y, gx, gy = let.args
        over = tuple(let.attr("over"))  # type: ignore[arg-type]
        left, right = self.summable(x, y, over)
        if set(gx.axes + gy.axes) <= set(let.out.axes) and is_matrix_product(x, y, over):
            return self._weigh_outside(let, left, right, over[0])
        if set(gx.axes + gy.axes) <= set(x.axes) and is_matrix_product(x, y, over):
            return self._weigh_inside(let, left, right, over[0])
        return self._weigh_per_pair(let, left, right, over)

    def _decay(self, gx: Value, gy: Value, axes: tuple[str, ...]) -> str:
        difference = f"{self.aligned(gx, axes).re} - {self.aligned(gy, axes).re}"
        return f"tl.exp2(tl.minimum({difference}, 0.0))"

    def _weigh_outside(self, let: Let, left: Pair, right: Pair, over: str) -> list[str]:
        """The gates belong to the result's two axes: a product of matrices, then the decay of each pair."""
        dotted = Let(let.outs, "contract", let.args[:2], (("over", (over,)), ("precision", "operand")))
        lines = self._print_dot(dotted, left, right, over)
        decay = self._decay(let.args[2], let.args[3], self.layout.order(let.out.axes))
        return lines + [f"{line.split(' = ')[0]} *= {decay}" for line in lines]

    def _weigh_inside(self, let: Let, left: Pair, right: Pair, over: str) -> list[str]:
        """The gates belong to the axes of x: its entries decay before the product of matrices."""
        x, _, gx, gy = let.args
        decay = self._decay(gx, gy, self.tile(x).axes)
        dotted = Let(let.outs, "contract", let.args[:2], (("over", (over,)), ("precision", "operand")))
        return self._print_dot(dotted, left.map(lambda part: f"({part} * {decay})"), right, over)

    def _weigh_per_pair(self, let: Let, left: Pair, right: Pair, over: tuple[str, ...]) -> list[str]:
        """The gates differ along a size axis: by blocks of rows, in helpers.py."""
        x, _, gx, gy = let.args
        row = next(a for a in gx.axes if self.layout.axes[a].root.kind == "rows")
        column = next(a for a in gy.axes if self.layout.axes[a].root.kind == "rows")
        size = next(a for a in gx.axes + gy.axes if a not in (row, column))
        gates = f"{self.expanded(gx, (row, size)).re}, {self.expanded(gy, (column, size)).re}"
        rows, entries = self.layout.axes[row], self.layout.axes[size]
        precision = "ieee" if max(rows.block, entries.block) <= IEEE_SIDE else "tf32x3"
        shape = f'{rows.block_name}, {entries.block_name}, {rows.block.bit_length() - 1}, DOT, "{precision}"'
        call = "_weigh_sizes" if over == (size,) else "_weigh_columns" if over == (column,) else "_weigh_rows"
        if over != (size,) and size in x.axes:
            left, right = right, left
        weigh = lambda a, b: f"{call}({a}, {b}, {gates}, {shape})"  # noqa: E731
        parts = complex_numbers.multiply_with(weigh, left, right)
        if self.layout.order(let.out.axes) != tuple(a for a in (row, column, size) if a not in over):
            parts = parts.map(lambda part: f"tl.trans({part})")
        return self.bind(let.out, parts)

    # reductions and scans

    def _sum(self, text: str, axes: tuple[str, ...], over: tuple[str, ...], function: str = "tl.sum") -> str:
        """Reduces the last axis first, so that the others keep their positions.

        Triton (3.6 at least) rewrites a sum of a broadcast product into a product of matrices; with more than three
        axes its result does not verify ("expected all operands to have the same rank"). The zero keeps it away.
        """
        text = bare(text) if over else text
        if over and len(axes) > 3 and " * " in text:
            text = f"{text} + 0.0"
        for position in reversed(range(len(axes))):
            if axes[position] in over:
                text = f"{function}({text}, {position})"
        return text

    def _print_sum(self, let: Let) -> list[str]:
        over = tuple(let.attr("over"))  # type: ignore[arg-type]
        x = let.args[0]
        summed = self.masked(x, self.unclean(x, over))
        return self.bind(let.out, summed.map(lambda part: self._sum(part, self.tile(x).axes, over)))

    def _print_amax(self, let: Let) -> list[str]:
        over = tuple(let.attr("over"))  # type: ignore[arg-type]
        x = let.args[0]
        padded = tuple(a for a in over if self.layout.axes[a].padded)
        return self.bind(
            let.out, Pair(self._sum(self.masked(x, padded, 'float("-inf")').re, self.tile(x).axes, over, "tl.max"))
        )

    def _print_cumsum(self, let: Let) -> list[str]:
        x, axis = let.args[0], str(let.attr("axis"))
        clean = self.masked(x, self.unclean(x, (axis,)))
        position = self.tile(x).axes.index(axis)
        less = (lambda part: f" - {part}") if let.attr("exclusive") else (lambda part: "")
        return self.bind(let.out, clean.map(lambda part: f"tl.cumsum({part}, {position}){less(part)}"))

    def _print_prescan(self, let: Let) -> list[str]:
        return self._print_before_runs(let, "_prescan_complex" if let.out.is_complex else "_prescan")

    def _print_maxprescan(self, let: Let) -> list[str]:
        return self._print_before_runs(let, "_prescan_max")

    def _print_before_runs(self, let: Let, helper: str) -> list[str]:
        """The helper takes rows in front, and gives what comes before runs and after all with the other axes as one."""
        axes, runs = self._along_rows(let)
        steps = self._listed(let.args, axes, let.out.is_complex)
        outs = [part for out in let.outs for part in self._declared(out)]
        before, ends = outs[: len(outs) // 2], outs[len(outs) // 2 :]
        count = self.layout.axes[runs[0]]
        gathered = ", gathered=True" if self.layout.is_relay and count.block > 1 else ""
        lines = [f"{', '.join(outs)} = {helper}({steps}, {count.block_name}{gathered})"]
        if len(axes) != 2:
            lines += [f"{each} = tl.reshape({each}, {self.layout.shape(runs)})" for each in before]
        if len(axes) > 2:
            lines += [f"{end} = tl.reshape({end}, {self.layout.shape(axes[1:])})" for end in ends]
        elif len(axes) == 1:
            lines += [f"{end} = tl.sum({end}, 0)" for end in ends]
        return lines

    def _print_resume(self, let: Let) -> list[str]:
        return self._print_from_runs(let, "_resume_complex" if let.out.is_complex else "_resume")

    def _print_maxresume(self, let: Let) -> list[str]:
        return self._print_from_runs(let, "_resume_max")

    def _print_from_runs(self, let: Let, helper: str) -> list[str]:
        axes, runs = self._along_rows(let)
        steps = self._listed(let.args[:2], axes, let.out.is_complex)
        first = self._listed(let.args[2:], runs, let.out.is_complex)
        outs = ", ".join(self._declared(let.out))
        picked = "" if let.out.is_complex else "[0]"
        return [f"{outs} = {helper}({steps}, {first}{self._flags(let)}){picked}"]

    def _along_rows(self, let: Let) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The axes of a scan's rows, which stand first, and those of its runs."""
        rows, runs = str(let.attr("axis")), str(let.attr("runs"))
        rest = self.layout.order(tuple(a for a in let.out.axes if a not in (rows, runs)))
        for first in (rows, runs):
            if self.layout.order((first, *rest)) != (first, *rest):
                raise ValueError(f"{let.op} along {first}, which is not the first of its axes")
        return (rows, *rest), (runs, *rest)

    def _listed(self, values: tuple[Value, ...], axes: tuple[str, ...], is_complex: bool) -> str:
        """The parts of all values in the shape of ``axes``, as a tuple."""
        texts: list[str] = []
        for value in values:
            parts = self.expanded(value, axes)
            texts += [parts.re, parts.im or f"tl.zeros_like({parts.re})"] if is_complex else [parts.re]
        return f"({', '.join(bare(text) for text in texts)}{',' if len(texts) == 1 else ''})"

    def _flags(self, let: Let) -> str:
        flags = {"turned": is_reverse(let) != self.layout.turned, "inclusive": bool(dict(let.attrs).get("inclusive"))}
        return "".join(f", {flag}=True" for flag, is_set in flags.items() if is_set)

    def _print_scan(self, let: Let) -> list[str]:
        """From the first row to the last; the other way on rows turned round (Triton's own `reverse` is not sound)."""
        axes = self.layout.order(let.out.axes)
        axis = str(let.attr("axis"))
        inputs: list[str] = []
        for arg in let.args:
            parts = self.expanded(arg, axes)
            inputs += [parts.re, parts.im or f"tl.zeros_like({parts.re})"] if let.out.is_complex else [parts.re]
        outs = [part for out in let.outs for part in self._declared(out)]
        turn: list[str] = []
        if is_reverse(let):
            block = self.layout.axes[axis].block_name
            inputs = [self._row(part, axis, axes, f"{block} - 1 - {self.layout.axes[axis].index}") for part in inputs]
            turn = [
                f"{out} = {self._row(out, axis, axes, f'{block} - 1 - {self.layout.axes[axis].index}')}" for out in outs
            ]
        combine = "_compose_complex" if let.out.is_complex else "_compose"
        scanned = f"tl.associative_scan(({', '.join(inputs)}), {axes.index(axis)}, {combine})"
        return [f"{', '.join(outs)} = {scanned}", *turn]

    def _row(self, text: str, axis: str, axes: tuple[str, ...], source: str) -> str:
        """The tile whose row r is row ``source`` of the given one."""
        index = (
            source
            if len(axes) == 1
            else f"tl.broadcast_to({align(f'({source})', (axis,), axes)}, {self.layout.shape(axes)})"
        )
        return f"tl.gather({text}, {index}, {axes.index(axis)})"

    def _print_previous(self, let: Let) -> list[str]:
        x, first = let.args
        axis = str(let.attr("axis"))
        axes = self.tile(x).axes
        lanes, block = self.layout.axes[axis].index, self.layout.axes[axis].block_name
        source = f"tl.minimum({lanes} + 1, {block} - 1)" if is_reverse(let) else f"tl.maximum({lanes} - 1, 0)"
        edge = f"{align(lanes, (axis,), axes)} == {f'{block} - 1' if is_reverse(let) else '0'}"
        firsts = self.aligned(first, axes)
        moved = self.tile(x).parts.map(lambda part: self._row(part, axis, axes, source))
        parts = [f"tl.where({edge}, {f}, {m})" for f, m in zip((*firsts.parts(), "0.0"), moved.parts(), strict=False)]
        return self.bind(let.out, Pair(*parts))

    def _declared(self, out: Value) -> tuple[str, ...]:
        self.bind(out, Pair("", "" if out.is_complex else None))
        return self.tile(out).parts.parts()

    # structure

    def _lane(self, axis: str, axes: tuple[str, ...]) -> str:
        """The position within the block along an axis, aligned."""
        return align(f"tl.arange(0, {self.layout.axes[axis].block_name})", (axis,), axes)

    def _print_last(self, let: Let) -> list[str]:
        axis = str(let.attr("axis"))
        return self._pick(let, axis, "0" if is_reverse(let) else f"{self.layout.axes[axis].block_name} - 1")

    def _print_index(self, let: Let) -> list[str]:
        return self._pick(let, str(let.attr("axis")), str(let.attr("i")))

    def _pick(self, let: Let, axis: str, entry: str) -> list[str]:
        """One entry along an axis: the sum over it with all others masked (tiles in registers cannot be sliced)."""
        tile = self.tile(let.args[0])
        chosen = f"{align(self.layout.axes[axis].index, (axis,), tile.axes)} == {entry}"
        return self.bind(
            let.out, tile.parts.map(lambda part: self._sum(f"tl.where({chosen}, {part}, 0.0)", tile.axes, (axis,)))
        )

    def _print_place(self, let: Let) -> list[str]:
        axis = str(let.attr("axis"))
        axes = self.layout.order(let.out.axes)
        chosen = f"{align(self.layout.axes[axis].index, (axis,), axes)} == {let.attr('i')}"
        return self.bind(let.out, self.aligned(let.args[0], axes).map(lambda part: f"tl.where({chosen}, {part}, 0.0)"))

    def _print_rename(self, let: Let) -> list[str]:
        tile = self.tile(let.args[0])
        old, new = str(let.attr("old")), str(let.attr("new"))
        axes = tuple(new if a == old else a for a in tile.axes)
        wanted = self.layout.order(axes)
        if axes == wanted:
            return self.alias(let.out, tile.parts, tile.is_number)
        positions = ", ".join(str(axes.index(a)) for a in wanted)
        return self.bind(let.out, tile.parts.map(lambda part: f"tl.permute({part}, ({positions}))"))

    def _print_expand(self, let: Let) -> list[str]:
        axes = self.layout.order(let.out.axes)
        if axes == self.tile(let.args[0]).axes:
            return self.alias(let.out, self.tile(let.args[0]).parts)
        return self.bind(let.out, self.expanded(let.args[0], axes))

    def _print_after(self, let: Let) -> list[str]:
        row, column = let.out.axes
        axes = self.layout.order(let.out.axes)
        r, c = (align(self.layout.axes[a].index, (a,), axes) for a in (row, column))
        offset = int(let.attr("offset"))  # type: ignore[arg-type]
        return self.bind(
            let.out, Pair(f"{r} >= {c}{f' + {offset}' if offset else ''}" if offset != 1 else f"{r} > {c}")
        )

    def _print_apart(self, let: Let) -> list[str]:
        axes = self.layout.order(let.out.axes)
        halves = [f"({self.layout.axes[a].index} >> level{flip})" for a, flip in zip(axes, (" ^ 1", ""), strict=True)]
        return self.bind(let.out, Pair(" == ".join(align(h, (a,), axes) for a, h in zip(axes, halves, strict=True))))

    def _print_together(self, let: Let) -> list[str]:
        axes = self.layout.order(let.out.axes)
        halves = [align(f"({self.layout.axes[a].index} >> level)", (a,), axes) for a in axes]
        return self.bind(let.out, Pair(" == ".join(halves)))

    def _print_right(self, let: Let) -> list[str]:
        return self.bind(let.out, Pair(f"({self.layout.axes[let.out.axes[0]].index} >> level & 1) == 1"))

    def _print_middle(self, let: Let) -> list[str]:
        """In registers; of a tile whose rows lie in memory, kernel.py loads them from there."""
        axis, axes = str(let.attr("axis")), self.layout.order(let.out.axes)
        source = middle_row(self.layout.axes[axis].index)
        return self.bind(let.out, self.tile(let.args[0]).parts.map(lambda part: self._row(part, axis, axes, source)))

    def _print_start(self, let: Let) -> list[str]:
        """In registers; of a tile whose rows lie in memory, kernel.py loads them from there."""
        axis, axes = str(let.attr("axis")), self.layout.order(let.out.axes)
        row, rows = self.layout.axes[axis].index, int(let.attr("rows"))  # type: ignore[arg-type]
        source = f"tl.maximum({start_row(row, rows)}, 0)"
        after_first = align(f"({row} >= {rows})", (axis,), axes)
        parts = self.tile(let.args[0]).parts.map(lambda part: self._row(part, axis, axes, source))
        return self.bind(let.out, parts.map(lambda part: f"tl.where({after_first}, {part}, 0.0)"))

    def _print_end(self, let: Let) -> list[str]:
        axis, axes = str(let.attr("axis")), self.layout.order(let.out.axes)
        source = end_row(self.layout.axes[axis], int(let.attr("rows")))  # type: ignore[arg-type]
        return self.bind(let.out, self.tile(let.args[0]).parts.map(lambda part: self._row(part, axis, axes, source)))

    def _print_beside(self, let: Let) -> list[str]:
        (row, column), blocks = self._rows_and_blocks(let)
        return self.bind(let.out, Pair(f"({row} > {column}) & ({' == '.join(blocks)})"))

    def _print_across(self, let: Let) -> list[str]:
        return self.bind(let.out, Pair(" > ".join(self._rows_and_blocks(let)[1])))

    def _rows_and_blocks(self, let: Let) -> tuple[list[str], list[str]]:
        """Both axes' rows, and the numbers of the blocks that they are in."""
        axes = self.layout.order(let.out.axes)
        rows = {a: self.layout.axes[a].index for a in let.out.axes}
        blocks = {a: f"({row} // {let.attr('rows')})" for a, row in rows.items()}
        return tuple([align(text, (a,), axes) for a, text in texts.items()] for texts in (rows, blocks))  # type: ignore[return-value]

    def _print_room(self, let: Let) -> list[str]:
        name = self.names[let.out.name]
        self.alias(let.out, Pair(name), is_number=True)
        return [f"{name}: tl.constexpr = 0.0 if DOT == tl.float16 else 80.0"]

    def _print_rounded(self, let: Let) -> list[str]:
        return self.bind(let.out, self.tile(let.args[0]).parts.map(lambda part: f"{part}.to(DOT).to(tl.float32)"))

    def _print_valid(self, let: Let) -> list[str]:
        axis = str(let.attr("axis"))
        fill = number(float(let.attr("fill")))  # type: ignore[arg-type]
        parts = self.masked(let.args[0], (axis,), fill)
        if parts.im is not None:
            parts = Pair(parts.re, self.masked(let.args[0], (axis,)).im)
        return self.bind(let.out, parts)

    def _print_at_step(self, let: Let) -> list[str]:
        axis, axes = str(let.attr("axis")), self.layout.order(let.args[0].axes)
        fill = number(float(let.attr("fill")))  # type: ignore[arg-type]
        mask = align(f"({step_name(self.layout.axes[axis])} == {let.attr('step')})", (axis,), axes)
        return self.bind(let.out, self.aligned(let.args[0], axes).map(lambda part: f"tl.where({mask}, {part}, {fill})"))

    def _print_inverse(self, let: Let) -> list[str]:
        """Where what is inverted gets rounded to 16 bits, three products of bfloat16 parts err less than that does."""
        lower = let.args[0]
        row, column = str(let.attr("row")), str(let.attr("column"))
        wild = self.unclean(lower, (row, column), Fill.FINITE)
        axis = self.layout.axes[row]
        levels = axis.block.bit_length() - 1
        precise = '"tf32x3" if DOT == tl.float32 else "bf16x3"'
        precision = '"ieee"' if axis.block <= IEEE_SIDE else precise
        flipped = self.tile(lower).axes != (row, column)
        text = transposed(self.masked(lower, wild).re, flipped)
        return self.bind(
            let.out,
            Pair(transposed(f"_unit_lower_inverse({text}, {axis.block_name}, {levels}, {precision})", flipped)),
        )

    def _print_eye(self, let: Let) -> list[str]:
        row, column = self.layout.order(let.out.axes)
        lanes = f"{self._lane(row, (row, column))} == {self._lane(column, (row, column))}"
        return self.bind(let.out, Pair(f"tl.where({lanes}, 1.0, 0.0)"))

    def _print_select(self, let: Let) -> list[str]:
        """Which of the fused axis' entries belong to which of a part's."""
        fused, part = str(let.attr("fused")), str(let.attr("part"))
        inner: tuple[str, ...] = let.attr("inner")  # type: ignore[assignment]
        axes = self.layout.order((fused, part))
        lanes = align(self.layout.axes[fused].index, (fused,), axes)
        if inner:
            stride = " * ".join(inner)
            lanes = f"{lanes} // {stride if len(inner) == 1 else f'({stride})'}"
        chosen = f"{lanes} % {part} == {align(self.layout.axes[part].index, (part,), axes)}"
        if self.layout.axes[fused].padded:
            chosen = f"({chosen}) & {align(self.layout.axes[fused].mask, (fused,), axes)}"
        self.selections[let.out.name] = let
        return self.alias(let.out, Pair(f"tl.where({chosen}, 1.0, 0.0)"))

    def _reshaped(self, let: Let) -> Pair | None:
        """A product with a selection as a change of shape, where every block is as wide as its axis."""
        x, select = next(((x, self.selections.get(y.name)) for x, y in (let.args, let.args[::-1])
                          if y.name in self.selections), (let.out, None))
        if select is None:
            return None
        fused, part = select.out.axes
        outer, inner = tuple(select.attr("outer")), tuple(select.attr("inner"))  # type: ignore[arg-type]
        old, new = (part, fused) if let.attr("over") == (part,) else (fused, part)
        axes, split = self.tile(x).axes, (*outer, part, *inner)
        exact = not self.layout.axes[fused].padded and self.layout.axes[part].block == self.layout.sizes[part]
        wanted = tuple(new if a == old else a for a in axes)
        if not exact or let.attr("over") != (old,) or wanted != self.layout.order(let.out.axes):
            return None
        at = axes.index(old)
        blocks = [self.layout.axes[a].block_name for a in axes]
        whole = f"({', '.join((*blocks[:at], *split, *blocks[at + 1 :]))})"
        if new == fused:
            lanes = ", ".join([":"] * at + [":" if d == part else "None" for d in split] + [":"] * len(axes[at + 1 :]))
            shape = self.layout.shape(wanted)
            return self.tile(x).parts.map(
                lambda text: f"tl.reshape(tl.broadcast_to({text}[{lanes}], {whole}), {shape})")
        summed = [at + i for i, d in enumerate(split) if d != part]
        parts = self.tile(x).parts.map(lambda text: f"tl.reshape({bare(text)}, {whole})")
        for position in reversed(summed):
            parts = parts.map(summed_along(position))
        return parts

    def _print_hadamard(self, let: Let) -> list[str]:
        """x H with Sylvester's symmetric H: a product of matrices where x is one."""
        x, axis = let.args[0], str(let.attr("axis"))
        tile = self.tile(x)
        matrix = f"_hadamard_matrix({self.layout.axes[axis].block_name})"
        clean = self.masked(x, self.unclean(x, (axis,)))
        position = tile.axes.index(axis)
        if len(tile.axes) == 2:
            order = ("{x}, {h}", "{h}, {x}")[position == 0]
            return self.bind(
                let.out, clean.map(lambda part: f'tl.dot({order.format(x=part, h=matrix)}, input_precision="tf32x3")')
            )
        lanes = ", ".join(":" if i in (position, position + 1) else "None" for i in range(len(tile.axes) + 1))
        moved = ", ".join([":"] * (position + 1) + ["None"] + [":"] * (len(tile.axes) - position - 1))
        return self.bind(let.out, clean.map(lambda part: f"tl.sum({part}[{moved}] * {matrix}[{lanes}], {position})"))


def start_row(row: str, rows: int) -> str:
    """The last row before a row's block of so many."""
    return f"{row} // {rows} * {rows} - 1"


def end_row(axis: TileAxis, rows: int) -> str:
    """The last row of a row's block of so many, in a chunk that may have fewer."""
    least = min(rows, axis.block)
    return f"{axis.index} // {least} * {least} + {least - 1}"


def middle_row(row: str) -> str:
    """The last row before the middle of a row's block of 2^(level + 1)."""
    return f"(({row} >> level | 1) << level) - 1"


def summed_along(position: int) -> Callable[[str], str]:
    return lambda text: f"tl.sum({text}, {position})"


def is_reverse(let: Let) -> bool:
    return bool(dict(let.attrs).get("reverse", False))


def is_number(text: str) -> bool:
    return re.fullmatch(r"\(?-?[0-9.e+-]+\)?", text) is not None


def transposed(text: str, flip: bool) -> str:
    return f"tl.trans({bare(text)})" if flip else text


def number(value: float) -> str:
    """A float as it stands in an expression."""
    if math.isinf(value) or math.isnan(value):
        return f'float("{value}")'
    return f"({value})" if value < 0 else str(value)


def print_power(x: str, exponent: float) -> str:
    """x ** exponent for a real x: roots and whole powers without logarithms."""
    roots = {0.5: f"tl.sqrt({x})", -0.5: f"tl.rsqrt({x})", 1.0: x, -1.0: f"(1.0 / {x})", 2.0: f"({x} * {x})"}
    if exponent in roots:
        return roots[exponent]
    if exponent == 0:
        return f"({x} * 0.0 + 1.0)"
    if exponent == int(exponent):
        whole = f"_pow({x}, {abs(int(exponent))})"
        return whole if exponent > 0 else f"(1.0 / {whole})"
    return f"tl.exp2({exponent} * tl.log2({x}))"

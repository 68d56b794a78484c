"""One kernel of a plan as a @triton.jit function: frame, memory accesses and loops; operations.py prints the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from recur.codegen.torch_printer.loops import defines, uses
from recur.codegen.triton_printer.complex_numbers import Pair
from recur.codegen.triton_printer.config import StageConfig
from recur.codegen.triton_printer.inlining import inlinable_values
from recur.codegen.triton_printer.layout import (
    BufferDim,
    Layout,
    TileAxis,
    align,
    print_tuple,
    safe_name,
    step_name,
    token_name,
)
from recur.codegen.triton_printer.names import name_values
from recur.codegen.triton_printer.operations import OperationPrinter, end_row, is_reverse, middle_row, start_row
from recur.codegen.triton_printer.padding import infer_padding
from recur.codegen.triton_printer.placing import Placed, placed_values
from recur.codegen.triton_printer.relay import as_relay, handed_at, handed_lanes, handed_words
from recur.codegen.triton_printer.templates import render
from recur.codegen.triton_printer.values import bare
from recur.codegen.triton_printer.wrapping import wrapped
from recur.ir.tile import Access, Carry, Kernel, Let, Loop, Statement, Store

INDENT = "    "


@dataclass(frozen=True)
class Line:
    """A printed line; one that only `defines` an index or a mask is dropped where nothing below reads it."""

    text: str
    defines: str | None = None


@dataclass(frozen=True)
class PrintedKernel:
    """The function's text and what its launch must hand over, in order.

    ``buffers``: names of tensors; ``counts``: runtime integers, of B, T, H, G, L; ``constants``: name and value;
    ``grid``: what each entry counts, and its size: the name of a count, or a number. ``relay``: how many words each
    program hands on to the next chunk's, in a buffer that is handed over after the others. ``optional``: buffers
    that are None where nobody wants them.
    """

    name: str
    text: str
    buffers: tuple[str, ...]
    counts: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    grid: tuple[tuple[str, str], ...]
    relay: int = 0
    optional: frozenset[str] = frozenset()


def print_kernel(
    name: str,
    kernel: Kernel,
    dims: dict[str, tuple[BufferDim, ...]],
    config: StageConfig,
    complex_buffers: frozenset[str],
    absent: Mapping[str, float],
    optional: frozenset[str],
) -> PrintedKernel:
    """``dims``: the resolved dimensions of every buffer of the stage; ``absent``: as for `print_stage`; ``optional``:
    what is written where it is there, and None where nobody wants it.
    """
    draft = KernelPrinter(kernel, dims, config, complex_buffers, absent, optional)
    draft.print(name)
    # Printed again with names for those values alone that turned out to need one.
    inlined = frozenset(draft.operations.inlined)
    return KernelPrinter(kernel, dims, config, complex_buffers, absent, optional, inlined).print(name)


class KernelPrinter:
    """Prints one kernel; all state is the growing list of lines."""

    def __init__(
        self,
        kernel: Kernel,
        dims: dict[str, tuple[BufferDim, ...]],
        config: StageConfig,
        complex_buffers: frozenset[str],
        absent: Mapping[str, float],
        optional: frozenset[str],
        inlined: frozenset[str] | None = None,
    ) -> None:
        self.launch = config.launch(kernel.name)
        kernel = as_relay(kernel, self.launch.anew) if self.launch.relay else kernel
        self.kernel, self.dims, self.config, self.complex_buffers = kernel, dims, config, complex_buffers
        self.absent, self.optional = absent, optional
        self.layout = Layout(kernel, config)
        self.words = self.layout.words
        nameless = frozenset() if inlined is None else inlined
        inlinable = inlinable_values(kernel) if inlined is None else inlined
        names = name_values(kernel, self.layout, nameless)
        self.operations = OperationPrinter(self.layout, names, infer_padding(kernel), inlinable)
        self.loads: dict[str, Access] = {}
        self.unseen: set[str] = set()  # buffers of which threads have not seen what others have stored
        self.placed = placed_values(kernel)
        self.lines: list[Line] = []
        self.buffers: list[str] = []
        self.depth = 1

    @property
    def tokens(self) -> str:
        """How many tokens a chunk holds."""
        return self.words["C"] if self.config.steps == 1 else str(self.config.chunk)

    # the frame

    def print(self, name: str) -> PrintedKernel:
        self._print_grid()
        for axis in self.layout.axes.values():
            if axis.root.place != "loop":
                self._define_axis(axis.name)
        if "chunk" in self.kernel.grid:
            self._define_rows_masks()
        self._print_block(self.kernel.body)
        lines = pruned(self.lines)
        body = "\n".join(lines)
        words = set(re.findall(r"\w+", body))
        counts = tuple((letter, self.words.get(letter, letter)) for letter in "BTHGL")
        constants = self._constants(words)
        counts = tuple((letter, word) for letter, word in counts if word in words)
        text = render(
            "kernel.jinja",
            name=name,
            equations=self.kernel.equations,
            role=self.kernel.role,
            pointers=[pointer_name(b) for b in self.buffers] + ["relay_ptr"] * self.launch.relay,
            counts=[word for _, word in counts],
            constants=[constant for constant, _ in constants] + (["DOT"] if "DOT" in words else []),
            body=lines,
        )
        return PrintedKernel(
            name, text, tuple(self.buffers), counts, constants, self._grid(), self._handed_words(), self.optional
        )

    def _constants(self, words: set[str]) -> tuple[tuple[str, int], ...]:
        values = {**self.layout.sizes, self.words["C"]: self.config.rows}
        values |= {a.block_name: a.block for a in self.layout.axes.values() if not a.block_name.isdigit()}
        return tuple((name, value) for name, value in values.items() if name in words)

    def _grid(self) -> tuple[tuple[str, str], ...]:
        """(what it counts, its size): the letter of a count, "N" for chunks, or a number."""
        sizes = {"batch": "B", "head": "H", "segment": "G", "chunk": "N"}
        entries = (*(("chunk",) if self.launch.relay else ()), *self.kernel.grid)
        return tuple((g, sizes[g] if g in sizes else str(self._tiles(g))) for g in entries)

    def _tiles(self, grid_entry: str) -> int:
        return self.layout.axes[grid_entry.removeprefix("tile:")].tiles

    def _print_grid(self) -> None:
        """The last entry of the grid varies fastest, so programs that read the same tokens run together."""
        chunks = f"tl.cdiv({self.words['T']}, {self.tokens})"
        if self.launch.relay:
            self._print_step_of_walk(chunks)
            rest = "walk"
        else:
            self._define(self.words["N"], chunks)
            self._define("program", "tl.program_id(0)")
            rest = "program"
        sizes = {"head": self.words["H"], "segment": self.words["G"], "chunk": self.words["N"]}
        for entry in reversed(self.kernel.grid):
            size = sizes[entry] if entry in sizes else "" if entry == "batch" else str(self._tiles(entry))
            if size == "1":
                continue
            if entry == self.kernel.grid[0]:
                value = rest
            else:
                value, rest = f"{rest} % {size}", f"{rest} // {size}"
            if entry in ("batch", "head"):
                value = f"{value}.to(tl.int64)" if value in ("program", "walk") else f"({value}).to(tl.int64)"
            named = ("batch", "head", "segment", "chunk")
            self._define(entry if entry in named else self._tile_index(entry), value)

    def _print_step_of_walk(self, chunks: str) -> None:
        """Which step of which walk, in the order in which programs begin: all walks' first steps, then their second."""
        self._define(self.words["N"], f"tl.maximum({chunks}, 1)")
        self._define("walks", f"tl.num_programs(0) // {self.words['N']}")
        self._define("place", 'tl.atomic_add(relay_ptr, 1, sem="relaxed") + 1')
        self._define("step", "place // walks")
        self._define("walk", "place % walks")
        self._define("slot", f"relay_ptr + place.to(tl.int64) * {self._handed_words()}")

    def _handed_words(self) -> int:
        loops = [s for s in self.kernel.body if isinstance(s, Loop)]
        return handed_words(loops[0], self.layout) if self.launch.relay else 0

    def _tile_index(self, grid_entry: str) -> str:
        return self.layout.tile_index(grid_entry.removeprefix("tile:"))

    def _define_axis(self, name: str) -> None:
        axis = self.layout.axes[name]
        lanes = f"tl.arange(0, {axis.block_name})"
        if axis.root.place != "whole" and axis.tiles > 1:
            lanes = f"{self.layout.tile_index(name)} * {axis.block_name} + {lanes}"
        elif axis.root.kind == "rows" and self.layout.runs is not None:
            lanes = f"_in_runs({axis.block_name}, {self.layout.axes[self.layout.runs].block_name})"
        if self.layout.turned and (axis.root.kind == "rows" or name == self.layout.runs):
            lanes = f"{axis.block_name} - 1 - {lanes}"
        if name == self._innermost() and self.launch.vector:
            lanes = f"tl.max_contiguous({lanes}, {min(self.launch.vector, axis.block)})"
        self._define(axis.index, lanes)
        if axis.root.kind == "rows" and self.config.steps > 1:
            self._define(token_name(axis), f"{axis.index} // {self.config.steps}")
            self._define(step_name(axis), f"{axis.index} % {self.config.steps}")
        if axis.extent is not None and axis.padded:
            self._define(axis.mask, f"{axis.index} < {axis.extent_name}")

    def _innermost(self) -> str:
        """The axis along which tiles lie contiguous."""
        return self.layout.order(tuple(self.layout.axes))[-1]

    def _define_rows_masks(self) -> None:
        for axis in self.layout.axes.values():
            if axis.root.kind == "rows" and axis.root.place != "loop":
                self._define_rows_mask(axis)

    def _define_rows_mask(self, axis: TileAxis) -> None:
        """Which rows hold a token; where it has several, one for each of its steps."""
        tokens = f"{self.words['T']} - chunk * {self.tokens}"
        if self.config.steps > 1:
            is_padded = self.config.chunk * self.config.steps < self.config.rows
            held = f"tl.minimum({tokens}, {self.tokens})" if is_padded else f"({tokens})"
            tokens = f"{held} * {self.config.steps}"
        self._define(axis.mask, f"{axis.index} < {tokens}")

    # statements

    def _print_block(self, body: tuple[Statement, ...]) -> None:
        for statement in body:
            if isinstance(statement, Loop) and self.launch.relay:
                self._print_relay(statement)
                continue
            if isinstance(statement, Loop):
                self._print_loop(statement)
                continue
            if statement.comment:
                self._line(f"# {statement.comment}")
            if isinstance(statement, Store):
                self._print_store(statement)
            elif statement.out.name in self.placed:
                continue
            elif statement.op == "load":
                self._print_load(statement)
            elif statement.op in ("middle", "start", "end", "last", "index") and self._is_in_memory(statement):
                self._print_other_row(statement)
            else:
                for line in self.operations.print_let(statement):
                    self._line(line)

    def _print_load(self, let: Let) -> None:
        assert let.access is not None
        self._wait_for(let.access.buffer)
        self.loads[let.out.name] = let.access
        axes = self.layout.order(let.out.axes)
        mask = self._mask(let.access, axes)
        masked = f", mask={mask}, other=0.0" if mask else ""
        loads = [f"tl.load({pointer}{masked}).to(tl.float32)" for pointer in self._pointers(let.access, axes)]
        if self._is_shared(let):
            loads = [f"_held({load})" for load in loads]
        if let.access.buffer in self.absent:
            instead = self._absent_value(self.absent[let.access.buffer], axes, mask)
            loads = [f"{load} if {pointer_name(let.access.buffer)} is not None else {instead}" for load in loads]
        for line in self.operations.bind(let.out, Pair(*loads)):
            self.lines.append(Line(INDENT * self.depth + line, line.split(" = ", 1)[0]))

    def _is_shared(self, let: Let) -> bool:
        """Whether threads hold different tokens' or channels' states, and every one reads the whole tile."""
        if self.layout.runs is None or self.layout.axes[self.layout.runs].block > 1:
            return False
        roots = [self.layout.axes[a].root for a in let.out.axes]
        return any(r.kind == "rows" for r in roots) and len(roots) > 1 and all(r.place != "grid" for r in roots)

    def _wait_for(self, buffer: str) -> None:
        """Before threads read what others of the program have stored."""
        if buffer in self.unseen:
            self._line("tl.debug_barrier()")
            self.unseen.clear()

    def _is_in_memory(self, let: Let) -> bool:
        """Whether all rows of the operation's tile lie in a buffer as they were loaded, one block a chunk."""
        access = self.loads.get(let.args[0].name)
        stays = access is not None and access.buffer not in self.unseen and access.buffer not in self.absent
        return stays and let.attr("axis") in access.index and not is_reverse(let)  # type: ignore[union-attr]

    def _print_other_row(self, let: Let) -> None:
        """Other rows of a tile that was loaded: they are loaded where threads hold what they need of them."""
        access, axis = self.loads[let.args[0].name], str(let.attr("axis"))
        tile = self.layout.axes[axis]
        rows = {"middle": middle_row(tile.index), "last": f"{tile.block_name} - 1"}
        axes = self.layout.order(let.out.axes)
        mask = self._mask(access, axes)
        if let.op in ("start", "end"):
            block = int(let.attr("rows"))  # type: ignore[arg-type]
            rows["end"] = end_row(tile, block)
        if let.op == "start":
            rows["start"] = start_row(tile.index, block)
            after_first = align(f"({tile.index} >= {block})", (axis,), axes)
            mask = f"{mask} & {after_first}" if mask else after_first
        row = str(let.attr("i")) if let.op == "index" else rows[let.op]
        masked = f", mask={mask}, other=0.0" if mask else ""
        pointers = self._pointers(access, axes, {axis: row if row.isdigit() else f"({row})"})
        loads = [f"tl.load({pointer}{masked}).to(tl.float32)" for pointer in pointers]
        for line in self.operations.bind(let.out, Pair(*loads)):
            self._line(line)

    def _absent_value(self, value: float, axes: tuple[str, ...], mask: str) -> str:
        """What stands for a tensor that is not there; lanes past an axis's end hold 0, as loads give them."""
        zeros = f"tl.zeros({print_tuple([self.layout.axes[a].block_name for a in axes])}, tl.float32)"
        if value == 0.0:
            return zeros
        return f'tl.where({mask or "True"}, float("{value}"), {zeros})'

    def _print_store(self, store: Store) -> None:
        axes = tuple(e for e in store.access.index if e in self.layout.axes)
        if store.access.rows is not None:
            axes += (store.access.rows,)
        axes = self.layout.order(axes)
        is_optional = store.access.buffer in self.optional
        if is_optional:
            self._line(f"if {pointer_name(store.access.buffer)} is not None:")
        self.depth += is_optional
        placed = self.placed.get(store.value.name)
        if placed is None:
            self._print_block_store(store.access, self.operations.expanded(store.value, axes), axes)
        else:
            self._print_entries_store(store, placed, tuple(a for a in axes if a != placed.axis))
        self.depth -= is_optional
        self.unseen.add(store.access.buffer)

    def _print_entries_store(self, store: Store, placed: Placed, axes: tuple[str, ...]) -> None:
        """One entry after another along the axis that is not among ``axes``, zeros where there is none."""
        zeros = f"tl.zeros({self.layout.shape(axes)}, tl.float32)"
        nothing = Pair(zeros, zeros if store.value.is_complex else None)
        extent = self.layout.axes[placed.axis].extent
        assert extent is not None  # entries are not placed along rows
        for i in range(extent):
            entry = placed.entries.get(i)
            parts = nothing if entry is None else self.operations.expanded(entry, axes)
            self._print_block_store(store.access, parts, axes, {placed.axis: str(i)})

    def _print_block_store(
        self, access: Access, parts: Pair, axes: tuple[str, ...], rows: Mapping[str, str] | None = None
    ) -> None:
        mask = self._mask(access, axes)
        masked = f", mask={mask}" if mask else ""
        for pointer, part in zip(self._pointers(access, axes, rows), parts.parts(), strict=True):
            self._line(f"tl.store({pointer}, {bare(part)}{masked})")

    def _print_loop(self, loop: Loop) -> None:
        for line in self.operations.start_carries(loop):
            self._line(line)
        if loop.over == "once":
            self._print_once(loop)
            return
        if loop.over == "chunks":
            index, count = "chunk", self.words["N"]
        elif loop.over == "levels":
            index, count = "level", str(loop.count_levels(self.config.rows))
        elif loop.over == "segments":
            index, count = "segment", self.words["G"]
        elif loop.over == "tiles":
            assert loop.axis is not None
            index, count = self.layout.tile_index(loop.axis), str(self.layout.axes[loop.axis].tiles)
        else:
            index, count = "token", self.words["T"]
        in_chunk = loop.over == "steps" and "chunk" in self.kernel.grid
        in_segment = loop.over == "chunks" and "segment" in self.kernel.grid
        first = f"chunk * {self.words['C']}" if in_chunk else "0"
        bound = f"tl.minimum({first} + {self.words['C']}, {self.words['T']})" if in_chunk else count
        if in_segment:
            first, bound = "first", "end"
            self._define("first", f"segment * {self.words['L']}")
            self._define("end", f"tl.minimum(first + {self.words['L']}, {self.words['N']})")
        if loop.axis is not None and self.layout.axes[loop.axis].root.kind == "rows":
            first, bound = self._rows_range(loop, count)
        if loop.needed is not None:
            bound = f"tl.where({self.operations.tile(loop.needed).parts.re}, {bound}, {first})"
        counted = f"range({first}, {bound})"
        if loop.over == "levels":  # a level's rows are in the first cache: copied ahead, they would be waited for
            counted = f"tl.range({first}, {bound}, num_stages=1)"
        if loop.over == "chunks" and self.layout.runs is not None:  # without dots, Triton prefetches when told
            counted = f"tl.range({first}, {bound}, num_stages={self.launch.num_stages})"
        self._line(f"for {'step' if loop.reverse else index} in {counted}:")
        self.depth += 1
        if loop.reverse:
            total = f"{first} + {bound}" if in_chunk or in_segment else count
            self._define(index, f"{total} - 1 - step")
        if loop.over == "chunks":
            self._define_rows_masks()
        elif loop.over == "tiles":
            for axis in self.layout.axes.values():
                if axis.root.name == loop.axis:
                    self._define_axis(axis.name)
                    if axis.root.kind == "rows":
                        self._define_rows_mask(axis)
        self._print_block(loop.body)
        for line in self.operations.end_carries(loop):
            self._line(line)
        self.depth -= 1

    def _print_once(self, loop: Loop) -> None:
        assert loop.needed is not None
        self._line(f"if {self.operations.tile(loop.needed).parts.re}:")
        self.depth += 1
        self._print_block(loop.body)
        for line in self.operations.end_carries(loop):
            self._line(line)
        self.depth -= 1

    def _print_relay(self, loop: Loop) -> None:
        """One step of the walk; what follows it is the last step's."""
        for line in self.operations.start_carries(loop):
            self._line(line)
        self._define("chunk", f"{self.words['N']} - 1 - step" if loop.reverse else "step")
        self._define_rows_masks()
        starts = dict(zip((c.phi.name for c in loop.carries), handed_at(loop, self.layout), strict=True))
        to_take, to_hand_on = list(loop.carries), list(loop.carries)
        known: set[str] = set()
        for statement in loop.body:
            read = {v.name for v in uses(statement)}
            for carry in [c for c in to_take if c.phi.name in read]:
                self._print_take(carry, starts[carry.phi.name])
                to_take.remove(carry)
            self._print_block((statement,))
            known |= set(defines(statement))
            for carry in [c for c in to_hand_on if c.next.name in known]:
                self._print_hand_on(carry, starts[carry.phi.name])
                to_hand_on.remove(carry)
        for carry in to_take:  # carried along unread
            self._print_take(carry, starts[carry.phi.name])
        for carry in to_hand_on:
            self._print_hand_on(carry, starts[carry.phi.name])
        for line in self.operations.end_carries(loop):
            self._line(line)
        if self.kernel.body[-1] is not loop:
            self._line(f"if step == {self.words['N']} - 1:")
            self.depth += 1

    def _print_take(self, carry: Carry, starts: list[int]) -> None:
        for name, start in zip(self.operations.tile(carry.phi).parts.parts(), starts, strict=True):
            slot = f"slot + {start}" if start else "slot"
            taken = f"_take({name}, {slot}, step, {32 * self.launch.num_warps})"
            self._line(f"{name} = {taken if carry.phi.axes else f'_take_number({name}, {slot}, step)'}")

    def _print_hand_on(self, carry: Carry, starts: list[int]) -> None:
        handed = self.operations.expanded(carry.next, self.layout.order(carry.phi.axes))
        lanes = handed_lanes(carry.phi, self.layout)
        for text, start in zip((*handed.parts(), "0.0"), starts, strict=False):
            offset = " + ".join([*([str(start)] if start or not lanes else []), *lanes])
            self._line(f"_hand_on({bare(text)}, slot + walks * {self._handed_words()} + {offset})")

    def _rows_range(self, loop: Loop, count: str) -> tuple[str, str]:
        """From which to which tile of rows: between those on the grid, else up to the last that holds a token."""
        first = self.layout.tile_index(loop.first) if loop.first else "0"
        if loop.last:
            return first, f"{self.layout.tile_index(loop.last)} + 1"
        tokens = f"{self.words['T']} - chunk * {self.words['C']}"
        return first, f"tl.minimum({count}, tl.cdiv({tokens}, {self.words['R']}))"

    # memory

    def _pointers(self, access: Access, axes: tuple[str, ...], rows: Mapping[str, str] | None = None) -> list[str]:
        """The address of the access's block: real part, then imaginary part, which lies one further.

        ``rows``: which rows are meant where not a tile axis's own ones.
        """
        if access.buffer not in self.buffers:
            self.buffers.append(access.buffer)
        base, offsets = self._address(access, axes, rows or {})
        pointer = pointer_name(access.buffer)
        if access.buffer not in self.complex_buffers:
            return [" + ".join([pointer, *base, *offsets])]
        doubled = [f"2 * ({' + '.join([*base, *offsets])})"] if base or offsets else []
        return [" + ".join([pointer, *doubled]), " + ".join([pointer, *doubled, "1"])]

    def _address(
        self, access: Access, axes: tuple[str, ...], rows: Mapping[str, str]
    ) -> tuple[list[str], list[str]]:
        """Row-major: the program's part by Horner's rule in 64 bits, then one small term for each tile axis."""
        dims = self.dims[access.buffer]
        base = ""
        offsets: list[str] = []
        for position, (dim, entry) in enumerate(zip(dims, access.index, strict=True)):
            if base:
                base = f"({base}) * {self._count(dim)}" if " + " in base else f"{base} * {self._count(dim)}"
            scalar, tile_axis = self._entry(access, entry)
            base = " + ".join(part for part in (base, scalar) if part)
            if tile_axis is not None:
                stride = " * ".join(self._count(d) for d in dims[position + 1 :] if self._count(d) != "1")
                index = rows.get(tile_axis) or self._lanes(tile_axis, entry)
                if index == "0":
                    continue
                index = align(index, (tile_axis,), axes) if tile_axis in axes else index
                offsets.append(f"{index} * ({stride})" if " " in stride else f"{index} * {stride}" if stride else index)
        return ([base] if base else []), offsets

    def _lanes(self, tile_axis: str, entry: str) -> str:
        """The indices of a tile's axis into a buffer: of rows their tokens or steps, where tokens have several rows."""
        axis = self.layout.axes[tile_axis]
        if self.config.steps > 1 and entry in ("time", "step"):
            return token_name(axis) if entry == "time" else step_name(axis)
        return axis.index

    def _entry(self, access: Access, entry: str) -> tuple[str, str | None]:
        """An index entry's scalar part and tile axis."""
        shift = f" {'-' if access.shift < 0 else '+'} {abs(access.shift)}" if access.shift else ""
        if entry == "time" and access.rows is not None:
            return f"chunk * {self.tokens}{shift}", access.rows
        if entry == "time":
            return f"token{shift}", None
        if entry == "chunk":
            return f"chunk + {access.chunk_offset}" if access.chunk_offset else "chunk", None
        if entry in ("batch", "head", "segment"):
            return entry, None
        if entry == "step":
            return "", access.rows
        if entry.startswith("tile:"):
            single = self._tiles(entry) == 1
            return ("" if single else self._tile_index(entry)), None
        return "", entry

    def _count(self, dim: BufferDim) -> str:
        if dim.kind == "tiles":
            return str(self.layout.axes[dim.name].tiles)
        if dim.kind == "size":
            return str(self.layout.sizes.get(dim.name, dim.name)) if dim.name.isdigit() else dim.name
        words = {
            "batch": "B",
            "head": self.words["H"],
            "time": self.words["T"],
            "segments": self.words["G"],
            "chunks": self.words["N"],
            "boundaries": f"({self.words['N']} + 1)",
            "rows": self.words["C"],
        }
        return words[dim.kind]

    def _mask(self, access: Access, axes: tuple[str, ...]) -> str:
        """Rows past the sequence's end are left out, but for a buffer's own rows of a chunk, all of which it holds."""
        own = {a for a in access.index if a in axes and self.layout.axes[a].root.kind == "rows"}
        padded = [a for a in axes if self.layout.axes[a].padded and a not in own]
        masks = [align(self.layout.axes[a].mask, (a,), axes) for a in padded]
        if access.step is not None and access.rows is not None:
            masks.append(align(f"({step_name(self.layout.axes[access.rows])} == {access.step})", (access.rows,), axes))
        if access.shift:
            token = f"chunk * {self.tokens} + {self._lanes(access.rows, 'time')}" if access.rows else "token"
            beyond = (
                f"({token} >= {-access.shift})"
                if access.shift < 0
                else f"({token} < {self.words['T']} - {access.shift})"
            )
            masks.append(align(beyond, (access.rows,), axes) if access.rows else beyond)
        return " & ".join(masks)

    # lines

    def _line(self, text: str) -> None:
        self.lines.append(Line(INDENT * self.depth + text))

    def _define(self, name: str, value: str) -> None:
        self.lines.append(Line(f"{INDENT * self.depth}{name} = {value}", name))


def pointer_name(buffer: str) -> str:
    return f"{safe_name(buffer, set())}_ptr"


def pruned(lines: list[Line]) -> list[str]:
    """The lines without definitions that nothing reads."""
    kept: list[str] = []
    read: set[str] = set()
    for line in reversed(lines):
        if line.defines is not None and line.defines not in read:
            continue
        read |= set(re.findall(r"\w+", line.text.split("#")[0].split(" = ", 1)[-1]))
        kept.append(line.text)
    return [part for text in reversed(kept) for part in wrapped(text)]

"""Runs the kernels of a plan as tile.py defines them, an operation at a time: tests of plans need no printer.

A program's tile is a tensor [B, H, *axes]: programs of all batches and heads run at once, those of tiles and of chunks
on the grid one after another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recur.ir.plan import Plan
from recur.ir.tile import Access, Axis, Buffer, Kernel, Let, Loop, Statement, Store, Value
from recur.operators import OPERATORS


@dataclass
class Run:
    """A plan's tensors while it runs.

    ``blocks``: the tile's width of axes that are placed on the grid or in a loop, by extent; of rows, under "rows".
    """

    plan: Plan
    sizes: Mapping[str, int]
    batch: int
    heads: int
    tokens: int
    chunk: int
    blocks: Mapping[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A chunk shorter than the plan's may have fewer rows than the plan has runs. Inside, tokens are rows."""
        self.chunk *= self.plan.steps
        self.tokens *= self.plan.steps
        self.sizes = {**{n: min(size, self.chunk) for n, size in self.plan.fixed_sizes}, **self.sizes}

    @property
    def chunks(self) -> int:
        return -(-self.tokens // self.chunk)

    def length(self, entry: str, position: int, layout: tuple[str, ...]) -> int:
        if position <= layout.index("H"):
            tokens = self.tokens // self.plan.steps
            table = {"B": self.batch, "T": tokens, "H": self.heads, "N": self.chunks, "N+1": self.chunks + 1}
            return table[entry]
        if entry.startswith("tiles:"):
            return self.tiles(entry.removeprefix("tiles:"))
        if entry == "C" and "C" not in self.sizes:
            return self.chunk
        return self.sizes[entry]

    @property
    def rows(self) -> int:
        """Tokens in a tile of rows."""
        return self.blocks.get("rows", self.chunk)

    def tiles_of(self, axis: Axis) -> int:
        if axis.place == "whole":
            return 1
        return -(-self.chunk // self.rows) if axis.kind == "rows" else self.tiles(axis.extent)

    def tiles(self, dim: str) -> int:
        if any(a.name == dim and a.kind == "rows" for k in (*self.plan.forward, *self.plan.backward) for a in k.axes):
            return -(-self.chunk // self.rows)
        return -(-self.sizes[dim] // self.blocks.get(dim, self.sizes[dim]))

    def shape(self, buffer: Buffer) -> tuple[int, ...]:
        return tuple(self.length(e, i, buffer.layout) for i, e in enumerate(buffer.layout))

    def allocate(self, *buffers: Buffer) -> None:
        """Not a number everywhere: whatever is read before it is written shows."""
        for b in buffers:
            dtype = self.dtype.to_complex() if b.is_complex else self.dtype
            self.tensors.setdefault(b.name, torch.full(self.shape(b), math.nan, dtype=dtype))


def run_forward(run: Run, arguments: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> None:
    plan = run.plan
    for group in (plan.arguments, plan.initial):
        for b in group:
            run.tensors[b.name] = (arguments if group is plan.arguments else initial)[b.name].detach()
            assert run.tensors[b.name].shape == run.shape(b), b.name
    run.allocate(*plan.results, *plan.final, *plan.saved, *plan.workspace)
    for kernel in plan.forward:
        run_kernel(run, kernel)


def run_backward(run: Run, cotangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every argument and initial state in the ledger; ``cotangents`` by the name of result or final."""
    plan = run.plan
    for b in (*plan.results, *plan.final):
        run.tensors[f"d_{b.name}"] = cotangents[b.name]
    for kernel in plan.backward:
        run_kernel(run, kernel)
    gradients = {}
    for line in plan.gradients:
        total = None
        for c in line.contributions:
            layout = plan.buffer(c.buffer).layout
            axes = [layout.index(entry) for entry in c.sum_over]
            part = run.tensors[c.buffer].sum(axes) if axes else run.tensors[c.buffer]
            total = part if total is None else total + part
        gradients[line.of] = total
    return gradients


def run_kernel(run: Run, kernel: Kernel) -> None:
    ranges = []
    for entry in kernel.grid[2:]:
        ranges.append(range(run.chunks) if entry == "chunk" else range(run.tiles_of(kernel.axis(entry[5:]))))
    assert kernel.grid[:2] == ("batch", "head")
    for point in itertools.product(*ranges):
        where = {e.removeprefix("tile:"): i for e, i in zip(kernel.grid[2:], point, strict=True)}
        Program(run, kernel, where).run(kernel.body)


@dataclass
class Program:
    """All batches' and heads' programs at one point of the rest of the grid. ``where``: chunk, step and tiles."""

    run_: Run
    kernel: Kernel
    where: dict[str, int]
    tiles: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def run(self, body: tuple[Statement, ...]) -> None:
        for statement in body:
            if isinstance(statement, Let):
                self.let(statement)
            elif isinstance(statement, Store):
                self.store(statement)
            else:
                self.loop(statement)

    # control

    def loop(self, loop: Loop) -> None:
        names = {"chunks": "chunk", "steps": "step", "tiles": loop.axis or "", "levels": "level", "once": "once"}
        run, name = self.run_, names[loop.over]
        if loop.over == "chunks":
            points = range(run.chunks)
        elif loop.over == "levels":
            points = range(loop.count_levels(run.chunk))
        elif loop.over == "once":
            assert loop.needed is not None
            points = range(int(self.get(loop.needed).any()))
        elif loop.over == "tiles":
            first = self.where[loop.first] if loop.first else 0
            end = self.where[loop.last] + 1 if loop.last else run.tiles_of(self.kernel.axis(name))
            points = range(first, end)
        elif "chunk" in self.where:
            first = self.where["chunk"] * run.chunk
            points = range(first, min(first + run.chunk, run.tokens))
        else:
            points = range(run.tokens)
        current = [self.get(c.init) for c in loop.carries]
        for point in reversed(points) if loop.reverse else points:
            self.where[name] = point
            for c, value in zip(loop.carries, current, strict=True):
                self.put(c.phi, value)
            self.run(loop.body)
            current = [self.get(c.next) for c in loop.carries]
        self.where.pop(name, None)
        for c, value in zip(loop.carries, current, strict=True):
            self.put(c.phi, value)

    # tiles

    def get(self, value: Value) -> Tensor:
        return self.tiles[value.name]

    def put(self, value: Value, tile: Tensor) -> None:
        assert tile.dim() == 2 + len(value.axes), (value, tile.shape)
        for axis, length in zip(value.axes, tile.shape[2:], strict=True):
            assert length in (1, self.extent(axis)), (value, tile.shape)
        assert tile.is_complex() == value.is_complex, (value, tile.dtype)
        assert (tile.dtype == torch.bool) == value.is_bool, (value, tile.dtype)
        self.tiles[value.name] = tile

    def extent(self, axis: str) -> int:
        return len(self.range(self.axis(axis)))

    def axis(self, name: str) -> Axis:
        """A declared axis, or that of which the name is another one."""
        known = {a.name for a in self.kernel.axes}
        return self.kernel.axis(name if name in known else self.renamed[name])

    def range(self, axis: Axis) -> range:
        """The entries of a dimension that the current tile holds, or the tokens of a chunk (padding included)."""
        if axis.kind == "rows":
            first = self.where["chunk"] * self.run_.chunk if "chunk" in self.where else 0
            if axis.place == "whole":
                return range(first, first + self.run_.chunk)
            first += self.where[axis.name] * self.run_.rows
            return range(first, first + self.run_.rows)
        size = self.run_.sizes[axis.extent] if axis.extent in self.run_.sizes else int(axis.extent)
        if axis.place == "whole":
            return range(size)
        block = self.run_.blocks.get(axis.extent, size)
        first = self.where[axis.name] * block
        return range(first, min(first + block, size))

    def align(self, value: Value, axes: tuple[str, ...]) -> Tensor:
        tile = self.get(value)
        order = [a for a in axes if a in value.axes]
        assert len(order) == len(value.axes), (value, axes)
        tile = tile.permute(0, 1, *(2 + value.axes.index(a) for a in order))
        for i, axis in enumerate(axes):
            if axis not in value.axes:
                tile = tile.unsqueeze(2 + i)
        return tile

    # memory

    def block(self, access: Access, tensor: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The buffer with batch and head in front, and per remaining dimension the entries of this program's block."""
        run, tokens = self.run_, self.tokens(access)
        access = replace(access, index=tuple(e for e in access.index if e != "step"))
        assert tensor.dim() == len(access.index), access
        heads = access.index.index("head")
        if "batch" in access.index:
            tensor = tensor.movedim((access.index.index("batch"), heads), (0, 1))
        else:
            tensor = tensor.movedim(heads, 0).unsqueeze(0).expand(run.batch, *tensor.movedim(heads, 0).shape)
        entries = []
        for entry in (e for e in access.index if e not in ("batch", "head")):
            if entry == "time":
                entries.append(tokens if tokens is not None else [self.where["step"] + access.shift])
            elif entry == "chunk":
                entries.append([self.where["chunk"] + access.chunk_offset])
            elif entry.startswith("tile:"):
                entries.append([self.where[entry[5:]]])
            else:
                held = self.range(self.kernel.axis(entry))
                rows = self.kernel.axis(entry).kind == "rows"
                first = self.where.get("chunk", 0) * self.run_.chunk if rows else 0
                entries.append(range(held.start - first, held.stop - first))
        return tensor, [torch.tensor(list(e), dtype=torch.long) for e in entries]

    def row_tensor(self, access: Access) -> Tensor:
        """The buffer with rows for tokens, where a token has several; zero on those that it has not."""
        tensor, steps = self.run_.tensors[access.buffer], self.run_.plan.steps
        if steps == 1 or access.rows is None or "time" not in access.index:
            return tensor
        time = access.index.index("time")
        if access.step is None:
            return tensor.movedim(access.index.index("step"), time + 1).flatten(time, time + 1)
        shape = list(tensor.shape)
        rows = tensor.new_zeros([*shape[: time + 1], steps, *shape[time + 1 :]])
        rows.select(time + 1, access.step).copy_(tensor)
        return rows.flatten(time, time + 1)

    def keep_rows(self, access: Access, rows: Tensor) -> None:
        """The buffer's own of the rows."""
        steps, time = self.run_.plan.steps, access.index.index("time")
        rows = rows.unflatten(time, (rows.shape[time] // steps, steps))
        if access.step is not None:
            kept = rows.select(time + 1, access.step)
        else:
            kept = rows.movedim(time + 1, access.index.index("step"))
        self.run_.tensors[access.buffer].copy_(kept)

    def tokens(self, access: Access) -> range | None:
        if access.rows is None:
            return None
        rows = self.range(self.kernel.axis(access.rows))
        return range(rows.start + access.shift, rows.stop + access.shift)

    def load(self, access: Access) -> Tensor:
        kept = [e for e in access.index if e not in ("batch", "head", "step")]
        tensor, entries = self.block(access, self.row_tensor(access))
        for i, (entry, wanted) in enumerate(zip(kept, entries, strict=True)):
            length = tensor.shape[2 + i]
            outside = (wanted < 0) | (wanted >= length)
            assert entry == "time" or not outside.any(), access
            tensor = tensor.index_select(2 + i, wanted.clamp(0, length - 1))
            shape = [1] * tensor.dim()
            shape[2 + i] = -1
            tensor = torch.where(outside.reshape(shape), 0, tensor)
        return self.squeeze(tensor, kept, access)

    def squeeze(self, tensor: Tensor, kept: list[str], access: Access) -> Tensor:
        single = [2 + i for i, e in enumerate(kept) if self.is_single(e, access)]
        return tensor.squeeze(single) if single else tensor

    def is_single(self, entry: str, access: Access) -> bool:
        return entry == "chunk" or entry.startswith("tile:") or (entry == "time" and access.rows is None)

    def store(self, statement: Store) -> None:
        access, value = statement.access, statement.value
        kept = [e for e in access.index if e not in ("batch", "head", "step")]
        axes = tuple(access.rows if e == "time" else e for e in kept if not self.is_single(e, access))
        rows = self.row_tensor(access)
        tensor, entries = self.block(access, rows)
        tile = self.align(value, axes).expand(-1, -1, *(self.extent(a) for a in axes))  # type: ignore[arg-type]
        for i, entry in enumerate(kept):
            if self.is_single(entry, access):
                tile = tile.unsqueeze(2 + i)
        for i, wanted in enumerate(entries):
            inside = (wanted >= 0) & (wanted < tensor.shape[2 + i])
            tile = tile.index_select(2 + i, inside.nonzero().flatten())
            entries[i] = wanted[inside]
        columns = [e.reshape([-1] + [1] * (len(entries) - 1 - i)) for i, e in enumerate(entries)]
        index = (slice(None), slice(None), *columns)
        tensor[index] = tile.expand(self.run_.batch, self.run_.heads, *tile.shape[2:]).to(tensor.dtype)
        if rows is not self.run_.tensors[access.buffer]:
            self.keep_rows(access, rows)

    # operations

    def let(self, s: Let) -> None:
        if s.op == "load":
            assert s.access is not None
            return self.put(s.out, self.load(s.access))
        if s.op in OPERATORS:
            return self.put(s.out, self.elementwise(s))
        results = getattr(self, f"op_{s.op}")(s)
        for out, tile in zip(s.outs, results if isinstance(results, tuple) else (results,), strict=True):
            self.put(out, tile)

    def elementwise(self, s: Let) -> Tensor:
        tiles = [self.align(a, s.out.axes) for a in s.args]
        if s.op in ("complex", "polar"):
            tiles = list(torch.broadcast_tensors(*tiles))
        names = {f"x{i}": t for i, t in enumerate(tiles)}
        attrs = {"exponent": repr(s.attr("exponent"))} if s.op == "pow" else {}
        result = eval(OPERATORS[s.op].torch.format(*names, **attrs), {"torch": torch, "math": math}, names)
        return result + 0 * result.new_zeros(()) if result.dtype != torch.bool else result

    def fill(self, axes: tuple[str, ...], value: float) -> Tensor:
        return torch.full((1, 1, *(self.extent(a) for a in axes)), value, dtype=self.run_.dtype)

    def op_const(self, s: Let) -> Tensor:
        return self.fill((), s.attr("value"))

    def op_size(self, s: Let) -> Tensor:
        return self.fill((), self.run_.sizes[s.attr("dim")])

    def op_zeros(self, s: Let) -> Tensor:
        zeros = self.fill(s.out.axes, 0.0)
        return zeros.to(zeros.dtype.to_complex()) if s.out.is_complex else zeros

    def op_full(self, s: Let) -> Tensor:
        return self.fill(s.out.axes, s.attr("value"))

    def op_contract(self, s: Let) -> Tensor:
        x, y = s.args
        over = s.attr("over")
        axes = (*s.out.axes, *over)
        product = self.align(x, axes) * self.align(y, axes)
        for axis, length in zip(axes[len(s.out.axes) :], product.shape[2 + len(s.out.axes) :], strict=True):
            product = product * (1 if length == self.extent(axis) else self.extent(axis))
        return product.flatten(2 + len(s.out.axes)).sum(-1) if over else product

    def op_sum(self, s: Let) -> Tensor:
        axes = [2 + s.args[0].axes.index(a) for a in s.attr("over")]
        return self.full_tile(s.args[0]).sum(axes)

    def op_amax(self, s: Let) -> Tensor:
        axes = [2 + s.args[0].axes.index(a) for a in s.attr("over")]
        return self.full_tile(s.args[0]).amax(axes)

    def full_tile(self, value: Value) -> Tensor:
        return self.get(value).expand(-1, -1, *(self.extent(a) for a in value.axes))

    def op_cumsum(self, s: Let) -> Tensor:
        x, axis = self.full_tile(s.args[0]), 2 + s.args[0].axes.index(s.attr("axis"))
        total = x.cumsum(axis)
        return total - x if s.attr("exclusive") else total

    def rows_first(self, s: Let) -> list[Tensor]:
        """The arguments with the rows axis in front, from the last row on where the operation runs in reverse."""
        tiles = []
        for value in s.args:
            tile = self.align(value, s.outs[0].axes).expand(-1, -1, *(self.extent(a) for a in s.outs[0].axes))
            tile = tile.movedim(2 + s.outs[0].axes.index(s.attr("axis")), 0)
            tiles.append(tile.flip(0) if dict(s.attrs).get("reverse") else tile)
        return tiles

    def rows_back(self, s: Let, rows: list[Tensor]) -> Tensor:
        tile = torch.stack(rows[::-1] if dict(s.attrs).get("reverse") else rows)
        return tile.movedim(0, 2 + s.outs[0].axes.index(s.attr("axis")))

    def op_scan(self, s: Let) -> tuple[Tensor, Tensor]:
        products, states = [], []
        for a, x in zip(*self.rows_first(s), strict=True):
            products.append(a * products[-1] if products else a + 0 * x)
            states.append(a * states[-1] + x if states else x + 0 * a)
        return self.rows_back(s, products), self.rows_back(s, states)

    def op_prescan(self, s: Let) -> tuple[Tensor, ...]:
        return self.before_runs(s, 1.0, 0.0, torch.mul, lambda a, x, h: a * h + x)

    def op_maxprescan(self, s: Let) -> tuple[Tensor, ...]:
        return self.before_runs(s, 0.0, -math.inf, torch.add, lambda g, x, m: torch.maximum(m + g, x))

    def before_runs(self, s: Let, decay: float, state: float, combine: Callable, step: Callable) -> tuple[Tensor, ...]:
        """Before every run, and after all rows: their decays combined, and the state that starts from nothing."""
        axes = tuple(s.attr("axis") if a == s.attr("runs") else a for a in s.outs[0].axes)
        s = replace(s, outs=(replace(s.outs[0], axes=axes),))
        rows = list(zip(*self.rows_first(s), strict=True))
        like = rows[0][0] + rows[0][1]
        decays, states = [torch.full_like(like, decay)], [torch.full_like(like, state)]
        for a, x in rows:
            decays.append(combine(a, decays[-1]))
            states.append(step(a, x, states[-1]))
        first_rows = slice(0, -1, len(rows) // self.extent(s.attr("runs")))
        return self.rows_back(s, decays[first_rows]), self.rows_back(s, states[first_rows]), decays[-1], states[-1]

    def op_resume(self, s: Let) -> Tensor:
        return self.resumed(s, lambda a, x, h: a * h + x)

    def op_maxresume(self, s: Let) -> Tensor:
        return self.resumed(s, lambda g, x, m: torch.maximum(m + g, x))

    def resumed(self, s: Let, step: Callable) -> Tensor:
        rows = self.rows_first(Let(s.outs, s.op, s.args[:2], s.attrs))
        starts = self.full_tile(s.args[2]).movedim(2 + s.args[2].axes.index(s.attr("runs")), 0)
        starts = list(starts.flip(0) if dict(s.attrs).get("reverse") else starts)
        length, states = len(rows[0]) // len(starts), []
        for r, (a, x) in enumerate(zip(*rows, strict=True)):
            before = states[-1][1] if r % length else starts[r // length]
            states.append((before, step(a, x, before)))
        return self.rows_back(s, [pair[1 if dict(s.attrs).get("inclusive") else 0] for pair in states])

    def op_previous(self, s: Let) -> Tensor:
        first = self.align(s.args[1], tuple(a for a in s.out.axes if a != s.attr("axis")))
        x = self.rows_first(Let(s.outs, s.op, s.args[:1], s.attrs))[0]
        return self.rows_back(s, [first.expand(x[0].shape), *x[:-1]])

    def op_last(self, s: Let) -> Tensor:
        row = 0 if dict(s.attrs).get("reverse") else -1
        return self.full_tile(s.args[0]).select(2 + s.args[0].axes.index(s.attr("axis")), row)

    def op_rename(self, s: Let) -> Tensor:
        old = s.attr("old")
        self.renamed[s.attr("new")] = self.renamed.get(old, old)
        return self.get(s.args[0])

    def op_expand(self, s: Let) -> Tensor:
        return self.align(s.args[0], s.out.axes).expand(-1, -1, *(self.extent(a) for a in s.out.axes))

    def op_valid(self, s: Let) -> Tensor:
        value, axis = s.args[0], s.attr("axis")
        rows = torch.tensor([t < self.run_.tokens for t in self.range(self.kernel.axis(axis))])
        shape = [1] * (2 + len(value.axes))
        shape[2 + value.axes.index(axis)] = -1
        return torch.where(rows.reshape(shape), self.full_tile(value), s.attr("fill"))

    def op_at_step(self, s: Let) -> Tensor:
        value, axis = s.args[0], s.attr("axis")
        rows = torch.tensor([t % self.run_.plan.steps == s.attr("step") for t in self.range(self.kernel.axis(axis))])
        shape = [1] * (2 + len(value.axes))
        shape[2 + value.axes.index(axis)] = -1
        return torch.where(rows.reshape(shape), self.full_tile(value), s.attr("fill"))

    def op_after(self, s: Let) -> Tensor:
        row, column = (torch.tensor(list(self.range(self.kernel.axis(a)))) for a in s.out.axes)
        return (row[:, None] - column[None, :] >= s.attr("offset"))[None, None]

    def op_middle(self, s: Let) -> Tensor:
        axis, level = 2 + s.out.axes.index(s.attr("axis")), self.where["level"]
        row = torch.arange(self.run_.chunk)
        return self.full_tile(s.args[0]).index_select(axis, ((row >> level | 1) << level) - 1)

    def op_right(self, s: Let) -> Tensor:
        return (torch.arange(self.run_.chunk) >> self.where["level"] & 1).bool()[None, None]

    def op_apart(self, s: Let) -> Tensor:
        row = torch.arange(self.run_.chunk)
        return ((row[:, None] ^ row[None, :]) >> self.where["level"] == 1)[None, None]

    def op_start(self, s: Let) -> Tensor:
        axis, rows = 2 + s.out.axes.index(s.attr("axis")), int(s.attr("rows"))
        tile = self.full_tile(s.args[0])
        padded = torch.cat([torch.zeros_like(tile.narrow(axis, 0, 1)), tile], axis)
        return padded.index_select(axis, torch.arange(self.run_.chunk) // rows * rows)

    def op_end(self, s: Let) -> Tensor:
        axis, rows = 2 + s.out.axes.index(s.attr("axis")), int(s.attr("rows"))
        end = torch.arange(self.run_.chunk) // rows * rows + rows - 1
        return self.full_tile(s.args[0]).index_select(axis, end.clamp(max=self.run_.chunk - 1))

    def op_across(self, s: Let) -> Tensor:
        block = torch.arange(self.run_.chunk) // s.attr("rows")
        return (block[:, None] > block)[None, None]

    def op_beside(self, s: Let) -> Tensor:
        row, rows = torch.arange(self.run_.chunk), s.attr("rows")
        return ((row[:, None] > row) & (row[:, None] // rows == row // rows))[None, None]

    def op_together(self, s: Let) -> Tensor:
        half = torch.arange(self.run_.chunk) >> self.where["level"]
        return (half[:, None] == half[None, :])[None, None]

    def op_room(self, s: Let) -> Tensor:
        return torch.full((1, 1), 80.0, dtype=self.run_.dtype)

    def op_rounded(self, s: Let) -> Tensor:
        return self.get(s.args[0])

    def op_eye(self, s: Let) -> Tensor:
        rows, columns = (torch.tensor(list(self.range(self.axis(a)))) for a in s.out.axes)
        return (rows[:, None] == columns[None, :]).to(self.run_.dtype)[None, None]

    def op_select(self, s: Let) -> Tensor:
        fused, part = (torch.tensor(list(self.range(self.kernel.axis(a)))) for a in s.out.axes)
        for axis in s.attr("inner"):
            fused = fused // self.extent(axis)
        return (fused[:, None] % self.extent(s.attr("part")) == part[None, :]).to(self.run_.dtype)[None, None]

    def op_index(self, s: Let) -> Tensor:
        return self.full_tile(s.args[0]).select(2 + s.args[0].axes.index(s.attr("axis")), s.attr("i"))

    def op_place(self, s: Let) -> Tensor:
        onehot = torch.arange(self.extent(s.attr("axis"))) == s.attr("i")
        return torch.where(onehot, self.align(s.args[0], s.out.axes), 0)

    def op_hadamard(self, s: Let) -> Tensor:
        axis = 2 + s.args[0].axes.index(s.attr("axis"))
        x = self.full_tile(s.args[0]).movedim(axis, -1)
        matrix = torch.ones(1, 1, dtype=self.run_.dtype)
        while matrix.shape[0] < x.shape[-1]:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return (x @ matrix.to(x.dtype)).movedim(-1, axis)

    def op_weigh(self, s: Let) -> Tensor:
        x, y, gx, gy = (self.align(a, (*s.out.axes, *s.attr("over"))) for a in s.args)
        product = x * y * torch.exp2((gx - gy).clamp(max=0.0))
        return product.flatten(2 + len(s.out.axes)).sum(-1)

    def op_inverse(self, s: Let) -> Tensor:
        lower = self.align(s.args[0], s.out.axes)
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype)
        return torch.linalg.solve_triangular(lower + eye, eye, upper=False)

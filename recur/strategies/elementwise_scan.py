"""Elementwise states, by scans over chunks of tokens (docs/mathematics.md, section 6)

    h_t = a_t h_{t-1} + x_t          the composition (a2, x2) o (a1, x1) = (a1 a2, a2 x1 + x2) is associative

One program owns (batch, head, a tile of the dims that nothing contracts) and walks the chunks with h in registers.
Coefficients, epilogue and their gradients are evaluated inside, so the states of all tokens are never written.

Backward, in reverse: with g_t the epilogue's cotangent of h_t, s_t its cotangent of h_{t-1}, and mu_t all of the
cotangent that reaches h_{t-1} from token t on,

    mu_t = conj(a_t) mu_{t+1} + (conj(a_t) g_t + s_t)         again a scan; mu after the last token is d_final
    lambda_t = g_t + mu_{t+1}                                 the cotangent of h_t
    da_t = lambda_t conj(h_{t-1}),  dx_t = lambda_t           pulled back through the coefficients' expressions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

from recur.ir.core import Node, apply, contract, leaf, leaves, mul, reduce, topological
from recur.ir.normal import ElementwiseForm, MaxPlusForm, NormalForm
from recur.ir.plan import Cost, Plan
from recur.ir.tile import Access, Axis, Builder, Kernel, Value, next_power_of_two
from recur.passes.autodiff import pull_back
from recur.strategies import operands
from recur.strategies.operands import Dims, Frame
from recur.strategies.past_end import emit_no_step, varies
from recur.strategies.pointwise import emit_nodes
from recur.strategies.prune import prune_kernel

TILE_ROWS = 128  # tokens in a chunk, where the untiled dims leave room
NUMBERS = 1024  # the same where a token is one number
TILE_ENTRIES = 256  # rows times untiled dims, where there are any
PROGRAM_ENTRIES = 4096  # of the widest tile, a thread holding 32 of them; twice that where states share their inputs
VECTOR = 4  # neighbouring channels that a thread holds: wide loads, and registers left for a run of tokens
ADJOINT_EQUATIONS = (
    "mu_t = conj(a_t) mu_(t+1) + conj(a_t) g_t + s_t      the cotangent that reaches h_(t-1)",
    "lambda_t = g_t + mu_(t+1)                            the cotangent of h_t",
    "da_t = lambda_t conj(h_(t-1)),  dx_t = lambda_t",
)

ScanForm = Union[ElementwiseForm, MaxPlusForm]  # noqa: UP007 (an alias, evaluated on 3.10)


@dataclass(frozen=True)
class Scan:
    """A stage whose states are scanned along rows: its tensors, its placement and its forward walk."""

    normal: NormalForm
    sizes: dict[str, int]
    outputs: frozenset[str]

    @property
    def coefficients(self) -> list[Node]:
        raise NotImplementedError

    @property
    def no_step(self) -> tuple[float, float]:
        """The coefficients that leave a state as it is: those of rows past the sequence's end."""
        raise NotImplementedError

    def emit_scan(self, b: Builder, which: int, a: Value, x: Value, h: Value) -> tuple[Value, Value]:
        """The state before every run of rows, and after all; from the one before all."""
        raise NotImplementedError

    def emit_resume(self, b: Builder, which: int, a: Value, x: Value, starts: Value, inclusive: bool) -> Value:
        """The state before every row (``inclusive``: after it), from the one before every run."""
        raise NotImplementedError

    def emit_step(self, b: Builder, which: int, a: Value, x: Value, before: Value) -> Value:
        """The state after every row, from the one before it."""
        raise NotImplementedError

    # tensors and placement

    @property
    def stage(self) -> str:
        return operands.stage_name(self.normal)

    @property
    def forms(self) -> tuple[ScanForm, ...]:
        return self.normal.forms  # type: ignore[return-value]

    @cached_property
    def states(self) -> list[Node]:
        return [leaf("state", f.state, f.dims, isinstance(f, ElementwiseForm) and f.is_complex) for f in self.forms]

    @cached_property
    def nexts(self) -> list[Node]:
        return [leaf("next", str(s.attrs[1]), s.dims, s.is_complex) for s in self.states]

    @property
    def exports(self) -> list[Node]:
        return [node for _, node in self.normal.epilogue]

    @property
    def roots(self) -> list[Node]:
        return [*self.coefficients, *self.exports]

    @cached_property
    def arguments(self) -> list[Node]:
        return operands.argument_leaves(self.roots)

    @cached_property
    def frame(self) -> Frame:
        owned = [s.dims for s in self.states] + [node.dims for node in self.exports]
        dims = operands.all_dims([*self.roots, *self.states])
        return Frame(operands.free_name("c", dims), operands.tileable_dims(self.roots, owned), dims)

    @property
    def per_chunk(self) -> Frame:
        """The same placement, for what programs leave of every chunk."""
        return replace(self.frame, chunked=True)

    @property
    def rows(self) -> str:
        assert self.frame.rows is not None
        return self.frame.rows

    @property
    def chunk(self) -> int:
        """Rows so that a tile of the untiled dims stays small: a power of two, at least 16."""
        if self.entries_per_row == 1 and not self.frame.tiled:
            return NUMBERS
        rows = TILE_ENTRIES // self.entries_per_row
        return max(16, min(TILE_ROWS, 1 << max(rows.bit_length() - 1, 0)))

    @property
    def entries_per_row(self) -> int:
        """The most values of untiled dims that a token has in one tile; a complex one counts twice."""
        widest = operands.widest_tile(self.roots, self.frame.tiled, self.sizes, rows=True)
        return widest * (2 if any(n.is_complex for n in topological(self.roots)) else 1)

    @property
    def runs(self) -> str:
        """The axis of a chunk's runs: of rows that a thread scans by itself."""
        return operands.free_name("runs", self.frame.dims)

    @cached_property
    def widths(self) -> tuple[tuple[str, int], ...]:
        """Widths of the tiles on the grid, such that the program's warps hold its widest tile."""
        entries = PROGRAM_ENTRIES * (1 if self.entries_per_row == 1 else 2)
        return operands.fit_tiles(self.chunk * self.entries_per_row, self.frame.tiled, self.sizes, entries // 4)[0]

    @cached_property
    def run_count(self) -> int:
        """Runs in a chunk: as many as there are threads for a row of the largest state, VECTOR entries for each."""
        tiled = dict(self.widths)
        row = max(math.prod(tiled.get(d) or next_power_of_two(operands.entries((d,), self.sizes)) for d in s.dims)
                  for s in self.states)  # fmt: skip
        vector = VECTOR if row == math.prod(tiled.values()) else 1
        return min(max(32 * self.warps // max(row // vector, 1), 1), self.chunk)

    @property
    def warps(self) -> int:
        """Eight where a thread of four would hold more than 32 entries of tiles of states."""
        return 4 if self.entries_per_row == len(self.forms) == 1 else 8

    def kernel(self, name: str, b: Builder, equations: tuple[str, ...]) -> Kernel:
        runs = Axis(self.runs, "size", self.runs)
        axes = (*self.frame.axes[:1], runs, *self.frame.axes[1:])
        return prune_kernel(Kernel(f"{self.stage}_{name}", self.frame.grid, axes, tuple(b.statements), equations,
                                   "scan", self.widths, self.warps))  # fmt: skip

    def access_starts(self, form: ScanForm) -> Access:
        return Access(f"{form.state}.start", ("batch", "chunk", "head", self.runs, *form.dims))

    def complex_buffers(self) -> frozenset[str]:
        names = {operands.tensor_name(n) for n in self.arguments if n.is_complex}
        names |= {f"d_{name}" for name, node in self.normal.epilogue if node.is_complex}
        for s in self.states:
            if s.is_complex:
                names |= {str(s.attrs[1]), f"{s.attrs[1]}.start", f"d_final_{s.attrs[1]}"}
        return frozenset(names)

    @cached_property
    def large_params(self) -> list[Node]:
        return operands.large_params(self.arguments, self.frame.tiled, self.sizes)

    def load_params(self, b: Builder, values: dict[Node, Value], roots: Sequence[Node]) -> None:
        """Params, and what depends on them alone, before the loop; large ones are read again for every chunk."""
        params = [n for n in self.arguments if n.attrs[0] == "param" and n not in self.large_params]
        self.frame.load_leaves(b, params, values)
        emit_nodes(b, operands.per_head_nodes(roots, self.large_params), values, "w")

    # forward

    def forward(self, keep_starts: bool) -> Kernel:
        """``keep_starts``: the states before every run of rows are left for the backward pass."""
        frame = self.frame
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, self.roots)
        starts = [frame.load(b, f.state, "sequence", f.dims) for f in self.forms]
        body = b.nested()
        carried = [body.phi(f.state, start) for f, start in zip(self.forms, starts, strict=True)]
        steps = self.emit_steps(body, values)
        scanned = [self.emit_scan(body, i, *step, h)
                   for i, (step, h) in enumerate(zip(steps, carried, strict=True))]  # fmt: skip
        for f, (before, _) in zip(self.forms, scanned, strict=True):
            if keep_starts:
                body.store(self.access_starts(f), before)
        self.emit_states(body, values, steps, [before for before, _ in scanned], self.exports)
        self.store_exports(body, values)
        b.loop("chunks", body, operands.carry_all(carried, starts, [end for _, end in scanned]))
        for f, h in zip(self.forms, carried, strict=True):
            frame.store(b, f"final_{f.state}", "sequence", f.dims, h)
        equations = tuple(self.equation(f) for f in self.forms)
        return self.kernel("forward", b, equations)

    def store_exports(self, b: Builder, values: dict[Node, Value]) -> None:
        for (name, node), tile in zip(self.normal.epilogue, emit_nodes(b, self.exports, values), strict=True):
            self.frame.store(b, name, "token", node.dims, tile)

    def equation(self, form: ScanForm) -> str:
        h = form.state
        if isinstance(form, MaxPlusForm):
            return f"{h}_t = max({h}_(t-1) + g_t, i_t)"
        return f"{h}_t = a_t * {h}_(t-1) + x_t"

    def emit_steps(self, b: Builder, values: dict[Node, Value]) -> list[tuple[Value, Value]]:
        """Loads the chunk's inputs, and returns every state's coefficients at all rows.

        They are of no step at all on rows past the sequence's end.
        """
        self.load_tokens(b, values)
        steps = []
        for i, s in enumerate(self.states):
            axes = self.frame.token_axes(s.dims)
            a, x = emit_nodes(b, self.coefficients[2 * i : 2 * i + 2], values)
            steps.append(self.emit_valid(b, i, b.expand(a, axes, "a"), b.expand(x, axes, "x")))
        return steps

    def emit_valid(self, b: Builder, which: int, a: Value, x: Value) -> tuple[Value, Value]:
        return b.valid(a, self.rows, self.no_step[0], "a"), b.valid(x, self.rows, self.no_step[1], "x")

    def load_tokens(self, b: Builder, values: dict[Node, Value]) -> None:
        tokens = [n for n in self.arguments if n.attrs[0] != "param"]
        self.frame.load_leaves(b, self.large_params + tokens, values)

    def emit_states(
        self, b: Builder, values: dict[Node, Value], steps: Sequence[tuple[Value, Value]], starts: Sequence[Value],
        reads: Sequence[Node],
    ) -> None:
        """Gives ``values`` the states' tiles, from those before every run of rows.

        States before a row cost registers beside those after it: they are there where ``reads`` have them alone.
        """
        read = leaves(reads)
        for i, (s, (a, x), start) in enumerate(zip(self.states, steps, starts, strict=True)):
            at_rows = self.emit_resume(b, i, a, x, start, inclusive=s not in read)
            if s in read:
                values[s], at_rows = at_rows, self.emit_step(b, i, a, x, at_rows)
            values[self.nexts[i]] = at_rows


@dataclass(frozen=True)
class Adjoint:
    """Cotangents as nodes: of each next state and previous state by the epilogue, and of the arguments (not zero).

    Over the primal leaves, ``given`` (of the exports) and ``arrived`` (lambda, of the next states).
    """

    given: tuple[Node, ...]
    arrived: tuple[Node, ...]
    next: tuple[Node, ...]
    state: tuple[Node, ...]
    gradients: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True)
class ElementwiseScan(Scan):
    """h_t = a_t h_{t-1} + x_t, for one or several states that meet in the epilogue only."""

    @property
    def coefficients(self) -> list[Node]:
        return [n for f in self.forms for n in (f.decay, f.drive)]  # type: ignore[union-attr]

    def plan(self) -> Plan:
        reached = [n for n, _ in self.adjoint.gradients]
        return Plan(
            stage=self.stage,
            strategy="associative_scan",
            arguments=tuple(operands.argument_buffer(n) for n in self.arguments),
            initial=operands.state_buffers(self.states, "sequence", "initial"),
            results=operands.result_buffers(self.normal, self.outputs),
            final=operands.state_buffers(self.states, "sequence", "final"),
            saved=tuple(operands.make_buffer(f"{s.attrs[1]}.start", "chunk", (self.runs, *s.dims),
                                             is_complex=s.is_complex) for s in self.states),
            workspace=(*(operands.gradient_buffer(n, self.per_chunk) for n in reached),
                       *operands.gradient_buffers_of_states(self.states)),
            forward=(self.forward(keep_starts=True),),
            backward=(self.backward(),),
            gradients=(*(operands.gradient_line(n, self.per_chunk) for n in reached),
                       *(operands.initial_line(s) for s in self.states)),
            cost=scan_cost(self),
            chunk=self.chunk,
            limits=operands.find_limits(self.roots, self.frame, self.sizes, self.chunk),
            fixed_sizes=((self.runs, self.run_count),),
        )

    @property
    def no_step(self) -> tuple[float, float]:
        return 1.0, 0.0

    # no step past the sequence's end, by few entries where they decide (past_end.py)

    def load_tokens(self, b: Builder, values: dict[Node, Value]) -> None:
        super().load_tokens(b, values)
        for i, node in enumerate(self.coefficients):
            if varies(node):
                emit_no_step(b, node, self.no_step[i % 2], self.rows, values)

    def emit_valid(self, b: Builder, which: int, a: Value, x: Value) -> tuple[Value, Value]:
        """What varies from token to token has been seen to (load_tokens)."""
        decay, drive = self.coefficients[2 * which : 2 * which + 2]
        return (a if varies(decay) else b.valid(a, self.rows, self.no_step[0], "a"),
                x if varies(drive) else b.valid(x, self.rows, self.no_step[1], "x"))  # fmt: skip

    def emit_scan(self, b: Builder, which: int, a: Value, x: Value, h: Value) -> tuple[Value, Value]:
        name = self.forms[which].state
        names = (f"{name}_decay", f"{name}_own")
        decay, own, decay_all, own_all = b.prescan(a, x, self.rows, self.runs, names=names)
        # The next chunk waits for this product alone.
        end = b.add(own_all, b.mul(decay_all, h), name=f"{name}_end")
        return b.add(own, b.mul(decay, h), name=f"{name}_starts"), end

    def emit_resume(self, b: Builder, which: int, a: Value, x: Value, starts: Value, inclusive: bool) -> Value:
        name = f"{self.forms[which].state}_{'next' if inclusive else 'before'}"
        return b.resume(a, x, starts, self.rows, self.runs, name=name, inclusive=inclusive)

    def emit_step(self, b: Builder, which: int, a: Value, x: Value, before: Value) -> Value:
        return b.add(b.mul(a, before), x, name=f"{self.forms[which].state}_next")

    # backward

    @cached_property
    def adjoint(self) -> Adjoint:
        given = tuple(leaf("cotangent", name, node.dims, node.is_complex) for name, node in self.normal.epilogue)
        arrived = tuple(leaf("cotangent", f"{s.attrs[1]}.next", s.dims, s.is_complex) for s in self.states)
        direct = pull_back(self.exports, given, [*self.nexts, *self.states])
        outputs, cotangents = list(self.exports), list(given)
        decays, drives = self.coefficients[::2], self.coefficients[1::2]
        for decay, drive, g, h in zip(decays, drives, arrived, self.states, strict=True):
            outputs += [decay, drive]
            cotangents += [_sum_product(g, h, decay.dims), _sum_to(g, drive.dims)]
        pulled = pull_back(outputs, cotangents, self.arguments)
        gradients = tuple((s, n) for s, n in zip(self.arguments, pulled, strict=True) if not operands.is_zero(n))
        count = len(self.states)
        return Adjoint(given, arrived, tuple(direct[:count]), tuple(direct[count:]), gradients)

    def backward(self) -> Kernel:
        frame, adjoint = self.frame, self.adjoint
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, [*self.roots, *(node for _, node in adjoint.gradients)])
        ends = [frame.load(b, f"d_final_{f.state}", "sequence", f.dims) for f in self.forms]

        body = b.nested()
        carried = [body.phi(f"d_{f.state}", end) for f, end in zip(self.forms, ends, strict=True)]
        self.emit_kept_states(body, values)
        self.load_cotangents(body, values)
        nexts = [self.emit_adjoint(body, values, i, mu) for i, mu in enumerate(carried)]
        self.emit_gradients(body, values)
        b.loop("chunks", body, operands.carry_all(carried, ends, nexts), reverse=True)
        for f, mu in zip(self.forms, carried, strict=True):
            frame.store(b, f"d_{f.state}", "sequence", f.dims, mu)
        return self.kernel("backward", b, ADJOINT_EQUATIONS)

    def emit_kept_states(self, b: Builder, values: dict[Node, Value]) -> None:
        """Gives ``values`` the states' tiles, from those that the forward pass has kept."""
        adjoint = self.adjoint
        starts = [b.load(f"{f.state}.start", self.access_starts(f), (self.runs, *f.dims)) for f in self.forms]
        reads = [*adjoint.next, *adjoint.state, *(node for _, node in adjoint.gradients)]
        self.emit_states(b, values, self.emit_steps(b, values), starts, reads)

    def load_cotangents(self, b: Builder, values: dict[Node, Value]) -> None:
        for (name, node), cotangent in zip(self.normal.epilogue, self.adjoint.given, strict=True):
            values[cotangent] = self.frame.load(b, f"d_{name}", "token", node.dims)
        for node in self.adjoint.next:
            if varies(node):
                emit_no_step(b, node, 0.0, self.rows, values)

    def emit_adjoint(self, b: Builder, values: dict[Node, Value], which: int, mu: Value) -> Value:
        """One state's reverse scan: gives lambda to ``values`` and returns mu at the chunk's first token."""
        rows, name = self.rows, self.forms[which].state
        a, g, drive = self.emit_reach(b, values, which)
        names = ("mu_decay", "mu_own")
        decay, own, decay_all, own_all = b.prescan(a, drive, rows, self.runs, names=names, reverse=True)
        end = b.add(own_all, b.mul(decay_all, mu), name=f"d_{name}_start")
        ends = b.add(own, b.mul(decay, mu), name=f"d_{name}_ends")
        later = b.resume(a, drive, ends, rows, self.runs, name="mu_later", reverse=True,
                         comment=f"what reaches {name} from the tokens after each")  # fmt: skip
        values[self.adjoint.arrived[which]] = b.add(g, later, name=f"lambda_{name}", comment="and in all")
        return end

    def emit_reach(self, b: Builder, values: dict[Node, Value], which: int) -> tuple[Value, Value, Value]:
        """conj(a_t), g_t and conj(a_t) g_t + s_t; the first and the last of no step past the sequence's end."""
        adjoint = self.adjoint
        axes = self.frame.token_axes(self.forms[which].dims)
        conjugate = apply("conj", self.coefficients[2 * which])
        a, g = emit_nodes(b, [conjugate, adjoint.next[which]], values)
        a, g = b.expand(a, axes, "a_conj"), b.expand(g, axes, "g")
        drive = b.mul(a, g, name="reach")
        if not operands.is_zero(adjoint.state[which]):
            s = emit_nodes(b, [adjoint.state[which]], values)[0]
            drive = b.valid(b.add(drive, b.expand(s, axes, "s"), name="reach"), self.rows)
        if not varies(conjugate):
            a = b.valid(a, self.rows, 1.0)
        return a, g, drive

    def emit_gradients(self, b: Builder, values: dict[Node, Value]) -> None:
        """Stores the inputs' gradients, and the chunk's part of the params'.

        Parts are added after the kernel, in order: a sum carried along would be one more thing to wait for.
        """
        memo: dict[Node, Value] = {}
        for argument, node in self.adjoint.gradients:
            if argument.attrs[0] == "param":
                gradient = operands.emit_row_sum(b, node, values, self.rows, memo)
            else:
                gradient = emit_nodes(b, [node], values)[0]
            self.per_chunk.store_gradient(b, argument, gradient)


def _sum_to(g: Node, dims: Dims) -> Node:
    return reduce("sum", g, tuple(d for d in g.dims if d not in dims))


def _sum_product(g: Node, h: Node, dims: Dims) -> Node:
    """g conj(h), summed over the dims that a decay lacks."""
    h = apply("conj", h)
    over = tuple(d for d in g.dims if d not in dims)
    return contract(g, h, over) if over else mul(g, h)


def scan_cost(scan: Scan) -> Cost:
    """Inputs and outputs move once forward and about twice backward; a scan takes log2(rows) steps."""
    moved = sum(operands.entries(n.dims, scan.sizes) for n in scan.arguments if n.attrs[0] != "param")
    moved += sum(operands.entries(n.dims, scan.sizes) for n in scan.exports)
    work = sum(operands.entries(s.dims, scan.sizes) for s in scan.states)
    steps = scan.chunk.bit_length() - 1
    return Cost(6.0 * work * (steps + 2), 12.0 * moved, 2, "T / C")

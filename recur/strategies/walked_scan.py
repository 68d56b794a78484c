"""Elementwise states of many entries a channel, token by token (docs/mathematics.md, section 6)

    h_t = a_t h_{t-1} + x_t          the state of a channel: [N] numbers, all in the registers of one thread

A scan by parts composes steps, which doubles the work of every entry. Where each channel has many states there are
threads enough without it: a thread walks the tokens with its channel's states at hand, and sums over the states take
no exchange. Tokens come in chunks of a few rows, which Triton unrolls. Sequences are cut into segments of whole chunks
where their channels alone do not fill the device:

    local           P, what a segment makes of an empty state, and D, the product of its decays
    starts          h at every segment's start, one after the other: h <- D h + P
    forward         the walk; h before every chunk is kept for the backward pass

and backward the same of mu (see associative_scan.py): reverse_local, reverse_starts, backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from recur.ir.core import Node
from recur.ir.plan import Plan
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value, next_power_of_two
from recur.passes.regroup import regroup
from recur.strategies import operands
from recur.strategies.chunk.segments import segment_access
from recur.strategies.elementwise_scan import ADJOINT_EQUATIONS, Adjoint, ElementwiseScan
from recur.strategies.operands import Frame
from recur.strategies.pointwise import emit_nodes

FEWEST_STATES, MOST_STATES = 8, 64  # of a channel, for which the walk is the faster schedule and fits registers
ROWS = 8  # tokens in a chunk
THREAD_STATES = 16  # of one token, of the 32 threads of a program
BACKWARD_STATES = 4  # the same backward, where a thread holds tiles of several kinds
STAGES = 4  # chunks in flight: one warp a scheduler has nothing else to wait with


@dataclass(frozen=True)
class Walk:
    """Names of what walks over a state: h forward, mu (``adjoint``) backward."""

    state: Node
    adjoint: bool

    @property
    def name(self) -> str:
        return f"d_{self.state.attrs[1]}" if self.adjoint else str(self.state.attrs[1])

    @property
    def given(self) -> str:
        """The buffer of the whole sequence's first one."""
        return f"d_final_{self.state.attrs[1]}" if self.adjoint else self.name

    @property
    def result(self) -> str:
        return self.name if self.adjoint else f"final_{self.name}"

    def access(self, part: str) -> Access:
        return segment_access(f"{part}_{self.name}", self.state.dims)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        def buffer(part: str, doc: str, of: str = "", entry: int = 0) -> Buffer:
            layout = ("B", "G", "H", *self.state.dims)
            return Buffer(f"{part}_{self.name}", layout, "accumulate", self.state.is_complex, doc, of, entry)

        first, last = (-1, 0) if self.adjoint else (0, -1)
        return (
            buffer("start", f"{self.name} where every segment's walk starts", self.given, first),
            buffer("end", f"{self.name} where it ends", self.result, last),
            buffer("local", f"what a segment makes of an empty {self.name}"),
            buffer("over", "the product of a segment's decays"),
        )


@dataclass(frozen=True)
class WalkedScan(ElementwiseScan):
    """The plan of a walk over tokens; its expressions and their adjoint are those of any elementwise scan."""

    @property
    def applies(self) -> bool:
        """Whether a thread can hold the states of a channel, and there are many."""
        return bool(self.frame.tiled) and FEWEST_STATES <= self.entries_per_row <= MOST_STATES

    @cached_property
    def plain(self) -> ElementwiseScan:
        """The same expressions as they were written."""
        return ElementwiseScan(self.normal, self.sizes, self.outputs)

    @cached_property
    def regrouped(self) -> dict[Node, Node]:
        adjoint = self.plain.adjoint
        roots = [*self.plain.roots, *adjoint.next, *adjoint.state, *(n for _, n in adjoint.gradients)]
        return dict(zip(roots, regroup(roots, self.sizes), strict=True))

    @property
    def coefficients(self) -> list[Node]:
        return [self.regrouped[n] for n in self.plain.coefficients]

    @property
    def exports(self) -> list[Node]:
        return [self.regrouped[n] for n in self.plain.exports]

    @cached_property
    def adjoint(self) -> Adjoint:
        plain = self.plain.adjoint
        return replace(plain, next=tuple(self.regrouped[n] for n in plain.next),
                       state=tuple(self.regrouped[n] for n in plain.state),
                       gradients=tuple((leaf, self.regrouped[n]) for leaf, n in plain.gradients))  # fmt: skip

    @property
    def per_segment(self) -> Frame:
        return replace(self.frame, segmented=True)

    @property
    def chunk(self) -> int:
        return ROWS

    @cached_property
    def widths(self) -> tuple[tuple[str, int], ...]:
        return self.tiles_of(THREAD_STATES)

    def tiles_of(self, states: int) -> tuple[tuple[str, int], ...]:
        """So many channels that a thread has ``states`` states."""
        channels = 32 * states // next_power_of_two(self.entries_per_row)
        return operands.fit_tiles(1, self.frame.tiled, self.sizes, channels // 4)[0]

    @cached_property
    def run_count(self) -> int:
        return 1

    @property
    def warps(self) -> int:
        return 1

    def walks(self, adjoint: bool) -> list[Walk]:
        return [Walk(s, adjoint) for s in self.states]

    def complex_buffers(self) -> frozenset[str]:
        buffers = [b for adjoint in (False, True) for w in self.walks(adjoint) for b in w.buffers]
        return super().complex_buffers() | operands.complex_names(buffers)

    def plan(self) -> Plan:
        reached = [n for n, _ in self.adjoint.gradients]
        of_segments = [b for adjoint in (False, True) for w in self.walks(adjoint) for b in w.buffers]
        return replace(
            super().plan(),
            workspace=(*(operands.gradient_buffer(n, self.per_segment) for n in reached),
                       *operands.gradient_buffers_of_states(self.states), *of_segments),
            forward=(self.local(), self.starts(adjoint=False), self.forward(keep_starts=True)),
            backward=(self.reverse_local(), self.starts(adjoint=True), self.backward()),
            gradients=(*(operands.gradient_line(n, self.per_segment) for n in reached),
                       *(operands.initial_line(s) for s in self.states)),
        )  # fmt: skip

    def walk_kernel(self, name: str, b: Builder, equations: tuple[str, ...], joins_segments: bool = False) -> Kernel:
        kernel = super().kernel(name, b, equations)
        return replace(kernel, grid=self.per_segment.grid, stages=STAGES, joins_segments=joins_segments)

    # before the walks

    def local(self) -> Kernel:
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, self.coefficients)
        body = b.nested()
        steps = self.emit_steps(body, values)
        return self.local_kernel("local", b, body, steps, adjoint=False)

    def reverse_local(self) -> Kernel:
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, [*self.coefficients, *self.adjoint.next, *self.adjoint.state])
        body = b.nested()
        self.emit_steps(body, values)
        self.load_cotangents(body, values)
        reaches = [self.emit_reach(body, values, i) for i in range(len(self.forms))]
        return self.local_kernel("reverse_local", b, body, [(a, drive) for a, _, drive in reaches], adjoint=True)

    def local_kernel(
        self, name: str, b: Builder, body: Builder, steps: Sequence[tuple[Value, Value]], adjoint: bool
    ) -> Kernel:
        """P and D of every segment, from its steps over a chunk."""
        carries, ends = [], []
        for walk, (a, x) in zip(self.walks(adjoint), steps, strict=True):
            dims = walk.state.dims
            empty, one = b.zeros(dims, "empty", walk.state.is_complex), emit_one(b, walk.state)
            P, D = body.phi("local", empty), body.phi("over", one)
            _, _, decay, own = body.prescan(a, x, self.rows, self.runs, names=("decay", "own"), reverse=adjoint)
            carries += [Carry(P, empty, body.add(own, body.mul(decay, P), name="local")),
                        Carry(D, one, body.mul(decay, D, name="over"))]  # fmt: skip
            ends += [(walk.access("local"), P), (walk.access("over"), D)]
        b.loop("chunks", body, tuple(carries), reverse=adjoint)
        for access, value in ends:
            b.store(access, value)
        return self.walk_kernel(name, b, ("P <- a_t P + x_t,  D <- a_t D",), joins_segments=True)

    def starts(self, adjoint: bool) -> Kernel:
        """Every segment's first state, from D and P of those before it."""
        b = Builder(complex_buffers=self.complex_buffers())
        body = b.nested()
        carries = []
        for walk in self.walks(adjoint):
            first = self.frame.load(b, walk.given, "sequence", walk.state.dims)
            h = body.phi(walk.name, first)
            body.store(walk.access("start"), h)
            D = body.load("over", walk.access("over"), walk.state.dims)
            P = body.load("local", walk.access("local"), walk.state.dims)
            carries.append(Carry(h, first, body.add(body.mul(D, h), P, name=walk.name)))
        b.loop("segments", body, tuple(carries), reverse=adjoint)
        name = "reverse_starts" if adjoint else "starts"
        return Kernel(f"{self.stage}_{name}", self.frame.grid, self.frame.axes[1:], tuple(b.statements),
                      ("h <- D h + P",), "segments", self.widths, self.warps, joins_segments=True)  # fmt: skip

    # the walks

    def load_starts(self, b: Builder, adjoint: bool) -> list[Value]:
        return [b.load(w.name, w.access("start"), w.state.dims) for w in self.walks(adjoint)]

    def store_ends(self, b: Builder, adjoint: bool, carried: Sequence[Value]) -> None:
        for walk, h in zip(self.walks(adjoint), carried, strict=True):
            b.store(walk.access("end"), h)

    def emit_run(self, b: Builder, h: Value) -> Value:
        """What is carried as the state before the chunk's only run of rows."""
        return b.expand(h, (self.runs, *h.axes), f"{h.name}_start")

    def forward(self, keep_starts: bool) -> Kernel:
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, self.roots)
        starts = self.load_starts(b, adjoint=False)
        body = b.nested()
        carried = [body.phi(f.state, start) for f, start in zip(self.forms, starts, strict=True)]
        befores = [self.emit_run(body, h) for h in carried]
        for f, before in zip(self.forms, befores, strict=True):
            body.store(self.access_starts(f), before)
        self.emit_states(body, values, self.emit_steps(body, values), befores, self.exports)
        self.store_exports(body, values)
        ends = [body.last(values[n], self.rows, f"{n.attrs[1]}_end") for n in self.nexts]
        b.loop("chunks", body, operands.carry_all(carried, starts, ends))
        self.store_ends(b, False, carried)
        return self.walk_kernel("forward", b, tuple(self.equation(f) for f in self.forms))

    def backward(self) -> Kernel:
        """Params' gradients are summed along the walk."""
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, [*self.roots, *(node for _, node in self.adjoint.gradients)])
        lasts = self.load_starts(b, adjoint=True)
        params = [n for n, _ in self.adjoint.gradients if n.attrs[0] == "param"]
        zeros = [b.zeros(n.dims, f"d_{n.attrs[1]}_none", n.is_complex) for n in params]
        body = b.nested()
        carried = [body.phi(f"d_{f.state}", last) for f, last in zip(self.forms, lasts, strict=True)]
        sums = [body.phi(f"d_{n.attrs[1]}_sum", zero) for n, zero in zip(params, zeros, strict=True)]
        self.emit_kept_states(body, values)
        self.load_cotangents(body, values)
        nexts = [self.emit_adjoint(body, values, i, mu) for i, mu in enumerate(carried)]
        parts = self.emit_parts(body, values)
        totals = [body.add(total, parts[n], name=f"{total.name}_next") for n, total in zip(params, sums, strict=True)]
        carries = operands.carry_all([*carried, *sums], [*lasts, *zeros], [*nexts, *totals])
        b.loop("chunks", body, carries, reverse=True)
        self.store_ends(b, True, carried)
        for n, total in zip(params, sums, strict=True):
            self.per_segment.store_gradient(b, n, total)
        return replace(self.walk_kernel("backward", b, ADJOINT_EQUATIONS), widths=self.tiles_of(BACKWARD_STATES))

    def emit_adjoint(self, b: Builder, values: dict[Node, Value], which: int, mu: Value) -> Value:
        name = self.forms[which].state
        a, g, drive = self.emit_reach(b, values, which)
        later = b.resume(a, drive, self.emit_run(b, mu), self.rows, self.runs, name="mu_later", reverse=True,
                         comment=f"what reaches {name} from the tokens after each")  # fmt: skip
        values[self.adjoint.arrived[which]] = b.add(g, later, name=f"lambda_{name}", comment="and in all")
        reached = b.add(drive, b.mul(a, later), name="mu")
        return b.last(reached, self.rows, f"d_{name}_start", reverse=True)

    def emit_parts(self, b: Builder, values: dict[Node, Value]) -> dict[Node, Value]:
        """Stores the inputs' gradients; the chunk's part of each param's."""
        memo: dict[Node, Value] = {}
        parts = {}
        for argument, node in self.adjoint.gradients:
            if argument.attrs[0] == "param":
                part = operands.emit_row_sum(b, node, values, self.rows, memo)
                parts[argument] = b.expand(part, argument.dims)
            else:
                self.per_segment.store_gradient(b, argument, emit_nodes(b, [node], values)[0])
        return parts


def emit_one(b: Builder, state: Node) -> Value:
    """The decay of no step."""
    one = b.full(state.dims, 1.0, name="one")
    return b.map("complex", one, b.zeros(state.dims), name="one") if state.is_complex else one

"""Vector states with a small matrix for every token, by composing each chunk's transitions (docs/mathematics.md, 6)

    h_t = A_t h_{t-1} + x_t                       over a chunk:  h_end = Phi h_start + y,   Phi = A_C ... A_1

Chunks are independent but for one walk over their summaries:

    transitions   per chunk: Phi and y                       cotangents   per chunk: z, mu of its start for mu_end = 0
    starts        over chunks: h <- Phi h + y                ends         over chunks, in reverse: mu <- Phi^H mu + z
    outputs       per chunk, from its start                  gradients    per chunk, from its end

mu is the cotangent of the state; the transition of its reverse walk over a chunk is Phi^H.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from recur.ir.core import Node
from recur.ir.normal import LinearForm, NormalForm
from recur.ir.plan import Cost, Plan, Reject
from recur.ir.tile import Buffer, Builder, Kernel, Value
from recur.strategies import operands
from recur.strategies.operands import Dims, Frame
from recur.strategies.pointwise import emit_nodes
from recur.strategies.prune import prune_kernel
from recur.strategies.sequential import make_frame
from recur.strategies.stepwise import Step, StepKernels, step_of

CHUNK = 64
LARGEST_BLOCK = 32


def plan_linear(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str]) -> Plan | Reject:
    """``outputs``: the exports that the user gets, stored in the inputs' type."""
    for form in normal.forms:
        assert isinstance(form, LinearForm)
        entries = operands.entries(form.row, sizes)
        if entries > LARGEST_BLOCK:
            return Reject(f"the transition of {form.state} is a {entries} x {entries} matrix for every token; "
                          f"products of them pay up to {LARGEST_BLOCK} x {LARGEST_BLOCK}")
    return ComposedScan(normal, sizes, outputs).plan()


@dataclass(frozen=True)
class ComposedScan:
    """A stage of linear states, with its kernels."""

    normal: NormalForm
    sizes: dict[str, int]
    outputs: frozenset[str]

    @cached_property
    def step(self) -> Step:
        return step_of(self.normal)

    @property
    def forms(self) -> tuple[LinearForm, ...]:
        return self.normal.forms  # type: ignore[return-value]

    @cached_property
    def per_chunk(self) -> Frame:
        return self.with_inner(make_frame(self.step, chunked=True))

    @cached_property
    def per_sequence(self) -> Frame:
        frame = self.per_chunk
        return Frame(None, frame.tiled, frame.dims)

    def with_inner(self, frame: Frame) -> Frame:
        """Room for a third name of each row dim: the one that a product of two matrices sums over."""
        inner = [(*f.column, *inner_names(f)) for f in self.forms]
        dims = operands.all_dims([n for f in self.forms for n in (f.matrix, f.drive)], frame.dims, *inner)
        return Frame(None, frame.tiled, dims, frame.chunked)

    def plan(self) -> Plan:
        stage, step, frame = operands.stage_name(self.normal), self.step, self.per_chunk
        kernels = StepKernels(stage, step, frame, "start", self.sizes)
        reached = [n for n, _ in step.adjoint.gradients]
        states = step.states
        return Plan(
            stage=stage,
            strategy="associative_scan",
            arguments=tuple(operands.argument_buffer(n) for n in step.arguments),
            initial=operands.state_buffers(states, "sequence", "initial"),
            results=operands.result_buffers(self.normal, self.outputs),
            final=operands.state_buffers(states, "sequence", "final"),
            saved=(*kernels.saved(), *(self.matrix_buffer(f) for f in self.forms)),
            workspace=(
                *operands.state_buffers(states, "chunk", "sum"),
                *operands.state_buffers(states, "chunk", "start"),
                *(Buffer(f"d_{b.name}", b.layout, b.dtype, b.is_complex)
                  for at in ("sum", "end") for b in operands.state_buffers(states, "chunk", at)),
                *(operands.gradient_buffer(n, frame) for n in reached),
                *operands.gradient_buffers_of_states(states),
            ),
            forward=(self.transitions(), self.starts(), kernels.forward(f"{stage}_outputs")),
            backward=(self.cotangents(), self.ends(), kernels.backward(f"{stage}_gradients", "end")),
            gradients=(*(operands.gradient_line(n, frame) for n in reached),
                       *(operands.initial_line(s) for s in states)),
            cost=self.cost(),
            chunk=CHUNK,
            limits=operands.find_limits(step.roots, frame, self.sizes),
            fixed_sizes=operands.alias_sizes(self.normal, self.sizes),
        )

    def cost(self) -> Cost:
        work = sum(operands.entries((*f.batch, *f.row, *f.column, *f.row), self.sizes) for f in self.forms)
        moved = sum(operands.entries(n.dims, self.sizes) for n in self.step.arguments if n.attrs[0] != "param")
        return Cost(2.0 * work, 20.0 * moved, 6, "T / C")

    def matrix_buffer(self, form: LinearForm) -> Buffer:
        dims = (*form.batch, *form.row, *form.column)
        return operands.make_buffer(f"{form.state}.transition", "chunk", dims, is_complex=form.is_complex)

    def complex_buffers(self) -> frozenset[str]:
        matrices = operands.complex_names([self.matrix_buffer(f) for f in self.forms])
        return matrices | StepKernels("", self.step, self.per_chunk).complex_buffers()

    def kernel(self, name: str, frame: Frame, b: Builder, *equations: str) -> Kernel:
        full_name = f"{operands.stage_name(self.normal)}_{name}"
        sides = [(*f.batch, *f.row, *f.column) for f in self.forms]
        widest = max(operands.entries(tuple(d for d in dims if d not in frame.tiled), self.sizes) for dims in sides)
        widths, warps = operands.fit_tiles(widest, frame.tiled, self.sizes, 2 * operands.WARP_ENTRIES)
        body = tuple(b.statements)
        return prune_kernel(Kernel(full_name, frame.grid, frame.axes, body, equations, name, widths, warps))

    # forward

    def transitions(self) -> Kernel:
        """Phi <- A_t Phi from the identity and y <- A_t y + x_t from zero, over the chunk's tokens."""
        frame, b = self.per_chunk, Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        roots = [n for f in self.forms for n in (f.matrix, f.drive)]
        arguments = operands.argument_leaves(roots)
        frame.load_leaves(b, [n for n in arguments if n.attrs[0] == "param"], values)
        emit_nodes(b, operands.per_head_nodes(roots), values, "w")
        begins = [self.identity(b, f) for f in self.forms]
        begins += [b.zeros(s.dims, "y_none", s.is_complex) for s in self.step.states]
        body = b.nested()
        matrices = [body.phi("Phi", v) for v in begins[: len(self.forms)]]
        sums = [body.phi("y", v) for v in begins[len(self.forms) :]]
        frame.load_leaves(body, [n for n in arguments if n.attrs[0] != "param"], values)
        next_matrices, next_sums = [], []
        for f, s, phi, y in zip(self.forms, self.step.states, matrices, sums, strict=True):
            a, x = emit_nodes(body, [f.matrix, f.drive], values)
            a = body.expand(a, (*f.batch, *f.row, *f.column), "A")
            inner = inner_names(f)
            left, right = renamed(body, a, f.column, inner), renamed(body, phi, f.row, inner)
            next_matrices.append(body.expand(body.contract(left, right, inner, "Phi_next", "full"), phi.axes))
            moved = apply_matrix(body, a, y, f)
            next_sums.append(body.expand(body.add(moved, x, "y_next"), s.dims))
        b.loop("steps", body, operands.carry_all(matrices + sums, begins, next_matrices + next_sums))
        for f, s, phi, y in zip(self.forms, self.step.states, matrices, sums, strict=True):
            frame.store(b, f"{f.state}.transition", "chunk", phi.axes, phi)
            frame.store(b, f"{f.state}.sum", "chunk", s.dims, y)
        return self.kernel("transitions", frame, b, "Phi = A_C ... A_1", "y = sum over t of A_C ... A_(t+1) x_t")

    def identity(self, b: Builder, form: LinearForm) -> Value:
        """One where every row index is its column index."""
        identity = None
        for row, column in zip(form.row, form.column, strict=True):
            attrs = (("row", row), ("column", column))
            one = b.let("identity", "eye", (), (row, column), attrs)
            identity = one if identity is None else b.contract(identity, one, (), "identity", "full")
        assert identity is not None
        identity = b.expand(identity, (*form.batch, *form.row, *form.column), "identity")
        if form.is_complex:
            identity = b.map("complex", identity, b.const(0.0), name="identity")
        return identity

    def starts(self) -> Kernel:
        """The state at every chunk's start, and the final one."""
        frame, b = self.per_sequence, Builder(complex_buffers=self.complex_buffers())
        states = self.step.states
        begins = [frame.load(b, str(s.attrs[1]), "sequence", s.dims) for s in states]
        body = b.nested()
        carried = [body.phi(str(s.attrs[1]), v) for s, v in zip(states, begins, strict=True)]
        nexts = []
        for f, s, h in zip(self.forms, states, carried, strict=True):
            frame.store(body, f"{f.state}.start", "chunk", s.dims, h)
            phi = frame.load(body, f"{f.state}.transition", "chunk", (*f.batch, *f.row, *f.column))
            y = frame.load(body, f"{f.state}.sum", "chunk", s.dims)
            nexts.append(body.expand(body.add(apply_matrix(body, phi, h, f), y, "h_next"), s.dims))
        b.loop("chunks", body, operands.carry_all(carried, begins, nexts))
        for s, h in zip(states, carried, strict=True):
            frame.store(b, f"final_{s.attrs[1]}", "sequence", s.dims, h)
        return self.kernel("starts", frame, b, "h <- Phi h + y")

    # backward

    def cotangents(self) -> Kernel:
        """What reaches each chunk's start from the results of its own tokens."""
        frame, step = self.per_chunk, self.step
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        kernels = StepKernels("", step, frame)
        kernels.load_params(b, values, list(step.adjoint.states))
        begins = [b.zeros(s.dims, "z_none", s.is_complex) for s in step.states]
        body = b.nested()
        carried = [body.phi("z", v) for v in begins]
        values.update(zip(step.adjoint.arriving, carried, strict=True))
        kernels.load_tokens(body, values)
        emitted = emit_nodes(body, step.adjoint.states, values)
        nexts = [body.expand(v, s.dims) for s, v in zip(step.states, emitted, strict=True)]
        b.loop("steps", body, operands.carry_all(carried, begins, nexts), reverse=True)
        for s, z in zip(step.states, carried, strict=True):
            frame.store(b, f"d_{s.attrs[1]}.sum", "chunk", s.dims, z)
        return self.kernel("cotangents", frame, b, "z = mu at the chunk's start, for mu = 0 at its end")

    def ends(self) -> Kernel:
        """The cotangent of the state at every chunk's end, and of the initial state."""
        frame, b = self.per_sequence, Builder(complex_buffers=self.complex_buffers())
        states = self.step.states
        begins = [frame.load(b, f"d_final_{s.attrs[1]}", "sequence", s.dims) for s in states]
        body = b.nested()
        carried = [body.phi("mu", v) for v in begins]
        nexts = []
        for f, s, mu in zip(self.forms, states, carried, strict=True):
            frame.store(body, f"d_{f.state}.end", "chunk", s.dims, mu)
            phi = frame.load(body, f"{f.state}.transition", "chunk", (*f.batch, *f.row, *f.column))
            z = frame.load(body, f"d_{f.state}.sum", "chunk", s.dims)
            nexts.append(body.expand(body.add(apply_adjoint(body, phi, mu, f), z, "mu_next"), s.dims))
        b.loop("chunks", body, operands.carry_all(carried, begins, nexts), reverse=True)
        for s, mu in zip(states, carried, strict=True):
            frame.store(b, f"d_{s.attrs[1]}", "sequence", s.dims, mu)
        return self.kernel("ends", frame, b, "mu <- Phi^H mu + z")


def inner_names(form: LinearForm) -> Dims:
    return tuple(f"{row}'inner" for row in form.row)


def renamed(b: Builder, x: Value, old: Dims, new: Dims) -> Value:
    for before, after in zip(old, new, strict=True):
        x = b.rename(x, before, after)
    return x


def apply_matrix(b: Builder, matrix: Value, h: Value, form: LinearForm) -> Value:
    """[batch, row]: sum over columns of matrix h."""
    return b.contract(matrix, renamed(b, h, form.row, form.column), form.column, "moved", "full")


def apply_adjoint(b: Builder, matrix: Value, mu: Value, form: LinearForm) -> Value:
    """[batch, row]: sum over rows of conj(matrix) mu, its columns named as rows again."""
    matrix = b.map("conj", matrix, name="Phi_conj") if matrix.is_complex else matrix
    return renamed(b, b.contract(matrix, mu, form.row, "moved", "full"), form.column, form.row)

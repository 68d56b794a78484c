"""A stage as one token's step, whatever its family, and the kernels that walk the tokens one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from recur.ir.core import Node, apply, const, expand, leaf, leaves, stop
from recur.ir.normal import MaxPlusForm, NormalForm
from recur.ir.tile import Buffer, Builder, Kernel, Value
from recur.passes.autodiff import pull_back
from recur.strategies import operands
from recur.strategies.operands import Frame
from recur.strategies.pointwise import emit_nodes
from recur.strategies.prune import prune_kernel


@dataclass(frozen=True)
class Step:
    """Next states and exports as nodes over the stage's inputs and ``states``, the `state` leaves, in order."""

    states: tuple[Node, ...]
    updates: tuple[Node, ...]
    exports: tuple[tuple[str, Node], ...]

    @property
    def roots(self) -> list[Node]:
        return [*self.updates, *(node for _, node in self.exports)]

    @cached_property
    def arguments(self) -> list[Node]:
        return operands.argument_leaves(self.roots)

    @cached_property
    def adjoint(self) -> StepAdjoint:
        given = tuple(leaf("cotangent", name, node.dims, node.is_complex) for name, node in self.exports)
        arriving = tuple(leaf("cotangent", f"{s.attrs[1]}.next", s.dims, s.is_complex) for s in self.states)
        sources = [*self.states, *self.arguments]
        pulled = pull_back(self.roots, [*arriving, *given], sources)
        gradients = zip(self.arguments, pulled[len(self.states) :], strict=True)
        return StepAdjoint(given, arriving, tuple(pulled[: len(self.states)]),
                           tuple((s, n) for s, n in gradients if not operands.is_zero(n)))


@dataclass(frozen=True)
class StepAdjoint:
    """The step's pullback: cotangents of the previous ``states`` and of the arguments (those that are not zero).

    Over the primal leaves, ``given`` (of the exports) and ``arriving`` (of the next states).
    """

    given: tuple[Node, ...]
    arriving: tuple[Node, ...]
    states: tuple[Node, ...]
    gradients: tuple[tuple[Node, Node], ...]


def step_of(normal: NormalForm) -> Step:
    """The stage's definition; a log scale's update is a constant to differentiation."""
    stage = normal.stage
    log_scales = {form.state for form in normal.forms if isinstance(form, MaxPlusForm)}
    found = leaves(node for group in (stage.updates, stage.exports, normal.epilogue) for _, node in group)
    complex_states = {n.attrs[1] for n in found if n.attrs[0] in ("state", "next") and n.is_complex}
    states, updates = [], []
    for name, node in stage.updates:
        is_complex = node.is_complex or name in complex_states
        if is_complex and not node.is_complex:
            node = apply("complex", node, const(0))
        states.append(leaf("state", name, node.dims, is_complex))
        updates.append(stop(node) if name in log_scales else node)
    pairs = zip(stage.exports, normal.epilogue, strict=True)
    return Step(tuple(states), tuple(updates), tuple((name, expand(node, to.dims)) for (name, node), (_, to) in pairs))


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepKernels:
    """Kernels with the whole state in registers and a loop over tokens: of the sequence, or of the grid's chunk.

    ``start``: what the states are read from first, one value per sequence ("initial") or per chunk ("start").
    """

    stage: str
    step: Step
    frame: Frame
    start: str = "initial"
    sizes: Mapping[str, int] = field(default_factory=dict)

    MOMENTS = ("initial", "final", "start", "before", "end", "sum")

    def load_state(self, b: Builder, state: Node, moment: str, prefix: str = "") -> Value:
        """The state, or its cotangent ("d_"), that the program's walk begins with."""
        per = "chunk" if self.frame.chunked else "sequence"
        return self.frame.load(b, prefix + operands.moment_name(state, moment), per, state.dims)

    def saved(self) -> tuple[Buffer, ...]:
        return operands.state_buffers(self.step.states, "token", "before")

    def forward(self, name: str) -> Kernel:
        """Exports of every token; the states before each token are left for the backward pass."""
        frame, step = self.frame, self.step
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        self.load_params(b, values, step.roots)
        starts = [self.load_state(b, s, self.start) for s in step.states]
        body = b.nested()
        carried = [body.phi(str(s.attrs[1]), start) for s, start in zip(step.states, starts, strict=True)]
        for s, value in zip(step.states, carried, strict=True):
            values[s] = value
            frame.store(body, f"{s.attrs[1]}.before", "token", s.dims, value)
        frame.load_leaves(body, [n for n in step.arguments if n.attrs[0] != "param"], values)
        emitted = emit_nodes(body, step.updates, values)
        nexts = [body.expand(v, s.dims) for s, v in zip(step.states, emitted, strict=True)]
        for export, node in step.exports:
            frame.store(body, export, "token", node.dims, emit_nodes(body, [node], values)[0])
        b.loop("steps", body, operands.carry_all(carried, starts, nexts))
        if not frame.chunked:
            for s, value in zip(step.states, carried, strict=True):
                frame.store(b, f"final_{s.attrs[1]}", "sequence", s.dims, value)
        equations = tuple(f"{s.attrs[1]}_t = F({s.attrs[1]}_(t-1), x_t)" for s in step.states)
        return self.kernel(name, b, *equations)

    def backward(self, name: str, end: str = "final") -> Kernel:
        """The step's pullback from the last token to the first; ``end``: where the cotangent of the last state is."""
        frame, step, adjoint = self.frame, self.step, self.step.adjoint
        b = Builder(complex_buffers=self.complex_buffers())
        values: dict[Node, Value] = {}
        large = self.large_params
        self.load_params(b, values, [*step.roots, *(n for _, n in adjoint.gradients)], large)
        ends = [self.load_state(b, s, end, "d_") for s in step.states]
        params = [n for n, _ in adjoint.gradients if n.attrs[0] == "param"]
        zeros = [b.zeros(n.dims, f"d_{n.attrs[1]}_none", n.is_complex) for n in params]

        body = b.nested()
        carried = [body.phi(f"d_{s.attrs[1]}", e) for s, e in zip(step.states, ends, strict=True)]
        sums = [body.phi(f"d_{n.attrs[1]}_sum", z) for n, z in zip(params, zeros, strict=True)]
        values.update(zip(adjoint.arriving, carried, strict=True))
        frame.load_leaves(body, large, values)
        self.load_tokens(body, values)
        emitted = emit_nodes(body, adjoint.states, values)
        nexts = [body.expand(v, s.dims) for s, v in zip(step.states, emitted, strict=True)]
        for argument, node in adjoint.gradients:
            gradient = emit_nodes(body, [node], values)[0]
            if argument.attrs[0] == "param":
                total = sums[len(nexts) - len(ends)]
                nexts.append(body.add(total, body.expand(gradient, argument.dims), name=f"{total.name}_next"))
            else:
                frame.store_gradient(body, argument, gradient)
        b.loop("steps", body, operands.carry_all(carried + sums, ends + zeros, nexts), reverse=True)
        if not frame.chunked:
            for s, value in zip(step.states, carried, strict=True):
                frame.store(b, f"d_{s.attrs[1]}", "sequence", s.dims, value)
        for argument, total in zip(params, sums, strict=True):
            frame.store_gradient(b, argument, total)
        return self.kernel(name, b, "(d_h, d_x_t, d_w) = pullback of the step at (h_(t-1), x_t, w), of (d_h, d_y_t)")

    @property
    def large_params(self) -> list[Node]:
        """Params that the backward pass reads for every token: registers hold the sums of their gradients instead."""
        return operands.large_params(self.step.arguments, self.frame.tiled, self.sizes)

    def load_params(
        self, b: Builder, values: dict[Node, Value], roots: list[Node], without: Sequence[Node] = ()
    ) -> None:
        """Params, and what depends on them alone, before the loop."""
        params = [n for n in self.step.arguments if n.attrs[0] == "param" and n not in without]
        self.frame.load_leaves(b, params, values)
        emit_nodes(b, operands.per_head_nodes(roots, without), values, "w")

    def kernel(self, name: str, b: Builder, *equations: str) -> Kernel:
        widest = operands.widest_tile(self.step.roots, self.frame.tiled, self.sizes)
        widths, warps = operands.fit_tiles(widest, self.frame.tiled, self.sizes, 2 * operands.WARP_ENTRIES)
        return prune_kernel(Kernel(name, self.frame.grid, self.frame.axes, tuple(b.statements), equations, "steps",
                                   widths, warps))

    def load_tokens(self, b: Builder, values: dict[Node, Value]) -> None:
        """One token's inputs, the states before it and its exports' cotangents."""
        for s in self.step.states:
            values[s] = self.frame.load(b, f"{s.attrs[1]}.before", "token", s.dims)
        self.frame.load_leaves(b, [n for n in self.step.arguments if n.attrs[0] != "param"], values)
        for (export, node), cotangent in zip(self.step.exports, self.step.adjoint.given, strict=True):
            values[cotangent] = self.frame.load(b, f"d_{export}", "token", node.dims)

    def complex_buffers(self) -> frozenset[str]:
        names = {operands.tensor_name(n) for n in self.step.arguments if n.is_complex}
        names |= {f"d_{name}" for name, node in self.step.exports if node.is_complex}
        for s in self.step.states:
            if s.is_complex:
                names |= {d + operands.moment_name(s, at) for d in ("", "d_") for at in self.MOMENTS}
        return frozenset(names)

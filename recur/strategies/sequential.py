"""One token after the other: what every update allows, nonlinear cells included (docs/mathematics.md, section 7).

    h_t = F(h_{t-1}, x_t)

One program owns (batch, head, a tile of the dims that nothing mixes) and walks all tokens with the states in registers.
The forward pass saves the state before every token; the backward pass walks back, pulling cotangents through the step.
"""

from __future__ import annotations

from recur.ir.core import topological
from recur.ir.normal import NormalForm
from recur.ir.plan import Choice, Cost, Plan
from recur.strategies import operands
from recur.strategies.operands import Frame
from recur.strategies.stepwise import Step, StepKernels, step_of

NAME = "sequential"


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Choice:
    """Always applies. ``outputs``: the exports that the user gets, stored in the inputs' type."""
    step = step_of(normal)
    frame = make_frame(step)
    stage = operands.stage_name(normal)
    kernels = StepKernels(stage, step, frame, sizes=sizes)
    differentiable = normal.family != "maxplus"
    reached = [n for n, _ in step.adjoint.gradients] if differentiable else []
    d_initial = operands.gradient_buffers_of_states(step.states) if differentiable else ()
    return Plan(
        stage=stage,
        strategy="sequential",
        arguments=tuple(operands.argument_buffer(n) for n in step.arguments),
        initial=operands.state_buffers(step.states, "sequence", "initial"),
        results=operands.result_buffers(normal, outputs),
        final=operands.state_buffers(step.states, "sequence", "final"),
        saved=kernels.saved(),
        workspace=(*(operands.gradient_buffer(n, frame) for n in reached), *d_initial),
        forward=(kernels.forward(f"{stage}_forward"),),
        backward=(kernels.backward(f"{stage}_backward"),) if differentiable else (),
        gradients=(*(operands.gradient_line(n, frame) for n in reached),
                   *(operands.initial_line(s) for s in step.states if differentiable)),
        cost=_cost(step, sizes),
        limits=operands.find_limits(step.roots, frame, sizes),
        fixed_sizes=operands.alias_sizes(normal, sizes),
    )


def make_frame(step: Step, chunked: bool = False) -> Frame:
    """Tokens one at a time; on the grid, the dims along which the step is many independent ones."""
    roots = [*step.roots, *step.states]
    owned = [s.dims for s in step.states] + [node.dims for _, node in step.exports]
    extra = [n for n in step.adjoint.states] + [n for _, n in step.adjoint.gradients]
    return Frame(None, operands.tileable_dims(roots, owned), operands.all_dims([*roots, *extra]), chunked)


def _cost(step: Step, sizes: dict[str, int]) -> Cost:
    nodes = topological(step.roots)
    flops = sum(2.0 * operands.entries(operands.work_dims(n), sizes) for n in nodes if n.op not in ("leaf", "const"))
    moved = sum(operands.entries(n.dims, sizes) for n in step.arguments if n.attrs[0] != "param")
    moved += sum(operands.entries(n.dims, sizes) for _, n in step.exports)
    moved += sum(operands.entries(s.dims, sizes) for s in step.states)
    return Cost(3.0 * flops, 12.0 * moved, 2, "T")

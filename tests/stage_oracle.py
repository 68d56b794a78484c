"""A stage by its definition, one token at a time in float64, differentiable: what plans are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from node_evaluator import evaluate
from tile_interpreter import Run, run_backward, run_forward
from torch import Tensor

from recur.ir.core import Node, leaves
from recur.ir.normal import MaxPlusForm, NormalForm
from recur.ir.plan import Plan
from recur.passes.join_segments import join_segments


def run_steps(
    normal: NormalForm, sizes: dict[str, int], tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results [B, T, H, ...] and final states [B, H, ...], from `Stage.updates` and `Stage.exports` alone."""
    stage = normal.stage
    updates, exports = [n for _, n in stage.updates], [n for _, n in stage.exports]
    nodes = leaves(updates + exports)
    length = next(t.shape[1] for n, t in _tensors(nodes, tensors) if n.attrs[0] != "param")
    states = dict(initial)
    collected: dict[str, list[Tensor]] = {name: [] for name, _ in stage.exports}
    for t in range(length):
        values = {n: x if n.attrs[0] == "param" else x[:, t] for n, x in _tensors(nodes, tensors)}
        for n in nodes:
            if n.attrs[0] == "state":
                values[n] = states[n.attrs[1]]
        found = evaluate(updates + exports, values, sizes)
        batch, heads = next(iter(initial.values())).shape[:2]
        for (name, node), value in zip(stage.exports, found[len(updates) :], strict=True):
            collected[name].append(value.expand(batch, heads, *(sizes[d] for d in node.dims)))
        states = {
            name: value.expand(batch, heads, *(sizes[d] for d in node.dims))
            for (name, node), value in zip(stage.updates, found, strict=False)
        }
    return {name: torch.stack(rows, 1) for name, rows in collected.items()}, states


def _tensors(nodes: list[Node], tensors: Mapping[str, Tensor]) -> list[tuple[Node, Tensor]]:
    names = [(n, f"prev.{n.attrs[1]}" if n.attrs[0] == "prev" else n.attrs[1]) for n in nodes]
    return [(n, tensors[name]) for n, name in names if n.attrs[0] != "state"]


def random_tensors(normal: NormalForm, sizes: dict[str, int], B: int, T: int, H: int) -> dict[str, Tensor]:
    """Standard normal values for everything that the stage reads."""
    generator = torch.Generator().manual_seed(0)
    nodes = leaves([n for _, n in normal.stage.updates + normal.stage.exports])
    found = {}
    for n in nodes:
        if n.attrs[0] == "state":
            continue
        shape = ((H,) if n.attrs[0] == "param" else (B, T, H)) + tuple(sizes[d] for d in n.dims)
        dtype = torch.complex128 if n.is_complex else torch.float64
        name = f"prev.{n.attrs[1]}" if n.attrs[0] == "prev" else n.attrs[1]
        found[name] = torch.randn(shape, dtype=dtype, generator=generator)
    return found


def check_plan(
    plan: Plan,
    normal: NormalForm,
    sizes: dict[str, int],
    tensors: Mapping[str, Tensor],
    chunk: int = 4,
    blocks: Mapping[str, int] | None = None,
    tolerance: float = 1e-9,
    seed: int = 1,
) -> None:
    """Results, final states and every gradient of the plan against the step loop and autograd."""
    B, T, H = next(t.shape[:3] for b in plan.arguments for t in [tensors[b.name]] if b.layout[0] == "B")
    generator = torch.Generator().manual_seed(seed)
    initial = {}
    for (state, node), b in zip(normal.stage.updates, plan.initial, strict=True):
        dtype = torch.complex128 if b.is_complex else torch.float64
        initial[state] = torch.randn((B, H, *(sizes[d] for d in node.dims)), dtype=dtype, generator=generator)
    inputs = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    starts = {name: t.requires_grad_() for name, t in initial.items()}
    results, final = run_steps(normal, sizes, inputs, starts)

    plan = join_segments(plan)
    run = Run(plan, sizes, B, H, T, chunk, blocks or {})
    names = {state: b.name for state, b in zip(normal.stage.states, plan.initial, strict=True)}
    run_forward(run, tensors, {names[s]: x for s, x in starts.items()})
    finals = {state: b.name for state, b in zip(normal.stage.states, plan.final, strict=True)}
    expected = {**results, **{finals[s]: x for s, x in final.items()}}
    for name, value in expected.items():
        _compare(name, run.tensors[name], value, tolerance)

    cotangents = {n: torch.randn(v.shape, dtype=v.dtype, generator=generator) for n, v in expected.items()}
    for form in normal.forms:
        if isinstance(form, MaxPlusForm):  # a log scale is a constant to differentiation
            cotangents[finals[form.state]].zero_()
    loss = sum((expected[n] * cotangents[n].conj()).real.sum() for n in expected)
    gradients = run_backward(run, cotangents)
    wanted = {**inputs, **{names[s]: x for s, x in starts.items()}}
    autograd = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for (name, tensor), gradient in zip(wanted.items(), autograd, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(tensor)
        _compare(f"d_{name}", gradients.get(name, torch.zeros_like(tensor)), gradient, tolerance)


def _compare(name: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape, (name, found.shape, wanted.shape)
    assert torch.isfinite(torch.view_as_real(found) if found.is_complex() else found).all(), f"{name} is not finite"
    error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)
    assert error < tolerance, (name, float(error))



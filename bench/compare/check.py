"""Whoever is compared, against the step-by-step definition in float64.

The error of a tensor is RMS(reference - found) / RMS(reference). Heads do not mix, so everybody computes all heads, for
which kernels are compiled, and the definition only the first and the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .operators import Operator
from .peers import Peer, Tensors

LIMITS = {"output": 0.005, "state": 0.005, "gradient": 0.008, "gate": 0.02}
BETWEEN_TWO = 2.0  # two results that are each within the limits


@dataclass(frozen=True)
class Result:
    """Outputs, final states and gradients by name; ``failed``: why there are no gradients."""

    output: Tensor
    states: Tensors = field(default_factory=dict)
    gradients: Tensors = field(default_factory=dict)
    failed: str = ""


def weights_of(shape: torch.Size, device: torch.device) -> Tensor:
    """What the loss weighs outputs [B, T, H, D] by: the same for everybody."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)


def run(peer: Peer, inputs: Tensors, with_states: bool = True) -> Result:
    """Everything the peer computes from these inputs, gradients of the inputs as the recurrence takes them."""
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    raw, final = peer.kernel(peer.prepare(leaves, peer.derived), with_states)
    output = peer.finish(raw, leaves)
    states = peer.states(final, leaves) if with_states else None
    states = {n: x.detach() for n, x in (states or {}).items()}
    try:
        weights = weights_of(output.shape, output.device).to(output.dtype)
        found = torch.autograd.grad(output, list(leaves.values()), weights, allow_unused=True)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        return Result(output.detach(), states, failed=f"{type(error).__name__}: {str(error)[:160]}")
    gradients = {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
    return Result(output.detach(), states, gradients)


def exact(op: Any, inputs: Tensors, heads: list[int]) -> Result:
    """The definition in float64 on some of the heads."""
    from compare import true_states

    per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}
    leaves = {n: pick(x, heads, n in per_token).detach().double().requires_grad_() for n, x in inputs.items()}
    output, final = op.reference(**leaves, output_final_state=True)
    final = final if isinstance(final, dict) else dict(zip(op.states, [final], strict=True))
    states = {n: x.detach() for n, x in true_states(op, final, {}).items()}
    whole = next(x for n, x in inputs.items() if n in per_token)
    weights = weights_of(torch.Size((*output.shape[:2], whole.shape[2], *output.shape[3:])), output.device)
    found = torch.autograd.grad(output, list(leaves.values()), pick(weights, heads, True).double(), allow_unused=True)
    gradients = {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}
    return Result(output.detach(), states, gradients)


def pick(x: Tensor, heads: list[int], per_token: bool) -> Tensor:
    """Some heads of [B, T, H, ...], or of a param [H, ...]."""
    return x[:, :, heads] if per_token else x[heads]


def on_heads(found: Result, op: Any, heads: list[int]) -> Result:
    per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}
    states = {n: x[:, heads] for n, x in found.states.items()}
    gradients = {n: pick(x, heads, n in per_token) for n, x in found.gradients.items()}
    return Result(found.output[:, :, heads], states, gradients, found.failed)


def errors(found: Result, wanted: Result) -> dict[str, float]:
    """By quantity, "output", "state S", "gradient q", of what both have."""
    pairs = {"output": (found.output, wanted.output)}
    pairs |= {f"state {n}": (x, wanted.states[n]) for n, x in found.states.items() if n in wanted.states}
    pairs |= {f"gradient {n}": (x, wanted.gradients[n]) for n, x in found.gradients.items() if n in wanted.gradients}
    return {name: rms_ratio(*pair) for name, pair in pairs.items()}


def rms_ratio(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    difference, wide = found.double() - wanted.double(), wanted.double()
    ratio = difference.square().mean().sqrt() / wide.square().mean().sqrt().clamp(min=1e-12)
    return float(f"{float(ratio):.3g}")


def over_limit(found: dict[str, float], what: Operator, slack: float = 1.0) -> list[str]:
    """The quantities that are off; not a number counts as off."""
    return [name for name, e in found.items() if not e <= slack * LIMITS[kind_of(name, what)]]


def kind_of(quantity: str, what: Operator) -> str:
    kind, _, name = quantity.partition(" ")
    return "gate" if kind == "gradient" and name in what.gates else kind

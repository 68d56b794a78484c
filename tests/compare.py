"""A compiled recurrence against the oracle: outputs, final state and every gradient, on random inputs.

    compare("recurrence ...", strategy="chunkwise", T=65)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from inputs import dim_sizes, random_inputs, random_state
from torch import Tensor

from recur.api import loads, make_op
from recur.ir.spec import Recurrence
from recur.runtime.op import Op

Tensors = dict[str, Tensor]


def as_op(source: str | Recurrence | Op) -> Op:
    if isinstance(source, Op):
        return source
    return loads(source) if isinstance(source, str) else make_op(source)


def compare(
    source: str | Recurrence | Op,
    strategy: str | tuple[str, ...] = "auto",
    backend: str = "torch",
    *,
    B: int = 2,
    T: int = 7,
    H: int = 2,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    initial: bool = True,
    loss: str = "both",
    gradients: bool = True,
    tolerance: float = 1e-8,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **drawn: Any,
) -> None:
    """Asserts that the op, in ``dtype`` on ``device``, and the oracle, in float64 on the same values, agree.

    loss: "both", or on the "outputs" or the "final" state alone. ``drawn``: options of `inputs.random_inputs`.
    """
    op = as_op(source)
    rec = op.recurrence
    tensors = random_inputs(rec, B, T, H, sizes, seed, **drawn)
    state = random_entries(op, B, H, sizes, seed) if initial else {}
    where = f"{rec.name} {strategy} {backend} {dtype} T={T} seed={seed}"
    sides = []
    for call, kind, place, options in (
        (op, dtype, device, {"strategy": strategy, "backend": backend}),
        (op.reference, torch.float64, "cpu", {}),
    ):
        x = {name: cast(cast(t, dtype), kind).to(place).requires_grad_(gradients) for name, t in tensors.items()}
        s = {name: cast(t, state_dtype(kind)).to(place) for name, t in state.items()}
        leaves = x | {name: t.requires_grad_(gradients) for name, t in s.items() if not name.endswith(".log_scale")}
        found = run(op, call, x, s, **options)
        sides.append(found | (differentiate(found, leaves, loss, seed) if gradients else {}))
    assert_close(*sides, tolerance, where)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in ``dtype``; complex values stay complex, at least complex64."""
    if not x.is_complex():
        return x.detach().to(dtype, copy=True)
    return x.detach().to(torch.complex128 if dtype == torch.float64 else torch.complex64, copy=True)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_entries(op: Op, B: int, H: int, sizes: Mapping[str, int] | None, seed: int) -> Tensors:
    """An initial state, every entry given: declared states, previous inputs inside their ranges, and log scales."""
    rec = op.recurrence
    found = random_state(rec, B, H, sizes, seed)
    previous = random_inputs(rec, B, 1, H, sizes, seed + 1)
    for name, entry in op.states.items():
        if entry.kind == "prev":
            found[name] = previous[name.removeprefix("prev.")][:, 0].clone()
        if entry.kind == "log_scale":
            shape = (B, H, *(dim_sizes(rec, sizes)[d] for d in entry.dims))
            generator = torch.Generator().manual_seed(seed)
            found[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return found


def run(op: Op, call: Any, tensors: Tensors, state: Tensors, base: Tensors | None = None, **options: Any) -> Tensors:
    """Outputs and true final states by name, from the op or its reference."""
    return name_results(op, *call(**tensors, initial_state=state or None, output_final_state=True, **options), base)


def name_results(
    op: Op, outputs: Tensor | tuple[Tensor, ...], final: Tensor | Tensors, base: Tensors | None = None
) -> Tensors:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": x for i, x in enumerate(outputs)}
    final = final if isinstance(final, dict) else {next(iter(op.states)): final}
    return found | {f"final {name}": x for name, x in true_states(op, final, base or {}).items()}


def true_states(op: Op, final: Tensors, base: Tensors) -> Tensors:
    """States with their log scales multiplied in; ``base``: log scales to count from, where the product overflows."""
    found = {}
    for name, entry in op.states.items():
        if entry.kind != "log_scale":
            scale = final.get(f"{name}.log_scale")
            if scale is not None:
                scale = (scale - base.get(f"{name}.log_scale", 0.0)).detach().nan_to_num(0.0, neginf=-math.inf)
            found[name] = final[name] if scale is None else final[name] * torch.exp(_laid_out(op, name, scale))
    return found


def log_scales(op: Op, tensors: Tensors, state: Tensors) -> Tensors:
    """The oracle's final log scales, of an op that stabilises states."""
    if all(entry.kind != "log_scale" for entry in op.states.values()):
        return {}
    with torch.no_grad():
        _, final = op.reference(**tensors, initial_state=state or None, output_final_state=True)
    return {name: x for name, x in final.items() if name.endswith(".log_scale")}


def _laid_out(op: Op, name: str, scale: Tensor) -> Tensor:
    """A log scale [B, H, *gate dims] laid out to broadcast over its state."""
    gates, dims = op.states[f"{name}.log_scale"].dims, op.states[name].dims
    present = [d for d in dims if d in gates]
    scale = scale.permute(0, 1, *(2 + gates.index(d) for d in present))
    for axis, d in enumerate(dims):
        scale = scale if d in gates else scale.unsqueeze(2 + axis)
    return scale


def differentiate(results: Tensors, leaves: Tensors, loss: str, seed: int) -> Tensors:
    """Gradients of a random linear function of the results."""
    generator = torch.Generator().manual_seed(seed + 17)
    total: Tensor | float = 0.0
    for name, x in results.items():
        if loss != "both" and not name.startswith(loss.removesuffix("s")):
            continue
        kind = torch.complex128 if x.is_complex() else torch.float64
        weights = torch.randn(x.shape, dtype=kind, generator=generator).to(x.device)
        total = total + (x * weights).real.sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        f"gradient of {name}": torch.zeros_like(x) if g is None else g
        for (name, x), g in zip(leaves.items(), grads, strict=True)
    }


def assert_close(found: Tensors, expected: Tensors, tolerance: float, where: str) -> None:
    """Every tensor within ``tolerance`` of the expected one, relative to its largest value."""
    assert list(found) == list(expected), f"{where}: {list(found)} instead of {list(expected)}"
    for name, x in found.items():
        y = expected[name]
        assert x.shape == y.shape, f"{where}: {name} has shape {tuple(x.shape)}, not {tuple(y.shape)}"
        assert x.is_complex() == y.is_complex(), f"{where}: {name} is {x.dtype}, not {y.dtype}"
        assert torch.isfinite(y).all(), f"{where}: the oracle's {name} is not finite"
        error = (x.detach().cpu() - y.detach()).abs().max() / y.detach().abs().max().clamp(min=1e-3)
        assert error <= tolerance, f"{where}: {name} is off by {float(error):.2e}"

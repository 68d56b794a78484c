"""Functions that every printed module calls, whatever its backend; a module gets the source of those that it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _entries(
    initial_state: torch.Tensor | dict | None, declared: tuple[str, ...], has_heads: bool
) -> dict[str, torch.Tensor]:
    """The entries of the initial state that are given, [B, H, ...]; a bare tensor is the only declared state."""
    if initial_state is None:
        return {}
    if isinstance(initial_state, torch.Tensor):
        if len(declared) != 1:
            raise TypeError(f"initial_state must be a dict with some of the entries {', '.join(declared)}")
        initial_state = {declared[0]: initial_state}
    return {name: x if has_heads else x.unsqueeze(1) for name, x in initial_state.items() if x is not None}


def _state_dtype(x: torch.Tensor) -> torch.dtype:
    """What states are kept in: float32, or float64 where the inputs are."""
    return torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32


def _output(x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """An output in the first input's dtype, or its complex or real counterpart."""
    if x.is_complex():
        dtype = torch.complex128 if _state_dtype(first) == torch.float64 else torch.complex64
    else:
        dtype = _state_dtype(first) if first.is_complex() else first.dtype
    return x if x.dtype == dtype else x.to(dtype)


def _start(given: dict, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An initial state: as given, else zero."""
    return given[name].to(dtype).contiguous() if name in given else torch.zeros(shape, dtype=dtype, device=device)


def _dense(x: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor as its values lie in memory: contiguous, nothing left to be conjugated or negated."""
    if x is None or (x.is_contiguous() and not x.is_conj() and not x.is_neg()):
        return x
    return x.contiguous().resolve_conj().resolve_neg()


def _run(
    function: type[torch.autograd.Function], forward: Callable[..., Any], with_final: bool, *inputs: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """A stage's results and final states: by its autograd function where something is to be differentiated."""
    needs_gradient = torch.is_grad_enabled() and any([x.requires_grad for x in inputs if x is not None])
    if needs_gradient or torch.autograd.forward_ad._current_level >= 0:  # the function refuses forward mode
        return function.apply(with_final, *inputs)
    results, final, _ = forward(*map(_dense, inputs), with_final)
    return (*results, *final)


def _one_later(x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """x [B, T, H, ...] of the previous token; ``first`` [B, H, ...] before the first one."""
    return torch.cat((first.unsqueeze(1).to(x.dtype), x[:, :-1]), 1)


def _scale_of(state: torch.Tensor, given: torch.Tensor | float, over: tuple[int, ...]) -> torch.Tensor:
    """The natural log of a state's scale: as given, minus infinity where the state is zero all over ``over``."""
    size = state.detach().abs().amax(over) if over else state.detach().abs()
    return torch.where(size == 0, float("-inf"), given)


def _rescale(given: torch.Tensor | float, common: torch.Tensor) -> torch.Tensor:
    """exp(given - common), the factor that brings a state to the common scale; 1 where that is minus infinity."""
    factor = torch.exp((given - common).clamp(max=0)).detach()
    return torch.where(common == float("-inf"), 1.0, factor)

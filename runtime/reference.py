"""The reference: a recurrence's definition, step by step. It judges every compiled strategy.

It interprets the syntax tree as written, one token at a time, and shares no code with the compiler. Use float64
inputs where it is to judge; it is differentiable, initial and final state included.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recur.ir.spec import Binary, Call, Name, Recurrence, Variable
from recur.runtime import scaled
from recur.runtime.named import Dims, Named
from recur.runtime.scaled import Scaled, Value
from recur.runtime.step import NoGradientNoEffect, Step, expressions

Tensors = dict[str, Tensor]


def run_reference(
    rec: Recurrence,
    inputs: Mapping[str, Tensor],
    initial_state: Mapping[str, Tensor] | None = None,
    *,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    stabilised: Mapping[str, tuple[str, ...]] | None = None,
    scales: bool | None = None,
) -> tuple[Tensors, Tensors]:
    """Runs a recurrence by its definition.

    inputs: by name, inputs [B, T, H, *dims] and params [H, *dims]; H may be smaller where it divides the largest, and
        is absent from all of them for one head (then outputs and states drop it too).
    initial_state: entries by name, [B, H, *dims]; missing ones are zero.
    cu_seqlens: N + 1 bounds of packed sequences, B = 1; states then have leading size N.
    reset: bool [B, T]; zeroes the state, and prev, before that token.
    stabilised: the states that carry an entry ``C.log_scale`` [B, H, *gate dims], each with its gate dims.
    scales: evaluate exponentials as scaled numbers, so that ratios of huge or tiny ones are exact; by default where
        the step has both an exponential and a quotient, or anything is stabilised.

    Returns (outputs by name [B, T, H, *dims] in the first input's dtype, final state by entry).
    Raises ValueError for tensors that do not fit the declarations.
    """
    call = _bind(rec, inputs, dict(stabilised or {}), scales)
    initial = _initial_entries(call, initial_state or {})
    if cu_seqlens is None:
        outputs, final = _run_sequences(call, call.tensors, initial, reset)
    else:
        outputs, final = _run_packed(call, initial, [int(bound) for bound in cu_seqlens], reset)
    if not call.has_heads:
        outputs = {name: x.squeeze(2) for name, x in outputs.items()}
        final = {name: x.squeeze(1) for name, x in final.items()}
    return {name: _as_output(x, call.output_dtype) for name, x in outputs.items()}, final


# --- binding a call's tensors to the declarations --------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    rec: Recurrence
    dims: Dims
    tensors: Tensors  # inputs [B, T, H, *dims], params [1, H, *dims]
    like: Tensor  # a real tensor of the dtype and device computed with
    output_dtype: torch.dtype
    batch: int
    tokens: int
    heads: int
    has_heads: bool
    prevs: tuple[Variable, ...]
    stabilised: dict[str, tuple[str, ...]]
    scales: bool

    def entries(self) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Every entry of the state: its dims, and whether it is complex."""
        found = {s.name: (s.dims, s.is_complex) for s in self.rec.states}
        found |= {f"prev.{v.name}": (v.dims, v.is_complex) for v in self.prevs}
        return found | {f"{name}.log_scale": (dims, False) for name, dims in self.stabilised.items()}


def _bind(
    rec: Recurrence, inputs: Mapping[str, Tensor], stabilised: dict[str, tuple[str, ...]], scales: bool | None
) -> _Call:
    names = {v.name for v in rec.inputs}
    if set(inputs) != names:
        raise ValueError(f"{rec.name}: expected inputs {sorted(names)}, got {sorted(inputs)}")
    has_heads = _has_heads(rec, inputs)
    tensors = {}
    for v in rec.inputs:
        x = inputs[v.name]
        axis = 2 if v.role == "input" else 0
        x = x if has_heads else x.unsqueeze(axis)
        if x.ndim != axis + 1 + len(v.dims):
            raise ValueError(f"{rec.name}: {v.name} has {inputs[v.name].ndim} axes, declared over {list(v.dims)}")
        tensors[v.name] = x if v.role == "input" else x.unsqueeze(0)
    sizes = _bound_sizes(rec, tensors)
    tokens = [tensors[v.name] for v in rec.inputs if v.role == "input"]
    if not tokens:
        raise ValueError(f"{rec.name}: no input has a time axis")
    batch, length = tokens[0].shape[:2]
    if any(x.shape[:2] != (batch, length) for x in tokens):
        raise ValueError(f"{rec.name}: inputs differ in batch or time")
    real = torch.float32
    for x in tensors.values():
        real = torch.promote_types(real, x.dtype.to_real() if x.dtype.is_complex else x.dtype)
    head_axis = {v.name: 2 if v.role == "input" else 1 for v in rec.inputs}
    heads = max(x.shape[head_axis[name]] for name, x in tensors.items())
    for v in rec.inputs:
        dtype = real.to_complex() if v.is_complex else real
        tensors[v.name] = _all_heads(tensors[v.name].to(dtype), head_axis[v.name], heads, v.name)
    like = torch.zeros((), dtype=real, device=tokens[0].device)
    scales = _needs_scales(rec, stabilised) if scales is None else scales
    return _Call(
        rec, sizes, tensors, like, tokens[0].dtype, batch, length, heads, has_heads,
        _previous_inputs(rec), stabilised, scales,
    )  # fmt: skip


def _has_heads(rec: Recurrence, inputs: Mapping[str, Tensor]) -> bool:
    first = next((v for v in rec.inputs if v.role == "input"), rec.inputs[0])
    return inputs[first.name].ndim == (3 if first.role == "input" else 1) + len(first.dims)


def _all_heads(x: Tensor, axis: int, heads: int, name: str) -> Tensor:
    """Head h reads its head h // (H / its heads)."""
    if heads % x.shape[axis]:
        raise ValueError(f"{name} has {x.shape[axis]} heads, which do not divide {heads}")
    return x.repeat_interleave(heads // x.shape[axis], dim=axis)


def _bound_sizes(rec: Recurrence, tensors: Tensors) -> Dims:
    roots = {d.name: rec.root_dim(d.name) for d in rec.dims}
    sizes = {d.name: d.size for d in rec.dims if d.size is not None}
    fixed = tuple(name for name, root in roots.items() if root in sizes)
    for v in rec.inputs:
        x = tensors[v.name]
        for name, size in zip(v.dims, x.shape[x.ndim - len(v.dims) :], strict=True):
            if sizes.setdefault(roots[name], size) != size:
                raise ValueError(f"{rec.name}: {v.name} has {name} = {size}, but {name} is {sizes[roots[name]]}")
    unbound = [name for name, root in roots.items() if root not in sizes]
    if unbound:
        raise ValueError(f"{rec.name}: no input or param has the dims {unbound}")
    return Dims({name: sizes[root] for name, root in roots.items()}, roots, fixed)


def _previous_inputs(rec: Recurrence) -> tuple[Variable, ...]:
    read = {
        e.args[0].id
        for statement in rec.body
        for e in expressions(statement)
        if isinstance(e, Call) and e.function == "prev" and isinstance(e.args[0], Name)
    }
    return tuple(v for v in rec.inputs if v.name in read)


def _needs_scales(rec: Recurrence, stabilised: Mapping[str, tuple[str, ...]]) -> bool:
    found = [e for statement in rec.body for e in expressions(statement)]
    exponential = any(isinstance(e, Call) and e.function == "exp" for e in found)
    quotient = any(isinstance(e, Binary) and e.op == "/" for e in found)
    return bool(stabilised) or (exponential and quotient)


# --- states ----------------------------------------------------------------------------------------------------------


def _initial_entries(call: _Call, given: Mapping[str, Tensor]) -> Tensors:
    """The entries given, [N, H, *dims], in the dtype computed with."""
    entries = call.entries()
    unknown = [name for name in given if name not in entries]
    if unknown:
        raise ValueError(f"{call.rec.name}: the state has no entries {unknown}; it has {list(entries)}")
    found = {}
    for name, x in given.items():
        dims, is_complex = entries[name]
        x = x if call.has_heads else x.unsqueeze(1)
        expected = (call.heads, *(call.dims.sizes[d] for d in dims))
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"{call.rec.name}: initial {name} must be [N, {', '.join(map(str, expected))}]")
        found[name] = x.to(call.like.dtype.to_complex() if is_complex else call.like.dtype)
    return found


def _first_states(call: _Call, batch: int, initial: Tensors) -> dict[str, Named]:
    states = {}
    for name, (dims, is_complex) in call.entries().items():
        if name.endswith(".log_scale"):
            continue
        shape = (batch, call.heads, *(call.dims.sizes[d] for d in dims))
        dtype = call.like.dtype.to_complex() if is_complex else call.like.dtype
        start = initial[name] if name in initial else call.like.new_zeros(shape, dtype=dtype)
        scaled = bool(call.scales) and not name.startswith("prev.")
        value: Value = _scaled_state(call, name, dims, initial, start) if scaled else start
        states[name] = Named(value, dims)
    return states


def _scaled_state(call: _Call, name: str, dims: tuple[str, ...], initial: Tensors, value: Tensor) -> Scaled:
    """The state as exp(log_scale) * value; a state that is not given is a zero without scale."""
    if name not in initial:
        return Scaled(value, torch.full(value.shape, -math.inf, dtype=call.like.dtype, device=value.device))
    scale = call.like.new_zeros(value.shape)
    if f"{name}.log_scale" in initial:
        gates = call.stabilised[name]
        scale = scale + _over(initial[f"{name}.log_scale"].detach(), gates, dims)
    return Scaled(value, scale, given=True)


def _over(x: Tensor, dims: tuple[str, ...], target: tuple[str, ...]) -> Tensor:
    """x [B, H, *dims] laid out to broadcast over [B, H, *target]."""
    x = x.permute(0, 1, *(2 + dims.index(d) for d in target if d in dims))
    for axis, d in enumerate(target):
        x = x if d in dims else x.unsqueeze(2 + axis)
    return x


def _final_entries(call: _Call, states: Mapping[str, Named], batch: int) -> Tensors:
    final = {}
    for name, state in states.items():
        shape = (batch, call.heads, *(call.dims.sizes[d] for d in state.dims))
        if name in call.stabilised:
            mantissa, scale = _common_scale(scaled.lift(state.value), state.dims, call.stabilised[name])
            final[name], final[f"{name}.log_scale"] = mantissa.expand(shape), scale
        else:
            final[name] = scaled.materialise(state.value).expand(shape)
    return final


def _common_scale(x: Scaled, dims: tuple[str, ...], gates: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """One log scale for the entries that share gates, so that the largest mantissa among them is 1."""
    size = x.log_scale + torch.log(x.mantissa.detach().abs())
    others = [2 + axis for axis, d in enumerate(dims) if d not in gates]
    scale = size.amax(others, keepdim=True) if others else size
    scale = torch.where(scale.isfinite(), scale, torch.zeros_like(scale))
    mantissa = scaled.materialise(Scaled(x.mantissa, x.log_scale - scale))
    kept = [d for d in dims if d in gates]
    scale = scale.reshape(*scale.shape[:2], *(scale.shape[2 + dims.index(d)] for d in kept))
    return mantissa, scale.permute(0, 1, *(2 + kept.index(d) for d in gates))


# --- running ---------------------------------------------------------------------------------------------------------


def _run_sequences(call: _Call, tensors: Tensors, initial: Tensors, reset: Tensor | None) -> tuple[Tensors, Tensors]:
    """All tokens of [B, T, ...], one after another."""
    rec = call.rec
    roles = {v.name: v for v in rec.inputs}
    timed = {name: x for name, x in tensors.items() if roles[name].role == "input"}
    batch, length = next(iter(timed.values())).shape[:2]
    tokens = {name: x.unbind(1) for name, x in timed.items()}  # at once: a slice per token costs a gradient of size T
    params = {name: Named(x, roles[name].dims) for name, x in tensors.items() if roles[name].role == "param"}
    states = _first_states(call, batch, initial)
    outputs: dict[str, list[Tensor]] = {output.name: [] for output in rec.outputs}
    differentiates_branches = any(
        isinstance(e, Call) and e.function == "where" for statement in rec.body for e in expressions(statement)
    )
    with NoGradientNoEffect() if differentiates_branches else contextlib.nullcontext():
        for t in range(length):
            if reset is not None:
                states = {name: _reset(state, reset[:, t]) for name, state in states.items()}
            now = {name: Named(x[t], roles[name].dims) for name, x in tokens.items()}
            step = Step(rec, call.dims, call.like, call.scales, differentiates_branches, {**params, **now, **states})
            step.run(rec.body)
            states = {s.name: step.names[s.name] for s in rec.states}
            states |= {f"prev.{v.name}": now.get(v.name, params.get(v.name)) for v in call.prevs}  # type: ignore[misc]
            for name, value in step.outputs.items():
                outputs[name].append(_full(call, value, batch))
    stacked = {name: torch.stack(values, 1) for name, values in outputs.items() if values}
    return stacked, _final_entries(call, states, batch)


def _reset(state: Named, at: Tensor) -> Named:
    return Named(scaled.zeroed(state.value, at.reshape(-1, *(1,) * (1 + len(state.dims)))), state.dims)


def _full(call: _Call, value: Named, batch: int) -> Tensor:
    return scaled.materialise(value.value).expand(batch, call.heads, *(call.dims.sizes[d] for d in value.dims))


def _run_packed(call: _Call, initial: Tensors, bounds: list[int], reset: Tensor | None) -> tuple[Tensors, Tensors]:
    """Sequences packed along T; the n-th starts from the n-th initial state."""
    if call.batch != 1 or bounds[0] != 0 or bounds[-1] != call.tokens or sorted(bounds) != bounds:
        raise ValueError(f"{call.rec.name}: cu_seqlens must rise from 0 to T = {call.tokens}, with B = 1")
    time_axis = {v.name: v.role == "input" for v in call.rec.inputs}
    outputs: list[Tensors] = []
    finals: list[Tensors] = []
    for n, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = {name: x[:, start:end] if time_axis[name] else x for name, x in call.tensors.items()}
        own = {name: x[n : n + 1] for name, x in initial.items()}
        output, final = _run_sequences(call, part, own, None if reset is None else reset[:, start:end])
        outputs.append(output)
        finals.append(final)
    joined = {o.name: torch.cat([x[o.name] for x in outputs if o.name in x], 1) for o in call.rec.outputs}
    return joined, {name: torch.cat([x[name] for x in finals], 0) for name in finals[0]}


def _as_output(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the first input's dtype, its complex or real counterpart where the output is complex or real."""
    if not x.is_complex():
        return x.to(dtype.to_real() if dtype.is_complex else dtype)
    wide = dtype in (torch.float64, torch.complex128)
    return x.to(torch.complex128 if wide else torch.complex64)

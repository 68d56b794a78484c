"""The state between calls: its entries, what a caller may pass, and what a caller gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from recur.diagnostics import did_you_mean, listing
from recur.ir.core import leaves
from recur.ir.normal import MaxPlusForm, Program
from recur.runtime import arguments
from recur.runtime.arguments import Call, check_device, check_dtype, show_axes

State = Union[Tensor, dict[str, Tensor]]  # noqa: UP007 (an alias, evaluated on 3.10)


@dataclass(frozen=True)
class StateEntry:
    """One entry of the state, a tensor [B, H, *dims].

    kind: "state" (declared), "prev" (an input's last value) or "log_scale" (natural log; the true state is
    exp(log_scale) times the declared one). ``dtype`` for float32 and 16-bit inputs; of double width for float64 inputs.
    """

    name: str
    kind: str
    dims: tuple[str, ...]
    dtype: torch.dtype

    @property
    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def __str__(self) -> str:
        return f"{self.name}: {show_axes(('B', 'H', *self.dims))} {str(self.dtype).removeprefix('torch.')}"


def list_entries(program: Program) -> dict[str, StateEntry]:
    """Every entry: the declared states, then `prev.x` of each input read at the previous token, then log scales."""
    rec = program.step.recurrence
    nodes = [node for _, node in (*program.step.updates, *program.step.outputs)]
    previous = {str(leaf.attrs[1]) for leaf in leaves(nodes, "prev")}
    found = [_entry(v.name, "state", v.dims, v.is_complex) for v in rec.states]
    found += [_entry(f"prev.{v.name}", "prev", v.dims, v.is_complex) for v in rec.inputs if v.name in previous]
    gates = gate_dims(program)
    found += [_entry(f"{name}.log_scale", "log_scale", dims, False) for name, dims in gates.items()]
    return {entry.name: entry for entry in found}


def gate_dims(program: Program) -> dict[str, tuple[str, ...]]:
    """For each state that is stabilised, the dims of its log scale."""
    scales = {f.state: f.dims for stage in program.stages for f in stage.forms if isinstance(f, MaxPlusForm)}
    scale_of = dict(pair for stage in program.stages for pair in stage.scale_of)
    return {s.name: scales[scale_of[s.name]] for s in program.step.recurrence.states if s.name in scale_of}


def _entry(name: str, kind: str, dims: tuple[str, ...], is_complex: bool) -> StateEntry:
    return StateEntry(name, kind, dims, torch.complex64 if is_complex else torch.float32)


def check_state(
    entries: Mapping[str, StateEntry], state: object, call: Call, argument: str = "initial_state"
) -> None:
    """Raises TypeError for what is no state of this recurrence, ValueError for shapes and devices that do not fit."""
    for name, x in name_entries(entries, state, argument).items():
        _check_entry(entries[name], x, call, argument)


def look_of(state: object) -> object:
    """All of a state that `check_state` depends on; only of what is no state it does not tell everything."""
    if state is None:
        return None
    if isinstance(state, Mapping):
        return tuple(state), *arguments.look_of(list(state.values()))
    return arguments.look_of([state])[0]


def name_entries(
    entries: Mapping[str, StateEntry], state: object, argument: str = "initial_state"
) -> dict[str, Tensor]:
    """The entries that the caller gave, by name: a bare tensor is the only declared state. Raises TypeError."""
    if state is None:
        return {}
    declared = [name for name, entry in entries.items() if entry.kind == "state"]
    if isinstance(state, Tensor):
        if len(declared) != 1:
            raise TypeError(f"`{argument}` must be a dict: the state has the entries {listing(list(entries), 'and')}")
        return {declared[0]: state}
    if not isinstance(state, Mapping):
        raise TypeError(f"`{argument}` must be None, a tensor or a dict of tensors; found {type(state).__name__}")
    for name in state:
        if name not in entries:
            hint = did_you_mean(str(name), entries, f"it has {listing(list(entries), 'and')}")
            raise TypeError(f"`{argument}` has no entry `{name}`; {hint}")
    return {name: x for name, x in state.items() if x is not None}


def _check_entry(entry: StateEntry, x: object, call: Call, argument: str) -> None:
    name = f"`{argument}`'s `{entry.name}`"
    axes = ("B", *(("H",) if call.has_heads else ()), *entry.dims)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {show_axes(axes)}; found {type(x).__name__}")
    check_dtype(name, x, entry.is_complex)
    sizes = (call.batch, *((call.heads,) if call.has_heads else ()), *(call.sizes[d] for d in entry.dims))
    if tuple(x.shape) != sizes:
        raise ValueError(f"{name} must be {show_axes(axes)} = {show_axes(sizes)}; found {show_axes(x.shape)}")
    check_device(name, x, call.device)


def unwrap_state(state: Mapping[str, Tensor]) -> State:
    """A tensor where there is one entry, else a dict by name."""
    return next(iter(state.values())) if len(state) == 1 else dict(state)

"""Runs a program in normal form, a token at a time in float64: events, forms and epilogues as their docstrings say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from node_evaluator import align, evaluate
from torch import Tensor

from recur.ir.core import Node, leaf, leaves
from recur.ir.normal import (
    Decay,
    ElementwiseForm,
    Form,
    GeneralForm,
    LinearForm,
    MatrixForm,
    MaxPlusForm,
    NormalForm,
    Program,
    Read,
    Readout,
    Write,
)

Tensors = dict[str, Tensor]
State = tuple[Tensor, tuple[str, ...]]


def run_program(
    program: Program, inputs: Mapping[str, Tensor], sizes: dict[str, int], initial: Mapping[str, Tensor]
) -> tuple[Tensors, Tensors]:
    """Outputs [B, T, H, ...] and final states [B, H, ...] by name. Log scales without an initial value are -inf."""
    recurrence = program.step.recurrence
    sizes = sizes | {d.name: sizes[recurrence.root_dim(d.name)] for d in recurrence.dims}
    first = inputs[next(v.name for v in recurrence.inputs if v.role == "input")]
    batch, length, heads = first.shape[:3]
    declared = {v.name: v for v in recurrence.variables}
    forms = [form for stage in program.stages for form in stage.forms]
    states: dict[str, Tensor] = {}
    for form in forms:
        shape = (batch, heads, *(sizes[d] for d in _stored_dims(form)))
        if form.state in initial:
            states[form.state] = _reorder(initial[form.state], declared[form.state].dims, _stored_dims(form))
        elif isinstance(form, MaxPlusForm):
            states[form.state] = torch.full(shape, -torch.inf, dtype=torch.float64)
        else:
            is_complex = declared[form.state].is_complex
            states[form.state] = torch.zeros(shape, dtype=torch.complex128 if is_complex else torch.float64)
    collected: dict[str, list[Tensor]] = {name: [] for name, _ in program.step.outputs}
    for t in range(length):
        tokens = {}
        for v in recurrence.inputs:
            x = inputs[v.name]
            tokens["param" if v.role == "param" else "input", v.name] = x if v.role == "param" else x[:, t]
            if v.role == "input":
                tokens["prev", v.name] = x[:, t - 1] if t else torch.zeros_like(x[:, 0])
        for normal in program.stages:
            order = {name: v.dims for name, v in declared.items()}
            values, states = _run_stage(normal, tokens, states, sizes, order)
            tokens |= {("value", name): value for name, value in values.items()}
            for name, value in values.items():
                if name in collected:
                    node = dict(normal.epilogue)[name]
                    collected[name].append(value.expand(batch, heads, *(sizes[d] for d in node.dims)))
    outputs = {name: torch.stack(rows, 1) for name, rows in collected.items()}
    final = {}
    for form in forms:
        if form.state in declared:
            final[form.state] = _reorder(states[form.state], _stored_dims(form), declared[form.state].dims)
        else:
            final[form.state] = states[form.state]
    return outputs, final


def _stored_dims(form: Form) -> tuple[str, ...]:
    if isinstance(form, MatrixForm):
        return form.batch + form.key + form.value
    if isinstance(form, LinearForm):
        return form.batch + form.row
    return form.dims


def _reorder(x: Tensor, dims: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    return align(x, dims, wanted)


def _run_stage(
    normal: NormalForm,
    tokens: Mapping[tuple[str, str], Tensor],
    states: Tensors,
    sizes: dict[str, int],
    order: Mapping[str, tuple[str, ...]],
) -> tuple[Tensors, Tensors]:
    """``order``: the dims of each declared state in the order in which `state` and `next` leaves have them."""
    found = dict(tokens)
    after = dict(states)
    for form in normal.forms:
        dims = _stored_dims(form)
        found["state", form.state] = align(states[form.state], dims, order.get(form.state, dims))
    for form in normal.forms:
        if isinstance(form, MatrixForm):
            readouts, after[form.state] = _run_events(form, found, states[form.state], sizes)
            found |= {("readout", name): value for name, value in readouts.items()}
        else:
            after[form.state] = _run_form(form, found, states[form.state], sizes)
        dims = _stored_dims(form)
        found["next", form.state] = align(after[form.state], dims, order.get(form.state, dims))
    nodes = [node for _, node in normal.epilogue]
    values = _evaluate(nodes, found, sizes)
    return {name: value for (name, _), value in zip(normal.epilogue, values, strict=True)}, after


def _evaluate(nodes: list[Node], found: Mapping[tuple[str, str], Tensor], sizes: dict[str, int]) -> list[Tensor]:
    used = {n: found[n.attrs[0], n.attrs[1]] for n in leaves(nodes)}
    return evaluate(nodes, used | {leaf("dtype", ""): torch.zeros((), dtype=torch.float64)}, sizes)


def _run_events(
    form: MatrixForm, found: Mapping[tuple[str, str], Tensor], state: Tensor, sizes: dict[str, int]
) -> tuple[Tensors, Tensor]:
    dims = _stored_dims(form)
    reads: Tensors = {}
    readouts: Tensors = {}

    def value(node: Node) -> Tensor:
        (x,) = _evaluate([node], found, sizes)
        return align(x, node.dims, dims)

    for event in form.events:
        if isinstance(event, Decay):
            factor = value(event.factor)
            torch.testing.assert_close(_from_polar(event, value), factor.to(_from_polar(event, value).dtype))
            state = state * factor
        elif isinstance(event, Read):
            reads[event.name] = _sum(value(event.vector) * state, dims, form.key, keep=True)
        elif isinstance(event, Write):
            target = torch.zeros((), dtype=state.dtype) if event.value is None else value(event.value)
            if event.read is not None:
                target = target - reads[event.read]
            state = state + value(event.key) * target
        else:
            assert isinstance(event, Readout)
            over = form.key if event.axis == "key" else form.value
            readouts[event.name] = _sum(value(event.vector) * state, dims, over, keep=False)
    return readouts, state


def _from_polar(decay: Decay, value: Callable[[Node], Tensor]) -> Tensor:
    """sign * exp(log + i angle), which must be the factor."""
    modulus = torch.ones((), dtype=torch.float64) if decay.log is None else value(decay.log).exp()
    if decay.sign is not None:
        modulus = modulus * value(decay.sign)
    return modulus if decay.angle is None else modulus * torch.exp(1j * value(decay.angle))


def _sum(x: Tensor, dims: tuple[str, ...], over: tuple[str, ...], keep: bool) -> Tensor:
    axes = [dims.index(d) - len(dims) for d in over]
    return x.sum(axes, keepdim=keep) if axes else x


def _run_form(
    form: Form, found: Mapping[tuple[str, str], Tensor], state: Tensor, sizes: dict[str, int]
) -> Tensor:
    def value(node: Node, dims: tuple[str, ...]) -> Tensor:
        (x,) = _evaluate([node], found, sizes)
        return align(x, node.dims, dims)

    if isinstance(form, ElementwiseForm):
        new = value(form.decay, form.dims) * state + value(form.drive, form.dims)
        if form.log is not None:
            torch.testing.assert_close(value(form.log, form.dims).exp(), value(form.decay, form.dims))
    elif isinstance(form, MaxPlusForm):
        new = torch.maximum(state + value(form.log_decay, form.dims), value(form.drive, form.dims))
    elif isinstance(form, LinearForm):
        full = form.batch + form.row + form.column
        moved = align(state, form.batch + form.column, full)
        new = _sum(value(form.matrix, full) * moved, full, form.column, keep=False)
        new = new + value(form.drive, form.batch + form.row)
    else:
        assert isinstance(form, GeneralForm)
        new = value(form.update, form.dims)
    return new.expand_as(state)

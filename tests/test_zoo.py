"""Every entry of the zoo against a formula from its paper: outputs, final states and gradients, by every strategy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from compare import Tensors, assert_close, compare, true_states
from formulas import FORMULAS
from inputs import dim_sizes, random_inputs, random_state
from test_strategies import cases, zoo_op

from recur import zoo
from recur.api import loads
from recur.grammar import parse
from recur.ir.spec import Recurrence
from recur.runtime.reference import run_reference


def spec(name: str) -> Recurrence:
    (rec,) = parse(zoo.path(name).read_text(), f"{name}.rec")
    return rec


def by_formula(name: str, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Outputs and final states, by one name space."""
    outputs, states = FORMULAS[name]({key: x.detach().numpy() for key, x in inputs.items()})
    return {f"output {key}": x for key, x in outputs.items()} | {f"state {key}": x for key, x in states.items()}


def by_reference(rec: Recurrence, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs, states = run_reference(rec, inputs)
    return {f"output {key}": x for key, x in outputs.items()} | {f"state {key}": x for key, x in states.items()}


def test_every_entry_has_a_formula_and_the_name_of_its_file() -> None:
    assert sorted(FORMULAS) == zoo.names()
    assert [spec(name).name for name in zoo.names()] == zoo.names()
    assert all("arXiv" in (spec(name).doc or "") or "doi" in (spec(name).doc or "") for name in zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_reference_is_the_papers_formula(name: str) -> None:
    rec = spec(name)
    inputs = random_inputs(rec, B=2, T=7, H=2, seed=1)
    expected, found = by_formula(name, inputs), by_reference(rec, inputs)
    assert sorted(expected) == sorted(found)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-9, atol=1e-11, err_msg=key)


# --- gradients by the formula ----------------------------------------------------------------------------------------

STEP = 1e-6
HEADS = 2
TOKENS = 35  # more than a chunk
MOST_HEADS = 600  # that a formula takes at once


@dataclass(frozen=True)
class Expected:
    """Random inputs [1, T, H, ...], random weights, and by the formula alone: values, and gradients of their sum."""

    inputs: Tensors
    weights: Tensors
    values: Tensors
    gradients: Tensors


@cache
def expected(name: str) -> Expected:
    rec = spec(name)
    inputs = random_inputs(rec, 1, TOKENS, HEADS, small_sizes(rec), seed=2)
    values = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in by_formula(name, inputs).items()}
    generator = torch.Generator().manual_seed(3)
    weights = {key: torch.randn(x.shape, dtype=x.dtype, generator=generator) for key, x in sorted(values.items())}
    return Expected(inputs, weights, values, slopes(rec, inputs, weights))


def small_sizes(rec: Recurrence) -> dict[str, int]:
    return {d: min(size, 4 if size == 8 else 3 - i % 2) for i, (d, size) in enumerate(dim_sizes(rec).items())}


def slopes(rec: Recurrence, inputs: Tensors, weights: Tensors) -> Tensors:
    """Central differences of the formula, along every entry of every input and param.

    Heads do not meet, so a copy of the heads for every step goes through the formula at once. A complex entry's slope
    is that along its real part, and that along its imaginary part times i, which is PyTorch's convention.
    """
    axis = {v.name: 0 if v.role == "param" else 2 for v in rec.inputs}
    steps = [
        (name, entry, unit)
        for name, x in inputs.items()
        for entry in np.ndindex(tuple(n for i, n in enumerate(x.shape) if i != axis[name]))
        for unit in ((1, 1j) if x.is_complex() else (1,))
    ]
    found = {name: torch.zeros_like(x) for name, x in inputs.items()}
    for start in range(0, len(steps), MOST_HEADS):
        some = steps[start : start + MOST_HEADS]
        above, below = (loss_by_head(rec.name, shifted(inputs, axis, some, h), weights) for h in (STEP, -STEP))
        for (name, entry, unit), slope in zip(some, (above - below) / (2 * STEP), strict=True):
            found[name].movedim(axis[name], -1)[entry] += unit * slope
    return found


def shifted(
    inputs: Tensors, axis: dict[str, int], steps: list[tuple[str, tuple[int, ...], complex]], h: float
) -> Tensors:
    """The heads once for every step, with one entry of one tensor moved in each copy."""
    copies = {name: torch.cat([x] * len(steps), axis[name]) for name, x in inputs.items()}
    for i, (name, entry, unit) in enumerate(steps):
        copies[name].movedim(axis[name], -1)[entry][i * HEADS : (i + 1) * HEADS] += h * unit
    return copies


def loss_by_head(name: str, inputs: Tensors, weights: Tensors) -> torch.Tensor:
    """[step, head]: the weighted sum of all that the formula gives."""
    total = torch.zeros((), dtype=torch.float64)
    for key, value in by_formula(name, inputs).items():
        weight, axis = weights[key], 2 if key.startswith("output") else 1
        x = torch.from_numpy(np.ascontiguousarray(value)).movedim(axis, 0)
        x = x.reshape(-1, HEADS, *shape_without(weight, axis))
        terms = (x * weight.movedim(axis, 0)).real if x.is_complex() else x * weight.movedim(axis, 0)
        total = total + terms.flatten(2).sum(2)
    return total


def shape_without(x: torch.Tensor, axis: int) -> tuple[int, ...]:
    return tuple(n for i, n in enumerate(x.shape) if i != axis)


def runs() -> list[tuple[str, str]]:
    """The reference, and every strategy that some stage takes."""
    return [(name, "reference") for name in zoo.names()] + cases()


@pytest.mark.parametrize(("name", "how"), runs())
def test_values_and_gradients_are_the_formulas(name: str, how: str) -> None:
    """Outputs, final states and the gradients of every input: against the formula and nothing else."""
    op, wanted = zoo_op(name), expected(name)
    x = {key: tensor.clone().requires_grad_() for key, tensor in wanted.inputs.items()}
    call, options = (op.reference, {}) if how == "reference" else (op, {"strategy": how, "backend": "torch"})
    outputs, final = call(**x, output_final_state=True, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    final = final if isinstance(final, dict) else {next(iter(op.states)): final}
    found = {f"output {o.name}": value for o, value in zip(op.recurrence.outputs, outputs, strict=True)}
    found |= {f"state {key}": value for key, value in true_states(op, final, {}).items() if key in final}
    assert sorted(found) == sorted(wanted.values)
    assert_close({key: found[key] for key in wanted.values}, wanted.values, 1e-9, f"{name} {how}")
    loss = sum((value * wanted.weights[key]).real.sum() if value.is_complex() else (value * wanted.weights[key]).sum()
               for key, value in found.items())  # fmt: skip
    gradients = torch.autograd.grad(loss, list(x.values()), allow_unused=True)  # type: ignore[arg-type]
    by_name = {key: torch.zeros_like(t) if g is None else g for (key, t), g in zip(x.items(), gradients, strict=True)}
    assert_close(by_name, wanted.gradients, 2e-6, f"{name} {how}, gradients")


# --- the sizes that papers use ----------------------------------------------------------------------------------------

OTHER_SIZES = [
    *((name, "chunkwise", {"n": n}) for name in ("delta_product", "gated_delta_product") for n in (1, 2, 3, 4)),
    *(("block_diagonal", "associative_scan", {"N": 2, "b": b}) for b in (2, 4, 8, 16)),
    *(("slice_block_diagonal", "associative_scan", {"N": 2, "b": b, "D": 3}) for b in (2, 4, 8, 16)),
    *((name, "associative_scan", {"N": 32}) for name in ("dense_linear", "slice_sparse", "slice_hadamard")),
    *(("slice_low_rank", "chunkwise", {"N": 32, "r": r}) for r in (1, 2, 4)),
]


@pytest.mark.parametrize(("name", "strategy", "sizes"), OTHER_SIZES, ids=str)
def test_other_sizes(name: str, strategy: str, sizes: dict[str, int]) -> None:
    """Numbers of Householder factors, block sizes, ranks: values against the formula, gradients against the oracle."""
    text = zoo.path(name).read_text()
    for dim, size in sizes.items():
        text = re.sub(rf"dim( +){dim} = \d+", rf"dim\g<1>{dim} = {size}", text)
    op = loads(text)
    inputs = random_inputs(op.recurrence, 1, 19, 2, dim_sizes(op.recurrence, sizes), seed=6)
    output, final = op(**inputs, output_final_state=True, strategy=strategy, backend="torch")
    wanted = {key.split()[0]: torch.from_numpy(x) for key, x in by_formula(name, inputs).items()}
    assert_close({"output": output, "state": final}, wanted, 1e-9, f"{name} {sizes}")
    compare(op, strategy, B=1, T=19, sizes=sizes, seed=6)


@pytest.mark.parametrize("name", ["gated_delta_net", "mamba3", "mlstm_exp", "rwkv4", "gated_slot_attention", "slstm"])
def test_reference_passes_gradcheck(name: str) -> None:
    rec = spec(name)
    sizes = {d.name: 2 for d in rec.dims if d.size is None and d.alias is None}
    inputs = random_inputs(rec, B=1, T=3, H=2, sizes=sizes, seed=4, requires_grad=True)
    state = random_state(rec, B=1, H=2, sizes=sizes, seed=5, requires_grad=True)
    names = list(inputs)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        split = len(names)
        initial = dict(zip(state, tensors[split:], strict=True))
        outputs, final = run_reference(rec, dict(zip(names, tensors[:split], strict=True)), initial)
        return (*outputs.values(), *final.values())

    assert torch.autograd.gradcheck(run, (*inputs.values(), *state.values()))

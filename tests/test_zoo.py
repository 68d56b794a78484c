"""The reference against formulas from the papers: every entry of the zoo, outputs, final states and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from formulas import FORMULAS
from inputs import random_inputs, random_state

from recur import zoo
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


@pytest.mark.parametrize("name", zoo.names())
def test_gradients_are_the_formulas_slopes(name: str) -> None:
    """Along random directions: the reference's gradient against central differences of the formula."""
    rec = spec(name)
    inputs = random_inputs(rec, B=1, T=5, H=2, seed=2, requires_grad=True)
    found = by_reference(rec, inputs)
    generator = torch.Generator().manual_seed(3)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    weights = {key: normal(x) for key, x in sorted(found.items())}
    directions = {key: normal(x.detach()) for key, x in sorted(inputs.items())}
    loss = sum((weights[key].conj() * x).real.sum() if x.is_complex() else (weights[key] * x).sum()
               for key, x in found.items())  # fmt: skip
    gradients = torch.autograd.grad(loss, [inputs[key] for key in directions], allow_unused=True)
    slope = sum(
        ((g.conj() * d).real if g.is_complex() else g * d).sum()
        for g, d in zip(gradients, directions.values(), strict=True)
        if g is not None
    )

    def formula_loss(step: float) -> float:
        moved = {key: x.detach() + step * directions[key] for key, x in inputs.items()}
        values = by_formula(name, moved)
        return sum(float((weights[key].numpy().conj() * x).real.sum()) for key, x in values.items())

    h = 1e-6
    expected = (formula_loss(h) - formula_loss(-h)) / (2 * h)
    assert float(slope) == pytest.approx(expected, rel=2e-6, abs=2e-7)


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

"""Decays over the value dims: plans in tiles, pairs within reach and beyond it, positions of decays, causality."""

from __future__ import annotations

import pytest
import torch
from compare import compare
from inputs import random_inputs
from stage_oracle import check_plan, random_tensors

from recur.api import load, loads
from recur.codegen.torch_printer import library
from recur.ir.normal import NormalForm
from recur.ir.plan import Plan
from recur.strategies.chunkwise import plan
from recur.zoo import path

CPU = torch.device("cpu")

RECURRENCES = {
    "a scalar decay beside it, and a read before both": """
recurrence both:
    dim    K, V
    input  q[K], k[K], v[V], b, a[V] in (-inf, 0], g in (-inf, 0]
    state  S[K, V]
    output before = q @ S
    S = exp(a) * S
    S = exp(g) * S + b * outer(k, v)
    output after = b * (q @ S)
""",
    "a read between the write and the decay": """
recurrence later:
    dim    K, V
    input  q[K], k[K], v[V], w[V], a[V] in (-inf, 0]
    state  S[K, V]
    S = S + outer(k, v)
    output between = w * (q @ S)
    S = exp(a) * S
    output after = q @ S
""",
    "parameters in the decay, two writes and two queries": """
recurrence learned:
    dim    K, V
    input  q[K], r[K], k[K], l[K], v[V], x[V]
    param  w[V]
    state  S[K, V]
    S = S + outer(l, x)
    S = exp(-softplus(x + w)) * S + outer(k, w * v)
    output o = q @ S
    output p = tanh(r @ S)
""",
}


def planned(source: str, sizes: dict[str, int]) -> tuple[Plan, NormalForm]:
    op = loads(source) if "\n" in source else load(str(path(source)))
    normal = op.program.stages[0]
    found = plan(normal, sizes)
    assert isinstance(found, Plan)
    return found, normal


@pytest.mark.parametrize("loss", ["both", "final"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_several_chunks(name: str, extreme: bool, loss: str) -> None:
    compare(RECURRENCES[name], "chunkwise", T=150, sizes={"K": 5, "V": 6}, extreme=extreme, loss=loss, tolerance=1e-7)


@pytest.mark.parametrize("source", ["value_gated", *RECURRENCES.values()])
@pytest.mark.parametrize("tokens", [3, 9])
def test_plans_in_tiles_compute_the_stage(source: str, tokens: int) -> None:
    sizes = {"K": 4, "V": 4}
    found, normal = planned(source, sizes)
    assert [k.name for k in found.forward + found.backward][-2:] == ["value_gradients", "gradients"]
    tensors = random_tensors(normal, sizes, 2, tokens, 2)
    check_plan(found, normal, sizes, tensors, chunk=4, blocks={"K": 2, "V": 2}, tolerance=1e-8)


@pytest.mark.parametrize("name", ["value_gated", "gated_slot_attention"])
def test_chunks_are_long(name: str) -> None:
    found, _ = planned(name, {"K": 64, "V": 64, "M": 64})
    assert found.chunk == 64


def test_decays_over_both_dims_are_left_to_short_chunks() -> None:
    found, _ = planned("decaying_fast_weights", {"K": 64, "V": 64})
    assert found.chunk == 16 and "outputs" not in {k.name for k in found.forward}


def test_outputs_do_not_depend_on_later_decays() -> None:
    op = load(str(path("value_gated")))
    inputs = random_inputs(op.recurrence, T=64, sizes={"K": 8, "V": 8}, dtype=torch.float32, extreme=True)
    later = {n: torch.cat([x[:, :40], x[:, 40:].flip(1)], 1) for n, x in inputs.items()}
    first, second = (op(**x, strategy="chunkwise", backend="torch")[0] for x in (inputs, later))
    assert torch.equal(first[:, :40], second[:, :40])


@pytest.mark.parametrize("rows", [2, 8, 32])
def test_rows_of_one_half_are_together(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "torch", torch, raising=False)  # printed modules import it
    for level in range((rows - 1).bit_length()):
        half = torch.arange(rows) // 2**level
        assert torch.equal(library._together(rows, level, CPU), half[:, None] == half)

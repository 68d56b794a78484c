"""Pairs by halves of blocks: which rows meet at which level, plans in tiles, and what rounding costs a decay."""

from __future__ import annotations

import math

import pytest
import torch
from stage_oracle import check_plan, join_segments, random_tensors
from tile_interpreter import Program, Run, run_backward, run_forward
from torch import Tensor

from recur.api import load
from recur.codegen.torch_printer import library
from recur.ir.normal import NormalForm
from recur.ir.plan import Plan
from recur.ir.tile import Let
from recur.strategies.chunkwise import plan
from recur.zoo import path

CPU = torch.device("cpu")


def planned(name: str, sizes: dict[str, int]) -> tuple[Plan, NormalForm]:
    (normal,) = load(str(path(name))).program.stages
    found = plan(normal, sizes)
    assert isinstance(found, Plan)
    return found, normal


@pytest.mark.parametrize("rows", [1, 2, 8, 32])
def test_every_pair_is_apart_at_one_level(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "torch", torch, raising=False)  # printed modules import it
    levels = range((rows - 1).bit_length())
    counts = torch.zeros(rows, rows, dtype=torch.long)
    for level in levels:
        counts += library._apart(rows, level, CPU)
    assert torch.equal(counts, 1 - torch.eye(rows, dtype=torch.long))
    for level in levels:
        middle, right = library._middle(torch.arange(rows), level, 0), library._right(rows, level, CPU)
        for later, earlier in library._apart(rows, level, CPU).tril().nonzero().tolist():
            assert right[later] and not right[earlier]
            assert earlier <= middle[later] == middle[earlier] < later


@pytest.mark.parametrize("name", ["gla", "rwkv6", "kda", "rwkv7"])
@pytest.mark.parametrize("tokens", [3, 9])
def test_plans_in_tiles_compute_the_stage(name: str, tokens: int) -> None:
    sizes = {"K": 4, "V": 4}
    found, normal = planned(name, sizes)
    tensors = random_tensors(normal, sizes, 2, tokens, 2)
    check_plan(found, normal, sizes, tensors, chunk=4, blocks={"K": 2, "V": 2}, tolerance=1e-8)


@pytest.mark.parametrize("name", ["gla", "rwkv6", "kda", "rwkv7", "dplr"])
@pytest.mark.parametrize("strength", [0.1, 10.0, 200.0])
def test_rows_near_and_far_in_two_blocks(name: str, strength: float) -> None:
    """Gates under which all rows are near the start of their block of 32, the first ones, and none."""
    sizes = {"K": 2, "V": 2}
    found, normal = planned(name, sizes)
    tensors = random_tensors(normal, sizes, 1, 70, 1)
    for gate in {"g", "w"} & tensors.keys():
        tensors[gate] = -strength * tensors[gate].abs() if gate == "g" else tensors[gate] + math.log(strength)
    check_plan(found, normal, sizes, tensors, chunk=64 if name in ("gla", "rwkv6") else 32, tolerance=1e-8)


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def gradients(found: Plan, sizes: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    run = Run(join_segments(found), sizes, 1, 1, 70, 32)
    run_forward(run, tensors, {b.name: torch.zeros(run.shape(b), dtype=torch.float64) for b in found.initial})
    torch.manual_seed(1)
    buffers = (*found.results, *found.final)
    return run_backward(run, {b.name: rounded(torch.randn(run.shape(b), dtype=torch.float64)) for b in buffers})


@pytest.mark.parametrize("name", ["gla", "kda"])
def test_a_decay_keeps_the_digits_of_rounded_operands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"K": 16, "V": 16}
    found, normal = planned(name, sizes)
    tensors = {n: rounded(x) for n, x in random_tensors(normal, sizes, 1, 70, 1).items()}
    tensors["g"] = -tensors["g"].abs()
    exact = gradients(found, sizes, tensors)
    contract = Program.op_contract

    def op_contract(self: Program, s: Let) -> Tensor:
        whole = dict(self.tiles)
        if s.attr("precision") == "operand":
            self.tiles |= {x.name: rounded(whole[x.name]) for x in s.args}
        product = contract(self, s)
        self.tiles = whole
        return product

    monkeypatch.setattr(Program, "op_rounded", lambda self, s: rounded(self.get(s.args[0])))
    monkeypatch.setattr(Program, "op_contract", op_contract)
    for argument, found_gradient in gradients(found, sizes, tensors).items():
        wanted = exact[argument]
        error = (found_gradient - wanted).norm() / wanted.norm()
        assert error < 1e-2, (argument, error)


def test_kernels_read_other_rows_from_memory() -> None:
    source = load(str(path("gla"))).source("triton", strategy="chunkwise")
    stored, waits, read = map(source.index, ("tl.store(log_S_ptr", "tl.debug_barrier()", "G_3 = tl.load(log_S_ptr"))
    assert stored < waits < read
    assert "tl.gather" not in source

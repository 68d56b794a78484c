"""Every recurrence of the zoo under the strategies that walk tokens: its plans against a step loop and autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inputs import dim_sizes, random_inputs
from stage_oracle import check_plan, random_tensors

import recur
from recur.compiler import compile_program
from recur.ir.plan import Plan
from recur.strategies import associative_scan, newton, sequential

ZOO = sorted((Path(__file__).parent.parent / "examples" / "zoo").glob("*.rec"))
SIZES = {name: 4 for name in ("K", "V", "D", "N", "P", "J", "M", "b", "c", "n")}


@pytest.mark.parametrize("path", ZOO, ids=[p.stem for p in ZOO])
@pytest.mark.parametrize("strategy", [associative_scan, sequential], ids=lambda s: s.NAME)
def test_plans_compute_the_stage(path: Path, strategy) -> None:
    recurrence = recur.load(path).recurrence
    program = compile_program(recurrence)
    recurrence = program.step.recurrence
    sizes = dim_sizes(recurrence, SIZES)
    given = random_inputs(recurrence, B=2, T=6, H=2, sizes=sizes)
    for normal in program.stages:
        plan = strategy.plan(normal, sizes)
        if not isinstance(plan, Plan):
            assert strategy is not sequential
            continue
        tensors = random_tensors(normal, sizes, 2, 6, 2)
        tensors |= {name: x.detach() for name, x in given.items() if name in tensors}
        if not plan.backward:
            assert normal.family == "maxplus"
            continue
        check_plan(plan, normal, sizes, _at_log_scale(tensors), chunk=4, tolerance=1e-8)


def _at_log_scale(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Log scales come in pairs, before and after a token, that differ little."""
    after = {name: x for name, x in tensors.items() if name.endswith("log_scale.now")}
    before = {name.replace(".now", ".before"): x - 0.1 for name, x in after.items()}
    return {**tensors, **{name: x for name, x in before.items() if name in tensors}}


def test_newton_gives_its_reason() -> None:
    for path in ZOO[:3]:
        for normal in compile_program(recur.load(path).recurrence).stages:
            assert not isinstance(newton.plan(normal, {}), Plan)

"""Programs in normal form compute what the recurrence's definition does: every zoo spec, outputs and final states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inputs import dim_sizes, random_inputs, random_state
from program_interpreter import run_program

import recur.zoo
from recur.compiler import compile_program
from recur.grammar.parser import parse
from recur.ir.spec import Recurrence
from recur.runtime.reference import run_reference

ZOO = sorted(Path(recur.zoo.__file__).parent.glob("*.rec"))


def check_program(recurrence: Recurrence, seed: int = 0, initial: bool = True) -> None:
    program = compile_program(recurrence)
    inputs = random_inputs(recurrence, B=2, T=6, H=2, seed=seed)
    stabilised = {s: None for stage in program.stages for s, _ in stage.scale_of}
    state = {} if stabilised or not initial else random_state(recurrence, B=2, H=2, seed=seed)
    wanted, wanted_final = run_reference(recurrence, inputs, state)
    found, final = run_program(program, inputs, dim_sizes(recurrence), state)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=1e-9, atol=1e-10, msg=lambda m: f"{name}: {m}")
    for variable in recurrence.states:
        if variable.name not in stabilised:
            torch.testing.assert_close(final[variable.name], wanted_final[variable.name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", ZOO, ids=[p.stem for p in ZOO])
def test_zoo(path: Path) -> None:
    for recurrence in parse(path.read_text(), path.name):
        check_program(recurrence)

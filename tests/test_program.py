"""Programs in normal form compute what the recurrence's definition does: every zoo spec, outputs and final states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inputs import dim_sizes, random_inputs, random_state
from node_evaluator import align
from program_interpreter import run_program
from torch import Tensor

import recur.zoo
from recur.compiler import compile_program
from recur.grammar.parser import parse
from recur.ir.normal import Program
from recur.ir.spec import Recurrence
from recur.ir.verify import verify_program
from recur.runtime.reference import run_reference

ZOO = sorted(Path(recur.zoo.__file__).parent.glob("*.rec"))


def check_program(recurrence: Recurrence, seed: int = 0, inputs: dict[str, Tensor] | None = None) -> Program:
    """Outputs and final states against the reference; a stabilised state is compared as state times exp(log scale)."""
    program = compile_program(recurrence)
    verify_program(program)
    inputs = inputs or random_inputs(recurrence, B=2, T=6, H=2, seed=seed)
    scales = {state: scale for stage in program.stages for state, scale in stage.scale_of}
    state = {} if scales else random_state(recurrence, B=2, H=2, seed=seed)
    wanted, wanted_final = run_reference(recurrence, inputs, state)
    found, final = run_program(program, inputs, dim_sizes(recurrence), state)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=1e-8, atol=1e-9)
    for variable in recurrence.states:
        value = final[variable.name]
        if variable.name in scales:
            dims = next(f.dims for n in program.stages for f in n.forms if f.state == scales[variable.name])
            value = value * align(final[scales[variable.name]], dims, variable.dims).exp()
        torch.testing.assert_close(value, wanted_final[variable.name], rtol=1e-8, atol=1e-9)
    return program


@pytest.mark.parametrize("path", ZOO, ids=[p.stem for p in ZOO])
def test_zoo(path: Path) -> None:
    for recurrence in parse(path.read_text(), path.name):
        check_program(recurrence)

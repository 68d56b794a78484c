"""One meaning: the checked step, node by node, against the reference, on the zoo and on random recurrences."""

from __future__ import annotations

import pytest
import torch
from inputs import dim_sizes, random_inputs, random_state
from node_evaluator import evaluate
from random_expressions import random_step
from random_specs import generate
from torch import Tensor

from recur import zoo
from recur.grammar import parse
from recur.ir.core import leaves
from recur.ir.spec import Recurrence
from recur.passes.check import check, check_partial
from recur.runtime.reference import run_reference


def one_step(rec: Recurrence, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """New states and outputs of one token by the checked step's nodes; inputs are [B, H, *dims]."""
    step = check(rec)
    named = [*step.updates, *step.outputs]
    nodes = [node for _, node in named]
    values = {}
    for node in leaves(nodes):
        kind, name = node.attrs
        values[node] = {"state": state, "prev": state}.get(kind, inputs)[f"prev.{name}" if kind == "prev" else name]
    found = dict(zip((name for name, _ in named), evaluate(nodes, values, dim_sizes(rec)), strict=True))
    return {f"output {key}" if key in dict(step.outputs) else key: x for key, x in found.items()}


def compare(rec: Recurrence) -> None:
    inputs, state = random_inputs(rec, T=2, seed=7), random_state(rec, seed=8)
    timed = {v.name: v.role == "input" for v in rec.inputs}
    head = {key: x[:, :1] if timed[key] else x for key, x in inputs.items()}
    tail = {key: x[:, 1:] if timed[key] else x for key, x in inputs.items()}
    _, state = run_reference(rec, head, state)
    outputs, final = run_reference(rec, tail, state)
    found = one_step(rec, {key: x[:, 0] if timed[key] else x[None] for key, x in tail.items()}, state)
    expected = {key: final[key] for key in found if key in final}
    expected |= {f"output {key}": x[:, 0] for key, x in outputs.items()}
    assert sorted(found) == sorted(expected)
    for key, x in expected.items():
        torch.testing.assert_close(found[key].expand(x.shape), x, rtol=1e-10, atol=1e-12, msg=f"{rec.name}: {key}")


@pytest.mark.parametrize("name", zoo.names())
def test_zoo(name: str) -> None:
    compare(*parse(zoo.path(name).read_text()))


@pytest.mark.parametrize("start", range(0, 280, 28))
def test_random_recurrences(start: int) -> None:
    for seed in range(start, start + 28):
        compare(*parse(generate(seed)[0]))


def refuses(rec: Recurrence) -> bool:
    try:
        run_reference(rec, random_inputs(rec, B=1, T=1))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("start", range(0, 600, 150))
def test_random_steps_are_valid_for_both_or_for_neither(start: int) -> None:
    valid = 0
    for seed in range(start, start + 150):
        (rec,) = parse(random_step(seed))
        step, errors = check_partial(rec)
        assert refuses(rec) == (step is None), f"seed {seed}: {errors}"
        if step is not None:
            compare(rec)
            valid += 1
    assert valid > 20

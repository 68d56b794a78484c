"""Exponential gates: which specs get a log scale, and that the scaled program computes the same, far out too."""

from __future__ import annotations

import pytest
from inputs import random_inputs
from test_program import check_program
from torch import Tensor

from recur.compiler import compile_program
from recur.grammar.parser import parse
from recur.ir.normal import MaxPlusForm, Program
from recur.ir.spec import Recurrence


def spec(
    body: str, dims: str = "K, V", inputs: str = "q[K], k[K], v[V], i, f", states: str = "C[K, V], n[K]"
) -> Recurrence:
    lines = "\n    ".join(line.strip() for line in body.strip().splitlines())
    text = f"recurrence r:\n    dim {dims}\n    input {inputs}\n    state {states}\n    {lines}\n"
    return parse(text)[0]


MLSTM = """
    C = sigmoid(f) * C + exp(i) * outer(k, v)
    n = sigmoid(f) * n + exp(i) * k
    output o = {}
"""

CASES = {
    "max_1": spec(MLSTM.format("(q @ C) / max(abs(q @ n), 1)")),
    "plain": spec(MLSTM.format("(q @ C) / (q @ n)")),
    "epsilon": spec(MLSTM.format("(q @ C) / (abs(q @ n) + 1e-6)")),
    "gated": spec(MLSTM.format("sigmoid(f) * (q @ C) / max(abs(q @ n), 1)")),
    "norm": spec(MLSTM.format("rmsnorm((q @ C) / max(abs(q @ n), 1))")),
    "invariant": spec(MLSTM.format("l2norm(q @ C) * sign(q @ n)")),
    "two_gates": spec("""
        C = sigmoid(f) * C + exp(i) * outer(k, v) + exp(f) * outer(q, v)
        n = sigmoid(f) * n + exp(i) * k + exp(f) * q
        output o = (q @ C) / max(abs(q @ n), 1)"""),
    "ungated_write": spec("""
        C = sigmoid(f) * C + exp(i) * outer(k, v) + outer(q, v)
        n = sigmoid(f) * n + exp(i) * k + q
        output o = (q @ C) / max(abs(q @ n), 1)"""),
    "growing_decay": spec("""
        C = exp(f) * C + outer(k, v)
        n = exp(f) * n + k
        output o = (q @ C) / max(abs(q @ n), 1)"""),
    "quotient": spec("""
        C = C + exp(i) / exp(f) * outer(k, v)
        n = n + exp(i - f) * k
        output o = (q @ C) / max(abs(q @ n), 1)"""),
    "before_update": spec("""
        output o = (exp(f) * v + q @ C) / (exp(f) + abs(q @ n))
        C = C + exp(i) * outer(k, v)
        n = n + exp(i) * k"""),
    "square": spec(MLSTM.format("(q @ C) / sqrt(square(q @ n) + 1)")),
    "softmax_rows": spec(
        """
        C = C + outer(exp(k), v)
        n = n + exp(k)
        output o = (q / n) @ C""",
    ),
    "read": spec(
        """
        C = C + exp(i) * outer(k, v) - outer(l2norm(k), l2norm(k) @ C)
        output o = (q @ C) / norm(q @ C)""",
        states="C[K, V]",
    ),
    "elementwise": spec(
        """
        a = exp(-w) * a + exp(k) * v
        b = exp(-w) * b + exp(k)
        output o = (a + exp(u) * v) / (b + exp(u))""",
        dims="D",
        inputs="k[D], v[D], w[D] in [0, 1], u[D]",
        states="a[D], b[D]",
    ),
}  # fmt: skip
UNSCALED = {
    "no_ratio": spec(MLSTM.format("(q @ C) + sum(n)")),
    "half": spec(MLSTM.format("(q @ C) / (q @ n) + sum(n)")),
    "bounded": spec(MLSTM.format("(q @ C) / max(abs(q @ n), 1)"), inputs="q[K], k[K], v[V], i in [-3, 3], f"),
}


def scales(program: Program) -> dict[str, str]:
    return {state: scale for stage in program.stages for state, scale in stage.scale_of}


@pytest.mark.parametrize("name", CASES)
def test_scaled(name: str) -> None:
    program = check_program(CASES[name])
    assert set(scales(program)) == {s.name for s in CASES[name].states}
    assert sum(isinstance(f, MaxPlusForm) for stage in program.stages for f in stage.forms) == 1
    assert not any(stage.notes for stage in program.stages)


@pytest.mark.parametrize("name", UNSCALED)
def test_not_scaled(name: str) -> None:
    program = check_program(UNSCALED[name])
    assert not scales(program)
    assert any(stage.notes for stage in program.stages) == (name != "bounded")


def far_inputs(recurrence: Recurrence, offset: float) -> dict[str, Tensor]:
    """The gates moved far out, all other inputs as they are."""
    inputs = random_inputs(recurrence, B=2, T=6, H=2)
    moved = ("i", "u", "k") if "exp(k)" in recurrence.source else ("i", "u")
    return {name: x + offset if name in moved else x for name, x in inputs.items()}


@pytest.mark.parametrize("offset", [200.0, -200.0, 2000.0, -2000.0])
@pytest.mark.parametrize("name", ["plain", "max_1", "before_update", "softmax_rows", "elementwise", "norm", "epsilon"])
def test_far_gates(name: str, offset: float) -> None:
    recurrence = CASES[name]
    inputs = far_inputs(recurrence, offset)
    check_program(recurrence, inputs=inputs)


def test_first_step_is_finite() -> None:
    """The decay of an empty state has a finite log, so that running sums over a chunk stay finite."""
    program = compile_program(CASES["max_1"])
    (normal,) = (n for n in program.stages if n.family == "maxplus")
    assert [name for name, _ in normal.epilogue] == ["C.log_scale.now", "C.log_scale.step"]


RECURRENT = spec(
    """
    recurrent[D] = R @ h
    gate = i + recurrent
    c = sigmoid(f) * c + exp(gate) * tanh(z)
    n = sigmoid(f) * n + exp(gate)
    h = c / n
    output y = h""",
    dims="D\n    dim J = D",
    inputs="i[D], f[D], z[D]\n    param R[J, D]",
    states="c[D], n[D], h[D]",
)


@pytest.mark.parametrize("offset", [0.0, 200.0, -2000.0])
def test_gates_that_depend_on_states(offset: float) -> None:
    """m is then a state of the same stage, beside the states that it scales."""
    program = check_program(RECURRENT, inputs=far_inputs(RECURRENT, offset))
    (stage,) = program.stages
    assert stage.family == "general" and isinstance(stage.forms[0], MaxPlusForm)
    assert scales(program) == {"c": "c.log_scale", "n": "c.log_scale"}

"""Ratios of a term to a sum of two, by the difference of their logs."""

from __future__ import annotations

import pytest
import torch

from recur import zoo
from recur.api import load, loads
from recur.ir.printing import format_node

REWRITTEN = {
    "sigmoid(f) / (sigmoid(f) + sigmoid(i))": "sigmoid(logsigmoid(f) - logsigmoid(i))",
    "exp(i) / (exp(f) + exp(i))": "sigmoid(i - f)",
    "x * exp(i) / (2 * exp(i) + exp(f)) * 2": "sigmoid(0.6931471805599453 + i - f) * x",
    "1 / (1 + exp(f))": "sigmoid(-f)",
    "exp(f) / (1 + exp(f))": "sigmoid(f)",
}
KEPT = (
    "sigmoid(f) / (sigmoid(i) + x)",  # x may be negative
    "tanh(f) / (exp(i) + exp(x))",  # the numerator is no term
    "exp(f) / (exp(f) - exp(i))",
)


def drive(expression: str) -> str:
    text = f"recurrence r:\n    dim D\n    input f[D], i[D], x[D]\n    state h[D]\n    h = {expression} + 0.5 * h\n"
    program = loads(text + "    output o = h\n").program
    return format_node(program.stages[0].forms[0].drive)  # type: ignore[union-attr]


@pytest.mark.parametrize("expression", REWRITTEN)
def test_rewritten(expression: str) -> None:
    found, wanted = drive(expression), REWRITTEN[expression]
    assert found == wanted


@pytest.mark.parametrize("expression", KEPT)
def test_kept(expression: str) -> None:
    assert "sigmoid(logsigmoid" not in drive(expression) and "/" in drive(expression)


@pytest.mark.parametrize("strategy", ("associative_scan", "sequential"))
@pytest.mark.parametrize("gate", (-1000.0, -120.0, 0.0, 120.0))
def test_equal_gates_of_any_size_average(gate: float, strategy: str) -> None:
    """f = i: half of the state and half of the input, also where both gates underflow."""
    op = load(zoo.path("minlstm"))
    f, i = (torch.full((1, 9, 1, 3), gate, requires_grad=True) for _ in "fi")
    x = torch.randn(1, 9, 1, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    o, _ = op(f, i, x, strategy=strategy, backend="torch")
    h, rows = torch.zeros(1, 1, 3), []
    for t in range(9):
        h = 0.5 * h + 0.5 * x[:, t]
        rows.append(h)
    torch.testing.assert_close(o, torch.stack(rows, 1))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(o.sum(), [f, i, x]))

"""What is proved of each spec: the zoo's table, and one form for every way of writing the same update."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_program import ZOO, check_program

from recur.compiler import compile_program
from recur.grammar.parser import parse
from recur.ir.normal import (
    ElementwiseForm,
    Form,
    GeneralForm,
    MatrixForm,
    Program,
)
from recur.ir.printing import format_node
from recur.ir.spec import Recurrence
from recur.ir.verify import verify_program

TABLE = Path(__file__).parent / "goldens" / "zoo_forms.txt"


def summary(program: Program) -> str:
    """A line a stage: family, states, and the structure up to the equations."""
    lines = [f"{program.step.recurrence.name}"]
    for stage in program.stages:
        kinds = stage.structure.split(";")[0].removeprefix(f"{stage.family}: ")
        scaled = "".join(f", {state} scaled by {scale}" for state, scale in stage.scale_of)
        lines.append(f"    {stage.family} {' '.join(stage.stage.states)}: {kinds}{scaled}")
    return "\n".join(lines)


def test_zoo_forms() -> None:
    """The committed table; RECUR_UPDATE_GOLDENS=1 rewrites it."""
    found = "\n".join(summary(compile_program(r)) for p in ZOO for r in parse(p.read_text(), p.name)) + "\n"
    if os.environ.get("RECUR_UPDATE_GOLDENS") == "1":
        TABLE.write_text(found)
    assert found == TABLE.read_text()


# --- spellings --------------------------------------------------------------------------------------------------------


def spec(
    body: str,
    inputs: str = "q[K], k[K], v[V], beta, g in (-inf, 0], w[V]",
    dims: str = "K, V",
    extra: str = "dim J = K",
    state: str = "S[K, V]",
) -> Recurrence:
    lines = "\n    ".join(line.strip() for line in body.strip().splitlines())
    text = f"recurrence r:\n    dim {dims}\n    {extra}\n    input {inputs}\n    state {state}\n    {lines}\n"
    text += "" if "output" in body else "    output o = q @ S\n"
    return parse(text)[0]


def forms(recurrence: Recurrence) -> list[tuple[Form, ...]]:
    return [stage.forms for stage in compile_program(recurrence).stages]


SPELLINGS = {
    "delta": [
        "S = S + beta * outer(k, v - k @ S)",
        "S = S - outer(beta * k, k @ S) + outer(beta * k, v)",
        "S = S + outer(k, beta * v - beta * (k @ S))",
        "S = S - beta * outer(k, k @ S - v)",
        "S = S + -outer(k, -(v - k @ S)) * beta",
        "S = (eye(K, J) - beta * outer(k, k)) @ rename(S, K, J) + beta * outer(k, v)",
        "S = S - beta * outer(k, k @ S)\nS = S + beta * outer(k, v)",
        "old = k @ S\nnew = v - old\nS = S + beta * outer(k, new)",
        "S = S + beta * k * (v - k @ S)",
        "S = S + outer(k, v - k @ S) / (1 / beta)",
        "read = sum(k * S, K)\nS = S + beta * outer(k, v) - beta * outer(k, read)",
    ],
    "gated_delta": [
        "S = exp(g) * S\nS = S + beta * outer(k, v - k @ S)",
        "S = exp(g) * S + beta * outer(k, v - k @ (exp(g) * S))",
        "D = exp(g) * S\nS = D + beta * outer(k, v - k @ D)",
        "S = exp(g) * (S - beta * outer(k, k @ S)) + beta * outer(k, v)",
        "S = exp(g) * S - exp(g) * beta * outer(k, k @ S) + beta * outer(k, v)",
        "S = exp(g) * (eye(K, J) - beta * outer(k, k)) @ rename(S, K, J) + beta * outer(k, v)",
    ],
    "both_axes": [
        "S = (sigmoid(k) * S) * sigmoid(w) + outer(k, v)",
        "S = S * outer(sigmoid(k), sigmoid(w)) + k * v",
        "S = sigmoid(k) * S\nS = S * sigmoid(w)\nS = outer(k, v) + S",
        "S = S * sigmoid(w)\nS = S * sigmoid(k)\nS = S + outer(k, v)",
    ],
    "sums": [
        "S = S - sigmoid(beta) * S + outer(k, v)",
        "S = (1 - sigmoid(beta)) * S + outer(k, v)",
        "S = (S + outer(k, v)) - sigmoid(beta) * S",
    ],
    "where": [
        "S = where(beta > 0, exp(g) * S, S) + outer(k, v)",
        "S = S * where(beta > 0, exp(g), 1) + outer(k, v)",
    ],
    "along_v": [
        "S = S + beta * outer(k - S @ v, v)",
        "S = S - beta * outer(S @ v, v) + beta * outer(k, v)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    wanted = forms(spec(SPELLINGS[name][0]))
    for body in SPELLINGS[name]:
        check_program(spec(body))
        assert forms(spec(body)) == wanted, body


def test_loop_is_the_written_out_steps() -> None:
    dims, inputs = "K, V", "q[K], k[n, K], v[n, V], beta[n]"
    loop = "for j in range(n):\n        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)"
    text = f"recurrence r:\n    dim {dims}\n    dim n = 3\n    input {inputs}\n    state S[K, V]\n    {loop}\n"
    text += "    output o = q @ S\n"
    (form,) = compile_program(parse(text)[0]).stages[0].forms
    assert isinstance(form, MatrixForm)
    assert [type(e).__name__ for e in form.events] == ["Read", "Write"] * 3 + ["Readout"]


# --- decays -----------------------------------------------------------------------------------------------------------

DECAYS = {
    "exp(g)": ("g", None),
    "sigmoid(beta)": ("logsigmoid(beta)", None),
    "(1 - sigmoid(beta))": ("logsigmoid(-beta)", None),
    "0.5": ("-0.6931471805599453", None),
    "-exp(g)": ("g", "-1"),
    "beta": ("log(abs(beta))", "sign(beta)"),
    "square(beta)": ("2 * log(abs(beta))", None),
    "sqrt(sigmoid(beta))": ("0.5 * logsigmoid(beta)", None),
    "(1 / (1 + exp(-g)))": ("logsigmoid(g)", None),
    "exp(g) * sigmoid(beta)": ("g + logsigmoid(beta)", None),
    "sigmoid(beta) ** 2": ("2 * logsigmoid(beta)", None),
    "(2 * sigmoid(beta) - 1)": ("log(abs(2 * sigmoid(beta) - 1))", "sign(2 * sigmoid(beta) - 1)"),
    "where(beta > 0, exp(g), 1)": ("where(beta > 0, g, 0)", None),
    "sigmoid(beta) / (sigmoid(beta) + sigmoid(g))": (
        "logsigmoid(logsigmoid(beta) - logsigmoid(g))", None),
}  # fmt: skip


@pytest.mark.parametrize("decay", DECAYS)
def test_decay_logs(decay: str) -> None:
    recurrence = spec(f"S = {decay} * S + outer(k, v)")
    check_program(recurrence)
    (form,) = compile_program(recurrence).stages[0].forms
    assert isinstance(form, MatrixForm)
    (found,) = form.decays
    sign = None if found.sign is None else format_node(found.sign)
    assert (found.log is not None and format_node(found.log), sign) == DECAYS[decay]


# --- families ---------------------------------------------------------------------------------------------------------

FAMILIES = {
    "full_decay": ("S = sigmoid(outer(k, v)) * S + outer(k, v)", "elementwise"),
    "full_write": ("S = S + tanh(outer(k, v))", "elementwise"),
    "whole_output": ("S = S + outer(k, v)\noutput o = S", "elementwise"),
    "frobenius": ("S = exp(g) * S + outer(k, v)\noutput o = sum(sum(S, K))", "matrix"),
    "both_readouts": ("S = S + outer(k, v)\noutput o = q @ S\noutput p = S @ w", "matrix"),
    "reads_both_axes": ("S = S - outer(k, k @ S) - outer(S @ v, v)", "general"),
    "full_decay_and_read": ("S = sigmoid(outer(k, v)) * S - outer(k, k @ S)", "general"),
    "nonlinear": ("S = tanh(S) + outer(k, v)", "general"),
    "quadratic": ("S = S + outer(k, (k @ S) * (k @ S))", "general"),
    "forgets": ("S = outer(k, v)", "elementwise"),
    "matrix_product": ("S = rename(A, J, K) * S + outer(k, v)", "elementwise"),
    "dense": ("S = rename(A @ S, J, K) + outer(k, v)", "linear"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    body, family = FAMILIES[name]
    inputs = "q[K], k[K], v[V], g in (-inf, 0], w[V], A[J, K]"
    if name == "matrix_product":
        inputs, body = inputs.replace("A[J, K]", "A[J, V]"), body
    program = check_program(spec(body, inputs=inputs))
    assert [stage.family for stage in program.stages] == [family]
    if family == "general":
        (form,) = program.stages[0].forms
        assert isinstance(form, GeneralForm) and form.why and form.span is not None


def test_general_says_why() -> None:
    (form,) = compile_program(spec("S = S - outer(k, k @ S) - outer(S @ v, v)")).stages[0].forms
    assert isinstance(form, GeneralForm)
    assert form.why == "is read along K and along V: outer(S @ v, v)"


def test_vector_with_rank_one_transition() -> None:
    """h <- d h - b (a^T h) + x: a matrix state without value dims, read out whole."""
    recurrence = spec("h = sigmoid(k) * h - beta * k * (q @ h) + k\noutput o = h", state="h[K]")
    program = check_program(recurrence)
    (form,) = program.stages[0].forms
    assert isinstance(form, MatrixForm) and form.value == ()


def test_batch_dims_are_aligned_everywhere() -> None:
    recurrence = spec(
        "S = exp(g) * S + outer(k, v)\noutput o = q @ S",
        inputs="q[N, K], k[N, K], v[V], g[N] in (-inf, 0]", dims="N, K, V", state="S[N, K, V]", extra="",
    )  # fmt: skip
    program = check_program(recurrence)
    (form,) = program.stages[0].forms
    assert isinstance(form, MatrixForm) and (form.batch, form.key, form.value) == (("N",), ("K",), ("V",))


# --- stages -----------------------------------------------------------------------------------------------------------


def test_only_small_values_cross() -> None:
    recurrence = spec(
        "P = P + outer(k, v)\nG = G + outer(k, k @ P)\noutput o = q @ G", state="P[K, V], G[K, V]", extra=""
    )
    program = check_program(recurrence)
    assert [s.stage.states for s in program.stages] == [("P",), ("G",)]
    assert [node.dims for _, node in program.stages[0].epilogue] == [("V",)]


def test_states_that_share_decay_and_key_share_a_stage() -> None:
    body = "C = sigmoid(beta) * C + outer(k, v)\nn = sigmoid({}) * n + k\noutput o = (q @ C) / (1 + abs(q @ n))"
    for gate, groups in (("beta", [("C", "n")]), ("g", [("C",), ("n",)])):
        program = check_program(spec(body.format(gate), state="C[K, V], n[K]"))
        assert [s.stage.states for s in program.stages] == groups


def test_momentum_crosses_whole() -> None:
    program = check_program(spec("M = 0.9 * M + outer(k, v)\nS = S + M", state="M[K, V], S[K, V]"))
    assert [s.family for s in program.stages] == ["elementwise", "elementwise"]
    assert isinstance(program.stages[0].forms[0], ElementwiseForm)


def test_structure_names_no_model() -> None:
    text = [replace(p, step=p.step).stages[0].structure for p in [compile_program(spec("S = S + outer(k, v)"))]]
    assert text == ["matrix: no decay, 1 plain write, 1 readout along K; S <- S + k v^T"]




LONG = {
    "a sum of writes": ["a = outer(k, v)", *["a = a + outer(k, v)"] * 1000, "S = S + a"],
    "assignments": ["S = S + outer(k, v)"] * 500,
    "square roots": ["a = beta", *["a = sqrt(a)"] * 1000, "S = a * S + outer(k, v)"],
    "powers": ["a = exp(g)", *["a = a ** 2"] * 1000, "S = S + a * outer(k, v)"],
    "reciprocals": ["a = exp(beta)", *["a = 1 / a"] * 1000, "S = S + a * outer(k, v)"],
}


@pytest.mark.parametrize("name", LONG)
def test_long_programs(name: str) -> None:
    """Nothing recurses as deep as the user's expressions, and nothing grows with the square of their number."""
    verify_program(compile_program(spec("\n".join(LONG[name]))))

"""The reference against the language's rules, one by one."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import random_inputs, random_state
from torch import Tensor

from recur import zoo
from recur.grammar import parse
from recur.ir.spec import Recurrence
from recur.runtime.reference import run_reference


def rec_of(*lines: str) -> Recurrence:
    (rec,) = parse("recurrence r:\n" + "".join(f"    {line}\n" for line in lines))
    return rec


def spec(name: str) -> Recurrence:
    (rec,) = parse(zoo.path(name).read_text())
    return rec


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs_of(rec: Recurrence, **inputs: Tensor) -> dict[str, Tensor]:
    return run_reference(rec, inputs)[0]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# --- dimensions have names -------------------------------------------------------------------------------------------


def test_elementwise_aligns_by_name_and_orders_by_the_operand_that_has_all() -> None:
    rec = rec_of(
        "dim K, V", "input k[K], v[V], m[V, K]", "state s", "s = s + 1",
        "output a = k * m", "output b = k * v", "output c = m / k", "output d[V, K] = k * v",
    )  # fmt: skip
    k, v, m = normal(1, 3, 1, 2), normal(1, 3, 1, 4, seed=1), normal(1, 3, 1, 4, 2, seed=2)
    found = outputs_of(rec, k=k, v=v, m=m)
    close(found["a"], m * k[..., None, :])
    close(found["b"], k[..., :, None] * v[..., None, :])
    close(found["c"], m / k[..., None, :])
    close(found["d"], v[..., :, None] * k[..., None, :])


def test_contraction_takes_the_left_operands_last_dimension() -> None:
    rec = rec_of(
        "dim N, b, K", "dim c = b", "dim J = K", "input A[N, b, c], h[N, c], R[J, K], x[K]", "state s", "s = s + 1",
        "output block = A @ h", "output row = x @ x", "output matrix = R @ x", "output gram = outer(x, x) @ R",
    )  # fmt: skip
    A, h, R, x = normal(1, 2, 1, 3, 2, 2), normal(1, 2, 1, 3, 2), normal(1, 2, 1, 4, 4), normal(1, 2, 1, 4)
    found = outputs_of(rec, A=A, h=h, R=R, x=x)
    close(found["block"], torch.einsum("...nbc,...nc->...nb", A, h))
    close(found["row"], (x * x).sum(-1))
    close(found["matrix"], torch.einsum("...jk,...k->...j", R, x))
    # outer(x, x) is [K, J]; @ R[J, K] contracts J and aligns K
    close(found["gram"], torch.einsum("...k,...j,...jk->...k", x, x, R))


def test_outer_takes_the_first_other_name_and_assignment_matches_names() -> None:
    rec = rec_of(
        "dim K", "dim J = K", "input k[K], x[J]", "state S[J, K], h[K]",
        "S = S + outer(k, k)", "h = x", "output o = S", "output p = h",
    )  # fmt: skip
    k, x = normal(1, 3, 1, 2), normal(1, 3, 1, 2, seed=1)
    found = outputs_of(rec, k=k, x=x)
    close(found["o"], torch.cumsum(k[..., :, None] * k[..., None, :], 1).mT)
    close(found["p"], x)


def test_an_assignment_with_two_candidates_is_an_error() -> None:
    rec = rec_of("dim K", "dim J = K", "dim L = K", "input M[J, L]", "state h[K]", "h = M @ h", "output o = h")
    with pytest.raises(ValueError, match=r"missing|contract"):
        outputs_of(rec, M=normal(1, 2, 1, 3, 3))


def test_loops_indices_and_a_constant_that_fills() -> None:
    rec = rec_of(
        "dim K", "dim n = 3", "input k[n, K], w[n]", "state h[K]", "total[K] = 0",
        "for j in range(n):", "    total = total + (j + 1) * w[j] * k[j]",
        "h = h + total", "output o = h", "output first = k[0]",
    )  # fmt: skip
    k, w = normal(1, 4, 1, 3, 2), normal(1, 4, 1, 3)
    found = outputs_of(rec, k=k, w=w)
    terms = torch.einsum("bthn,bthnk,n->bthk", w, k, torch.arange(1.0, 4.0, dtype=torch.float64))
    close(found["o"], torch.cumsum(terms, 1))
    close(found["first"], k[..., 0, :])


def test_functions_along_a_dimension() -> None:
    rec = rec_of(
        "dim K, N", "dim J = K", "input x[K, N], z[N] complex", "state s", "s = s + 1",
        "output a = softmax(x, K)", "output b = l2norm(x, N, 0.5)", "output c = rmsnorm(x, N)", "output d = amax(x, K)",
        "output e = norm(z)", "output f = hadamard(x, N)", "output g = eye(K, J) @ rename(x, K, J)",
        "output h = conj(z)", "output i = mean(z)",
    )  # fmt: skip
    x = normal(1, 2, 1, 3, 4)
    z = torch.complex(normal(1, 2, 1, 4), normal(1, 2, 1, 4, seed=1))
    found = outputs_of(rec, x=x, z=z)
    close(found["a"], torch.softmax(x, -2))
    close(found["b"], x / torch.sqrt((x**2).sum(-1, keepdim=True) + 0.5))
    close(found["c"], x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6))
    close(found["d"], x.amax(-2))
    close(found["e"], torch.linalg.vector_norm(z, dim=-1))
    sylvester = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(4)] for i in range(4)]).double()
    close(found["f"], x @ sylvester)
    close(found["g"], x)
    close(found["h"], z.conj().resolve_conj())
    close(found["i"], z.mean(-1))


# --- states, prev, sequences, heads ----------------------------------------------------------------------------------


def test_an_output_before_the_update_reads_the_previous_state() -> None:
    rec = rec_of("input x", "state h", "output before = h", "h = h + x", "output after = h")
    x = normal(1, 4, 1)
    found = outputs_of(rec, x=x)
    close(found["after"], torch.cumsum(x, 1))
    close(found["before"], torch.cumsum(x, 1) - x)


@pytest.mark.parametrize("name", ["mamba3", "mlstm_exp", "rwkv6", "lightnet", "lstm"])
def test_two_calls_with_the_state_handed_over_are_one(name: str) -> None:
    rec = spec(name)
    inputs = random_inputs(rec, T=6)
    cut = {v.name: v.role == "input" for v in rec.inputs}
    gates = {"mlstm_exp": {"C": (), "n": ()}, "lightnet": {"S": ("K",), "z": ("K",)}}.get(name, {})
    whole, end = run_reference(rec, inputs, stabilised=gates)
    head = {key: x[:, :2] if cut[key] else x for key, x in inputs.items()}
    tail = {key: x[:, 2:] if cut[key] else x for key, x in inputs.items()}
    first, middle = run_reference(rec, head, stabilised=gates)
    second, last = run_reference(rec, tail, middle, stabilised=gates)
    for key in whole:
        close(torch.cat([first[key], second[key]], 1), whole[key])
    for key in end:
        close(last[key], end[key])


def test_reset_starts_anew_and_packed_sequences_are_separate() -> None:
    rec = spec("mamba3")
    inputs = random_inputs(rec, B=1, T=7)
    timed = {v.name: v.role == "input" for v in rec.inputs}
    part = {key: x[:, 3:] if timed[key] else x for key, x in inputs.items()}
    reset = torch.zeros(1, 7, dtype=torch.bool)
    reset[0, 3] = True
    found, final = run_reference(rec, inputs, reset=reset)
    expected, expected_final = run_reference(rec, part)
    packed, states = run_reference(rec, inputs, cu_seqlens=torch.tensor([0, 3, 3, 7]))
    close(found["y"][:, 3:], expected["y"])
    close(packed["y"], found["y"])
    for key, x in expected_final.items():
        close(final[key], x)
        close(states[key][2:], x)
        assert states[key].shape[0] == 3


def test_fewer_heads_and_no_heads() -> None:
    rec = spec("mamba2")
    inputs = random_inputs(rec, H=4)
    shared = dict(inputs, B=inputs["B"][:, :, :2], A_log=inputs["A_log"][:1])
    spread = dict(inputs, B=inputs["B"][:, :, [0, 0, 1, 1]], A_log=inputs["A_log"][[0, 0, 0, 0]])
    close(run_reference(rec, shared)[0]["y"], run_reference(rec, spread)[0]["y"])
    timed = {v.name: v.role == "input" for v in rec.inputs}
    bare = {key: x[:, :, 0] if timed[key] else x[0] for key, x in inputs.items()}
    outputs, final = run_reference(rec, bare, {"h": torch.zeros(2, 5, 7, dtype=torch.float64)})
    close(outputs["y"], run_reference(rec, inputs)[0]["y"][:, :, 0])
    assert final["h"].shape == (2, 5, 7)


def test_dtypes_follow_the_first_input() -> None:
    rec = spec("gateloop")
    low = random_inputs(rec, dtype=torch.bfloat16)
    outputs, final = run_reference(rec, low)
    assert outputs["o"].dtype == torch.bfloat16 and final["S"].dtype == torch.complex64


# --- exact arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 200.0, 1000.0, -200.0, -1000.0])
def test_a_ratio_of_exponential_sums_does_not_depend_on_their_size(level: float) -> None:
    rec = spec("aaren")
    inputs = random_inputs(rec)
    scores = torch.einsum("hk,bthk->bth", inputs["q"], inputs["k"]) * 5**-0.5
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, :, :, None]
    weights = torch.softmax(scores[:, None].masked_fill(~mask, -math.inf), 2)
    expected = torch.einsum("btsh,bshv->bthv", weights, inputs["v"])
    shifted = rec_of(
        "dim K, V", "input k[K], v[V]", "param q[K], level", "state a[V], c",
        "weight = exp(K ** -0.5 * (q @ k) + level)", "a = a + weight * v", "c = c + weight", "output o = a / c",
    )  # fmt: skip
    inputs |= {"level": torch.full((2,), level, dtype=torch.float64)}
    found, final = run_reference(shifted, inputs, stabilised={"a": (), "c": ()})
    torch.testing.assert_close(found["o"], expected, rtol=1e-9, atol=1e-9)
    true_log = final["c"].log() + final["c.log_scale"]
    torch.testing.assert_close(true_log, torch.logsumexp(scores, 1) + level, rtol=1e-9, atol=1e-9)


def test_the_denominators_constant_is_scaled_too() -> None:
    rec = spec("mlstm_exp")
    inputs = random_inputs(rec)
    tiny = dict(inputs, i=inputs["i"] - 1000)
    assert outputs_of(rec, **tiny)["h"].abs().max() == 0  # max(|n q|, 1) is 1 beside exp(-1000)
    huge = dict(inputs, i=inputs["i"] + 1000)
    found = outputs_of(rec, **huge)["h"]
    assert found.isfinite().all() and found.abs().max() > 0.1


def test_gradients_of_scaled_states_at_ordinary_gates() -> None:
    rec = spec("mlstm_exp")
    inputs = random_inputs(rec, requires_grad=True)
    state = {name: torch.zeros_like(x).requires_grad_() for name, x in random_state(rec).items()}
    leaves = [*inputs.values(), *state.values()]
    values = []
    for scales in (True, False):
        outputs, final = run_reference(rec, inputs, state, scales=scales)
        loss = outputs["h"].sin().sum() + final["C"].sum() + final["n"].cos().sum()
        values.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*values, strict=True):
        close(a, b)


def test_where_differentiates_the_branch_taken_only() -> None:
    rec = rec_of(
        "dim D", "input x[D]", "state h[D]", "root = sqrt(x)",
        "h = 0.5 * h + where(x > 0, root * log(x), x)", "output o = h",
    )  # fmt: skip
    x = torch.tensor([[[[0.0, 4.0, -1.0]], [[1.0, 0.0, 2.0]]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(outputs_of(rec, x=x)["o"].sum(), x)
    assert gradient.isfinite().all()
    assert float(gradient[0, 0, 0, 0]) == 1.5 and float(gradient[0, 1, 0, 1]) == 1.0
    y = x.detach().clone().abs().add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: outputs_of(rec, x=x)["o"], (y,))


def test_a_step_is_the_same_with_numbers_scaled_or_not() -> None:
    for name in ("s5", "lightnet", "slstm", "minlstm", "gated_slot_attention", "rebased"):
        rec = spec(name)
        inputs, state = random_inputs(rec), random_state(rec)
        if name == "lightnet":
            state["z"] = state["z"].exp()
        a, b = (run_reference(rec, inputs, state, scales=scales) for scales in (True, False))
        for x, y in zip(a, b, strict=True):
            for key in x:
                close(x[key], y[key])


@pytest.mark.parametrize("level", [1000.0, -1000.0])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_a_ratio_do_not_depend_on_the_size_of_its_gates(level: float, given: bool) -> None:
    rec = rec_of(
        "dim D", "input i[D], f[D], v[D]", "state a[D], c[D]",
        "a = sigmoid(f) * a + exp(i) * v", "c = sigmoid(f) * c + exp(i)", "output o = tanh(a / c)",
    )  # fmt: skip
    inputs = random_inputs(rec)
    inputs["v"][:, 1] = 0.0
    gradients = []
    for shift in (0.0, level):
        leaves = {key: (x + shift if key == "i" else x).detach().requires_grad_() for key, x in inputs.items()}
        zero = {key: torch.zeros_like(x) for key, x in random_state(rec).items()} if given else None
        outputs, _ = run_reference(rec, leaves, zero, stabilised={"a": ("D",), "c": ("D",)})
        gradients.append(torch.autograd.grad(outputs["o"].sum(), list(leaves.values())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gates_of_every_size_in_one_sequence() -> None:
    rec = spec("mlstm_exp")
    inputs = random_inputs(rec, T=8)
    levels = torch.tensor([-1000.0, -200.0, 0.0, 200.0, 1000.0, 900.0, -1000.0, 0.0], dtype=torch.float64)
    leaves = {key: (x + levels[:, None] if key == "i" else x).requires_grad_() for key, x in inputs.items()}
    outputs, final = run_reference(rec, leaves, stabilised={"C": (), "n": ()})
    gradients = torch.autograd.grad(outputs["h"].sum(), list(leaves.values()))
    assert all(x.isfinite().all() for x in (*outputs.values(), *final.values(), *gradients))
    # from the largest gate on, the output is that token's alone, whatever came before
    k, q, v = (inputs[name][:, 4].detach() for name in ("k", "q", "v"))
    expected = v * torch.sign((q * k).sum(-1, keepdim=True))
    close(outputs["h"][:, 4].detach(), expected)

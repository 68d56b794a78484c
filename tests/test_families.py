"""States without reads under scalar decays: families of states, weights in memory, and the passes over their tiles."""

from __future__ import annotations

import pytest
import torch
from compare import compare

from recur.api import load, loads
from recur.ir.plan import Plan
from recur.strategies.chunkwise import plan
from recur.zoo import path

SIZES = {"K": 128, "V": 128}

RECURRENCES = {
    "a vector beside a matrix, with a factor that may be zero": """
recurrence gated_normaliser:
    dim    K, V
    input  q[K], k[K], v[V], s in [0, 1], g in (-inf, 0]
    state  n[K], S[K, V]
    n = exp(g) * n + s * k
    S = exp(g) * S + s * outer(k, v)
    output o = (q @ S) / max(abs(q @ n), 1)
""",
    "two matrices and a vector, two readouts of each, one before the write": """
recurrence wide:
    dim    K, V
    input  q[K], p[K], k[K], v[V], w[V], s, g in (-inf, 0]
    state  A[K, V], B[K, V], n[K]
    output before = s * (p @ A) + p @ B
    output count = p @ n
    A = exp(g) * A + s * outer(k, v)
    B = exp(g) * B + s * outer(k, w)
    n = exp(g) * n + s * k
    output o = q @ A + (q @ n) * (q @ B)
""",
    "two writes a token around two decays, factors of queries": """
recurrence twice:
    dim    K, V
    input  q[K], k[K], a[K], v[V], w[V], r, s, t, g in (-inf, 0], h in (-inf, 0]
    state  S[K, V]
    S = exp(g) * S + s * outer(k, v)
    output between = t * (q @ S)
    S = exp(h) * S + outer(a, r * w)
    output after = K ** -0.5 * (q @ S)
""",
    "negative decays and a parameter's": """
recurrence signs:
    dim    K, V
    input  q[K], k[K], v[V], b in [-1, 1], s
    param  a
    state  S[K, V], n[K]
    S = -exp(-softplus(a)) * S + s * outer(k, v)
    n = -exp(-softplus(a)) * n + s * k
    output o = (q @ S) + (q @ n) * v
""",
    "decays that are factors, the same for all tokens": """
recurrence retained:
    dim    K, V
    input  q[K], k[K], v[V], s
    param  gamma in (0, 1), a in [-1, 1]
    state  S[K, V], n[K]
    S = gamma * a * S + s * outer(k, v)
    n = gamma * a * n + s * k
    output o = (q @ S) + (q @ n) * v
""",
    "a factor that divides": """
recurrence divided:
    dim    K, V
    input  q[K], k[K], v[V], s, r, g in (-inf, 0]
    state  S[K, V], n[K]
    S = exp(g) * S + s / (1 + square(r)) * outer(k, v)
    n = exp(g) * n + s / (1 + square(r)) * k
    output o = (q @ S) / (1 + square(q @ n))
""",
    "rows that are computed": """
recurrence mapped:
    dim    K, V
    input  q[K], k[K], v[V], s, g in (-inf, 0]
    state  S[K, V], n[K]
    S = exp(g) * S + s * outer(elu(k) + 1, v)
    n = exp(g) * n + s * (elu(k) + 1)
    output o = silu(q) @ S + (silu(q) @ n) * v
""",
    "factors alone": """
recurrence undecayed:
    dim    K, V
    input  q[K], k[K], v[V], s
    state  S[K, V], n[K]
    S = S + s * outer(k, v)
    n = n + s * k
    output o = (q @ S) * tanh(q @ n)
""",
}


@pytest.mark.parametrize("loss", ["both", "final"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_several_chunks(name: str, extreme: bool, loss: str) -> None:
    op = loads(RECURRENCES[name])
    assert "query_gradients" in kernels(RECURRENCES[name]), "takes passes"
    compare(op, "chunkwise", T=150, sizes={"K": 5, "V": 3}, extreme=extreme, loss=loss, seed=3)


@pytest.mark.parametrize("name", ["gated_normaliser", "wide", "twice", "signs"])
def test_states_too_large_for_a_program(name: str) -> None:
    """Values and keys have walks of their own, in tiles of the state."""
    source = next(text for text in RECURRENCES.values() if f"recurrence {name}:" in text)
    sizes = {"K": 130, "V": 66}
    assert {"value_gradients", "key_gradients"} <= set(kernels(source, sizes))
    compare(loads(source), "chunkwise", T=70, B=1, sizes=sizes, seed=4)


@pytest.mark.parametrize("extreme", [False, True])
def test_values_twice_as_wide_as_keys(extreme: bool) -> None:
    """One walk in two tiles of the values, with a partial sum of each for the keys; not where there are vectors too."""
    source = RECURRENCES["two writes a token around two decays, factors of queries"]
    sizes = {"K": 66, "V": 130}
    assert "write_gradients" in kernels(source, sizes)
    compare(loads(source), "chunkwise", T=70, B=1, sizes=sizes, extreme=extreme, seed=5)
    with_vector = RECURRENCES["a vector beside a matrix, with a factor that may be zero"]
    assert {"value_gradients", "key_gradients"} <= set(kernels(with_vector, sizes))
    wide = {"K": 64, "V": 512}  # tiles of 256
    assert {"value_gradients", "key_gradients"} <= set(kernels(source, wide))


@pytest.mark.parametrize("name", ["mlstm_exp", "mlstm_sig", "mamba2", "linear_attention_normalised", "lightning"])
@pytest.mark.parametrize("T", [1, 64, 65])
def test_chunk_bounds(name: str, T: int) -> None:
    compare(load(str(path(name))), "chunkwise" if name != "mlstm_exp" else "auto", T=T, B=1, extreme=True)


def test_a_factor_that_is_zero_has_a_gradient() -> None:
    op = loads(RECURRENCES["a vector beside a matrix, with a factor that may be zero"])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 70, 1, 4, dtype=torch.float64) for _ in range(3))
    s, g = torch.rand(1, 70, 1, dtype=torch.float64), -torch.rand(1, 70, 1, dtype=torch.float64)
    s[:, ::3] = 0.0
    s.requires_grad_()
    found, wanted = (
        torch.autograd.grad(call(q, k, v, s, g, **options)[0].square().sum(), s)[0]
        for call, options in ((op, {"strategy": "chunkwise", "backend": "torch"}), (op.reference, {}))
    )
    assert wanted[:, ::3].abs().min() > 1e-6
    assert (found - wanted).norm() < 1e-12 * wanted.norm()


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-11, 1e-6])
def test_a_constant_decay_near_zero_has_a_gradient(value: float) -> None:
    op = loads(RECURRENCES["decays that are factors, the same for all tokens"])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 130, 2, 4, dtype=torch.float64) for _ in range(3))
    s, gamma = torch.rand(1, 130, 2, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    a = torch.tensor([value, 0.5], dtype=torch.float64).requires_grad_()
    found, wanted = (
        torch.autograd.grad(call(q, k, v, s, gamma, a, **options)[0].square().sum(), a)[0]
        for call, options in ((op, {"strategy": "chunkwise", "backend": "torch"}), (op.reference, {}))
    )
    assert wanted.abs().min() > 1e-6
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()


def kernels(source: str, sizes: dict[str, int] = SIZES) -> list[str]:
    found = planned(source, sizes)
    return [k.name for k in found.forward + found.backward]


def planned(source: str, sizes: dict[str, int] = SIZES) -> Plan:
    found = plan(loads(source).program.stages[-1], sizes)
    assert isinstance(found, Plan)
    return found


def test_no_state_of_a_chunk_goes_to_memory() -> None:
    for source in RECURRENCES.values():
        found = planned(source)
        assert not [b for b in found.saved + found.workspace if b.layout[1] == "N" and {"K", "V"} <= set(b.layout)]


def test_an_epilogue_that_mixes_values_keeps_them_whole_forward_only() -> None:
    found = kernels(path("lightning").read_text())
    assert {"query_gradients", "write_gradients"} <= set(found)


def test_what_decays_need_of_states_is_not_rounded_off() -> None:
    with_decay, without = (load(str(path(n))).source("triton") for n in ("simple_gla", "linear_attention"))
    assert "_rest(S, DOT)" in with_decay and "_rest(R_S, DOT)" in with_decay
    assert "_rest(" not in without


def test_a_family_has_one_tile_of_pairs() -> None:
    """The vector beside the matrix costs the passes no product of their own."""
    with_vector = RECURRENCES["a vector beside a matrix, with a factor that may be zero"]
    alone = with_vector.replace("n[K], ", "").replace("    n = exp(g) * n + s * k\n", "")
    alone = alone.replace(" / max(abs(q @ n), 1)", "")

    def products(source: str) -> dict[str, int]:
        return {k.name: str(k.body).count("op='contract'") for k in planned(source).backward}

    both, one = products(with_vector), products(alone)
    assert both["write_gradients"] <= one["write_gradients"] + 1
    assert both["query_gradients"] <= one["query_gradients"] + 1


def test_computed_rows_are_worked_out_once() -> None:
    plan = planned(RECURRENCES["rows that are computed"])
    assert plan.forward[0].name == "rows" and plan.backward[-1].name == "rows_gradient"
    for kernel in plan.forward[1:] + plan.backward[:-1]:
        assert "op='expm1'" not in str(kernel.body) and "op='silu'" not in str(kernel.body), kernel.name


def test_walks_have_no_exponentials() -> None:
    for source in RECURRENCES.values():
        for kernel in planned(source).forward + planned(source).backward:
            if kernel.role in ("walk", "segments", "query gradients", "value gradients", "key gradients"):
                assert "op='exp2'" not in str(kernel.body) and "op='cumsum'" not in str(kernel.body), kernel.name

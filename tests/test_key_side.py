"""Decays over the key dims: the key side of every chunk in memory, pairs by halves of blocks."""

from __future__ import annotations

import pytest
import torch
from compare import compare

from recur.api import load
from recur.ir.plan import Plan
from recur.ir.tile import Let, Loop
from recur.strategies.chunkwise import plan
from recur.zoo import path

RECURRENCES = {
    "parameters in the decay": """
recurrence learned:
    dim    K, V
    input  q[K], k[K], v[V], dt
    param  A[K], bias
    state  S[K, V]
    S = exp(-exp(A) * softplus(dt + bias)) * S + outer(k, v)
    output o = q @ S
""",
    "rows and a decay that mix their entries": """
recurrence mixing:
    dim    K, V
    input  q[K], k[K], v[V], f[K], beta in (0, 1)
    state  S[K, V]
    S = exp(-softmax(f)) * S
    S = S + beta * outer(l2norm(k), v - l2norm(k) @ S)
    output o = softmax(q) @ S
""",
    "two decays a token, read before, between and after": """
recurrence twice:
    dim    K, V
    input  q[K], k[K], v[V], g[K] in (-inf, 0], h in (-inf, 0], a[K]
    state  S[K, V]
    output before = q @ S
    S = exp(g) * S
    output between = k @ S
    S = exp(h) * S + outer(k, v)
    S = exp(g) * S + outer(a, v)
    output after = a @ S
""",
    "a read before the decay, and two writes": """
recurrence removal:
    dim    K, V
    input  q[K], k[K], v[V], g[K] in (-inf, 0], a[K], b in (0, 1)
    state  S[K, V]
    S = exp(g) * S - b * outer(a, l2norm(a) @ S) + outer(k, v)
    output o = q @ S
""",
}


@pytest.mark.parametrize("loss", ["both", "final"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_several_chunks(name: str, extreme: bool, loss: str) -> None:
    compare(RECURRENCES[name], "chunkwise", T=150, extreme=extreme, loss=loss, seed=3)


@pytest.mark.parametrize("name", ["gla", "hgrn2", "rwkv6", "kda", "rwkv7", "dplr"])
@pytest.mark.parametrize("T", [1, 64, 65])
def test_chunk_bounds(name: str, T: int) -> None:
    compare(load(str(path(name))), "chunkwise", T=T, B=1, extreme=True)


def planned(name: str) -> Plan:
    (normal,) = load(str(path(name))).program.stages
    found = plan(normal, {"K": 128, "V": 128})
    assert isinstance(found, Plan)
    return found


def test_walks_have_products_of_plain_matrices_alone() -> None:
    for name in ("gla", "kda", "rwkv7"):
        for kernel in planned(name).forward + planned(name).backward:
            if kernel.role in ("walk", "states", "reverse_walk"):
                (loop,) = [s for s in kernel.body if isinstance(s, Loop)]
                operations = {s.op for s in loop.body if isinstance(s, Let)}
                assert not operations & {"weigh", "exp2", "cumsum"}, (name, kernel.name, operations)


def test_rows_that_mix_their_entries_are_worked_out_once() -> None:
    assert planned("kda").forward[0].name == "rows"
    assert planned("kda").backward[-1].name == "rows_gradient"
    assert "rows" not in [k.name for k in planned("gla").forward]


def test_rows_are_normalised_before_a_walk_over_a_whole_sequence() -> None:
    assert [k.name for k in planned("delta_net").forward] == ["rows", "prepare", "forward"]
    assert planned("delta_net").backward[-1].name == "rows_gradient"
    assert "rows" not in [k.name for k in planned("gated_delta_net").forward]


def test_the_operand_type_is_the_vectors() -> None:
    assert planned("gla").arguments[0].name != "g"


def test_gates_may_be_float32_beside_half_precision() -> None:
    op = load(str(path("gla")))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 70, 2, 8).bfloat16() for _ in range(3))
    g = -torch.rand(1, 70, 2, 8)
    o, _ = op(q, k, v, g, strategy="chunkwise", backend="torch")
    wanted, _ = op.reference(*(x.double() for x in (q, k, v, g)))
    assert o.dtype == torch.bfloat16
    assert (o.double() - wanted).norm() < 1e-2 * wanted.norm()

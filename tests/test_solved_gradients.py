"""Gradients where every write has read the state: pairs inside the chunk, then vector by vector."""

from __future__ import annotations

import pytest
from compare import compare

from recur.api import load, loads
from recur.codegen.triton_printer.config import statements_of
from recur.ir.plan import Plan
from recur.ir.tile import Kernel, Let
from recur.strategies.chunkwise import plan
from recur.zoo import path

RECURRENCES = {
    "a decay before, between and after, read at each": """
recurrence between:
    dim    K, V
    input  q[K], k[K], v[V], a[K]
    input  g in (-inf, 0], h in (-inf, 0], beta in (0, 2)
    state  S[K, V]
    output before = q @ S
    S = exp(g) * S
    S = S + beta * outer(k, v - k @ S)
    output between = a @ S
    S = exp(h) * S
    S = S + outer(a, v - a @ S)
    output after = k @ S
""",
    "a factor that may be zero or negative": """
recurrence factor:
    dim    K, V
    input  q[K], k[K], v[V], f in (-1, 1), beta in (0, 2)
    state  S[K, V]
    S = f * S
    S = S + beta * outer(k, v - k @ S)
    output o = q @ S
""",
    "gates and rows with parameters, keys that mix their entries": """
recurrence learned:
    dim    K, V
    input  q[K], k[K], v[V], dt
    param  A, w[K], bias
    state  S[K, V]
    S = exp(-exp(A) * softplus(dt + bias)) * S
    S = S + sigmoid(dt) * outer(l2norm(w * k), tanh(v) - l2norm(w * k) @ S)
    output o = softmax(q) @ S
""",
}


@pytest.mark.parametrize("loss", ["both", "final"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_several_chunks(name: str, extreme: bool, loss: str) -> None:
    compare(RECURRENCES[name], "chunkwise", T=150, extreme=extreme, loss=loss, seed=5)


@pytest.mark.parametrize("name", ["gated_delta_net", "comba", "gated_delta_product"])
@pytest.mark.parametrize("T", [1, 64, 65])
def test_chunk_bounds(name: str, T: int) -> None:
    compare(load(str(path(name))), "chunkwise", T=T, B=1, extreme=True)


def planned(text: str, K: int, V: int) -> Plan:
    (normal,) = loads(text).program.stages
    found = plan(normal, {"K": K, "V": V})
    assert isinstance(found, Plan)
    return found


def gradients_of(text: str) -> Kernel:
    return next(k for k in planned(text, 128, 128).backward if k.name == "gradients")


def test_left_operands_lie_in_memory() -> None:
    """A product whose left operand is a computed tile keeps it in registers, which are few."""
    lets = [s for s in statements_of(gradients_of(path("gated_delta_net").read_text()).body) if isinstance(s, Let)]
    made_by = {out.name: s.op for s in lets for out in s.outs}
    products = [s for s in lets if s.op == "contract" and len(s.out.axes) == 2]
    assert products
    assert all("load" in {made_by[a.name] for a in s.args} for s in products)


def test_the_value_side_is_loaded_once() -> None:
    """Z, U and dO by the kernel's outermost body, S and R for each tile of the key dims."""
    body = gradients_of(path("gated_delta_net").read_text()).body
    loads = [s for s in body if isinstance(s, Let) and s.access is not None]
    values = [s for s in loads if "V" in s.out.axes and "c" in s.out.axes]
    assert sorted(s.access.buffer for s in values if s.access) == ["U_S_0", "Z_S_0", "d_o", "v"]
    assert not any({"K", "V"} <= set(s.out.axes) for s in loads)


def test_what_lacks_the_key_dims_is_summed_over_their_tiles() -> None:
    found = planned(path("gated_delta_net").read_text(), 128, 128)
    assert found.buffer("d_g").layout == found.buffer("d_beta").layout == ("B", "T", "H")
    assert all(found.buffer(f"d_{x}").dtype == f"input:{x}" for x in ("k", "g", "beta"))


def test_entries_along_a_fixed_dim_are_loaded_and_stored_one_by_one() -> None:
    """No tile holds all of a token's micro-steps: its entries could not be indexed."""
    text = load(str(path("delta_product"))).source("triton", K=64, V=64)
    assert "d_k_ptr + " in text and "i_n" not in text

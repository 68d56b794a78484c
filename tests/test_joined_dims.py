"""States with several key or value dims, which chunk kernels fuse, and with aligned dims, which they take for heads."""

from __future__ import annotations

import pytest
from compare import compare
from inputs import dim_sizes

from recur.api import loads
from recur.runtime.op import Op
from recur.strategies.select import select

SPECS = {
    "matrix_values": """
    dim    K, V, W
    input  q[K], k[K], M[W, V], g[W] in (-inf, 0], x[W]
    state  S[V, K, W]
    S = exp(g) * S + k * M
    output o[W, V] = tanh(q @ S)
    output p = tanh(q @ S) @ x
""",
    "pairs_of_keys_and_of_values": """
    dim    K, J, V, W
    input  q[K], p[J], k[K], l[J], v[V], w[W], a in [-1, 1]
    state  S[K, V, J, W], z[J, K]
    S = a * S + outer(outer(k, v), outer(l, w))
    z = a * z + outer(l, k)
    output o = p @ (q @ S)
    output n = p @ (q @ z)
""",
    "a_key_computed_from_all": """
    dim    K, V
    dim    J = K
    input  q[K], k[K], v[V], beta in (0, 1)
    param  w[J]
    state  S[K, J, V]
    key = l2norm(k)
    other = softmax(rename(k, K, J)) * w
    S = S + beta * outer(outer(key, other), v - other @ (key @ S))
    output o = other @ (q @ S)
""",
    "aligned": """
    dim    N, K, V
    input  q[N, K], k[N, K], v[N, V], g[N] in (-inf, 0], beta[N] in (0, 1)
    state  S[N, K, V]
    S = exp(g) * S
    S = S + beta * k * (v - k @ S)
    output o = q @ S
""",
    "aligned_with_shared_queries": """
    dim    N, K, V
    input  q[K], k[N, K], v[V], g[K, N] in (-inf, 0]
    param  scale[N], bias[V]
    state  S[K, N, V], z[N, K]
    S = exp(g) * S + k * v
    z = exp(g) * z + k
    output o[V, N] = (q @ S) * scale / (1 + square(q @ z)) + outer(bias, scale)
""",
    "aligned_and_fused": """
    dim    N, K, J, V
    input  q[N, K], p[J], k[N, K], l[N, J], v[V]
    state  S[J, N, K, V]
    S = 0.9 * S + k * l * v
    output o = p @ (q @ S)
""",
}


def op_of(name: str) -> Op:
    return loads(f"recurrence {name}:{SPECS[name]}")


@pytest.mark.parametrize("name", SPECS)
def test_against_oracle(name: str) -> None:
    op = op_of(name)
    selections = select(op.program, dim_sizes(op.recurrence))
    applicable = {",".join(s.normal.stage.states): s.applicable for s in selections}
    assert "chunkwise" in next(names for states, names in applicable.items() if "S" in states), selections[0].rejected
    for strategy in sorted({name for s in selections for name in s.applicable} - {"sequential"}):
        compare(op, strategy, T=1)
        compare(op, strategy, T=37, B=1, seed=1)
        compare(op, strategy, T=5, initial=False, loss="outputs", H=1, seed=2)


def test_joining_heads_is_refused() -> None:
    text = SPECS["aligned"].replace("output o = q @ S", "output o = sum(q @ S, N)")
    (selection,) = select(loads(f"recurrence joined:{text}").program, {"N": 2, "K": 3, "V": 4})
    assert selection.strategy == "sequential" and "joins its entries" in selection.rejected["chunkwise"]

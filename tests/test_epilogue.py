"""Results that add readouts as they are: the readouts take the results' cotangents, the rest is pulled back apart."""

from __future__ import annotations

from types import ModuleType

import pytest
from compare import compare

from recur.api import load, loads
from recur.ir.core import Node, add, const, leaf, mul, neg, sub
from recur.ir.normal import MatrixForm, Readout
from recur.ir.plan import Plan
from recur.strategies import chunkwise, tiled
from recur.strategies.chunk.epilogue import absorb_scales, added_readouts, added_rests
from recur.zoo import path

OUT, OTHER = (leaf("readout", name, ("V",)) for name in ("o", "p"))
X, SKIP, HALF = leaf("input", "x", ("V",)), leaf("param", "skip"), const(0.5)


@pytest.mark.parametrize(
    ("results", "added", "rests"),
    [
        ({"y": OUT}, {"o": "y"}, {}),
        ({"y": add(OUT, mul(SKIP, X))}, {"o": "y"}, {"y": mul(SKIP, X)}),
        ({"y": sub(X, OUT)}, {}, {"y": add(X, neg(OUT))}),
        ({"y": sub(OUT, X)}, {"o": "y"}, {"y": neg(X)}),
        ({"y": add(OUT, OTHER)}, {"o": "y", "p": "y"}, {}),
        ({"y": add(OUT, OUT)}, {}, {"y": add(OUT, OUT)}),
        ({"y": OUT, "z": mul(OUT, X)}, {}, {"y": OUT, "z": mul(OUT, X)}),
        ({"y": add(OUT, mul(OTHER, X))}, {"o": "y"}, {"y": mul(OTHER, X)}),
        ({"y": OUT, "z": X}, {"o": "y"}, {"z": X}),
        ({"y": add(leaf("readout", "n"), X)}, {}, {"y": add(leaf("readout", "n"), X)}),
    ],
    ids=str,
)
def test_what_is_added(results: dict[str, Node], added: dict[str, str], rests: dict[str, Node]) -> None:
    epilogue = tuple(results.items())
    assert added_readouts(epilogue) == added
    assert dict(added_rests(epilogue)) == rests


def test_constants_go_to_the_vectors_of_added_readouts() -> None:
    query = leaf("input", "q", ("K",))
    form = MatrixForm("S", (), ("K",), ("V",), events=(Readout("o", query, "key"),))
    (scaled,), results = absorb_scales((form,), (("y", add(mul(HALF, OUT), X)),))
    assert dict(results) == {"y": add(OUT, X)}
    assert scaled.events == (Readout("o", mul(HALF, query), "key"),)


RECURRENCES = {
    "a number and a vector beside a scaled readout": """
recurrence skips:
    dim    K, V
    input  q[K], k[K], v[V], g in (-inf, 0]
    param  skip, w[V], A
    state  S[K, V]
    S = exp(g * exp(A)) * S + outer(k, v)
    output o = K ** -0.5 * (q @ S) - skip * v + w * v * A
""",
    "a number that the values have too": """
recurrence shared:
    dim    K, V
    input  q[K], k[K], v[V]
    param  skip
    state  S[K, V]
    S = S + outer(k, skip * v)
    output o = q @ S + skip * v
""",
    "two readouts in a sum, one of them in a product": """
recurrence sums:
    dim    K, V
    input  q[K], r[K], p[K], k[K], v[V], g in (-inf, 0]
    state  S[K, V]
    S = exp(g) * S + outer(k, v)
    output o = q @ S + r @ S + v * (p @ S)
""",
    "entries of keys and values that mix": """
recurrence bonus:
    dim    K, V
    input  q[K], k[K], v[V], g in (-inf, 0]
    param  u[K]
    state  S[K, V]
    output o = q @ S + sum(q * u * k, K) * tanh(v)
    S = exp(g) * S + outer(k, v)
""",
    "a result without a readout": """
recurrence apart:
    dim    K, V
    input  q[K], k[K], v[V], beta in (0, 1)
    param  w
    state  S[K, V]
    S = S + beta * outer(k, v - k @ S)
    output o = q @ S + w * v
    output twice = 2 * v * w
""",
}


@pytest.mark.parametrize("loss", ["both", "outputs", "final"])
@pytest.mark.parametrize("name", RECURRENCES)
def test_chunks(name: str, loss: str) -> None:
    compare(RECURRENCES[name], "chunkwise", T=150, loss=loss, seed=3)


@pytest.mark.parametrize("name", list(RECURRENCES)[:4])
def test_tiles(name: str) -> None:
    compare(RECURRENCES[name], "tiled", T=150, seed=3)


@pytest.mark.parametrize("strategy", [chunkwise, tiled], ids=["chunkwise", "tiled"])
def test_added_readouts_stay_in_registers(strategy: ModuleType) -> None:
    (normal,) = load(str(path("mamba2"))).program.stages
    plan = strategy.plan(normal, {"P": 128, "N": 128})
    assert isinstance(plan, Plan)
    assert not {"h_out0", "d_h_out0"} & {b.name for b in plan.saved + plan.workspace}


def test_walks_have_the_epilogue_gradient_where_they_have_its_rows() -> None:
    def kernels(text: str) -> set[str]:
        (normal,) = loads(text).program.stages
        plan = chunkwise.plan(normal, {"K": 64, "V": 64})
        assert isinstance(plan, Plan)
        return {k.name for k in plan.backward}

    assert "epilogue_gradient" not in kernels(RECURRENCES["a number and a vector beside a scaled readout"])
    assert "epilogue_gradient" in kernels(RECURRENCES["two readouts in a sum, one of them in a product"])
    assert "epilogue_gradient" in kernels(RECURRENCES["entries of keys and values that mix"])

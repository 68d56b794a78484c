"""Walks over tokens with all states of a channel in one thread, and what their expressions go through before."""

from __future__ import annotations

import pytest
import torch
from compare import compare
from node_evaluator import evaluate

import recur
from recur.ir.core import Node, apply, const, contract, leaf, mul, neg, sub
from recur.passes.regroup import factors_of, regroup
from recur.strategies.past_end import decisive_nodes
from recur.zoo import path

SIZES = {"D": 6, "N": 4}
LAMBDA = leaf("input", "lambda", ("D", "N"))
DELTA, X = leaf("input", "delta", ("D",)), leaf("input", "x", ("D",))
B = leaf("input", "B", ("N",))
W = leaf("param", "w", ("D", "N"))
TWO_STATES = """
recurrence two_states:
    dim    D, N
    input  x[D], dt[D], k[N], q[N]
    param  rate[D, N] in (-inf, 0]
    state  h[D, N], m[D, N]
    h = exp(sigmoid(dt) * rate) * h + x * k
    m = sigmoid(x) * sigmoid(rate) * m + outer(tanh(x), k / (1 + k @ k))
    output y = (h * m) @ q
    output before = prev(x) * sum(h, N)
"""


@pytest.mark.parametrize("T", (1, 7, 8, 9, 40))
@pytest.mark.parametrize("text", (path("mamba1").read_text(), TWO_STATES), ids=("mamba1", "two_states"))
def test_against_reference(text: str, T: int) -> None:
    compare(text, "associative_scan", "torch", T=T, sizes={"D": 5, "N": 8}, dtype=torch.float64, tolerance=1e-9)


def test_many_states_are_walked() -> None:
    op = recur.load(str(path("mamba1")))
    walked = op.source("plan", D=64, N=16, strategy="associative_scan")
    assert "h_reverse_local" in walked and "grid batch, head, segment, tile:D" in walked
    few = op.source("plan", D=64, N=4, strategy="associative_scan")
    assert "segment" not in few


def test_shared_tiles_are_widened_once() -> None:
    """Of B and C, which all channels read, unlike dt and x."""
    text = recur.load(str(path("mamba1"))).source("triton", D=64, N=16, strategy="associative_scan")
    forward = text[text.index("def h_forward_kernel") : text.index("def h_reverse_local_kernel")]
    assert forward.count("_held(") == 2
    assert "in_c[:, None, None]" not in forward  # no entry of the state is selected


def entries_multiplied(root: Node) -> int:
    """Products of a token's entries, each node once."""
    found: dict[Node, int] = {}

    def visit(node: Node) -> None:
        for a in node.args:
            visit(a)
        if node.op in ("mul", "contract") and any(f.attrs[0] != "param" for f in leaves_of(node)):
            dims = {d for a in node.args for d in a.dims}
            found[node] = torch.Size(SIZES[d] for d in dims).numel()

    visit(root)
    return sum(found.values())


def leaves_of(node: Node) -> list[Node]:
    return [node] if node.op == "leaf" else [x for a in node.args for x in leaves_of(a)]


@pytest.mark.parametrize(("node", "products"), (
    (mul(mul(B, DELTA), X), 6 + 24),
    (contract(mul(LAMBDA, X), B, ("N",)), 24 + 6),
    (contract(mul(LAMBDA, X), DELTA, ("D",)), 6 + 24),
    (apply("exp", mul(neg(DELTA), apply("exp", W))), 24),
))  # fmt: skip
def test_regrouped(node: Node, products: int) -> None:
    (found,) = regroup([node], SIZES)
    torch.manual_seed(0)
    values = {x: torch.randn([SIZES[d] for d in x.dims], dtype=torch.float64) for x in (LAMBDA, DELTA, X, B, W)}
    torch.testing.assert_close(*evaluate([found, node], values, SIZES))
    assert found.dims == node.dims
    assert entries_multiplied(found) == products


def test_factors() -> None:
    assert factors_of(neg(mul(B, mul(DELTA, X)))) == [const(-1), B, DELTA, X]


def test_what_decides_past_the_end() -> None:
    rate = apply("softplus", DELTA)
    assert decisive_nodes(apply("exp2", mul(rate, W)), 1.0) == [(rate, 0.0)]
    assert decisive_nodes(sub(const(1), mul(rate, LAMBDA)), 1.0) == []
    assert decisive_nodes(mul(rate, B), 0.0) == []
    assert decisive_nodes(mul(rate, apply("sigmoid", LAMBDA)), 0.0) == [(rate, 0.0)]
    ratio = apply("div", X, apply("add", DELTA, X))
    assert decisive_nodes(mul(ratio, B), 0.0) == [(ratio, 0.0)]
    gate = apply("sigmoid", DELTA)
    assert decisive_nodes(gate, 1.0) == [(gate, 1.0)]

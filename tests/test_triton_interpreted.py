"""Printed kernels under Triton's interpreter, which is chosen when Triton is imported: with TRITON_INTERPRET=1.

test_triton_printer.py runs this file so; buffers start as NaN, so what a kernel leaves unwritten shows.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from compare import compare
from hand_plans import linear_attention
from inputs import dim_sizes, random_inputs
from torch import Tensor
from triton_plans import blocks_kernel, elementwise_kernel, load_stage
from triton_plans import linear_attention as gated_attention

from recur import zoo
from recur.api import load, loads
from recur.operators import OPERATORS
from recur.strategies.select import select
from recur.zoo import path

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")

LENGTHS = (1, 16, 37)
SIZES = {"K": 12, "V": 20}
UNARY = [r.name for r in OPERATORS.values() if r.arity == 1 and r.user and r.triton and r.complex_result is not False]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def gated_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    rows = []
    for t in range(q.shape[1]):
        state = state * torch.exp2(g[:, t])[..., None, None] + k[:, t, ..., None] * v[:, t, :, None]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(rows, 1), state


def draw(T: int, *dims: int) -> Tensor:
    return torch.randn(2, T, 3, *dims)


@pytest.mark.parametrize("T", LENGTHS)
def test_gated_linear_attention(T: int) -> None:
    torch.manual_seed(T)
    inputs = draw(T, 12), draw(T, 12), draw(T, 20), -torch.rand(2, T, 3), torch.randn(2, 3, 12, 20)
    (o,), (state,), saved = load_stage(gated_attention(), SIZES, chunk=16).linear_attention_forward(*inputs)
    for found, wanted in zip((o, state), gated_reference(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert saved == ()


@pytest.mark.parametrize("T", LENGTHS)
def test_forward_and_backward(T: int) -> None:
    torch.manual_seed(T)
    inputs = [x.requires_grad_() for x in (draw(T, 12), draw(T, 12), draw(T, 20), torch.randn(2, 3, 12, 20))]
    q, k, v, start = inputs
    results = gated_reference(q, k, v, torch.zeros(2, T, 3), start)
    cotangents = [torch.randn_like(x) for x in results]
    wanted = torch.autograd.grad(results, inputs, cotangents)
    module = load_stage(linear_attention(), SIZES, chunk=16)
    with torch.no_grad():
        found, final, saved = module.linear_attention_forward(*inputs)
        gradients = module.linear_attention_backward(*inputs, *saved, *cotangents)
    for x, y in zip((*found, *final, *gradients), (*results, *wanted), strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", UNARY)
def test_functions(op: str) -> None:
    """Every function against torch in float64, small, large and beyond where exponentials overflow."""
    x = torch.cat(
        [torch.linspace(-4, 4, 41), torch.tensor([1e-6, -1e-6, 1e-3, 0.3, -0.3, 0.36, 90.0, -90.0, 700.0, -700.0])]
    )
    if op in ("log", "sqrt", "rsqrt"):
        x = x.abs() + 1e-3
    if op == "log1p":
        x = x.clamp_min(-0.99)
    if op in ("exp", "expm1", "square"):
        x = x.clamp(-700.0, 80.0)
    module: SimpleNamespace = load_stage(elementwise_kernel(op), {"D": 3})
    (found,), _, _ = module.elementwise_forward(x[None, :, None, None].repeat(1, 1, 2, 3).contiguous())
    wanted = eval(OPERATORS[op].torch.format("x"), {"torch": torch, "x": x.double()})
    torch.testing.assert_close(found[0, :, 1, 2].double(), wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("rows", [4, 16])
def test_blocks_of_a_chunk(rows: int, in_memory: bool) -> None:
    """Chunks of 16 in blocks of four rows, and as one block."""
    x = torch.randn(1, 32, 2, 16)
    found, _, _ = load_stage(blocks_kernel(rows, in_memory), {"D": 16}, chunk=16).blocks_forward(x)
    t = torch.arange(32)
    first = t // rows * rows
    start = torch.where((first % 16 > 0)[:, None, None], x[:, first - 1], 0.0)
    s = t[None, :]
    beside = (s < t[:, None]) & (s >= first[:, None])
    across = (s < first[:, None]) & (s // 16 == t[:, None] // 16)
    sums = [torch.einsum("ts,bshd->bthd", pairs.float(), x) for pairs in (beside, across)]
    for y, wanted in zip(found, (start, x[:, first + rows - 1], *sums), strict=True):
        torch.testing.assert_close(y, wanted)


RECURRENCES = {
    "delta rule, solved in chunks": (
        "chunkwise",
        {"K": 12, "V": 20},
        """
recurrence gated_delta:
    dim    K, V
    input  q[K], k[K], v[V]
    input  g in (-inf, 0], beta in (0, 2)
    state  S[K, V]
    S = exp(g) * S
    S = S + beta * outer(k, v - l2norm(k) @ S)
    output o = q @ S
""",
    ),
    "gradients in several tiles of either dimension": (
        "chunkwise",
        {"K": 72, "V": 136},
        """
recurrence tiles:
    dim    K, V
    input  q[K], k[K], v[V]
    input  f in (-1, 1), beta in (0, 2)
    state  S[K, V]
    S = f * S
    S = S + beta * outer(k, v - k @ S)
    output o = q @ S
""",
    ),
    "a decay over the key dimension": (
        "chunkwise",
        {"K": 12, "V": 20},
        """
recurrence diagonal:
    dim    K, V
    input  q[K], k[K], v[V], g[K] in (-inf, 0]
    state  S[K, V]
    S = exp(g) * S + outer(k, v)
    output o = q @ S
""",
    ),
    "a decay over the key dimension, given as a factor": (
        "chunkwise",
        {"K": 3, "V": 4},
        """
recurrence factor:
    dim    K, V
    input  q[K], k[K], v[V], d[K] in [-1, 1]
    state  S[K, V]
    S = d * S + outer(k, v)
    output o = q @ S
""",
    ),
    "a real scan": (
        "associative_scan",
        {"D": 5},
        """
recurrence real_scan:
    dim    D
    input  f[D], x[D]
    state  h[D]
    h = sigmoid(f) * h + (1 - sigmoid(f)) * x
    output o = tanh(h)
""",
    ),
    "a complex scan": (
        "associative_scan",
        {"N": 3, "D": 5},
        """
recurrence complex_scan:
    dim    D, N
    input  x[D], dt[D]
    param  angle[N], Bp[N] complex, C[N] complex
    state  h[D, N] complex
    h = polar(exp(-dt * dt), angle) * h + x * Bp
    output y = real(h @ C)
""",
    ),
    "a cell, step by step": (
        "sequential",
        {"D": 5},
        """
recurrence cell:
    dim    D
    input  x[D]
    param  R[E, D]
    dim    E = D
    state  h[D]
    h = rename(tanh(R @ h), E, D) + x
    output o = h
""",
    ),
}


@pytest.mark.parametrize("T", (1, 19))
@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences(name: str, T: int) -> None:
    strategy, sizes, text = RECURRENCES[name]
    compare(text, strategy, "triton", T=T, sizes=sizes, dtype=torch.float32, tolerance=2e-4)


@pytest.mark.parametrize("name", ("aaren", "based", "block_diagonal", "kda", "rebased", "retnet"))
def test_zoo(name: str) -> None:
    """One of each kind, with dims that are no powers of two, and with keys that fuse exactly."""
    op = load(zoo.path(name))
    sizes = {"K": 4, "V": 6, "N": 5, "b": 3}
    compare(op, "auto", "triton", T=19, B=1, sizes=sizes, dtype=torch.float32, tolerance=2e-4)
    if any(s.plan.fused for s in select(op.program, dim_sizes(op.recurrence))):
        compare(op, "chunkwise", "triton", T=17, B=1, sizes={"K": 16, "V": 3}, dtype=torch.float32, tolerance=2e-4)


@pytest.mark.parametrize("loss", ("both", "outputs", "final"))
@pytest.mark.parametrize("name", RECURRENCES)
def test_absent_states_and_cotangents(name: str, loss: str) -> None:
    strategy, sizes, text = RECURRENCES[name]
    options = {"T": 19, "sizes": sizes, "dtype": torch.float32, "tolerance": 2e-4}
    compare(text, strategy, "triton", initial=False, loss=loss, **options)


STABILISED = """
recurrence stabilised:
    dim    D
    input  x[D], i[D]
    state  s[D], n[D]
    s = s + exp(i) * x
    n = n + exp(i)
    output o = s / n
"""


@pytest.mark.parametrize("initial", (False, True))
def test_absent_log_scales(initial: bool) -> None:
    compare(STABILISED, "auto", "triton", T=19, initial=initial, dtype=torch.float32, tolerance=2e-4, scale=5.0)


def test_tensors_are_read_as_they_lie_in_memory() -> None:
    """Slices that start anywhere, other orders of axes, values to be conjugated or negated."""
    strategy, sizes, text = RECURRENCES["a complex scan"]
    op = loads(text)
    x = random_inputs(op.recurrence, 2, 19, 3, sizes, dtype=torch.float32)
    plain, _ = op(**x, backend="triton", strategy=strategy)
    lazy = {**x, "C": x["C"].conj().resolve_conj().conj(), "dt": torch.complex(x["x"], -x["dt"]).conj().imag}
    assert lazy["C"].is_conj() and lazy["dt"].is_neg()
    lazy["x"] = torch.cat((x["x"].reshape(-1)[:1], x["x"].reshape(-1)))[1:].view(x["x"].shape)
    lazy["angle"] = x["angle"].T.contiguous().T
    found, _ = op(**lazy, backend="triton", strategy=strategy)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", ["gla", "kda", "rwkv7", "value_gated"])
def test_decays_over_dims(name: str, extreme: bool) -> None:
    """Several chunks: pairs by halves of blocks, below 16 rows too where gates are extreme."""
    options = {"B": 1, "H": 1, "T": 150, "sizes": {"K": 20, "V": 12}, "dtype": torch.float32, "tolerance": 4e-4}
    compare(load(str(path(name))), "chunkwise", "triton", extreme=extreme, **options)


@pytest.mark.parametrize("strategy", ("chunkwise", "sequential"))
def test_without_a_backward_pass_nothing_is_kept_for_one(strategy: str) -> None:
    op = load(path("gated_delta_net"))
    inputs = random_inputs(op.recurrence, 1, 21, 2, dim_sizes(op.recurrence, SIZES), dtype=torch.float32)
    wanted, _ = op(**{n: x.requires_grad_() for n, x in inputs.items()}, backend="triton", strategy=strategy)
    with torch.no_grad():
        found, _ = op(**inputs, backend="triton", strategy=strategy)
    assert torch.equal(found, wanted) and wanted.grad_fn is not None and found.grad_fn is None

"""Recurrences of nobody's paper: they compile as they are written, to parallel strategies, and give what loops give.

Each has a plain loop in torch beside it, which reads no spec; its gradients are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import dim_sizes, random_inputs
from torch import Tensor, einsum

from recur.api import loads
from recur.runtime.op import Op
from recur.strategies.select import select

Tensors = dict[str, Tensor]
Loop = Callable[[Tensors], tuple[list[Tensor], dict[str, Tensor]]]

PAIR_DELTA = """
recurrence pair_delta:
    "The delta rule on products of two keys, each with decays of its own."
    dim    K, V
    dim    J = K
    input  q[K], p[J], k[K], l[J], v[V]
    input  g[K] in (-inf, 0], f[J] in (-inf, 0], beta in (0, 1)
    state  S[K, J, V]

    S = exp(g) * S * exp(f)
    S = S + beta * outer(outer(k, l), v - l @ (k @ S))
    output o = p @ (q @ S)
"""

PACED = """
recurrence paced:
    "What the first memory recalls is stored in a second one, and sets its pace, which may be negative."
    dim    K, V
    input  q[K], k[K], v[V], g in (-inf, 0]
    state  A[K, V], S[K, V]

    A = exp(g) * A + outer(k, v)
    recalled = q @ A
    S = tanh(mean(recalled)) * S + outer(k, recalled)
    output o = q @ S
"""

ERASER = """
recurrence eraser:
    "The previous token's key is erased, the memory is read, and the new pair is written and read."
    dim    K, V
    input  q[K], k[K], v[V], beta in (0, 2)
    state  S[K, V], n[K]

    S = S - beta * outer(prev(k), prev(k) @ S)
    n = 0.5 * n + square(k)
    output before = q @ S
    S = S + outer(k / (1 + norm(k)), v)
    output after = (q @ S) / (1 + n @ square(q))
"""

TRIPLES = """
recurrence triples:
    "Products of three keys, in an order of dimensions that no matrix has, and their normaliser."
    dim    K, L, M, V
    input  q[K], k[K], l[L], m[M], v[V], r[L], s[M], a in [-1, 1]
    state  S[K, V, L, M], z[K, L, M]

    S = a * S + outer(outer(outer(k, v), l), m)
    z = a * z + outer(outer(k, l), m)
    output o = ((q @ S) @ s) @ r / (1 + square((q @ z) @ s @ r))
"""

SPUN = """
recurrence spun:
    "Small rotations and shears act on a matrix of values, driven by outer products."
    dim    N, V
    dim    b = 2
    dim    c = b
    input  A[N, b, c], x[N, b], v[V]
    state  h[N, c, V]

    h = A @ h + outer(x, v)
    output o = sum(tanh(h), N)
"""


def tokens(x: Tensors) -> list[Tensors]:
    return [{name: t[:, i] for name, t in x.items()} for i in range(next(iter(x.values())).shape[1])]


def pair_delta(x: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
    S: Tensor | float = 0.0
    rows = []
    for t in tokens(x):
        feature = einsum("bhi,bhj->bhij", t["k"], t["l"]).flatten(2)
        decay = einsum("bhi,bhj->bhij", t["g"].exp(), t["f"].exp()).flatten(2)
        S = decay[..., None] * S + torch.zeros_like(feature[..., None] * t["v"][..., None, :])
        error = t["v"] - einsum("bhf,bhfv->bhv", feature, S)
        S = S + t["beta"][..., None, None] * feature[..., None] * error[..., None, :]
        query = einsum("bhi,bhj->bhij", t["q"], t["p"]).flatten(2)
        rows.append(einsum("bhf,bhfv->bhv", query, S))
    assert isinstance(S, Tensor)
    return [torch.stack(rows, 1)], {"S": S.unflatten(2, (x["k"].shape[-1], x["l"].shape[-1]))}


def paced(x: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
    A = S = 0 * (x["k"][:, 0, :, :, None] * x["v"][:, 0, :, None])
    rows = []
    for t in tokens(x):
        A = t["g"].exp()[..., None, None] * A + t["k"][..., None] * t["v"][..., None, :]
        recalled = (t["q"][..., None] * A).sum(-2)
        S = recalled.mean(-1).tanh()[..., None, None] * S + t["k"][..., None] * recalled[..., None, :]
        rows.append((t["q"][..., None] * S).sum(-2))
    return [torch.stack(rows, 1)], {"A": A, "S": S}


def eraser(x: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
    S = 0 * (x["k"][:, 0, :, :, None] * x["v"][:, 0, :, None])
    n, last = S[..., 0], S[..., 0]
    before, after = [], []
    for t in tokens(x):
        read = einsum("bhk,bhkv->bhv", last, S)
        S = S - t["beta"][..., None, None] * last[..., None] * read[..., None, :]
        n = 0.5 * n + t["k"] ** 2
        before.append(einsum("bhk,bhkv->bhv", t["q"], S))
        S = S + (t["k"] / (1 + t["k"].norm(dim=-1, keepdim=True)))[..., None] * t["v"][..., None, :]
        size = 1 + (n * t["q"] ** 2).sum(-1, keepdim=True)
        after.append(einsum("bhk,bhkv->bhv", t["q"], S) / size)
        last = t["k"]
    return [torch.stack(before, 1), torch.stack(after, 1)], {"S": S, "n": n, "prev.k": last}


def triples(x: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
    written = einsum("bthk,bthv,bthl,bthm->bthkvlm", *(x[name] for name in "kvlm"))
    counted = einsum("bthk,bthl,bthm->bthklm", *(x[name] for name in "klm"))
    S, z, rows = 0 * written[:, 0], 0 * counted[:, 0], []
    for i, t in enumerate(tokens(x)):
        S = t["a"][..., None, None, None, None] * S + written[:, i]
        z = t["a"][..., None, None, None] * z + counted[:, i]
        top = einsum("bhkvlm,bhk,bhl,bhm->bhv", S, t["q"], t["r"], t["s"])
        bottom = einsum("bhklm,bhk,bhl,bhm->bh", z, t["q"], t["r"], t["s"])
        rows.append(top / (1 + bottom**2)[..., None])
    return [torch.stack(rows, 1)], {"S": S, "z": z}


def spun(x: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
    h = 0 * (x["x"][:, 0, ..., None] * x["v"][:, 0, :, None, None, :])
    rows = []
    for t in tokens(x):
        h = t["A"] @ h + t["x"][..., None] * t["v"][..., None, None, :]
        rows.append(h.tanh().sum(2))
    return [torch.stack(rows, 1)], {"h": h}


INVENTED: dict[str, tuple[str, Loop]] = {
    "pair_delta": (PAIR_DELTA, pair_delta),
    "paced": (PACED, paced),
    "eraser": (ERASER, eraser),
    "triples": (TRIPLES, triples),
    "spun": (SPUN, spun),
}


def parallel_strategies(op: Op) -> list[str]:
    """The strategies of the stages, none of which goes token by token."""
    selections = select(op.program, dim_sizes(op.recurrence))
    assert all(set(s.applicable) - {"sequential"} for s in selections), [s.rejected for s in selections]
    return [s.strategy if s.strategy != "sequential" else s.applicable[0] for s in selections]


@pytest.mark.parametrize("T", (1, 37))
@pytest.mark.parametrize("name", INVENTED)
def test_invented(name: str, T: int) -> None:
    text, loop = INVENTED[name]
    op = loads(text)
    inputs = {n: x.requires_grad_() for n, x in random_inputs(op.recurrence, 2, T, 2, seed=T).items()}
    outputs, final = op(**inputs, output_final_state=True, strategy=parallel_strategies(op), backend="torch")
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    final = final if isinstance(final, dict) else {next(iter(op.states)): final}
    wanted, states = loop(inputs)
    found = [*outputs, *(final[n] for n in states)]
    expected = [*wanted, *states.values()]
    assert sorted(final) == sorted(states)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)
    cotangents = [torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)) for y in expected]
    sides = [torch.autograd.grad(r, list(inputs.values()), cotangents, allow_unused=True) for r in (found, expected)]
    for x, y, n in zip(*sides, inputs, strict=True):
        zero = torch.zeros_like(inputs[n])
        torch.testing.assert_close(zero if x is None else x, zero if y is None else y, rtol=1e-8, atol=1e-9, msg=n)

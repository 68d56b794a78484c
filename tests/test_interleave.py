"""Products of several factors a token: rows interleaved (chunk/interleave.py), against the oracle.

test_triton_printer.py runs this file's kernels with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os

import pytest
import torch
from compare import compare

from recur.api import loads

HEAD = "recurrence product:\n    dim K, V\n    dim n = {n}\n    input q[K], {inputs}\n    state S[K, V]\n"

GATED = HEAD.replace("{inputs}", "k[n, K], v[n, V], g in (-inf, 0], beta[n] in (0, 2)") + """
    S = exp(g) * S
    for j in range(n):
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
    output o = K ** -0.5 * (q @ S)
"""
ENTRIES_LAST = HEAD.replace("{inputs}", "k[K, n], v[V, n], beta[n] in (0, 2)") + """
    for j in range(n):
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
"""
WITHOUT_VALUES = HEAD.replace("{inputs}", "k[n, K], a[n, K], u[K], v[V], g in (-inf, 0]") + """
    S = exp(g) * S
    for j in range(n):
        S = S - outer(k[j], a[j] @ S)
    S = S + outer(u, v)
    output o = q @ S
"""
READ_FIRST = HEAD.replace("{inputs}", "k[n, K], v[n, V], g in (-inf, 0], beta[n] in (0, 2)") + """
    output o = q @ S
    S = exp(g) * S
    for j in range(n):
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
"""
A_DECAY_EACH = HEAD.replace("{inputs}", "k[n, K], v[n, V], g[n] in (-inf, 0], beta[n] in (0, 2)") + """
    for j in range(n):
        S = exp(g[j]) * S
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
"""
EPILOGUE = HEAD.replace("{inputs}", "k[n, K], v[n, V], z[V], g in (-inf, 0], beta[n] in (0, 2)") + """
    S = exp(g) * S
    for j in range(n):
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
    output o = silu(z) * rmsnorm(q @ S)
"""
A_PLAIN_WRITE_EACH = HEAD.replace("{inputs}", "k[n, K], a[n, K], u[n, K], v[n, V]") + """
    for j in range(n):
        S = S - outer(k[j], a[j] @ S) + outer(u[j], v[j])
    output o = q @ S
"""
A_STEADY_DECAY = HEAD.replace("{inputs}", "k[n, K], v[n, V], g, beta[n] in (0, 2)") + """
    S = exp(-softplus(g)) * S
    for j in range(n):
        S = S + beta[j] * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
"""
LEARNED = """
recurrence product:
    dim    K, V
    dim    n = {n}
    input  q[K], k[n, K], v[n, V], dt, beta[n]
    param  A, w[K], bias, shift[K]
    state  S[K, V]
    S = exp(-exp(A) * softplus(dt + bias)) * S
    for j in range(n):
        S = S + sigmoid(beta[j]) * outer(l2norm(w * k[j] + 0.1), v[j] - l2norm(w * k[j] + 0.1) @ S)
    output o = softmax(q + shift) @ S
"""
INTERLEAVED = {
    "gated": GATED,
    "entries last": ENTRIES_LAST,
    "read first": READ_FIRST,
    "a decay each": A_DECAY_EACH,
    "epilogue": EPILOGUE,
    "a plain write each": A_PLAIN_WRITE_EACH,
    "without values": WITHOUT_VALUES,
    "a decay that never rests": A_STEADY_DECAY,
    "parameters": LEARNED,
}
ONE_STRENGTH = HEAD.replace("{inputs}", "k[n, K], v[n, V], beta in (0, 2)") + """
    for j in range(n):
        S = S + beta * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
"""
UNLIKE_STEPS = HEAD.replace("{inputs}", "k[n, K], v[n, V]") + """
    for j in range(n):
        S = S + (j + 1) * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
"""
OTHERS = {
    "one strength": ONE_STRENGTH,
    "unlike steps": UNLIKE_STEPS,
}




def rows_of(text: str) -> str:
    return loads(text).source("plan", strategy="chunkwise").splitlines()[0]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("name", INTERLEAVED)
def test_matches_the_oracle(name: str, n: int) -> None:
    text = INTERLEAVED[name].format(n=n)
    assert f"with {n} rows each" in rows_of(text)
    compare(text, "chunkwise", T=70, scale=0.3)


@pytest.mark.parametrize("name", INTERLEAVED)
def test_short_sequences(name: str) -> None:
    compare(INTERLEAVED[name].format(n=3), "chunkwise", T=1, scale=0.3)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", ["gated", "entries last", "epilogue", "parameters"])
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")
def test_interpreted(name: str, n: int) -> None:
    text = INTERLEAVED[name].format(n=n)
    sizes = {"K": 16, "V": 24}
    compare(text, "chunkwise", "triton", T=37, B=1, sizes=sizes, scale=0.3, dtype=torch.float32, tolerance=5e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_other_steps_stand_side_by_side(name: str) -> None:
    text = OTHERS[name].format(n=2)
    assert "rows each" not in rows_of(text)
    compare(text, "chunkwise", T=40, scale=0.3)


def test_extreme_gates() -> None:
    compare(GATED.format(n=3), "chunkwise", T=70, extreme=True)


def test_one_system_of_all_rows() -> None:
    """A chunk's rows are 64, whatever the number of steps, and its inverse is one tile."""
    for n, tokens in ((2, 32), (3, 21), (4, 16)):
        text = loads(GATED.format(n=n)).source("plan", strategy="chunkwise")
        assert f"chunks of {tokens} tokens" in text
        assert text.count("store Tm_") == 1

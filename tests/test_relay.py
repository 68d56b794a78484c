"""Scans over many chunks in Triton's interpreter: walked by one program, and handed on from program to program.

test_triton_printer.py runs this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compare import as_op, compare, run
from inputs import random_inputs

from recur.codegen.triton_printer import config
from recur.strategies import elementwise_scan
from recur.zoo import path

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")

CHUNK = 16
TEXTS = {
    "real": """
recurrence real_scan:
    dim    D
    input  f[D], x[D]
    param  low[D] in [0, 1)
    state  h[D]
    h = (low + (1 - low) * sigmoid(f)) * h + silu(x)
    output o = tanh(h)
""",
    "one number": """
recurrence one_number:
    input  f, x
    state  h
    h = sigmoid(f) * h + x
    output o = h * x
""",
    "complex, two states": """
recurrence complex_scan:
    dim    D, N
    input  x[D], dt[D], f[D]
    param  angle[N], Bp[N] complex, C[N] complex
    state  h[D, N] complex, m[D]
    h = polar(exp(-dt * dt), angle) * h + x * Bp
    m = f * m + x
    output y = real(h @ C) + m
""",
    "selective": """
recurrence selective:
    dim    D, N
    input  x[D], dt[D], B[N], C[N]
    param  A_log[D, N]
    state  h[D, N]
    delta = softplus(dt)
    h = exp(-delta * exp(A_log)) * h + outer(delta * x, B)
    output y = h @ C
""",
    "a log scale": """
recurrence averages:
    dim    D
    input  i[D], g[D] in (-inf, 0], v[D]
    state  n[D], z[D]
    n = exp(g) * n + exp(i) * v
    z = exp(g) * z + exp(i)
    output o = n / z
""",
}
SIZES = {"D": 5, "N": 3}

Launch = Callable[..., None]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Chunks of CHUNK tokens, and scans launched as told."""
    monkeypatch.setattr(elementwise_scan, "TILE_ROWS", CHUNK)
    chosen = config.scan_launch

    def use(**options: Any) -> None:
        monkeypatch.setattr(config, "scan_launch", lambda *args: replace(chosen(*args), **options))

    return use


def check(text: str, T: int, **options: Any) -> None:
    compare(text, "associative_scan", "triton", T=T, sizes=SIZES, dtype=torch.float32, tolerance=2e-4, **options)


@pytest.mark.parametrize("relay", (False, True))
@pytest.mark.parametrize("kind", TEXTS)
def test_several_chunks(kind: str, relay: bool, launch: Launch) -> None:
    launch(relay=relay)
    check(TEXTS[kind], T=2 * CHUNK + 5)


@pytest.mark.parametrize("relay", (False, True))
@pytest.mark.parametrize("T", (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK))
def test_lengths(T: int, relay: bool, launch: Launch) -> None:
    launch(relay=relay)
    check(TEXTS["real"], T=T)


@pytest.mark.parametrize("relay", (False, True))
def test_gates_of_zero_and_one(relay: bool, launch: Launch) -> None:
    """A state that is forgotten at once, and one that is kept for ever."""
    launch(relay=relay)
    op = as_op("""
recurrence cut:
    dim    D
    input  a[D], x[D]
    state  h[D]
    h = a * h + x
    output o = h
""")
    tensors = {k: v.float() for k, v in random_inputs(op.recurrence, 2, 2 * CHUNK + 5, 2, SIZES, 0).items()}
    tensors["a"] = (tensors["a"] > 0).float()
    start = {"h": torch.randn(2, 2, SIZES["D"])}
    wanted = run(op, op.reference, tensors, start)
    found = run(op, op, tensors, start, strategy="associative_scan", backend="triton")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runs", (1, 4, CHUNK))
@pytest.mark.parametrize("kind", ("real", "complex, two states", "a log scale"))
def test_runs_of_tokens_in_a_thread(kind: str, runs: int, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise_scan.Scan, "run_count", runs)
    launch(relay=runs != 4)
    check(TEXTS[kind], T=CHUNK + 7)


@pytest.mark.parametrize("options", ({"loss": "final"}, {"loss": "outputs"}, {"initial": False}))
def test_final_state_alone(options: dict[str, Any], launch: Launch) -> None:
    launch(relay=True)
    check(TEXTS["real"], T=2 * CHUNK + 3, **options)


def test_equal_bits(launch: Launch) -> None:
    """Programs that hand on add in the order of the one that walks."""
    op = as_op(path("hgrn").read_text())
    tensors = {k: v.float() for k, v in random_inputs(op.recurrence, 2, 3 * CHUNK - 1, 2, SIZES, 0).items()}
    results = []
    for relay in (True, True, False):
        launch(relay=relay)
        op = as_op(path("hgrn").read_text())
        results.append(run(op, op, tensors, {}, strategy="associative_scan", backend="triton"))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]) and torch.equal(value, results[2][name]), name


def test_every_bit_pattern_is_handed_on(launch: Launch) -> None:
    """The word that stands for "nothing yet" may come in from the user: a NaN goes through like any other."""
    launch(relay=True)
    op = as_op(TEXTS["real"])
    tensors = {k: v.float() for k, v in random_inputs(op.recurrence, 1, 2 * CHUNK, 1, SIZES, 0).items()}
    start = torch.full((1, 1, SIZES["D"]), -1, dtype=torch.int32).view(torch.float32)
    output, final = op(**tensors, initial_state=start, output_final_state=True, strategy="associative_scan",
                       backend="triton")  # fmt: skip
    assert output.isnan().all() and final.isnan().all()

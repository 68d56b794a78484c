"""The Triton backend, interpreted: random recurrences of every family under every strategy, and adversarial numbers.

Triton chooses its interpreter when it is imported: test_triton_printer.py's way, in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_adversarial as adversarial
import torch
from compare import compare
from random_comparison import applicable
from random_specs import FAMILIES, generate
from torch import Tensor

from recur.api import loads
from recur.ir.spec import Variable

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SEEDS = range(1014, 1014 + len(FAMILIES))
TOLERANCE = 2e-3  # float32, relative to each tensor's largest value
ADVERSARIAL = (  # what a log gate or an exponent of a write gate is at every other token or so
    ("gla", "chunkwise", (-1e3, 0.0, -30.0)),
    ("value_gated", "chunkwise", (-math.inf, 0.0, -30.0)),
    ("gated_delta_net", "chunkwise", (-1e3, 0.0, -30.0)),
    ("simple_gla", "tiled", (-1e3, 0.0, -30.0)),
    ("mlstm_exp", "tiled", (200.0, -200.0)),
    ("mlstm_exp", "chunkwise", (-1e3,)),
    ("lightnet", "chunkwise", (1e3,)),
    ("aaren", "associative_scan", (-200.0,)),
    ("rwkv4", "associative_scan", (1e3, -1e3)),
    ("slstm", "sequential", (-1e3, 1e3)),
)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_interpreted() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / Path(__file__).name)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert f"{len(SEEDS) + len(ADVERSARIAL)} passed" in run.stdout


@pytest.fixture
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


@pytest.mark.skipif(not INTERPRETED, reason="runs with TRITON_INTERPRET=1")
@pytest.mark.parametrize("seed", SEEDS)
def test_triton_against_the_oracle(seed: int, unwritten_memory_is_nan: None) -> None:
    op = loads(generate(seed)[0])
    for strategy in applicable(op):
        compare(
            op, strategy, "triton", B=1, T=17 + seed % 5, H=2, seed=seed, dtype=torch.float32, tolerance=TOLERANCE,
            initial=seed % 3 > 0, loss=("both", "outputs", "final")[seed % 3], extreme=seed % 2 > 0,
        )  # fmt: skip


@pytest.mark.skipif(not INTERPRETED, reason="runs with TRITON_INTERPRET=1")
@pytest.mark.parametrize(("name", "strategy", "gates"), ADVERSARIAL)
def test_adversarial_gates(name: str, strategy: str, gates: tuple[float, ...], unwritten_memory_is_nan: None) -> None:
    def change(v: Variable, x: Tensor) -> Tensor:
        if v.name == adversarial.EXPONENTIAL.get(name):
            return adversarial.shifted(x, gates)
        return adversarial.spread(x, gates) if adversarial.is_log_gate(v) else x

    adversarial.compare_values(
        adversarial.op_of(name), strategy, change, 19, initial=False, tolerance=1e-4, dtype=torch.float32,
        backend="triton",
    )  # fmt: skip

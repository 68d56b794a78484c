"""Random recurrences on the Triton backend, interpreted: some of every family under every strategy that applies.

Triton chooses its interpreter when it is imported: test_triton_printer.py's way, in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compare import compare
from random_comparison import applicable
from random_specs import FAMILIES, generate

from recur.api import loads

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EACH = 2
SEEDS = range(1000, 1000 + EACH * len(FAMILIES))
TOLERANCE = 5e-3  # float32, relative to each tensor's largest value


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_interpreted() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / Path(__file__).name)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert f"{len(SEEDS)} passed" in run.stdout


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
            initial=seed % 3 > 0, loss=("both", "outputs", "final")[seed % 3],
        )  # fmt: skip

"""What is generated is the same in every process, and what runs gives the same bits every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compare import differentiate, random_entries, run
from inputs import random_inputs

from recur import zoo
from recur.api import load

ROOT = Path(__file__).parent.parent
HASH_SEEDS = ("0", "1", "4294967295")
PRINT = """
import json, recur
from recur import zoo
texts = {}
for name in zoo.names():
    op = recur.load(zoo.path(name))
    sizes = {"b": 8} if any(d.name == "b" for d in op.recurrence.dims) else {}  # blocks
    for stage in ("torch", "triton"):
        texts[f"{name} {stage}"] = op.source(stage, **sizes)
print(json.dumps(texts))
"""
OF_A_PLACE_OR_TIME = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|work|opt|var|mnt|private|Users)/|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|0x[0-9a-f]{6,}"
)


@pytest.mark.slow
def test_sources_are_the_same_under_every_hash_seed() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT, stdout=subprocess.PIPE
        )
        for seed in HASH_SEEDS
    ]
    first, *others = [json.loads(process.communicate()[0]) for process in processes]
    assert len(first) == 2 * len(zoo.names())
    for other in others:
        assert [key for key in first if first[key] != other[key]] == []
    places = {key: found[0] for key, text in first.items() if (found := OF_A_PLACE_OR_TIME.search(text))}
    assert places == {}
    assert [key for key, text in first.items() if str(ROOT) in text or sys.prefix in text] == []


@pytest.mark.parametrize("name", zoo.names())
def test_gradients_repeat_bit_for_bit(name: str) -> None:
    op = load(zoo.path(name))
    x = random_inputs(op.recurrence, 2, 37, 2, dtype=torch.float32, requires_grad=True)
    s = {
        key: t.to(torch.complex64 if t.is_complex() else torch.float32)
        for key, t in random_entries(op, 2, 2, None, 0).items()
    }
    leaves = x | {key: t.requires_grad_() for key, t in s.items() if not key.endswith(".log_scale")}
    runs = []
    for _ in range(2):
        found = run(op, op, x, s)
        runs.append(found | differentiate(found, leaves, "both", 0))
    for key, y in runs[0].items():
        assert torch.equal(y, runs[1][key]), f"{key} differs"

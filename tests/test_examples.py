"""The examples: the layer around every recurrence of the zoo, the bigram baseline, the word problems, the tour."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import recur
from recur import zoo
from recur.examples import language_model, quickstart, state_tracking
from recur.examples.layer import RecurrentLayer, dim_sizes, into_range, matmul_operands
from recur.ir.spec import Range


def free_dims(name: str) -> dict[str, int]:
    """Small sizes for a recurrence's dims."""
    rec = recur.load(zoo.path(name)).recurrence
    return {d.name: 4 for d in rec.dims if d.size is None and d.alias is None}


@pytest.mark.parametrize("name", zoo.names())
def test_layer_takes_every_recurrence(name: str) -> None:
    """Any spec becomes a layer: an output of the right shape, finite, and a gradient for every parameter."""
    torch.manual_seed(0)
    layer = RecurrentLayer(recur.load(zoo.path(name)), 16, heads=2, sizes=free_dims(name))
    y = layer(torch.randn(2, 10, 16))
    y.square().sum().backward()
    assert y.shape == (2, 10, 16)
    assert y.isfinite().all()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


def test_layer_respects_ranges() -> None:
    x = torch.linspace(-20, 20, 101)
    for low, high in itertools.product((-math.inf, -1.0, 0.0), (0.5, 2.0, math.inf)):
        y = into_range(x, Range(low, high, True, True))
        assert (y >= low).all() and (y <= high).all() and (y.diff() >= 0).all()


def test_layer_is_causal() -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(recur.load(zoo.path("gated_delta_net")), 16, heads=2)
    x = torch.randn(1, 12, 16)
    changed = torch.cat((x[:, :7], torch.randn(1, 5, 16)), dim=1)
    assert torch.equal(layer(x)[:, :7], layer(changed)[:, :7])


def test_dim_sizes() -> None:
    rec = recur.load(zoo.path("lstm")).recurrence
    assert dim_sizes(rec, 8, {}) == {"D": 8, "J": 8}
    with pytest.raises(ValueError, match="no free dim J"):
        dim_sizes(rec, 8, {"J": 4})


def test_matmul_operands() -> None:
    assert matmul_operands(recur.load(zoo.path("gated_delta_net")).recurrence) == {"q", "k", "S"}


def test_bigram_bits() -> None:
    """Against the definition, summed by hand on a text of two letters."""
    train = torch.tensor(list(b"abab"), dtype=torch.uint8)
    windows = torch.tensor([list(b"aba")])
    p_ab = (2 + 0.1) / (2 + 25.6)
    p_ba = (1 + 0.1) / (1 + 25.6)
    expected = -(math.log2(p_ab) + math.log2(p_ba)) / 2
    assert language_model.bigram_bits(train, windows) == pytest.approx(expected)


def test_corpus_is_split_by_file() -> None:
    corpus = language_model.read_standard_library()
    assert corpus.held_out_files > 20 and corpus.train_files > 5 * corpus.held_out_files
    assert len(corpus.held_out) > 1 << 17


def test_language_model_learns() -> None:
    """A few steps on a text that repeats: below its bigram model's bits, which cannot see the repetition."""
    text = torch.randint(97, 123, (37,), generator=torch.Generator().manual_seed(0)).repeat(300).to(torch.uint8)
    corpus = language_model.Corpus(text, text, 1, 1)
    settings = language_model.Settings(steps=40, width=32, layers=1, heads=2, batch=4, length=96, rate=1e-2)
    result = language_model.train_model(corpus, settings, report=lambda line: None)
    again = language_model.train_model(corpus, settings, report=lambda line: None)
    assert result.model < result.bigram
    assert result.curve == again.curve


def brute_force_s3(word: Tensor) -> Tensor:
    """The products' indices by multiplying permutation matrices (x -> x[p], so the first letter stands left)."""
    elements = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)]
    matrices = [torch.eye(3)[list(e)] for e in elements]
    product, found = torch.eye(3), []
    for letter in word.tolist():
        product = product @ matrices[letter]
        found.append(next(i for i, m in enumerate(matrices) if torch.equal(m, product)))
    return torch.tensor(found)


def test_word_problems() -> None:
    generator = torch.Generator().manual_seed(0)
    word, states = state_tracking.parity().words(3, 20, generator)
    assert torch.equal(states, word.cumsum(1) % 2)
    word, states = state_tracking.swaps_of_three().words(3, 20, generator)
    assert all(torch.equal(s, brute_force_s3(w)) for w, s in zip(word, states, strict=True))


def test_negative_eigenvalues_learn_parity() -> None:
    settings = state_tracking.Settings(steps=60, tested=(64, 128))
    found = state_tracking.compare(["parity"], settings, report=lambda line: None)
    narrow, wide = (dict(found["parity", beta]) for beta in state_tracking.RANGES)
    assert wide[128] > 0.9
    assert narrow[128] < 0.7


def test_recall_batch() -> None:
    s = quickstart.Settings()
    keys, values, answers = quickstart.recall_batch(s, torch.Generator().manual_seed(0))
    for row in range(3):
        memory = dict(zip(keys[row, : s.pairs].tolist(), values[row, : s.pairs].tolist(), strict=True))
        assert [memory[k] for k in keys[row, s.pairs :].tolist()] == answers[row].tolist()
    assert (values[:, s.pairs :] == s.values).all()


def test_tour() -> None:
    lines: list[str] = []
    quickstart.tour(quickstart.Settings(steps=8), lines.append)
    text = "\n".join(lines)
    assert "lowers to the same form" in text
    assert "chunkwise" in text
    outputs, gradients = map(float, re.findall(r"(?:outputs|gradients) (\S+e-\d+)", text))
    assert outputs < 1e-4 and gradients < 1e-3


def test_import_is_light() -> None:
    """`import recur`, and loading a spec's text, bring in neither torch nor triton nor sympy."""
    code = (
        "import sys, recur; from recur.api import read; "
        "read('recurrence r:\\n    input x\\n    state s\\n    s = s + x\\n    output o = s\\n'); "
        "print([m for m in ('torch', 'triton', 'sympy', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("script", ["language_model.py", "state_tracking.py", "quickstart.py"])
def test_scripts_start(script: str) -> None:
    path = Path(language_model.__file__).parent / script
    environment = {**os.environ, "COLUMNS": "100"}
    found = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "--plot" in found.stdout

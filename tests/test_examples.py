"""The examples: the layer around every recurrence of the zoo, the bigram baseline, the word problems, the tour."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import recur
from recur import zoo
from recur.examples import associative_recall, groups, language_model, quickstart, state_tracking
from recur.examples.groups import TASKS
from recur.examples.layer import RecurrentLayer, bound, dim_sizes, factors_of_state, free_dims, into_range
from recur.examples.training import Schedule, Table, train
from recur.ir.spec import Range


@pytest.mark.parametrize("name", zoo.names())
def test_layer_trains_with_every_recurrence(name: str) -> None:
    """Any spec becomes a layer: the right shape, a finite gradient for every parameter, and a step that helps."""
    torch.manual_seed(0)
    op = recur.load(zoo.path(name))
    layer = RecurrentLayer(op, 16, heads=2, sizes=dict.fromkeys(free_dims(op.recurrence), 4))
    x, target = torch.randn(2, 10, 16), torch.randn(2, 10, 16)
    losses = []
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(2):
        y = layer(x)
        loss = (y - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        assert y.shape == (2, 10, 16)
        for parameter_name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", ["block_diagonal", "delta_product", "dplr", "slice_block_diagonal", "slice_sparse"])
def test_layer_keeps_states_bounded(name: str) -> None:
    """Where nothing in the spec bounds the transitions, the layer does: long sequences stay finite at its own sizes."""
    torch.manual_seed(0)
    layer = RecurrentLayer(recur.load(zoo.path(name)), 32, heads=1)
    with torch.no_grad():
        outputs, _ = layer.op.reference(*layer.arguments(torch.randn(1, 512, 32)))
    assert outputs.isfinite().all() and outputs.abs().max() < 1e6


def test_bound() -> None:
    """A permutation passes as it is, no matrix stretches, vectors have length one, along the axes told."""
    torch.manual_seed(0)
    swap = torch.eye(4)[[1, 0, 3, 2]]
    assert torch.equal(bound(swap, [-2, -1]), swap)
    x = 5 * torch.randn(3, 4, 6)
    assert (torch.linalg.matrix_norm(bound(x, [-2, -1]), 2) <= 1 + 1e-6).all()
    assert torch.allclose(bound(x, [-2]).norm(dim=-2), torch.ones(3, 6))


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


def test_sizes_of_many_dims_are_smaller() -> None:
    """No input, param or state has more numbers than a matrix of the default's side."""
    for name in zoo.names():
        rec = recur.load(zoo.path(name)).recurrence
        sizes = dim_sizes(rec, 64, {})
        fixed = math.prod(d.size or 1 for d in rec.dims)
        assert all(math.prod(sizes[d] for d in v.dims) <= 64 * 64 * fixed for v in rec.variables), name
    assert dim_sizes(recur.load(zoo.path("based")).recurrence, 64, {"V": 32}) == {"K": 16, "J": 16, "V": 32}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gated_delta_net", {"q", "k"}), ("delta_product", {"q", "k"}), ("dplr", {"q", "a", "b"}),
     ("block_diagonal", {"A"}), ("slice_sparse", {"A", "mask"})],
)  # fmt: skip
def test_factors_of_state(name: str, expected: set[str]) -> None:
    rec = recur.load(zoo.path(name)).recurrence
    vectors = {v.name for v in rec.inputs if v.dims and v.range is None} | {"mask"}
    assert factors_of_state(rec) & vectors == expected


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


def test_word_problems() -> None:
    generator = torch.Generator().manual_seed(0)
    word, states = TASKS["parity"].words(3, 20, generator)
    assert torch.equal(states, word.cumsum(1) % 2)
    assert [(t.states, len(t.letters)) for t in TASKS.values()] == [
        (2, 2), (6, 4), (6, 6), (12, 12), (24, 24), (60, 3), (60, 60), (120, 120)
    ]  # fmt: skip


@pytest.mark.parametrize("letters", [groups.swaps(3), groups.alternating(4), groups.symmetric(4)])
def test_words_are_products_of_permutation_matrices(letters: list[groups.Permutation]) -> None:
    """By multiplying matrices, the first letter to the left; a state's number is its element's place."""
    elements = [torch.eye(len(letters[0]))[list(e)] for e in groups.generated(letters)]
    word, states = groups.word_problem("words", letters).words(1, 20, torch.Generator().manual_seed(0))
    product = torch.eye(len(letters[0]))
    for letter, state in zip(word[0].tolist(), states[0].tolist(), strict=True):
        product = torch.eye(len(letters[0]))[list(letters[letter])] @ product
        assert torch.equal(product, elements[state])


def test_negative_eigenvalues_learn_parity() -> None:
    settings = state_tracking.Settings(steps=60, tested=(64, 128))
    found = state_tracking.compare(["parity"], settings, report=lambda line: None).rows
    assert found["parity, delta_0_2"][1] > 0.9
    assert found["parity, delta_0_1"][1] < 0.7


@pytest.mark.parametrize("model", ["product_1", "product_3", "blocks_4", "slice_4"])
def test_trackers_train(model: str) -> None:
    """A short run of each kind of transition, twice the same, better than a guess where words are short."""
    settings = state_tracking.Settings(steps=30, lengths=(2, 4), tested=(1, 40), strategy="sequential")
    first, again = (
        state_tracking.train_tracker(TASKS["S3"], model, settings, report=lambda line: None) for _ in range(2)
    )
    assert first == again
    assert first[0] > 0.4


def test_words_grow_once_learned() -> None:
    """By the mean of ten losses, the ten that are counted anew at each length; the last length stays."""
    lines: list[str] = []
    curriculum = state_tracking.Curriculum((2, 4, 8), 0.2, lines.append)
    lengths = []
    for step, loss in enumerate([0.3] * 10 + [0.0] * 5 + [0.5] * 5 + [0.1] * 40):
        lengths.append(curriculum.length)
        curriculum.record(step, torch.tensor(loss))
    assert lengths == [2] * 30 + [4] * 10 + [8] * 20
    assert [int(line.split()[1]) for line in lines] == [30, 40]


def test_longest_word_is_one_of_the_lengths() -> None:
    outcome = CliRunner().invoke(state_tracking.main, ["--small", "--longest", "1"])
    assert outcome.exit_code == 2 and "the shortest words have 2 letters" in outcome.output


def test_gates_start_where_told() -> None:
    """beta in (0, 2) near 2; g in (-inf, 0] spread as ever."""
    op = recur.load(zoo.path("gated_delta_net"))
    middle, high = (RecurrentLayer(op, 16, heads=2, gate_bias=bias) for bias in (0.0, 4.0))
    x = torch.zeros(1, 3, 16)
    (*_, g, beta), (*_, high_g, high_beta) = middle.arguments(x), high.arguments(x)
    assert torch.equal(beta, torch.ones(1, 3, 2)) and (high_beta > 1.9).all()
    assert torch.equal(g, high_g)


def test_associative_recall_batch() -> None:
    """Each pair is shown once and asked for once; after the question comes its answer."""
    s = replace(associative_recall.SMALL, spread=2)
    tokens, answers = associative_recall.recall_batch(8, s, torch.Generator().manual_seed(0))
    assert tokens.shape == answers.shape == (s.batch, 48)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        memory = dict(zip(row[0:16:2], row[1:16:2], strict=True))
        asked = [i for i, a in enumerate(answer) if a >= 0]
        assert len(memory) == 8 and sorted(row[i] for i in asked) == sorted(memory)
        assert all(answer[i] == row[i + 1] == memory[row[i]] for i in asked)
        assert sum(token == s.vocabulary for token in row) == 16


def test_associative_recall_learns() -> None:
    """A few steps on little; the same twice."""
    settings = replace(associative_recall.SMALL, pairs=(2,), states=(8,), vocabulary=8, steps=60, rate=1e-2)
    first, again = (associative_recall.compare(["delta_net"], settings, lambda line: None).rows for _ in range(2))
    assert first == again
    assert first["delta_net, dims of 8"][0] > 0.4


def test_training_stops_in_time(tmp_path: Path) -> None:
    """By the clock, and by the loss."""
    model = torch.nn.Linear(1, 1)
    seen: list[tuple[int, float]] = []

    def loss_at(step: int, progress: float) -> Tensor:
        seen.append((step, progress))
        return model(torch.ones(1)).square().sum()

    train(model, loss_at, Schedule(10**9, 1e-3, minutes=1e-3), report=lambda line: None)
    assert 0 < len(seen) < 10**6 and all(0 <= progress < 1 for _, progress in seen)
    seen.clear()
    train(model, loss_at, Schedule(20, 1e-3, solved=math.inf), report=lambda line: None)
    assert len(seen) == 2


def test_tables(tmp_path: Path) -> None:
    rows = {"first": [0.5, 1.0], "second, longer": [0.25, 0.125]}
    table = Table("Title", "right", "of", (8, 16), rows)
    lines = str(table).splitlines()
    assert len({len(line) for line in lines}) == 1
    for name in ("t.md", "t.json"):
        table.save(tmp_path / name, "A note.")
    assert "| second, longer | 0.250 | 0.125 |" in (tmp_path / "t.md").read_text()
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == rows
    with pytest.raises(click.BadParameter, match="csv"):
        table.save(tmp_path / "t.csv", "A note.")


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


@pytest.mark.parametrize("script", ["language_model", "state_tracking", "associative_recall", "quickstart"])
def test_scripts_start(script: str) -> None:
    """As a file of the repository and as an installed module."""
    environment = {**os.environ, "COLUMNS": "100"}
    file = Path(language_model.__file__).parent / f"{script}.py"
    for command in ([str(file)], ["-m", f"recur.examples.{script}"]):
        found = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, env=environment)
        assert found.returncode == 0 and "--plot" in found.stdout


def test_results_are_saved(tmp_path: Path) -> None:
    """The scripts' command lines, at their shortest, write what they found."""
    for script, options in (
        (state_tracking, ["--task", "parity", "--model", "product_1", "--longest", "32"]),
        (associative_recall, ["--small", "--recurrence", "retnet", "--state", "4"]),
    ):
        file = tmp_path / f"{script.__name__}.json"
        outcome = CliRunner().invoke(script.main, [*options, "--steps", "2", "--device", "cpu", "--results", str(file)])
        assert outcome.exit_code == 0, outcome.output
        assert len(json.loads(file.read_text())["rows"]) == 1

"""State tracking: DeltaNet with beta in (0, 1) against beta in (0, 2), on parity and on words over S3.

    python examples/state_tracking.py --plot state_tracking.png

A token's transition I - beta k k' has the eigenvalue 1 - beta along k: with beta in (0, 2) it may be negative, a
reflection. Parity needs one reflection, the group S3 those of its three swaps. Trained on words of 32 to 64 letters,
tested on longer ones, only the wider range holds. After arXiv 2411.12537.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import zoo
from recur.examples.layer import RecurrentLayer
from recur.examples.plots import save_curves
from recur.runtime.op import Op

Report = Callable[[str], None]
Curve = list[tuple[int, float]]  # (length, accuracy of the last state)
RANGES = ("(0, 1)", "(0, 2)")


@dataclass(frozen=True)
class Task:
    """A word problem: table[state, letter] is the next state; a word starts in state 0."""

    name: str
    table: Tensor

    @property
    def states(self) -> int:
        return self.table.shape[0]

    @property
    def letters(self) -> int:
        return self.table.shape[1]

    def words(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random words and the states after each letter, both [batch, length]."""
        word = torch.randint(self.letters, (batch, length), generator=generator)
        state, states = torch.zeros(batch, dtype=torch.long), []
        for letter in word.unbind(1):
            state = self.table[state, letter]
            states.append(state)
        return word, torch.stack(states, 1)


def parity() -> Task:
    """Whether the number of ones so far is odd."""
    return Task("parity", torch.tensor([[0, 1], [1, 0]]))


def swaps_of_three() -> Task:
    """The product so far in S3, of letters that are the identity and the three swaps (they generate the group)."""
    elements: list[tuple[int, ...]] = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)]
    letters = elements[:4]
    table = [[elements.index(tuple(letter[i] for i in state)) for letter in letters] for state in elements]
    return Task("S3", torch.tensor(table))


TASKS = {"parity": parity(), "S3": swaps_of_three()}


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule; lengths are those trained on, drawn anew for each batch from a few values."""

    steps: int = 300
    width: int = 32
    heads: int = 2
    batch: int = 32
    lengths: tuple[int, ...] = (32, 40, 48, 56, 64)
    tested: tuple[int, ...] = (32, 64, 128, 256, 512)
    test_words: int = 256
    rate: float = 2e-2
    device: str = "cpu"
    backend: str = "auto"
    seed: int = 0


def delta_net(beta: str) -> Op:
    """The zoo's DeltaNet with another declared range of beta; the layer's projection follows the declaration."""
    text = zoo.path("delta_net").read_text()
    return recur.loads(text.replace("beta in (0, 1)", f"beta in {beta}"))


class Tracker(nn.Module):
    """Letters [B, T] -> logits of the state after each [B, T, states], by one recurrent layer."""

    def __init__(self, task: Task, beta: str, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.embedding = nn.Embedding(task.letters, s.width)
        self.layer = RecurrentLayer(delta_net(beta), s.width, s.heads, conv=1, backend=s.backend)
        self.head = nn.Sequential(nn.RMSNorm(s.width, eps=1e-6), nn.Linear(s.width, s.width), nn.GELU(),
                                  nn.Linear(s.width, task.states))  # fmt: skip

    def forward(self, word: Tensor) -> Tensor:
        x = self.embedding(word)
        return self.head(x + self.layer(x))


def train_tracker(task: Task, beta: str, settings: Settings, report: Report = print) -> Curve:
    """Trains one model and measures it on unseen words of every tested length."""
    s = settings
    torch.manual_seed(s.seed)
    generator = torch.Generator().manual_seed(s.seed)
    model = Tracker(task, beta, s).to(s.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, s.rate, total_steps=s.steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(s.steps):
        length = s.lengths[step % len(s.lengths)]
        word, states = (x.to(s.device) for x in task.words(s.batch, length, generator))
        loss = F.cross_entropy(model(word).flatten(0, 1), states.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, s.steps // 4) == 0:
            report(f"  {task.name}, beta in {beta}: step {step + 1:4d}  loss {loss.item():.4f}  "
                   f"{time.perf_counter() - start:5.1f} s")  # fmt: skip
    return measure(model, task, s)


def measure(model: Tracker, task: Task, settings: Settings) -> Curve:
    generator = torch.Generator().manual_seed(settings.seed + 1)
    found = []
    for length in settings.tested:
        word, states = (x.to(settings.device) for x in task.words(settings.test_words, length, generator))
        with torch.no_grad():
            last = model(word)[:, -1].argmax(-1)
        found.append((length, (last == states[:, -1]).float().mean().item()))
    return found


def compare(tasks: Sequence[str], settings: Settings, report: Report = print) -> dict[tuple[str, str], Curve]:
    """Accuracy against length by (task, range of beta)."""
    return {(t, beta): train_tracker(TASKS[t], beta, settings, report) for t in tasks for beta in RANGES}


def show(found: dict[tuple[str, str], Curve]) -> str:
    """A table: a row per task and range, a column per length."""
    lengths = [length for length, _ in next(iter(found.values()))]
    lines = ["accuracy of the last state, words of length" + "".join(f"{length:8d}" for length in lengths)]
    for (task, beta), points in found.items():
        lines.append(f"{task:8s} beta in {beta:26s}" + "".join(f"{accuracy:8.3f}" for _, accuracy in points))
    return "\n".join(lines)


def save(found: dict[tuple[str, str], Curve], settings: Settings, path: str | Path) -> None:
    curves = {f"{task}, beta in {beta}": points for (task, beta), points in found.items()}
    longest = float(max(settings.lengths))
    save_curves(path, curves, {}, "length", "accuracy of the last state", "State tracking", x_mark=longest)


@click.command()
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, default=tuple(TASKS))
@click.option("--steps", default=Settings.steps)
@click.option("--batch", default=Settings.batch)
@click.option("--rate", default=Settings.rate)
@click.option("--device", default="cpu")
@click.option("--backend", default="auto", help="triton, torch or auto.")
@click.option("--seed", default=0)
@click.option("--plot", "plot_path", default=None, metavar="PNG", help="Where to save the curves (needs matplotlib).")
def main(tasks: tuple[str, ...], plot_path: str | None, **options: object) -> None:
    """Train DeltaNet with and without negative eigenvalues to track states."""
    settings = Settings(**options)  # type: ignore[arg-type]
    found = compare(tasks, settings)
    print(show(found))
    if plot_path:
        save(found, settings, plot_path)


if __name__ == "__main__":
    main()

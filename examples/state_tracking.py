r"""State tracking: which recurrences can follow the product of a word's letters in a group, and for how long?

    python examples/state_tracking.py --plot state_tracking.png
    python examples/state_tracking.py --small
    python examples/state_tracking.py --large --task S4 --model product_1 --model product_2

A token's transition in DeltaNet, I - beta k k', has the eigenvalue 1 - beta along k: with beta in (0, 2) it may be
negative, a reflection. Parity needs one, and so do words of swaps of three things. Where any element of S3 is a letter,
some letters are rotations, which are products of two reflections: one layer needs two factors a token (DeltaProduct, n
= 2). So it is for A5, the rotations of an icosahedron; S5 needs up to four. Blocks of 3 x 3 and larger, free but for
their norm, hold all of these at once. A model is trained on words up to a length, from short ones to long ones, and
tested on longer ones. After arXiv 2411.12537, arXiv 2502.10297 and arXiv 2505.17761.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import zoo
from recur.examples.groups import TASKS, Task
from recur.examples.layer import RecurrentLayer
from recur.examples.plots import save_curves
from recur.examples.training import (
    Report,
    Schedule,
    pick_device,
    pick_from_curriculum,
    run_note,
    save_table,
    show_table,
    train,
)
from recur.runtime.op import Op


@dataclass(frozen=True)
class Transition:
    """A recurrence of the zoo, with one phrase of its text changed, and the sizes of its dims."""

    recurrence: str
    phrase: str = ""
    changed: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    def load(self) -> Op:
        text = zoo.path(self.recurrence).read_text()
        if self.phrase not in text:
            raise ValueError(f"{self.recurrence} does not say {self.phrase!r}")
        return recur.loads(text.replace(self.phrase, self.changed) if self.phrase else text)


MODELS = {
    "delta_0_1": Transition("delta_net"),
    "delta_0_2": Transition("delta_net", "beta in (0, 1)", "beta in (0, 2)"),
    **{f"product_{n}": Transition("delta_product", "n = 2", f"n = {n}") for n in (1, 2, 3, 4)},
    **{f"blocks_{b}": Transition("block_diagonal", sizes={"N": 4, "b": b}) for b in (3, 4, 5)},
    "slice_4": Transition("slice_block_diagonal", sizes={"N": 4, "b": 4, "D": 16}),
}
COMPARED = {
    "parity": ("delta_0_1", "delta_0_2"),
    "S3 by swaps": ("delta_0_1", "delta_0_2"),
    "S3": ("product_1", "product_2", "blocks_3"),
    "S4": ("product_1", "product_2", "blocks_4"),
    "A5 by cycles": ("product_1", "product_2", "blocks_5"),
    "A5": ("product_1", "product_2", "blocks_5", "slice_4"),
    "S5": ("product_1", "product_2", "product_4", "blocks_5"),
}


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule; the lengths trained on join from the first to the last. minutes: for all models together."""

    steps: int = 300
    width: int = 32
    heads: int = 2
    batch: int = 32
    lengths: tuple[int, ...] = (32, 40, 48, 56, 64)
    tested: tuple[int, ...] = (32, 64, 128, 256, 512)
    test_words: int = 256
    rate: float = 2e-2
    minutes: float = math.inf
    device: str = "cpu"
    backend: str = "auto"
    strategy: str = "auto"
    seed: int = 0


SMALL = Settings(steps=600, width=64, heads=4, lengths=(2, 3, 4, 6, 8, 12, 16, 24, 32), tested=(8, 16, 32, 64, 128),
                 rate=5e-3, strategy="sequential")  # fmt: skip
LARGE = Settings(steps=6000, width=256, heads=8, batch=512, lengths=(2, 4, 8, 16, 32, 64, 128),
                 tested=(32, 64, 128, 256, 512), test_words=1024, rate=2e-3)  # fmt: skip
EASY_TASKS, SMALL_TASKS, LARGE_TASKS = ("parity", "S3 by swaps"), ("S3",), ("A5", "S5")
CORNER = "last state right, words of"


class Tracker(nn.Module):
    """Letters [B, T] -> logits of the state after each [B, T, states], by one recurrent layer."""

    def __init__(self, task: Task, transition: Transition, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.embedding = nn.Embedding(task.letters, s.width)
        self.layer = RecurrentLayer(
            transition.load(), s.width, s.heads, transition.sizes, conv=1, backend=s.backend, strategy=s.strategy
        )
        self.head = nn.Sequential(nn.RMSNorm(s.width, eps=1e-6), nn.Linear(s.width, s.width), nn.GELU(),
                                  nn.Linear(s.width, task.states))  # fmt: skip

    def forward(self, word: Tensor) -> Tensor:
        x = self.embedding(word)
        return self.head(x + self.layer(x))


def train_tracker(task: Task, model_name: str, settings: Settings, report: Report = print) -> list[float]:
    """Trains one model; its accuracy of the last state on unseen words of every tested length."""
    s = settings
    torch.manual_seed(s.seed)
    generator = torch.Generator().manual_seed(s.seed)
    model = Tracker(task, MODELS[model_name], s).to(s.device)
    report(f"{task.name}, {model_name}: {sum(p.numel() for p in model.parameters()):,} parameters")

    def loss_at(step: int, progress: float) -> Tensor:
        length = pick_from_curriculum(s.lengths, step, progress)
        word, states = (x.to(s.device) for x in task.words(s.batch, length, generator))
        return F.cross_entropy(model(word).flatten(0, 1), states.flatten())

    train(model, loss_at, Schedule(s.steps, s.rate, s.minutes), report)
    return measure(model, task, s)


def measure(model: Tracker, task: Task, settings: Settings) -> list[float]:
    generator = torch.Generator().manual_seed(settings.seed + 1)
    found = []
    for length in settings.tested:
        word, states = (x.to(settings.device) for x in task.words(settings.test_words, length, generator))
        with torch.no_grad():
            last = model(word)[:, -1].argmax(-1)
        found.append((last == states[:, -1]).float().mean().item())
    return found


def compare(
    tasks: Sequence[str], settings: Settings, models: Sequence[str] = (), report: Report = print
) -> dict[str, list[float]]:
    """Accuracy for each tested length, by task and model: those given, or the task's row of COMPARED."""
    runs = [(task, name) for task in tasks for name in models or COMPARED[task]]
    share = replace(settings, minutes=settings.minutes / len(runs))
    return {f"{task}, {name}": train_tracker(TASKS[task], name, share, report) for task, name in runs}


def save(found: Mapping[str, Sequence[float]], settings: Settings, path: str | Path) -> None:
    curves = {name: list(zip(map(float, settings.tested), row, strict=True)) for name, row in found.items()}
    longest = float(max(settings.lengths))
    save_curves(path, curves, {}, "length", CORNER, "State tracking", x_mark=longest)


@click.command()
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Repeatable; parity and swaps.")
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, help="Instead of the task's own.")
@click.option("--small", is_flag=True, help="Words over S3, trained on up to 32: a few minutes on a CPU.")
@click.option("--large", is_flag=True, help="A5 and S5, trained on words of up to 128: for a GPU.")
@click.option("--steps", type=int, help="Of training, for each model.")
@click.option("--minutes", type=float, help="For all models together; training ends early where it does not suffice.")
@click.option("--batch", type=int)
@click.option("--rate", type=float)
@click.option("--device", default="auto", help="cuda, cpu or auto.")
@click.option("--backend", default="auto", help="triton, torch or auto.")
@click.option("--seed", default=0)
@click.option("--results", metavar="FILE", help="Where to save the table: a .md or a .json file.")
@click.option("--plot", "plot_path", metavar="PNG", help="Where to save the curves (needs matplotlib).")
def main(
    tasks: tuple[str, ...], models: tuple[str, ...], small: bool, large: bool, results: str | None,
    plot_path: str | None, **options: object,
) -> None:  # fmt: skip
    """Train recurrences to track the states of word problems."""
    if small and large:
        raise click.UsageError("--small and --large exclude one another")
    default, settings = (LARGE_TASKS, LARGE) if large else (SMALL_TASKS, SMALL) if small else (EASY_TASKS, Settings())
    given = {name: value for name, value in options.items() if value is not None}
    settings = replace(settings, **given)  # type: ignore[arg-type]
    settings = replace(settings, device=pick_device(settings.device))
    found = compare(tasks or default, settings, models)
    print(show_table(CORNER, settings.tested, found))
    if results:
        save_table(results, "State tracking", run_note(settings), CORNER, settings.tested, found)
    if plot_path:
        save(found, settings, plot_path)


if __name__ == "__main__":
    main()

r"""State tracking: which recurrences can follow the product of a word's letters in a group, and for how long?

    python examples/state_tracking.py --plot state_tracking.png
    python examples/state_tracking.py --small
    python examples/state_tracking.py --large --task S4 --model product_1 --model product_2

A token's transition in DeltaNet, I - beta k k', has the eigenvalue 1 - beta along k: with beta in (0, 2) it may be
negative, a reflection. Parity needs one, and so do words of swaps of three things. Where any element of S3 is a letter,
some letters are rotations, which are products of two reflections: one layer needs two factors a token (DeltaProduct, n
= 2). So it is for A5, the rotations of an icosahedron; S5 needs up to four. Blocks of 3 x 3 and larger, free but for
their norm, hold all of these at once. After arXiv 2411.12537, arXiv 2502.10297 and arXiv 2505.17761.

A model is trained on short words, on longer ones once it has learned them, and tested on longer ones yet. Two things
halve the steps that A5 takes: a token before the first letter, which writes the state that the letters then move, and
a beta that starts near 2.

SLiCE's blocks, I + A x with A free, learn A5 too, but are in no comparison here: nothing bounds them, and the readout,
which is normalised, does not see the state grow. One trained on short words had multiplied it by 1e13 after 128
letters; where its squares overflow, the gradient is lost. --model slice_4 --longest 16 trains them. blocks_4 and
blocks_5 are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import zoo
from recur.examples.groups import TASKS, Task
from recur.examples.layer import RecurrentLayer
from recur.examples.training import Report, Schedule, Table, override, run_note, train, training_options
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
    "A5": ("product_1", "product_2", "blocks_5"),
    "S5": ("product_1", "product_2", "product_4", "blocks_5"),
}


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule.

    lengths: of the words trained on, each once the one before it is learned.
    learned: the mean loss of CHECKED steps at which it is.
    minutes: for all models together.
    """

    steps: int = 300
    width: int = 32
    heads: int = 2
    batch: int = 32
    lengths: tuple[int, ...] = (32, 40, 48, 56, 64)
    learned: float = 0.2
    tested: tuple[int, ...] = (32, 64, 128, 256, 512)
    test_words: int = 256
    rate: float = 2e-2
    minutes: float = math.inf
    device: str = "cpu"
    backend: str = "auto"
    strategy: str = "auto"
    seed: int = 0


LARGE = Settings(steps=6000, width=128, heads=8, batch=512, lengths=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
                 tested=(32, 64, 128, 256, 512), test_words=1024, rate=5e-3)  # fmt: skip
SMALL = replace(LARGE, steps=800, batch=128, lengths=(2, 3, 4, 6, 8, 12, 16), tested=(8, 16, 32, 64, 128),
                strategy="sequential")  # fmt: skip
EASY_TASKS, SMALL_TASKS, LARGE_TASKS = ("parity", "S3 by swaps"), ("A5",), ("A5", "S5")
CHECKED = 10  # steps
TESTED_AT_ONCE = 64  # words, as the long ones take memory
NEAR_REFLECTION = 2.0  # the sigmoid's argument at which beta in (0, 2) starts: 1.76; a start at 1 erases what was kept


class Tracker(nn.Module):
    """Letters [B, T] -> logits of the state after each [B, T, states], by one recurrent layer.

    A token before the first letter writes the state that the letters' transitions then move.
    """

    def __init__(self, task: Task, transition: Transition, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.start = len(task.letters)
        self.embedding = nn.Embedding(self.start + 1, s.width)
        self.layer = RecurrentLayer(transition.load(), s.width, s.heads, transition.sizes, conv=1,
                                    gate_bias=NEAR_REFLECTION, backend=s.backend, strategy=s.strategy)  # fmt: skip
        self.head = nn.Sequential(nn.RMSNorm(s.width, eps=1e-6), nn.Linear(s.width, s.width), nn.GELU(),
                                  nn.Linear(s.width, task.states))  # fmt: skip

    def forward(self, word: Tensor) -> Tensor:
        x = self.embedding(F.pad(word, (1, 0), value=self.start))
        return self.head(x + self.layer(x))[:, 1:]


class Curriculum:
    """The lengths in turn, each from the time that the mean loss of CHECKED steps at the one before is learned."""

    def __init__(self, lengths: Sequence[int], learned: float, report: Report) -> None:
        self.length, *self.later = lengths
        self.learned, self.report = learned, report
        self.losses: list[Tensor] = []

    def record(self, step: int, loss: Tensor) -> None:
        self.losses.append(loss.detach())
        if len(self.losses) == CHECKED:
            if self.later and torch.stack(self.losses).mean() < self.learned:
                self.report(f"  step {step + 1:5d}  words of {self.length} are learned")
                self.length = self.later.pop(0)
            self.losses.clear()


def train_tracker(task: Task, model_name: str, settings: Settings, report: Report = print) -> list[float]:
    """Trains one model; its accuracy of the last state on unseen words of every tested length."""
    s, task = settings, task.to(settings.device)
    torch.manual_seed(s.seed)
    generator = torch.Generator(s.device).manual_seed(s.seed)
    model = Tracker(task, MODELS[model_name], s).to(s.device)
    report(f"{task.name}, {model_name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    curriculum = Curriculum(s.lengths, s.learned, report)

    def loss_at(step: int, progress: float) -> Tensor:
        word, states = task.words(s.batch, curriculum.length, generator)
        loss = F.cross_entropy(model(word).flatten(0, 1), states.flatten())
        curriculum.record(step, loss)
        return loss

    train(model, loss_at, Schedule(s.steps, s.rate, s.minutes), report)
    return measure(model, task, s)


def measure(model: Tracker, task: Task, settings: Settings) -> list[float]:
    generator = torch.Generator(settings.device).manual_seed(settings.seed + 1)
    found = []
    for length in settings.tested:
        word, states = task.words(settings.test_words, length, generator)
        with torch.no_grad():
            last = torch.cat([model(part)[:, -1].argmax(-1) for part in word.split(TESTED_AT_ONCE)])
        found.append((last == states[:, -1]).float().mean().item())
    return found


def compare(tasks: Sequence[str], settings: Settings, models: Sequence[str] = (), report: Report = print) -> Table:
    """Accuracy for each tested length, by task and model: those given, or the task's row of COMPARED."""
    runs = [(task, name) for task in tasks for name in models or COMPARED[task]]
    share = replace(settings, minutes=settings.minutes / len(runs))
    rows = {f"{task}, {name}": train_tracker(TASKS[task], name, share, report) for task, name in runs}
    return Table("State tracking", "last state right", "words of", settings.tested, rows)


@click.command()
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Repeatable; parity and swaps.")
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, help="Instead of the task's own.")
@click.option("--small", is_flag=True, help="A5, trained on words of up to 16: some minutes on a CPU.")
@click.option("--large", is_flag=True, help="A5 and S5, trained on words of up to 128: for a GPU.")
@click.option("--longest", type=int, help="Words trained on have at most so many letters.")
@click.option("--width", type=int)
@click.option("--heads", type=int)
@training_options
def main(
    tasks: tuple[str, ...], models: tuple[str, ...], small: bool, large: bool, longest: int | None,
    results: str | None, plot: str | None, **options: object,
) -> None:  # fmt: skip
    """Train recurrences to track the states of word problems."""
    if small and large:
        raise click.UsageError("--small and --large exclude one another")
    default, settings = (LARGE_TASKS, LARGE) if large else (SMALL_TASKS, SMALL) if small else (EASY_TASKS, Settings())
    settings = override(settings, options)
    if longest is not None:
        if longest < settings.lengths[0]:
            raise click.BadParameter(f"the shortest words have {settings.lengths[0]} letters", param_hint="--longest")
        settings = replace(settings, lengths=tuple(n for n in settings.lengths if n <= longest))
    found = compare(tasks or default, settings, models)
    print(found)
    if results:
        found.save(results, run_note(settings))
    if plot:
        found.plot(plot, mark=max(settings.lengths))


if __name__ == "__main__":
    main()

"""What the training scripts share: options, a loop with a budget of steps and of minutes, tables of results."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
import torch
from torch import Tensor, nn

from recur.examples.plots import save_curves

Report = Callable[[str], None]
Command = TypeVar("Command", bound=Callable[..., None])
Settings = TypeVar("Settings")  # a frozen dataclass with a device

OPTIONS = (
    click.option("--steps", type=int, help="Of training, for each model."),
    click.option("--minutes", type=float, help="For all models together; training ends early where they are too few."),
    click.option("--batch", type=int),
    click.option("--rate", type=float, help="AdamW's at its peak."),
    click.option("--device", default="auto", help="cuda, cpu or auto."),
    click.option("--backend", help="triton, torch or auto."),
    click.option("--seed", type=int),
    click.option("--results", metavar="FILE", help="Where to save the table: a .md or a .json file."),
    click.option("--plot", metavar="PNG", help="Where to save the curves (needs matplotlib)."),
)


@dataclass(frozen=True)
class Schedule:
    """Training ends after ``steps``, or after ``minutes`` where that comes first, or once the loss is ``solved``.

    rate: AdamW's at its peak; up over the first tenth of the steps, then down a cosine to zero at the end, whichever
        it is. With minutes that do not suffice for the steps, a run is not repeatable bit for bit.
    solved: the mean loss of a report's steps at which training stops.
    """

    steps: int
    rate: float
    minutes: float = math.inf
    solved: float = 0.0
    weight_decay: float = 0.0


def pick_device(name: str) -> str:
    """``auto`` is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def train(model: nn.Module, loss_at: Callable[[int, float], Tensor], schedule: Schedule, report: Report) -> None:
    """Minimises ``loss_at(step, progress)``, a new batch's loss; progress runs from 0 to 1 and may set a curriculum."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=schedule.weight_decay)
    start, recent = time.perf_counter(), []
    for step in range(schedule.steps):
        seconds = time.perf_counter() - start
        progress = max(step / schedule.steps, seconds / (60 * schedule.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * warmup_then_cosine(progress)
        loss = loss_at(step, progress)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if (step + 1) % max(1, schedule.steps // 10) == 0:
            mean = torch.stack(recent).mean().item()
            recent.clear()
            report(f"  step {step + 1:5d}  loss {mean:.4f}  {time.perf_counter() - start:6.1f} s")
            if mean < schedule.solved:
                break


def warmup_then_cosine(progress: float) -> float:
    """The factor on the peak rate."""
    if progress < 0.1:
        return 0.05 + 0.95 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


@dataclass(frozen=True)
class Table:
    """What a script measured: for every name a row, with a number for each column.

    measure, over: what the numbers say, and what the columns are.
    """

    title: str
    measure: str
    over: str
    columns: Sequence[int]
    rows: Mapping[str, Sequence[float]]

    @property
    def corner(self) -> str:
        return f"{self.measure}, {self.over}"

    def __str__(self) -> str:
        """In columns, for a terminal."""
        width = max(len(name) for name in (self.corner, *self.rows)) + 2
        head = self.corner.ljust(width) + "".join(f"{column:>8}" for column in self.columns)
        body = (name.ljust(width) + "".join(f"{x:8.3f}" for x in row) for name, row in self.rows.items())
        return "\n".join([head, *body])

    def save(self, path: str | Path, note: str) -> None:
        """Writes a ``.md`` or a ``.json`` file. Raises BadParameter for another ending."""
        path = Path(path)
        if path.suffix == ".json":
            rows = {name: list(row) for name, row in self.rows.items()}
            record = {"title": self.title, "note": note, "columns": list(self.columns), "rows": rows}
            text = json.dumps(record, indent=1) + "\n"
        elif path.suffix == ".md":
            head = " | ".join(["", self.corner, *map(str, self.columns), ""]).strip()
            rule = "| --- " * (len(self.columns) + 1) + "|"
            body = [f"| {name} | " + " | ".join(f"{x:.3f}" for x in row) + " |" for name, row in self.rows.items()]
            text = "\n".join([f"# {self.title}", "", note, "", head, rule, *body, ""])
        else:
            raise click.BadParameter(f"results go to a .md or a .json file, not to {path}", param_hint="--results")
        path.write_text(text, encoding="utf-8")
        click.echo(f"saved {path}")

    def plot(self, path: str | Path, mark: float | None = None) -> None:
        """Saves a curve for each row; ``mark`` is a column to draw a line at."""
        curves = {name: list(zip(map(float, self.columns), row, strict=True)) for name, row in self.rows.items()}
        save_curves(path, curves, {}, self.over, self.measure, self.title, x_mark=mark)


def training_options(command: Command) -> Command:
    """A command with OPTIONS; those not given are None."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def override(settings: Settings, given: Mapping[str, object]) -> Settings:
    """The settings with the options that were given, on a device that is here."""
    told = {name: value for name, value in given.items() if value not in (None, ())}
    return replace(settings, **told | {"device": pick_device(str(given["device"]))})  # type: ignore[type-var]


def run_note(settings: object) -> str:
    """The command that is running, the versions and the device, and the settings in use."""
    device = getattr(settings, "device", "cpu")
    where = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    script = f"python examples/{Path(sys.argv[0]).name}"
    return f"`{shlex.join([*script.split(), *sys.argv[1:]])}`\n\nPyTorch {torch.__version__}, {where}. {settings}"

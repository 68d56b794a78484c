"""What the training scripts share: the device, a loop with a budget of steps and of minutes, tables of results."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

Report = Callable[[str], None]
Rows = Mapping[str, Sequence[float]]  # a name, and a number for each column


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


def pick_from_curriculum(items: Sequence[int], step: int, progress: float) -> int:
    """The items in turn; the first one from the start, the later ones joining over the first half of training."""
    joined = min(len(items), 1 + int(2 * progress * len(items)))
    return items[step % joined]


def warmup_then_cosine(progress: float) -> float:
    """The factor on the peak rate."""
    if progress < 0.1:
        return 0.05 + 0.95 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def run_note(settings: object) -> str:
    """The command that is running, the versions and the device, and the settings in use."""
    device = getattr(settings, "device", "cpu")
    where = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    script = f"python examples/{Path(sys.argv[0]).name}"
    return f"`{shlex.join([*script.split(), *sys.argv[1:]])}`\n\nPyTorch {torch.__version__}, {where}. {settings}"


def show_table(corner: str, columns: Sequence[object], rows: Rows) -> str:
    """The rows' names and numbers in columns, for a terminal."""
    width = max(len(name) for name in (corner, *rows)) + 2
    head = corner.ljust(width) + "".join(f"{column!s:>8}" for column in columns)
    return "\n".join([head, *(name.ljust(width) + "".join(f"{x:8.3f}" for x in row) for name, row in rows.items())])


def save_table(path: str | Path, title: str, note: str, corner: str, columns: Sequence[object], rows: Rows) -> None:
    """Writes the table to a ``.md`` or a ``.json`` file. Raises BadParameter for another ending."""
    path = Path(path)
    if path.suffix == ".json":
        record = {"title": title, "note": note, "columns": list(columns), "rows": {n: list(r) for n, r in rows.items()}}
        text = json.dumps(record, indent=1) + "\n"
    elif path.suffix == ".md":
        head = f"| {corner} | " + " | ".join(map(str, columns)) + " |\n" + "| --- " * (len(columns) + 1) + "|\n"
        body = "".join(f"| {name} | " + " | ".join(f"{x:.3f}" for x in row) + " |\n" for name, row in rows.items())
        text = f"# {title}\n\n{note}\n\n{head}{body}"
    else:
        raise click.BadParameter(f"results go to a .md or a .json file, not to {path}", param_hint="--results")
    path.write_text(text, encoding="utf-8")
    click.echo(f"saved {path}")

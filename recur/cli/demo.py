"""`recur demo`: the short form of the examples, in under two minutes on two cores."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click


@click.command()
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu or cuda.")
@click.option("--backend", default="auto", help="triton, torch or auto.")
@click.option("--plots", default=".", metavar="FOLDER", help="Where the plots go, if matplotlib is installed.")
def demo(device: str, backend: str, plots: str) -> None:
    """Invent a recurrence, track states, and learn a language model of Python's standard library."""
    start = time.perf_counter()
    if not os.path.isdir(plots):
        raise click.BadParameter(f"{plots} is not a folder", param_hint="--plots")
    for title, part in (
        ("1. A recurrence invented on the spot", _quickstart),
        ("2. State tracking with negative eigenvalues", _state_tracking),
        ("3. A byte-level language model", _language_model),
    ):
        click.secho(f"\n{title}\n", bold=True)
        part(device, backend, Path(plots))
    click.echo(f"\ndone in {time.perf_counter() - start:.0f} s; examples/ has the longer forms of the three")


def _quickstart(device: str, backend: str, folder: Path) -> None:
    from recur.examples import quickstart

    settings = quickstart.Settings(steps=120, device=device, backend=backend)
    quickstart.save(quickstart.tour(settings, click.echo), folder / "quickstart.png")


def _state_tracking(device: str, backend: str, folder: Path) -> None:
    from recur.examples import state_tracking

    settings = state_tracking.Settings(steps=200, test_words=128, device=device, backend=backend)
    found = state_tracking.compare(state_tracking.EASY_TASKS, settings, report=click.echo)
    click.echo(found)
    found.plot(folder / "state_tracking.png", mark=max(settings.lengths))


def _language_model(device: str, backend: str, folder: Path) -> None:
    from recur.examples import language_model

    corpus = language_model.read_standard_library()
    click.echo(language_model.show_corpus(corpus))
    settings = language_model.Settings(steps=300, held_out_bytes=1 << 15, device=device, backend=backend)
    result = language_model.train_model(corpus, settings, click.echo)
    click.echo(language_model.show(result))
    language_model.save({settings.recurrence: result}, folder / "language_model.png")

"""The one kind of plot the examples draw: curves and levels, saved as a PNG. matplotlib is an optional extra."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence

import click


def save_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    levels: Mapping[str, float],
    x_label: str,
    y_label: str,
    title: str,
    x_mark: float | None = None,
) -> None:
    """Saves named curves of (x, y) points and horizontal levels; ``x_mark`` draws a vertical line.

    Where matplotlib is not installed it says so and saves nothing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        click.echo(f"{os.fspath(path)} is not saved: a plot needs matplotlib (pip install 'recur[plot]')", err=True)
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, marker=".")
    for i, (name, y) in enumerate(levels.items()):
        axes.axhline(y, label=name, color=f"C{i}", linestyle="--")
    if x_mark is not None:
        axes.axvline(x_mark, color="grey", linestyle=":")
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    click.echo(f"saved {os.fspath(path)}")

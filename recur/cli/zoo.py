"""`recur zoo`: the recurrences of the literature that come with recur."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import click

from recur.cli.arguments import progress
from recur.diagnostics import did_you_mean
from recur.ir.normal import Program
from recur.ir.spec import Recurrence


@click.command()
@click.argument("name", required=False)
def zoo(name: str | None) -> None:
    """List the zoo's recurrences, or print NAME's spec and, on standard error, how to train with it."""
    from recur import zoo as shelf

    names = shelf.names()
    if name is None:
        _list(names)
        return
    if name not in names:
        hint = did_you_mean(name, names, "`recur zoo` lists them")
        raise click.BadParameter(f"the zoo has no recurrence named {name!r}; {hint}", param_hint="NAME")
    click.echo(shelf.path(name).read_text(encoding="utf-8"), nl=False)
    click.echo(f"\ntrain a model with it: python -m recur.examples.language_model --recurrence {name}", err=True)


TITLES = ("name", "paper", "structure", "strategy", "state per head", "operations per token")


def _list(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from recur.cli.arguments import compile_file

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in TITLES:
        table.add_column(title, overflow="fold")
    with progress("classifying the zoo"):
        rows = [entry_of(compile_file(name)).row for name in names]
    console = Console(highlight=False)
    if console.is_terminal:
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    for row in rows:
        click.echo("\t".join(row))


@dataclass(frozen=True)
class Entry:
    """A recurrence as the zoo lists it, at the default sizes.

    ``paper``: the reference that ends the docstring. ``state``: entries that a head keeps between tokens, in dims and
    as a number. ``operations``: floating-point operations of the step as defined, one head and one token.
    """

    name: str
    about: str
    paper: str
    structure: str
    strategy: str
    state: str
    operations: str

    @property
    def row(self) -> tuple[str, ...]:
        return self.name, self.paper, self.structure, self.strategy, self.state, self.operations


def entry_of(program: Program) -> Entry:
    from recur.explain import default_sizes
    from recur.operations import count_operations
    from recur.strategies.select import select

    sizes = default_sizes(program)
    selections = select(program, sizes)
    recurrence = program.step.recurrence
    about, paper = split_reference(recurrence.doc or "")
    return Entry(
        recurrence.name,
        about,
        paper,
        "; ".join(s.normal.structure for s in selections),
        ", ".join(dict.fromkeys(s.strategy for s in selections)),
        state_size(recurrence, sizes),
        f"{count_operations(program.step, sizes):,}",
    )


def split_reference(doc: str) -> tuple[str, str]:
    """What the docstring says, and the paper's number that ends it: "arXiv 2412.06464", "doi 10.1207/..."."""
    found = re.search(r"\s*\b((?:arXiv|doi) \S+)$", doc)
    return (doc[: found.start()], found.group(1)) if found else (doc, "")


def state_size(recurrence: Recurrence, sizes: Mapping[str, int]) -> str:
    """The declared states' real numbers per head, in their dims and in all: "K V + K = 4,160"."""
    fixed = {d.name: d.size for d in recurrence.dims if d.size is not None}
    terms, total = [], 0
    for state in recurrence.states:
        parts = 2 if state.is_complex else 1
        number = parts * math.prod(fixed.get(d, 1) for d in state.dims)
        names = [d for d in state.dims if d not in fixed]
        terms.append(" ".join(([str(number)] if number != 1 or not names else []) + names))
        total += parts * math.prod(sizes[d] for d in state.dims)
    return f"{' + '.join(terms)} = {total:,}"

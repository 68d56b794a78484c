"""`recur zoo`: the recurrences of the literature that come with recur."""

from __future__ import annotations

import math
import re

import click

from recur.cli.arguments import progress
from recur.diagnostics import did_you_mean
from recur.ir.normal import Program


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


def _list(names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "paper", "structure", "strategy", "state a head"):
        table.add_column(title, overflow="fold")
    with progress("classifying the zoo"):
        for name in names:
            table.add_row(*_row(name))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    for name in names:
        click.echo("\t".join(_row(name)))


def _row(name: str) -> tuple[str, ...]:
    """name, paper, structure, strategies, and the state's size per head, at the default sizes."""
    from recur.cli.arguments import compile_file
    from recur.explain import default_sizes
    from recur.strategies.select import select

    program = compile_file(name)
    sizes = default_sizes(program)
    selections = select(program, sizes)
    structure = "; ".join(s.normal.structure for s in selections)
    strategies = ", ".join(dict.fromkeys(s.strategy for s in selections))
    return name, paper(program.step.recurrence.doc or ""), structure, strategies, state_size(program)


def paper(doc: str) -> str:
    """The arXiv number, or another reference, that ends the docstring."""
    found = re.search(r"arXiv \d{4}\.\d{4,5}", doc)
    return found.group() if found else ""


def state_size(program: Program) -> str:
    """The declared states' entries per head, in their dims: "K V + K"."""
    rec = program.step.recurrence
    fixed = {d.name: d.size for d in rec.dims if d.size is not None}
    terms = []
    for state in rec.states:
        number = math.prod(fixed.get(d, 1) for d in state.dims) * (2 if state.is_complex else 1)
        names = [d for d in state.dims if d not in fixed]
        terms.append(" ".join(([str(number)] if number != 1 or not names else []) + names))
    return " + ".join(terms)

"""`recur check`: whether a file is a recurrence, and what is wrong where it is not."""

from __future__ import annotations

import os

import click


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def check(files: tuple[str, ...]) -> None:
    """Check recurrences: nothing and 0, or diagnostics and 1."""
    from recur.diagnostics import RecurError

    failed = False
    for file in files:
        try:
            _check_file(file)
        except RecurError as error:
            click.echo(str(error), err=True)
            failed = True
    if failed:
        click.get_current_context().exit(1)


def _check_file(file: str) -> None:
    from recur import zoo
    from recur.api import read_file_all

    known = not os.path.lexists(file) and file in zoo.names()
    read_file_all(zoo.path(file) if known else file)

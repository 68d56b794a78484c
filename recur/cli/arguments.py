"""What several commands share: reading the file, sizes, strategies, progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from recur.ir.normal import Program
from recur.ir.plan import STRATEGIES
from recur.ir.spec import Recurrence

Command = TypeVar("Command", bound=Callable[..., Any])
MAX_SIZE = 2**31 - 1


def file_argument(command: Command) -> Command:
    return click.argument("file", metavar="FILE")(
        click.option("--name", help="Which recurrence, where the file holds several.")(command)
    )


def dims_option(command: Command) -> Command:
    return click.option(
        "--dims", metavar="K=64,V=64", callback=_parse_dims, help="Sizes to compile for; 64 where not given."
    )(command)


def strategy_option(command: Command) -> Command:
    names = ", ".join(STRATEGIES)
    return click.option(
        "--strategy", default="auto", metavar="S", show_default=True, callback=_parse_strategy,
        help=f"One of {names}, auto; separated by commas for several stages.",
    )(command)  # fmt: skip


def target_option(command: Command) -> Command:
    return click.option(
        "--target", default="sm_90", show_default=True, metavar="sm_90", callback=_parse_target,
        help="The GPU architecture to compile for.",
    )(command)  # fmt: skip


def read(file: str, name: str | None = None) -> Recurrence:
    """The recurrence of a file, or of the zoo where there is no such file. Raises RecurError."""
    from recur import zoo
    from recur.api import read_file

    if not os.path.lexists(file) and file in zoo.names():
        return read_file(zoo.path(file), name)
    return read_file(file, name)


def compile_file(file: str, name: str | None = None) -> Program:
    """The file's recurrence, classified. Raises RecurError."""
    recurrence = read(file, name)
    from recur.compiler import compile_program

    with progress(f"classifying {recurrence.name}"):
        return compile_program(recurrence)


def bind_sizes(program: Program, dims: dict[str, int]) -> dict[str, int]:
    """Every dim's size; a wrong --dims is a misuse of the command line."""
    from recur.explain import default_sizes

    try:
        return default_sizes(program, dims)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--dims") from None


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner on a terminal while something takes time; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def parse_sizes(value: str, hint: str) -> dict[str, int]:
    """``K=64,V=64`` as a dict. Raises click.BadParameter."""
    sizes: dict[str, int] = {}
    for item in value.split(","):
        name, equals, size = (part.strip() for part in item.partition("="))
        if not name or not equals or not (size.isascii() and size.isdigit()) or len(size) > 10:
            raise click.BadParameter(f"{item.strip()!r} is not of the form K=64", param_hint=hint)
        if not 1 <= int(size) <= MAX_SIZE:
            raise click.BadParameter(f"{name} = {size}: a size is between 1 and {MAX_SIZE}", param_hint=hint)
        if name in sizes:
            raise click.BadParameter(f"{name} is given twice", param_hint=hint)
        sizes[name] = int(size)
    return sizes


def _parse_dims(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, int]:
    return parse_sizes(value, "--dims") if value is not None else {}


def _parse_strategy(ctx: click.Context, param: click.Parameter, value: str) -> str | tuple[str, ...]:
    names = tuple(part.strip() for part in value.split(","))
    return names[0] if len(names) == 1 else names


def _parse_target(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from recur.inspection import TARGETS

    if value not in TARGETS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(TARGETS)}", param_hint="--target")
    return value

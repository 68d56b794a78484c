"""`recur bench`: what needs a GPU to be measured on."""

from __future__ import annotations

import click

from recur.cli.arguments import file_argument, parse_sizes


def _parse_shape(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, int]:
    return parse_sizes(value, "--shape")


shape_option = click.option(
    "--shape", required=True, callback=_parse_shape, metavar="B=2,T=16384,H=16,K=128,V=128", help="What to run."
)


def _refuse(what: str) -> None:
    click.echo(f"error: {what} needs a GPU and is not available yet", err=True)
    click.get_current_context().exit(1)


@click.command()
@file_argument
@shape_option
@click.option("--against", multiple=True, metavar="PEER", help="Another implementation to time beside it.")
def bench(file: str, name: str | None, shape: dict[str, int], against: tuple[str, ...]) -> None:
    """Time forward and backward on this GPU."""
    _refuse("benchmarking")

"""`recur explain`: the structure found, the strategy taken, and why each other was not."""

from __future__ import annotations

import json

import click

from recur.cli.arguments import bind_sizes, compile_file, dims_option, file_argument, progress, strategy_option


@click.command()
@file_argument
@dims_option
@strategy_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(file: str, name: str | None, dims: dict[str, int], strategy: str | tuple[str, ...], as_json: bool) -> None:
    """Say what structure FILE has, which strategy runs it, and why each other does not."""
    program = compile_file(file, name)
    sizes = bind_sizes(program, dims)
    from recur.explain import describe_backend
    from recur.explain import explain as explain_program
    from recur.strategies.select import select

    with progress("planning"):
        selections = select(program, sizes, strategy)
    found = explain_program(program, sizes, selections, (describe_backend(selections),))
    click.echo(json.dumps(found.data, indent=2, ensure_ascii=False) if as_json else found)

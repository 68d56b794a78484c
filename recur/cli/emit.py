"""`recur emit`: the generated module as a file that runs with torch and triton alone."""

from __future__ import annotations

from pathlib import Path

import click

from recur.cli.arguments import bind_sizes, compile_file, dims_option, file_argument, progress, strategy_option


@click.command()
@file_argument
@click.option("-o", "--output", required=True, metavar="OUT.py", help="The file to write; - for standard output.")
@click.option("--backend", type=click.Choice(("triton", "torch")), default="triton", show_default=True)
@strategy_option
@dims_option
def emit(
    file: str, name: str | None, output: str, backend: str, strategy: str | tuple[str, ...], dims: dict[str, int]
) -> None:
    """Write one readable file that imports torch and triton, and not recur."""
    program = compile_file(file, name)
    sizes = bind_sizes(program, dims)
    from recur.inspection import print_stage

    with progress(f"printing {backend}"):
        text = print_stage(program, backend, sizes, strategy)
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.BadParameter(f"{output} cannot be written: {reason}", param_hint="-o") from None

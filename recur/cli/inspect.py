"""`recur inspect`: any stage of the pipeline as text."""

from __future__ import annotations

import os

import click

from recur.cli.arguments import (
    bind_sizes,
    compile_file,
    dims_option,
    file_argument,
    progress,
    strategy_option,
    target_option,
)
from recur.inspection import STAGES


@click.command()
@file_argument
@click.option("--stage", type=click.Choice(STAGES), required=True, help="Which form to print.")
@strategy_option
@target_option
@dims_option
def inspect(
    file: str, name: str | None, stage: str, strategy: str | tuple[str, ...], target: str, dims: dict[str, int]
) -> None:
    """Print what the compiler has of FILE at a stage, from the parsed step to the machine's code."""
    os.environ.pop("TRITON_INTERPRET", None)  # PTX is of kernels for a GPU, whatever runs are done under
    program = compile_file(file, name)
    sizes = bind_sizes(program, dims)
    from recur.inspection import print_stage

    with progress(f"printing {stage}"):
        text = print_stage(program, stage, sizes, strategy, target)
    click.echo(text, nl=not text.endswith("\n"))

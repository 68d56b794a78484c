"""`recur build`: the default kernels compiled for a GPU that need not be here, a row each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from recur.runtime.build import KernelReport

COLUMNS = ("kernel", "warps", "stages", "registers", "spills", "shared", "register dots", "hazards")
LARGEST = 128  # head dims up to which a default configuration must not spill more than
SPILL = 512  # bytes a thread: walks that keep so much in memory have been timed as faster than narrower ones


@click.command()
@file_argument
@target_option
@click.option("--dtype", type=click.Choice(("bf16", "fp16", "fp32")), default="bf16", show_default=True)
@strategy_option
@dims_option
def build(
    file: str, name: str | None, target: str, dtype: str, strategy: str | tuple[str, ...], dims: dict[str, int]
) -> None:
    """Compile FILE's kernels for --target without a GPU: registers, spills, shared memory and hazards of each.

    Ends with 1 where a kernel does not compile or does not fit, or spills over 512 bytes a thread although every size
    is at most 128.
    """
    os.environ.pop("TRITON_INTERPRET", None)  # kernels for a GPU are wanted, whatever runs are done under
    program = compile_file(file, name)
    sizes = bind_sizes(program, dims)
    from recur.inspection import print_stage
    from recur.runtime.load import load_module

    recurrence = program.step.recurrence
    with progress("printing kernels"):
        module = load_module(recurrence.name, print_stage(program, "triton", sizes, strategy))
    from recur.runtime.build import build_kernel, kernels_of

    reports: list[KernelReport] = []
    rows = list(kernels_of(module))
    for number, (kernel, types, constants) in enumerate(rows, 1):
        with progress(f"compiling {kernel.__name__} ({number} of {len(rows)}) for {target}"):
            reports.append(build_kernel(kernel, types, constants, target, dtype))
    _print_reports(reports)
    problems = find_problems(reports, small=all(size <= LARGEST for size in sizes.values()))
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if problems:
        click.get_current_context().exit(1)


def find_problems(reports: Sequence[KernelReport], small: bool) -> list[str]:
    """What makes a build fail: kernels that do not fit, and spills where every size is ``small``."""
    from recur.runtime.build import shared_limit

    found = []
    for report in reports:
        limit = shared_limit(report.target)
        if report.shared > limit:
            found.append(f"{report.name} needs {report.shared} bytes of shared memory; {report.target} has {limit}")
        if report.stack > SPILL and small:
            found.append(f"{report.name} spills {report.stack} bytes a thread")
    return found


def _print_reports(reports: Sequence[KernelReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = [_row(report) for report in reports]
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (COLUMNS, *rows):
            click.echo("\t".join(row))
        return
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _row(report: KernelReport) -> tuple[str, ...]:
    numbers = (report.num_warps, report.num_stages, report.registers, report.stack, report.shared, report.register_dots)
    return (report.name, *map(str, numbers), "; ".join(report.findings) or "-")

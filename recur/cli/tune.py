"""`recur tune`: the fastest launches for a shape on this GPU, each checked before it is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recur.cli.arguments import compile_file, file_argument, parse_sizes, strategy_option

if TYPE_CHECKING:
    from recur.runtime.tuning.search import Tried


def _parse_shape(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, int]:
    return parse_sizes(value, "--shape")


@click.command()
@file_argument
@click.option(
    "--shape", required=True, callback=_parse_shape, metavar="B=2,T=16384,H=16,K=128,V=128", help="What to tune for."
)
@click.option("--dtype", type=click.Choice(("bf16", "fp16", "fp32")), default="bf16", show_default=True)
@click.option("--effort", type=click.Choice(("quick", "full")), default="quick", show_default=True)
@strategy_option
def tune(
    file: str, name: str | None, shape: dict[str, int], dtype: str, effort: str, strategy: str | tuple[str, ...]
) -> None:
    """Search launch configurations for a shape on this GPU, and store the fastest for calls of such shapes.

    Every candidate is checked against the reference before it is timed, in a process of its own. Ends with 1 without a
    GPU, and where the default configuration fails.
    """
    import torch

    program = compile_file(file, name)
    if not torch.cuda.is_available():
        click.echo("error: tuning needs a GPU, and none is here", err=True)
        click.get_current_context().exit(1)
    from recur.runtime.op import Op
    from recur.runtime.tuning.search import TuningError
    from recur.runtime.tuning.tune import DTYPES, make_task
    from recur.runtime.tuning.tune import tune as search

    chosen = next(torch_dtype for torch_dtype, known in DTYPES.items() if known == dtype)
    try:
        task = make_task(Op(program.step.recurrence), (), shape, chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shape") from None
    try:
        with Log() as log:
            result = search(program, task, strategy, effort, log.report, log.compiled)
    except TuningError as error:
        click.echo(f"error: {error}", err=True)
        click.get_current_context().exit(1)
    failed = sum(bool(tried.outcome.failure) for tried in result.tried)
    click.echo(
        f"forward and backward {1e6 * result.best.seconds:.0f} us, {1e6 * result.default.seconds:.0f} us by default; "
        f"{len(result.tried)} tried, {failed} thrown out"
    )


class Log:
    """A progress bar for what is being compiled, and a line for every configuration that was measured."""

    def __enter__(self) -> Log:
        from rich.progress import Progress

        self.progress = Progress(transient=True)
        self.task = self.progress.add_task("compiling", total=None)
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def compiled(self, done: int, of: int) -> None:
        self.progress.update(self.task, completed=done, total=of)

    def report(self, tried: Tried) -> None:
        outcome = tried.outcome
        said = outcome.failure or f"{1e6 * outcome.forward:.0f} us forward, {1e6 * outcome.seconds:.0f} us in all"
        self.progress.console.print(f"{tried.change.what}: {said}", highlight=False, markup=False, soft_wrap=True)

"""The command line: every command's options, and how errors end it.

Exit status: 0; 1 with diagnostics on stderr; 2 for a misuse of the command line.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from recur import __version__
from recur.diagnostics import RecurError

# A command's module is imported when the command runs: `recur check` stays quick.
COMMANDS = {
    "check": "check",
    "explain": "explain",
    "inspect": "inspect",
    "emit": "emit",
    "build": "build",
    "tune": "tune",
    "bench": "measure",
    "demo": "demo",
    "zoo": "zoo",
    "cache": "cache",
}


class Commands(click.Group):
    """The group whose commands live in modules of their own, and whose errors are diagnostics."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"recur.cli.{COMMANDS[name]}"), name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecurError as error:
            click.echo(str(error), err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="recur")
def cli() -> None:
    """A compiler for recurrences: linear RNNs in a few lines, as fused Triton kernels with gradients.

    FILE is a .rec file, or the name of a recurrence of the zoo.
    """


def main() -> None:
    """The entry point of the `recur` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    cli(prog_name="recur")


if __name__ == "__main__":
    main()

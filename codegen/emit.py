"""A standalone file: the printed module imports torch and triton only, so it is the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recur.codegen.module import print_module
from recur.ir.normal import Program
from recur.ir.plan import Plan


def emit(program: Program, plans: Sequence[Plan], sizes: Mapping[str, int], backend: str = "triton") -> str:
    """The text of a file that runs, forward and backward, where recur is not installed."""
    return print_module(program, plans, sizes, backend)

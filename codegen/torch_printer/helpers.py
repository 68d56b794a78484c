"""The library functions that printed torch code calls."""

from __future__ import annotations

from pathlib import Path

from recur.codegen.helpers import needed_functions


def print_helpers(source: str) -> str:
    """The definitions of the library functions that ``source`` calls, and of those that they call."""
    return needed_functions(source, Path(__file__).parent / "library.py")

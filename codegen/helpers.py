"""Library functions for printed modules: which ones a printed source needs, and their text."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path


@cache
def functions_of(file: Path) -> dict[str, str]:
    """Every top-level function of a library in order, by name, as text."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {f.name: "\n".join(lines[f.lineno - 1 : f.end_lineno]) for f in functions}


def needed_functions(source: str, file: Path) -> str:
    """The definitions of the library functions that ``source`` calls, and of those that they call."""
    library = functions_of(file)
    needed: set[str] = set()
    pending = [source]
    while pending:
        words = set(re.findall(r"\b_\w+", pending.pop()))
        new = [name for name in library if name in words and name not in needed]
        needed.update(new)
        pending += [library[name] for name in new]
    return "\n\n\n".join(text for name, text in library.items() if name in needed)

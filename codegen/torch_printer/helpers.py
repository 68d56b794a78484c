"""Which library functions a printed source needs, and their text."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path


@cache
def library() -> dict[str, str]:
    """Every function of the library in order, by name, as text."""
    text = (Path(__file__).parent / "library.py").read_text()
    lines = text.splitlines()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {f.name: "\n".join(lines[f.lineno - 1 : f.end_lineno]) for f in functions}


def source_of_helpers(source: str) -> str:
    """The definitions of the library functions that ``source`` calls, and of those that they call."""
    needed: set[str] = set()
    pending = [source]
    while pending:
        words = set(re.findall(r"\b_\w+", pending.pop()))
        new = [name for name in library() if name in words and name not in needed]
        needed.update(new)
        pending += [library()[name] for name in new]
    return "\n\n\n".join(text for name, text in library().items() if name in needed)

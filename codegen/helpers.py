"""Libraries for printed modules: which of their functions and classes a printed source needs, and their text."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path


@cache
def definitions_of(file: Path) -> dict[str, str]:
    """Every top-level function and class of a library in order, by name, as text."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    first = {node.name: min([node.lineno, *(d.lineno for d in node.decorator_list)]) for node in found}
    return {node.name: "\n".join(lines[first[node.name] - 1 : node.end_lineno]) for node in found}


def needed_functions(source: str, file: Path) -> str:
    """The definitions of the library functions and classes that ``source`` names, and of those that they name."""
    library = definitions_of(file)
    needed: set[str] = set()
    pending = [source]
    while pending:
        words = set(re.findall(r"\b_\w+", pending.pop()))
        new = [name for name in library if name in words and name not in needed]
        needed.update(new)
        pending += [library[name] for name in new]
    return "\n\n\n".join(text for name, text in library.items() if name in needed)

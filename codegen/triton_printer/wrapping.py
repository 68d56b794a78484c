"""Long lines of a printed file, wrapped as a person would."""

from __future__ import annotations

import re

INDENT = "    "
WIDTH = 120


def wrapped(line: str) -> list[str]:
    """The line, or where it is too long its branches or its first call with several arguments spread over lines."""
    if len(line) <= WIDTH or line.lstrip().startswith("#"):
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    choice = re.fullmatch(r"(\s*\w+ = )(.*) (if \w+ is not None) (else .*)", line)
    if choice:
        value, *branches = choice.groups()
        return [f"{value}(", *(part for b in branches for part in wrapped(f"{indent}{INDENT}{b}")), f"{indent})"]
    for match in re.finditer(r"[\w.]*\(", line):
        end = closing(line, match.end() - 1)
        arguments = [argument for argument in split_arguments(line[match.end() : end]) if argument]
        if len(arguments) > 1:
            inner = f"{indent}{INDENT}{', '.join(arguments)},"
            lines = [inner] if len(inner) <= WIDTH else [f"{indent}{INDENT}{argument}," for argument in arguments]
            return [line[: match.end()], *lines, f"{indent}{line[end:]}"]
    return [line]


def closing(text: str, opening: int) -> int:
    """Where the bracket that opens at ``opening`` closes."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] in "([") - (text[position] in ")]")
        if depth == 0:
            return position
    raise ValueError(f"unbalanced brackets: {text}")


def split_arguments(text: str) -> list[str]:
    depth = 0
    parts = [""]
    for ch in text:
        depth += (ch in "([") - (ch in ")]")
        if ch == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += ch
    return [part.strip() for part in parts]

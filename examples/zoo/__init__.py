"""The zoo: recurrences of the literature as specs of a few lines, one ``.rec`` file each, named as the recurrence."""

from __future__ import annotations

import difflib
from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every recurrence of the zoo, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.rec"))


def path(name: str) -> Path:
    """The spec's file. Raises KeyError, naming the nearest entries, where the zoo has no such recurrence."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise KeyError(f"no recurrence named {name!r} in the zoo{hint}")
    return _FOLDER / f"{name}.rec"

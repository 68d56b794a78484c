"""The public functions that make an Op of a recurrence: from a file, from text, from a Python function.

Nothing here imports torch: the runtime is loaded with the first Op.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recur.diagnostics import Diagnostic, RecurError, did_you_mean, listing, printable
from recur.ir.spec import MAX_CHARACTERS, Recurrence, Span

if TYPE_CHECKING:
    from recur.runtime.op import Op


def load(path: str | os.PathLike[str], name: str | None = None) -> Op:
    """The recurrence of a ``.rec`` file; ``name`` selects one of several. Raises RecurError with all of its errors."""
    from recur.runtime.stored import read_once

    return make_op(read_once(_content(path), str(os.fspath(path)), name))


def loads(text: str | bytes, name: str | None = None) -> Op:
    """As ``load``, from the text itself."""
    from recur.runtime.stored import read_once

    return make_op(read_once(text, "<string>", name))


def recurrence(function: Callable[..., Any]) -> Op:
    """Decorator: the recurrence that a Python function spells out. Its source is read; it never runs.

    The arguments are annotated with ``State[dims]``, ``Input[dims]`` or ``Param[dims]``; it returns the states in the
    order declared, then the outputs. Raises RecurError, whose places are in the user's file.
    """
    from recur.decorator import read_function

    caller = sys._getframe(1).f_locals  # string annotations name what the function need not capture
    return make_op(read_function(function, caller))


def make_op(recurrence: Recurrence) -> Op:
    """The callable of a checked recurrence."""
    from recur.runtime.op import Op

    return Op(recurrence)


def read_file(path: str | os.PathLike[str], name: str | None = None) -> Recurrence:
    """The checked recurrence of a file; ``name`` selects one of several. Raises RecurError."""
    return read(_content(path), str(os.fspath(path)), name)


def read_file_all(path: str | os.PathLike[str]) -> list[Recurrence]:
    """Every recurrence of a file, checked; raises RecurError with all errors of all of them."""
    return read_all(_content(path), str(os.fspath(path)))


def _content(path: str | os.PathLike[str]) -> bytes:
    filename = os.fspath(path)
    try:
        with open(filename, "rb") as file:
            return file.read(4 * MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "its name is not valid"
        message = f"the file cannot be read: {printable(reason)}"
        raise RecurError([Diagnostic("R001", message, None)], str(filename)) from None


def read(text: str | bytes, filename: str = "<string>", name: str | None = None) -> Recurrence:
    """The checked recurrence of a text. All errors of the text, of syntax and of meaning, are raised together."""
    from recur.grammar.parser import decode

    recurrences = read_all(text, filename)
    if name is None and len(recurrences) == 1:
        return recurrences[0]
    known = [r.name for r in recurrences]
    source = decode(text, filename)
    if name is None:
        message = f"the file holds {len(known)} recurrences: {listing(known, 'and')}"
        span = recurrences[1].span
        raise RecurError([Diagnostic("R004", message, span, help=f"choose one: name={known[0]!r}")], filename, source)
    for recurrence in recurrences:
        if recurrence.name == name:
            return recurrence
    help = did_you_mean(name, known, f"the file has {listing(known, 'and')}")
    message = f"the file holds no recurrence named `{printable(name)}`"
    raise RecurError([Diagnostic("R004", message, Span(1, 1, 1, 2), help=help)], filename, source)


def read_all(text: str | bytes, filename: str = "<string>") -> list[Recurrence]:
    """Every recurrence of a text, checked; raises RecurError with all errors of all of them."""
    from recur.grammar.parser import decode, parse_partial
    from recur.passes.check import check_partial

    parsed = parse_partial(text, filename)
    errors = list(parsed.diagnostics)
    is_whole = not errors
    for recurrence, tainted in zip(parsed.recurrences, parsed.tainted, strict=True):
        errors += check_partial(recurrence, tainted, is_whole)[1]
    if errors:
        raise RecurError(errors, filename, decode(text, filename))
    return parsed.recurrences

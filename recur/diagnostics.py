"""Errors as a user reads them: where, what, and which change repairs it.

Every error of the language has a code in ``CODES``. A ``Diagnostic`` is one error; ``RecurError`` carries all of a
file's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recur.ir.spec import Recurrence, Span

# One line each: the documentation iterates this table, and a Diagnostic with another code is refused.
CODES: dict[str, str] = {
    # the file
    "R001": "the file cannot be read, or is not text in UTF-8",
    "R002": "a tab where the language wants spaces",
    "R003": "a character that the language does not have",
    "R004": "the file holds no recurrence, or not the one asked for",
    "R005": "a string or a number that is malformed",
    # syntax
    "R101": "a line that does not follow the grammar",
    "R102": "a missing colon",
    "R103": "a bracket that is not closed, or closes nothing",
    "R104": "indentation that fits no block, or a block that is missing",
    "R105": "an unknown declaration word",
    "R106": "a chained comparison",
    "R107": "a keyword or reserved word used as a name",
    "R108": "an operator that the language does not have",
    "R109": "a statement where it may not stand",
    # names
    "R201": "an unknown name",
    "R202": "an unknown function",
    "R203": "a name declared twice",
    "R204": "an assignment to something that may not be assigned",
    "R205": "a reserved name",
    "R206": "a local used before it is assigned",
    "R207": "an output read as a value",
    "R208": "an unknown dimension",
    "R209": "a name used as something that it is not",
    # dimensions
    "R301": "operands whose dimensions differ",
    "R302": "a product with nothing to contract",
    "R303": "an outer product that has no second name for a shared dimension",
    "R304": "a value whose dimensions do not fit its target",
    "R305": "a dimension that the operand does not have, or that must be named",
    "R306": "a rename that is not possible",
    "R307": "an index that does not fit",
    "R308": "a dimension that nothing binds",
    "R309": "a dimension listed twice",
    "R310": "dimensions of different sizes",
    "R311": "a size that does not suit the operation",
    # values
    "R401": "a complex value where a real one is needed",
    "R402": "a bad range",
    "R403": "an exponent that is not constant",
    "R404": "a comparison outside the condition of where, or a condition that is no comparison",
    "R405": "a wrong number of arguments",
    "R406": "an argument of the wrong kind",
    "R407": "a constant that has no finite real value",
    # the step as a whole
    "R501": "a state that is never updated",
    "R502": "no output",
    "R503": "no input",
    "R504": "a loop over something that has no fixed size",
    "R505": "prev of something that is not an input",
    # limits
    "R601": "an expression or a block nested too deeply",
    "R602": "a file, a number or a size beyond the limits",
    "R603": "a step that is too large once unrolled",
    # the Python decorator
    "R701": "the function's source is not available",
    "R702": "Python that the language does not have",
    "R703": "an argument without a usable annotation",
    "R704": "a return that does not list the states and the outputs",
    "R705": "a constant of the enclosing scope that is not a number",
    # strategies and backends
    "R801": "a strategy that does not apply",
    "R802": "an unknown strategy, backend or stage",
    "R803": "a step that a backend cannot hold",
}

MAX_SHOWN = 20
MAX_CANDIDATES = 500  # for a near miss
MAX_LINE = 160


@dataclass(frozen=True)
class Diagnostic:
    """One error: its place, its message, other places that matter, and a fix."""

    code: str
    message: str
    span: Span | None
    label: str = ""
    secondary: tuple[tuple[Span, str], ...] = ()
    help: str | None = None

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"no diagnostic has the code {self.code}")

    def render(self, filename: str, source: str) -> str:
        """The error as text: position and message, the source line underlined, the other places, the help."""
        line, column = (self.span.line, self.span.column) if self.span else (1, 1)
        place = f"{filename}:{line}:{column}"
        parts = [f"{printable(place)}: error[{self.code}]: {self.message}"]
        lines = source.split("\n")
        labelled = [(self.span, self.label, "^")] if self.span else []
        labelled += [(span, label, "-") for span, label in self.secondary]
        width = max((len(str(span.line)) for span, _, _ in labelled), default=1)
        for row in dict.fromkeys(span.line for span, _, _ in labelled):
            if 1 <= row <= len(lines) and source:
                marks = [(span, label, mark) for span, label, mark in labelled if span.line == row]
                parts += _underline(row, marks, lines[row - 1], width)
        if self.help:
            parts.append(f"help: {self.help}")
        return "\n".join(parts)


class RecurError(Exception):
    """Every error of one recurrence or file. ``str()`` renders them all, in the order of the source.

    ``diagnostics`` holds them; ``filename`` and ``source`` are what their spans point into.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic], filename: str = "<string>", source: str = "") -> None:
        unique = list(dict.fromkeys(diagnostics))
        self.diagnostics: tuple[Diagnostic, ...] = tuple(sorted(unique, key=_position))
        self.filename = filename
        self.source = source
        super().__init__(self.diagnostics, filename, source)

    @classmethod
    def of(cls, recurrence: Recurrence, *diagnostics: Diagnostic) -> RecurError:
        """An error about ``recurrence``, whose file the spans point into."""
        return cls(diagnostics, recurrence.filename, recurrence.source)

    def __str__(self) -> str:
        shown = [d.render(self.filename, self.source) for d in self.diagnostics[:MAX_SHOWN]]
        hidden = len(self.diagnostics) - len(shown)
        if hidden:
            shown.append(f"{printable(self.filename)}: {hidden} more errors")
        return "\n\n".join(shown)

    def __reduce__(self) -> tuple[type[RecurError], tuple[tuple[Diagnostic, ...], str, str]]:
        return type(self), (self.diagnostics, self.filename, self.source)


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to ``name``, or None where none is near."""
    pool = list(dict.fromkeys(candidates))[:MAX_CANDIDATES]
    folded = {c.lower(): c for c in reversed(pool)}
    if name.lower() in folded and folded[name.lower()] != name:
        return folded[name.lower()]
    near = difflib.get_close_matches(name, pool, n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(name: str, candidates: Iterable[str], otherwise: str | None = None) -> str | None:
    """The help line for an unknown ``name``."""
    near = suggest(name, candidates)
    return f"did you mean `{near}`?" if near else otherwise


def listing(names: Sequence[str], last: str = "or") -> str:
    """Names in backquotes as a phrase: `a`, `b` or `c`."""
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}" if quoted else ""


def show_dims(dims: Sequence[str]) -> str:
    """Dimensions as a message shows them: ``[K, V]``, or words where there are none."""
    return f"[{', '.join(dims)}]" if dims else "no dimensions"


def printable(text: str) -> str:
    """The text, one column for each character, with control characters and lone surrogates replaced."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "\ufffd" for c in text)


def _position(diagnostic: Diagnostic) -> tuple[int, int, str]:
    span = diagnostic.span
    return (span.line, span.column, diagnostic.code) if span else (0, 0, diagnostic.code)


def _underline(row: int, marks: list[tuple[Span, str, str]], line: str, width: int) -> list[str]:
    """A source line, and under it a row for each marked range; a range over several lines is cut to its first."""
    line = printable(line.rstrip("\r"))
    shift = 0
    if len(line) > MAX_LINE:
        shift = max(0, min(marks[0][0].column - 1, len(line)) - MAX_LINE // 4)
        line = line[shift : shift + MAX_LINE]
    shown = [f" {str(row).rjust(width)} | {line}".rstrip()]
    for span, label, mark in marks:
        start = min(max(span.column - 1 - shift, 0), len(line))
        end = len(line) if span.end_line > span.line else min(span.end_column - 1 - shift, len(line))
        underline = mark * max(end - start, 1)
        shown.append(f" {' ' * width} | {' ' * start}{underline} {label}".rstrip())
    return shown

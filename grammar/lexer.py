"""Splits a file into logical lines of tokens, and says what is wrong with its characters.

The terminals are the grammar's. A logical line ends where a line ends outside of brackets; comments and blank lines
vanish. A line with a character that does not belong is kept, marked as broken, so that its names count as known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lark import Token
from lark.lexer import PatternStr, TerminalDef

from recur.diagnostics import Diagnostic
from recur.ir.spec import Span

MAX_BRACKETS = 100
MAX_NAME = 100
TAB_WIDTH = 4

_OPENING = {"LPAR": ")", "LSQB": "]"}
_CLOSING = ("RPAR", "RSQB")
_WORD = re.compile(r"[^\W\d]\w*")
_BLANK = re.compile(r"[ \t]*")
_RUN = re.compile(r"(.)\1*", re.DOTALL)
# What can only begin a statement: an open bracket before it was never closed.
_STATEMENT = re.compile(
    r"[ \t]*(?:(?:recurrence|dim|input|param|state|output|for)\b|[A-Za-z_]\w*[ ]*(?:\[[\w, ]*\])?[ ]*=(?!=))"
)

_INSTEAD = {
    "^": "the power is written `**`",
    "%": "the language has no remainder",
    "&": "write `where(a, where(b, x, y), y)` for a condition on both",
    "|": "the language has no `or`; nest `where`",
    "~": "write `1 - x`, or exchange the values of `where`",
    "!": "the comparison is written `!=`",
    ";": "write one statement a line",
    "{": "brackets are `(` and `[`",
    "}": "brackets are `)` and `]`",
    ".": "there are no attributes: dimensions have names, so no transpose is needed",
    "\\": "a line continues inside brackets",
    "\u2212": "write the ASCII minus `-`",
    "\u2013": "write the ASCII minus `-`",
    "\u2014": "write the ASCII minus `-`",
    "\u00d7": "write `*`",
    "\u00b7": "write `*`, or `@` for a contraction",
    "\u2297": "write `outer(x, y)`",
    "\u2265": "write `>=`",
    "\u2264": "write `<=`",
    "\u2260": "write `!=`",
    "\u221e": "write `inf`",
    "\u2190": "write `=`",
    "\u00a0": "write an ordinary space",
    "\u201c": 'write the straight quote `"`',
    "\u201d": 'write the straight quote `"`',
}


@dataclass
class Line:
    """A logical line: its indentation in spaces and its tokens; broken where an error in it is reported already."""

    indent: int
    tokens: list[Token] = field(default_factory=list)
    broken: bool = False

    @property
    def span(self) -> Span:
        return token_span(self.tokens[0], self.tokens[-1])


def token_span(first: Token, last: Token | None = None) -> Span:
    last = last or first
    return Span(first.line or 1, first.column or 1, last.end_line or 1, last.end_column or 1)


class Lexer:
    """Recognises the grammar's terminals; one Lexer serves every file."""

    def __init__(self, terminals: Sequence[TerminalDef]) -> None:
        words = [t for t in terminals if isinstance(t.pattern, PatternStr) and t.pattern.value.isidentifier()]
        self.keywords = {str(t.pattern.value): t.name for t in words}
        others = [t for t in terminals if t not in words and t.name != "NAME"]
        others.sort(key=lambda t: (t.name != "STRING", -len(t.pattern.value)))
        self._symbols = re.compile("|".join(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in others))

    def split(self, text: str) -> tuple[list[Line], list[Diagnostic]]:
        """The logical lines of ``text`` and the errors in its characters."""
        scan = _Scan(text, self.keywords, self._symbols)
        scan.run()
        return scan.lines, scan.diagnostics


class _Scan:
    """One pass over one text."""

    def __init__(self, text: str, keywords: dict[str, str], symbols: re.Pattern[str]) -> None:
        self.text, self.keywords, self.symbols = text, keywords, symbols
        self.position, self.row, self.row_start = 0, 1, 0
        self.lines: list[Line] = []
        self.diagnostics: list[Diagnostic] = []
        self.line: Line | None = None
        self.brackets: list[Token] = []

    def run(self) -> None:
        while self.position < len(self.text):
            character = self.text[self.position]
            if self.line is None and not self.brackets and self.position == self.row_start:
                self._indent()
            elif character == "\n":
                self._end_of_row()
            elif character == " ":
                self.position += 1
            elif character == "#":
                self.position = self._row_end()
            else:
                self._token(character)
        self._end_of_line()

    # --- rows and lines ----------------------------------------------------------------------------------------------

    def _indent(self) -> None:
        """The white space that a row begins with; a row with nothing else begins no line."""
        start = self.position
        match = _BLANK.match(self.text, start)
        assert match is not None
        self.position = match.end()
        if self.position < len(self.text) and self.text[self.position] not in "\n#":
            self.line = Line(len(match.group().expandtabs(TAB_WIDTH)))
            if "\t" in match.group():
                self._report("R002", "a tab in the indentation", start, self.position, help="indent with spaces")
                self.line.broken = False  # the rest of the line can be read
        else:
            self.position = self._row_end()
            self._end_of_row()

    def _row_end(self) -> int:
        end = self.text.find("\n", self.position)
        return len(self.text) if end < 0 else end

    def _end_of_row(self) -> None:
        self.position += 1
        self.row, self.row_start = self.row + 1, self.position
        if not self.brackets or _STATEMENT.match(self.text, self.position):
            self._end_of_line()

    def _end_of_line(self) -> None:
        if self.brackets and self.line:
            bracket = self.brackets[-1]
            self.line.broken = True
            wanted = _OPENING[bracket.type]
            self.diagnostics.append(
                Diagnostic("R103", f"`{bracket}` is never closed", token_span(bracket), help=f"add `{wanted}`")
            )
        self.brackets.clear()
        if self.line and self.line.tokens:
            self.lines.append(self.line)
        self.line = None

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _token(self, character: str) -> None:
        assert self.line is not None
        word = _WORD.match(self.text, self.position)
        if word and word.group().isascii() and len(word.group()) <= MAX_NAME:
            self._add(self.keywords.get(word.group(), "NAME"), word)
        elif word and word.group().isascii():
            message = f"a name of {len(word.group())} characters"
            self._stray(word.end(), message, f"names have at most {MAX_NAME}", "R602")
        elif word:
            self._stray(word.end(), f"`{word.group()}` is not a name: names are ASCII", "write it in ASCII letters")
        elif self._unclosed_block():
            self._report("R005", "the string is never closed", self.position, self.position + 3, help="close it")
            self.position = len(self.text)
        elif symbol := self.symbols.match(self.text, self.position):
            assert symbol.lastgroup is not None
            self._add(symbol.lastgroup, symbol)
        elif character in "\"'":
            end = self._row_end()
            self._report("R005", "the string is never closed", self.position, end, help=f"add {character}")
            self.position = end
        else:
            self._stray_character(character)

    def _unclosed_block(self) -> bool:
        """Whether a triple quote opens here that nothing closes."""
        quotes = self.text[self.position : self.position + 3]
        return quotes in ('"""', "'''") and self.text.find(quotes, self.position + 3) < 0

    def _add(self, kind: str, match: re.Match[str]) -> None:
        assert self.line is not None
        start, end = match.span()
        row, column = self.row, start - self.row_start + 1
        newlines = match.group().count("\n")
        if newlines:
            self.row += newlines
            self.row_start = match.string.rfind("\n", start, end) + 1
        token = Token(kind, match.group(), start, row, column, self.row, end - self.row_start + 1, end)
        self.position = end
        self._match_bracket(token)
        if len(self.brackets) <= MAX_BRACKETS:
            self.line.tokens.append(token)

    def _match_bracket(self, token: Token) -> None:
        assert self.line is not None
        if token.type in _OPENING:
            self.brackets.append(token)
            if len(self.brackets) == MAX_BRACKETS + 1:
                start, message = token.start_pos or 0, f"more than {MAX_BRACKETS} brackets inside one another"
                self._report("R601", message, start, start + 1, help="give the inner expression a name of its own")
        elif token.type in _CLOSING and self.brackets:
            # a range may close with the other bracket, `(-inf, 0]`: the parser looks at the pairs
            self.brackets.pop()
        elif token.type in _CLOSING and not self.line.broken:
            start = token.start_pos or 0
            self._report("R103", f"`{token}` closes nothing", start, start + 1, help="remove it")

    # --- mistakes ----------------------------------------------------------------------------------------------------

    def _stray_character(self, character: str) -> None:
        run = _RUN.match(self.text, self.position)
        assert run is not None
        if character == "\t":
            before = self.line.broken if self.line else True
            self._report("R002", "a tab between the words of a line", *run.span(), help="write a space")
            self.position = run.end()
            if self.line:
                self.line.broken = before
            return
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        code = "R108" if character in "^%&|~" else "R003"
        message = f"the language has no operator `{shown}`" if code == "R108" else f"stray character `{shown}`"
        self._stray(run.end(), message, _INSTEAD.get(character, "remove it"), code)

    def _stray(self, end: int, message: str, help: str, code: str = "R003") -> None:
        self._report(code, message, self.position, end, help)
        self.position = end

    def _report(self, code: str, message: str, start: int, end: int, help: str) -> None:
        """An error in the current row, the first of its line; the line is broken by it."""
        if self.line is None:
            return
        if not self.line.broken:
            span = Span(self.row, start - self.row_start + 1, self.row, end - self.row_start + 1)
            self.diagnostics.append(Diagnostic(code, message, span, help=help))
        self.line.broken = True

"""Known mistakes: what a user who wrote a line that does not parse most likely meant.

Each function recognises one kind, given the line's tokens, the position of the token that does not fit (or of the
line's end) and the terminals that would have fitted there.
"""

from __future__ import annotations

import keyword
from collections.abc import Collection, Sequence

from lark import Token

from recur.diagnostics import Diagnostic, did_you_mean, suggest
from recur.grammar.lexer import Line, token_span
from recur.ir.spec import Span

DECLARATIONS = ("recurrence", "dim", "input", "param", "state", "output", "for")
VARIABLES = ("INPUT", "PARAM", "STATE")
OPERATORS = ("PLUS", "MINUS", "STAR", "SLASH", "AT", "POW", "COMPARISON")
VALUES = ("NAME", "NUMBER", "STRING", "LPAR", "COMPLEX")

_SPELLED = {
    "RPAR": "`)`", "LPAR": "`(`", "RSQB": "`]`", "LSQB": "`[`", "COMMA": "`,`", "COLON": "`:`", "EQUAL": "`=`",
    "NAME": "a name", "NUMBER": "a number", "IN": "`in`",
}  # fmt: skip

_INSTEAD_OF_KEYWORD = {
    "if": "choose with `where(condition, a, b)`",
    "elif": "choose with `where(condition, a, b)`",
    "else": "choose with `where(condition, a, b)`",
    "while": "a loop runs over a dim of fixed size: `for j in range(n):`",
    "and": "nest `where` for two conditions",
    "or": "nest `where` for two conditions",
    "not": "exchange the values of `where`",
    "lambda": "give the expression a name of its own",
    "return": "write `output name = expression`",
    "def": "a text recurrence begins with `recurrence name:`",
    "import": "a recurrence stands alone: it imports nothing",
    "from": "a recurrence stands alone: it imports nothing",
}


def explain(line: Line, at: int, expected: Collection[str]) -> Diagnostic:
    """The error of a line whose token number ``at`` (len(tokens): its end) is none of the ``expected`` terminals."""
    tokens = line.tokens
    for recognise in (_reserved, _end_of_line, _block, _brackets_of_declaration, _declaration, _statement,
                      _augmented, _operator, _range, _in_call, _bracket, _string):  # fmt: skip
        found = recognise(tokens, at, expected)
        if found:
            return found
    wanted = [_SPELLED[t] for t in _SPELLED if t in expected]
    help = f"expected {' or '.join(wanted[:3])} here" if wanted else None
    if at == len(tokens):
        return Diagnostic("R101", "the line ends too early", after(tokens[-1]), help=help)
    return _error("R101", f"unexpected `{_short(tokens[at])}`", tokens[at], help=help)


def python_keyword(line: Line) -> Diagnostic | None:
    """The first keyword of Python in the line that the language does not have: never a name."""
    for token in line.tokens:
        if token.type == "NAME" and keyword.iskeyword(token):
            help = _INSTEAD_OF_KEYWORD.get(str(token), "choose another name")
            return _error("R107", f"`{token}` is a keyword of Python: the language does not use it", token, help=help)
    return None


def first_word(line: Line) -> Diagnostic | None:
    """An unknown declaration word at the start of a line: ``inptu x[K]``."""
    tokens = line.tokens
    if len(tokens) < 2 or tokens[0].type != "NAME" or tokens[1].type != "NAME":
        return None
    help = did_you_mean(str(tokens[0]), DECLARATIONS, "declarations begin with dim, input, param, state or output")
    return _error("R105", f"unknown declaration word `{tokens[0]}`", tokens[0], help=help)


def intended_word(line: Line) -> str | None:
    """The declaration word that an unknown first word stands for."""
    return suggest(str(line.tokens[0]), DECLARATIONS)


def after(token: Token) -> Span:
    """The place just after a token."""
    span = token_span(token)
    return Span(span.end_line, span.end_column, span.end_line, span.end_column + 1)


# --- one function for each kind of mistake ---------------------------------------------------------------------------


def _reserved(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    """A word of the language where a name is wanted, or assigned as if it were one."""
    if at < len(tokens) and "NAME" in expected and tokens[at] in (*DECLARATIONS, "complex", "in"):
        word = tokens[at]
    elif len(tokens) > 1 and tokens[1].type == "EQUAL" and tokens[0] in (*DECLARATIONS, "complex", "in"):
        word = tokens[0]
    else:
        return None
    return _error("R107", f"`{word}` is a reserved word, and no name", word, help="choose another name")


def _end_of_line(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if at < len(tokens):
        return None
    if "COLON" in expected:
        return Diagnostic("R102", "the colon is missing", after(tokens[-1]), help="end the line with `:`")
    if tokens[-1].type in (*OPERATORS, "EQUAL"):
        span = after(tokens[-1])
        return Diagnostic("R101", f"`{tokens[-1]}` has no right side", span, help="a line continues inside brackets")
    return None


def _block(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    """A header that does not look like one."""
    if tokens[0].type not in ("RECURRENCE", "FOR") or not 0 < at < len(tokens):
        return None
    if tokens[at - 1].type == "COLON":
        return _error("R104", "the body begins on the header's line", tokens[at], help="put it on the next, indented")
    if tokens[at].type == "NUMBER":
        help = f"declare `dim n = {_short(tokens[at])}` and write `range(n)`"
        return _error("R504", "a loop runs over a dim of fixed size, not over a number", tokens[at], help=help)
    if tokens[0].type == "RECURRENCE" and tokens[at].type == "LPAR":
        return _error("R101", "a recurrence takes no arguments", tokens[at], help="declare them with `input` lines")
    return None


def _brackets_of_declaration(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if not 0 < at < len(tokens) or tokens[at - 1].type != "LSQB" or "NAME" not in expected:
        return None
    if tokens[at].type == "RSQB":
        help = "leave them out: a name without brackets is a number"
        return _error("R101", "empty brackets", tokens[at - 1], tokens[at], help=help)
    if tokens[at].type == "NUMBER" and tokens[0].type in (*VARIABLES, "OUTPUT"):
        help = f"declare `dim n = {_short(tokens[at])}` and write `n`"
        return _error("R101", "a dimension is a name", tokens[at], help=help)
    if tokens[at].type == "NUMBER" and at == 2:
        help = "assign the whole value; the brackets of a target name its dimensions"
        return _error("R204", "a single entry cannot be assigned", tokens[0], tokens[at], help=help)
    return None


def _declaration(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if tokens[0].type not in ("DIM", *VARIABLES) or not 0 < at < len(tokens):
        return None
    if tokens[at].type == "NAME" and tokens[at - 1].type in ("NAME", "RSQB", "NUMBER", "COMPLEX"):
        message = f"a comma is missing before `{tokens[at]}`"
        return _error("R101", message, tokens[at], help="the names of one line are separated by commas")
    if tokens[0].type == "DIM" and tokens[at].type == "MINUS":
        return _error("R602", "a size is at least 1", tokens[at], help="write a positive whole number")
    if tokens[0].type == "DIM" and tokens[at].type == "LSQB":
        return _error("R101", "a dim has no dimensions", tokens[at], help="write `dim K, V`")
    if tokens[at].type == "EQUAL":
        help = "declare it, and assign it in a line of its own"
        return _error("R101", "a declaration assigns nothing", tokens[at], help=help)
    return None


def _statement(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if at < len(tokens) and tokens[at] == "==" and "EQUAL" in expected:
        return _error("R101", "an assignment is written with one `=`", tokens[at], help="write `=`")
    if tokens[0].type not in ("NAME", "COMPLEX") or any(t.type in ("EQUAL", "COMPARISON") for t in tokens):
        if at < len(tokens) and tokens[at].type == "EQUAL" and not _depth(tokens, at) and "EQUAL" not in expected:
            return _error("R101", "one line assigns one name", tokens[at], help="a comparison is written `==`")
        return None
    help = "every line assigns: `name = expression` or `output name = expression`"
    return _error("R101", "the line is not a statement", tokens[0], tokens[-1], help=help)


def _augmented(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    """``S += x``: its sign is one operator, followed by ``=``."""
    start = at if "EQUAL" in expected else at - 1
    if not 0 < start < len(tokens) - 1 or tokens[start].type not in OPERATORS or tokens[start + 1].type != "EQUAL":
        return None
    name, sign = tokens[0], tokens[start]
    message = f"the language has no operator `{sign}=`"
    return _error("R108", message, sign, tokens[start + 1], help=f"write `{name} = {name} {sign} ...`")


def _operator(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if not 0 < at < len(tokens):
        return None
    if tokens[at].type == "SLASH" and tokens[at - 1].type == "SLASH":
        return _error("R108", "the language has no operator `//`", tokens[at - 1], tokens[at], help="write `/`")
    if "SLASH" in expected and tokens[at].type in VALUES and tokens[at].type != "STRING":
        message = f"an operator is missing before `{_short(tokens[at])}`"
        return _error("R101", message, tokens[at], help="write `*`, `@` or a comma")
    if tokens[at].type in OPERATORS and tokens[at - 1].type in OPERATORS:
        return _error("R101", f"`{tokens[at - 1]}` has no right side", tokens[at], help="remove one of the two signs")
    return None


def _range(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    opened = [i for i, t in enumerate(tokens[:at]) if t.type == "IN"]
    if tokens[0].type not in (VARIABLES if opened else ("LPAR", "LSQB")):
        return None
    if any(t.type in ("RPAR", "RSQB") for t in tokens[opened[-1] if opened else 0 : at]):
        return None
    span = after(tokens[-1]) if at == len(tokens) else token_span(tokens[at])
    return Diagnostic("R402", "this is no range", span, help="a range is written like `(-inf, 0]` or `[0, 1)`")


def _in_call(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if at == len(tokens) or not _depth(tokens, at):
        return None
    if tokens[at].type == "EQUAL":
        return _error("R101", "arguments have no names", tokens[at - 1], tokens[at], help="write the value alone")
    if tokens[at].type == "COLON":
        return _error("R108", "the language has no slices", tokens[at], help="an index picks one entry: `x[j]`")
    if tokens[at].type == "COMMA" and "RSQB" in expected:
        return _error("R101", "an index is one number", tokens[at], help="write `x[i][j]`")
    return None


def _bracket(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if at == len(tokens) or tokens[at].type not in ("RPAR", "RSQB") or not {"RPAR", "RSQB"} & set(expected):
        return None
    wanted = ")" if "RPAR" in expected else "]"
    return _error("R103", f"`{tokens[at]}` does not close the open bracket", tokens[at], help=f"write `{wanted}`")


def _string(tokens: Sequence[Token], at: int, expected: Collection[str]) -> Diagnostic | None:
    if at == len(tokens) or tokens[at].type != "STRING":
        return None
    help = "only the line under the header is a string; comments begin with `#`"
    return _error("R109", "a string stands where none may stand", tokens[at], help=help)


def _error(code: str, message: str, first: Token, last: Token | None = None, help: str | None = None) -> Diagnostic:
    return Diagnostic(code, message, token_span(first, last), help=help)


def _depth(tokens: Sequence[Token], at: int) -> int:
    opened = sum(t.type in ("LPAR", "LSQB") for t in tokens[:at])
    return opened - sum(t.type in ("RPAR", "RSQB") for t in tokens[:at])


def _short(token: Token) -> str:
    text = token.split("\n")[0]
    return text if len(text) <= 30 else text[:30] + "..."

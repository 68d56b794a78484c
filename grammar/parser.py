"""Text to Recurrence: lines to nodes by the grammar, nodes to blocks by their indentation, mistakes to diagnostics."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from lark import Lark, Token, UnexpectedInput

from recur.diagnostics import Diagnostic, RecurError
from recur.grammar.builder import Builder, Docstring, Header, Loop, Mistake
from recur.grammar.lexer import Lexer, Line, token_span
from recur.grammar.mistakes import explain, first_word, intended_word, python_keyword
from recur.ir.spec import (
    MAX_CHARACTERS,
    Assign,
    Binary,
    Call,
    Dim,
    Expr,
    For,
    Index,
    Output,
    Range,
    Recurrence,
    Span,
    Statement,
    Unary,
    Variable,
    order_variables,
)

MAX_DEPTH = 128  # of an expression's tree: everything downstream may recurse over expressions
MAX_ERRORS = 200  # of a file's lines: there the parser stops
MAX_LOOPS = 8  # of loops inside one another

_RULES = {
    "RECURRENCE": "header", "STRING": "docstring", "DIM": "dims", "INPUT": "variables", "PARAM": "variables",
    "STATE": "variables", "OUTPUT": "output", "FOR": "loop",
}  # fmt: skip


@dataclass
class Parsed:
    """A file's recurrences and errors. ``tainted``, for each recurrence, are the names in lines left out."""

    recurrences: list[Recurrence] = field(default_factory=list)
    tainted: list[frozenset[str]] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def parse(text: str | bytes, filename: str = "<string>") -> list[Recurrence]:
    """Every recurrence of a file; raises RecurError with all of its errors of syntax. Runs nothing."""
    parsed = parse_partial(text, filename)
    if parsed.diagnostics:
        raise RecurError(parsed.diagnostics, filename, decode(text, filename))
    return parsed.recurrences


def parse_partial(text: str | bytes, filename: str = "<string>") -> Parsed:
    """What can be parsed of a file, lines with errors left out, and the errors."""
    text = decode(text, filename)
    lines, diagnostics = lexer().split(text)
    blocks = _Blocks(text, filename, diagnostics)
    most = len(diagnostics) + MAX_ERRORS
    for line in lines:
        if len(diagnostics) > most:
            break
        blocks.add(line)
    return blocks.finish()


def parse_range(text: str) -> Range:
    """A range such as ``(-inf, 0]``; raises Mistake, its span counted within ``text``, where it is none."""
    lines, diagnostics = lexer().split(text)
    try:
        if not diagnostics and len(lines) == 1 and "\n" not in text:
            return _parse_tokens(lines[0], "range")
    except Mistake as mistake:
        if mistake.diagnostic.code == "R402":
            raise
    span = Span(1, 1, 1, len(text) + 1)
    raise Mistake(Diagnostic("R402", "this is no range", span, help="a range is written like `(-inf, 0]`"))


def decode(text: str | bytes, filename: str) -> str:
    """The file as text with ``\\n`` line ends; raises RecurError where it is not text, or too much of it."""
    if isinstance(text, bytes):
        text = _decode_bytes(text, filename)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > MAX_CHARACTERS:
        message = f"the file has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        error = Diagnostic("R602", message, Span(1, 1, 1, 2), help="split the file")
        raise RecurError([error], filename, text[:200])
    if "\0" in text:
        raise _unreadable(filename, text[: text.index("\0")], "the file holds a NUL character: it is not text")
    return text


def _decode_bytes(content: bytes, filename: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", errors="replace")
        raise _unreadable(filename, before, "the file is not text in UTF-8") from None


def _unreadable(filename: str, before: str, message: str) -> RecurError:
    row, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    span, help = Span(row, column, row, column + 1), "a recurrence is a text file, in UTF-8 or ASCII"
    return RecurError([Diagnostic("R001", message, span, help=help)], filename, before)


@functools.cache
def grammar() -> Lark:
    source = files("recur.grammar").joinpath("recur.lark").read_text(encoding="utf-8")
    starts = ["header", "docstring", "dims", "variables", "assign", "output", "loop", "range"]
    return Lark(source, parser="lalr", lexer="basic", start=starts, transformer=Builder(), maybe_placeholders=True)


@functools.cache
def lexer() -> Lexer:
    return Lexer(tuple(grammar().terminals))


def parse_line(line: Line) -> Any:
    """The nodes of one logical line; raises Mistake."""
    keyword = python_keyword(line) or first_word(line)
    if keyword:
        raise Mistake(keyword)
    nodes = _parse_tokens(line, _RULES.get(line.tokens[0].type, "assign"))
    if isinstance(nodes, (Assign, Output)):
        deep = find_deep(nodes.value)
        if deep:
            raise Mistake(deep)
    return nodes


def _parse_tokens(line: Line, rule: str) -> Any:
    parser = grammar().parse_interactive(start=rule)
    fed = 0
    try:
        for token in line.tokens:
            parser.feed_token(token)
            fed += 1
        return parser.feed_eof(line.tokens[-1])
    except UnexpectedInput as error:
        raise Mistake(explain(line, fed, getattr(error, "expected", ()))) from None


def find_deep(expression: Expr) -> Diagnostic | None:
    """An error where the tree of ``expression`` is deeper than MAX_DEPTH; itself without recursion."""
    stack = [(expression, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            message = f"the expression nests {MAX_DEPTH} operations deep or more"
            return Diagnostic("R601", message, expression.span, help="give its parts names of their own")
        stack += [(child, depth + 1) for child in children(node)]
    return None


def children(node: Expr) -> tuple[Expr, ...]:
    if isinstance(node, Unary):
        return (node.operand,)
    if isinstance(node, Binary):
        return (node.left, node.right)
    if isinstance(node, Call):
        return node.args
    if isinstance(node, Index):
        return (node.base, node.index)
    return ()


@dataclass
class _Open:
    """A block whose lines are being read: a recurrence's body (loop is None) or a loop's."""

    header_indent: int
    loop: Loop | None
    indent: int | None = None
    body: list[Statement] = field(default_factory=list)


class _Blocks:
    """Collects the lines of a file into recurrences."""

    def __init__(self, text: str, filename: str, diagnostics: list[Diagnostic]) -> None:
        self.text, self.filename = text, filename
        self.parsed = Parsed(diagnostics=diagnostics)
        self.header: Header | None = None
        self.stack: list[_Open] = []
        self.is_first = False

    def add(self, line: Line) -> None:
        first = line.tokens[0]
        word = intended_word(line) if first.type == "NAME" and line.indent == 0 else None
        if first.type == "RECURRENCE" or (word == "recurrence" and line.tokens[-1].type == "COLON"):
            self._begin(line)
        elif not self.stack:
            if not line.broken and not self._reported_outside():
                help = "begin with `recurrence name:`, and indent what belongs to it"
                self._report("R109", "this line is in no recurrence", line.span, help)
        else:
            self._place(line)
            self._content(line)
            self.is_first = False

    def finish(self) -> Parsed:
        self._end()
        if not self.parsed.recurrences and not self.parsed.diagnostics:
            help = "a recurrence begins with `recurrence name:`"
            self._report("R004", "the file holds no recurrence", Span(1, 1, 1, 2), help)
        return self.parsed

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _begin(self, line: Line) -> None:
        self._end()
        self.is_first, self.too_deep = True, False
        self.tainted: set[str] = set()
        self.doc: str | None = None
        self.dims: list[Dim] = []
        self.variables: list[Variable] = []
        self.stack = [_Open(line.indent, None)]
        if line.indent and not line.broken:
            self._report("R104", "a recurrence begins at the start of a line", line.span, "remove the indentation")
        header = self._parse(line)
        if isinstance(header, Header):
            self.header = header
        else:
            names = [t for t in line.tokens[1:] if t.type == "NAME"] or line.tokens[:1]
            self.header = Header(names[0], line.span)

    def _end(self) -> None:
        """Closes the recurrence that is open."""
        if not self.stack:
            return
        assert self.header is not None
        while len(self.stack) > 1:
            self._close_loop()
        name, body = self.header.name, tuple(self.stack.pop().body)
        if self.is_first and not self.parsed.diagnostics:
            self._report("R104", f"`{name}` has no body", self.header.span, "indent its lines under the header")
        if any(r.name == name for r in self.parsed.recurrences):
            self._report("R203", f"the file has two recurrences named `{name}`", token_span(name), "rename one")
        self.parsed.tainted.append(frozenset(self.tainted))
        self.parsed.recurrences.append(
            Recurrence(
                str(name),
                self.doc,
                tuple(self.dims),
                order_variables(self.variables),
                body,
                token_span(name),
                self.filename,
                self.text,
            )
        )

    def _place(self, line: Line) -> None:
        """Closes the blocks that the line's indentation ends."""
        top = self.stack[-1]
        if top.indent is None:
            if line.indent > top.header_indent:
                top.indent = line.indent
                return
            self._missing_block(top, line)
        while len(self.stack) > 1 and line.indent < (self.stack[-1].indent or 0):
            self._close_loop()
        indent = self.stack[-1].indent
        if indent is None:
            self.stack[-1].indent = line.indent
        elif line.indent != indent and not line.broken and not self.too_deep:
            help = f"the block's lines begin after {indent} spaces"
            self._report("R104", "the indentation fits no block", line.span, help)

    def _missing_block(self, top: _Open, line: Line) -> None:
        if not line.broken:
            what = "the loop's body" if top.loop else "the recurrence's body"
            self._report("R104", f"{what} is not indented", line.span, "indent it under the header")
        if top.loop:
            top.indent = line.indent + 1

    def _close_loop(self) -> None:
        block = self.stack.pop()
        assert block.loop is not None
        loop = block.loop
        if not block.body and block.indent is None:
            self._report("R104", "the loop has no body", loop.span, "indent its lines under it")
        spans = {"span": loop.span, "variable_span": token_span(loop.variable), "dim_span": token_span(loop.dim)}
        self.stack[-1].body.append(For(str(loop.variable), str(loop.dim), tuple(block.body), **spans))

    # --- lines -------------------------------------------------------------------------------------------------------

    def _content(self, line: Line) -> None:
        nodes = self._parse(line)
        block = self.stack[-1]
        if isinstance(nodes, Docstring):
            if self.is_first:
                self.doc = nodes.text
            else:
                self._report("R109", "a string stands only under the header", nodes.span, "comments begin with `#`")
        elif isinstance(nodes, (Assign, Output)):
            block.body.append(nodes)
        elif isinstance(nodes, Loop):
            if len(self.stack) <= MAX_LOOPS:
                self.stack.append(_Open(line.indent, nodes))
            elif not self.too_deep:
                self.too_deep = True
                self._report("R601", f"more than {MAX_LOOPS} loops inside one another", nodes.span, "split the step")
        elif isinstance(nodes, list):
            if block.loop:
                self._report("R109", "a declaration in a loop", line.span, "declare it before the statements")
            for node in nodes:
                (self.dims if isinstance(node, Dim) else self.variables).append(node)

    def _parse(self, line: Line) -> Any:
        """The line's nodes, or None where it has an error; then its names are tainted, and it still opens its block."""
        try:
            if not line.broken:
                return parse_line(line)
        except Mistake as mistake:
            self.parsed.diagnostics.append(mistake.diagnostic)
        self.tainted.update(str(t) for t in line.tokens if t.type == "NAME")
        return self._recover_loop(line.tokens)

    def _recover_loop(self, tokens: list[Token]) -> Loop | None:
        names = [t for t in tokens[1:] if t.type == "NAME" and t != "range"]
        if tokens[0].type != "FOR" or not names or any(t.type == "COLON" for t in tokens[:-1]):
            return None
        return Loop(names[0], names[-1], token_span(tokens[0], tokens[-1]))

    def _report(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.parsed.diagnostics.append(Diagnostic(code, message, span, help=help))

    def _reported_outside(self) -> bool:
        return any(d.code == "R109" for d in self.parsed.diagnostics)

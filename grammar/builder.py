"""Turns one parsed line into syntax-tree nodes: one method for each rule of the grammar that builds something."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from lark import Token, Transformer, v_args

from recur.diagnostics import Diagnostic
from recur.grammar.lexer import token_span
from recur.ir.spec import (
    Assign,
    Binary,
    Call,
    Dim,
    Expr,
    Index,
    Name,
    Number,
    Output,
    Range,
    Span,
    Unary,
    Variable,
)

MAX_DIGITS = 400  # of a whole number that is finite
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|\n|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "\n": ""}


class Mistake(Exception):
    """A line that the grammar accepts and the language does not."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic


@dataclass(frozen=True)
class Header:
    """``recurrence name:``"""

    name: Token
    span: Span


@dataclass(frozen=True)
class Docstring:
    text: str
    span: Span


@dataclass(frozen=True)
class Loop:
    """``for variable in range(dim):`` without its body."""

    variable: Token
    dim: Token
    span: Span


@dataclass(frozen=True)
class Axes:
    names: tuple[Token, ...]
    end: Token

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(str(n) for n in self.names)


def join(first: Span | None, last: Span | None) -> Span:
    """The range from the start of one to the end of the other."""
    assert first is not None and last is not None
    return Span(first.line, first.column, last.end_line, last.end_column)


def read_number(token: Token) -> int | float:
    """The value of a NUMBER; raises Mistake where it has none that is finite."""
    try:
        value = float(token)
    except ValueError:
        message = f"`{token:.40}` is not a number"
        raise Mistake(Diagnostic("R005", message, token_span(token), help="write it like `1000` or `1e-6`")) from None
    if math.isinf(value):
        message = f"the number `{token:.40}` is too large"
        raise Mistake(Diagnostic("R602", message, token_span(token), help="numbers go up to about 1.8e308"))
    return int(token) if token.isdigit() and len(token) <= MAX_DIGITS else value


def read_string(literal: str) -> str:
    """The text of a string literal; of a triple-quoted one without its indentation, as Python shows docstrings."""
    if literal[:3] in ('"""', "'''"):
        return inspect.cleandoc(_ESCAPE.sub(_unescape, literal[3:-3]))
    return _ESCAPE.sub(_unescape, literal[1:-1])


def _unescape(match: re.Match[str]) -> str:
    escaped = match.group(1)
    if len(escaped) == 5:
        return chr(int(escaped[1:], 16))
    if escaped in _ESCAPES:
        return _ESCAPES[escaped]
    return escaped if escaped in "\\\"'" else match.group()


@v_args(inline=True)
class Builder(Transformer[Token, Any]):
    """The callbacks of the LALR parser; absent optional parts arrive as None."""

    # --- lines -------------------------------------------------------------------------------------------------------

    def header(self, keyword: Token, name: Token) -> Header:
        return Header(name, token_span(keyword, name))

    def docstring(self, literal: Token) -> Docstring:
        return Docstring(read_string(literal), token_span(literal))

    def dims(self, keyword: Token, *dims: Dim) -> list[Dim]:
        return list(dims)

    def plain_dim(self, name: Token) -> Dim:
        return Dim(str(name), span=token_span(name))

    def alias_dim(self, name: Token, other: Token) -> Dim:
        return Dim(str(name), alias=str(other), span=token_span(name, other))

    def fixed_dim(self, name: Token, number: Token) -> Dim:
        size = read_number(number)
        if not isinstance(size, int):
            message = f"the size `{number:.40}` is not a whole number"
            raise Mistake(Diagnostic("R602", message, token_span(number), help="write it like `2`"))
        return Dim(str(name), size=size, span=token_span(name, number))

    def variables(self, role: Token, *variables: Variable) -> list[Variable]:
        return [replace(v, role=str(role)) for v in variables]  # type: ignore[arg-type]

    def variable(self, name: Token, axes: Axes | None, complex_: Token | None, interval: Range | None) -> Variable:
        end = interval.span if interval else token_span(complex_ or (axes.end if axes else name))
        dims = axes.dims if axes else ()
        span = join(token_span(name), end)
        return Variable("input", str(name), dims, complex_ is not None, interval, span)

    def axes(self, *tokens: Token) -> Axes:
        return Axes(tokens[:-1], tokens[-1])

    def range(self, opening: Token, low: float, high: float, closing: Token) -> Range:
        return Range(low, high, opening == "(", closing == ")", token_span(opening, closing))

    def bound(self, sign: Token | None, value: Token) -> float:
        if value.type == "NAME" and value != "inf":
            message = f"a range's bound is a number or `inf`, not `{value}`"
            raise Mistake(Diagnostic("R402", message, token_span(value), help="write a number"))
        number = math.inf if value.type == "NAME" else float(read_number(value))
        return -number if sign else number

    # --- statements --------------------------------------------------------------------------------------------------

    def assign(self, name: Token, axes: Axes | None, value: Expr) -> Assign:
        target = token_span(name, axes.end if axes else name)
        return Assign(str(name), axes.dims if axes else None, value, join(target, value.span), target)

    def output(self, keyword: Token, name: Token, axes: Axes | None, value: Expr) -> Output:
        target = token_span(name, axes.end if axes else name)
        return Output(str(name), axes.dims if axes else None, value, join(token_span(keyword), value.span), target)

    def loop(self, keyword: Token, variable: Token, function: Token, dim: Token) -> Loop:
        if function != "range":
            message = f"a loop runs over `range(dim)`, not over `{function}`"
            raise Mistake(Diagnostic("R101", message, token_span(function), help=f"write `range({dim})`"))
        return Loop(variable, dim, token_span(keyword, dim))

    # --- expressions -------------------------------------------------------------------------------------------------

    def number(self, token: Token) -> Number:
        return Number(read_number(token), token_span(token))

    def name(self, token: Token) -> Name:
        return Name(str(token), token_span(token))

    def unary(self, sign: Token, operand: Expr) -> Unary:
        return Unary(str(sign), operand, join(token_span(sign), operand.span))  # type: ignore[arg-type]

    def binary(self, left: Expr, operator: Token, right: Expr) -> Binary:
        if operator in COMPARISONS and isinstance(left, Binary) and left.op in COMPARISONS:
            help = "compare twice: `where(a < b, where(b < c, x, y), y)`"
            raise Mistake(Diagnostic("R106", "comparisons do not chain", token_span(operator), help=help))
        return Binary(str(operator), left, right, join(left.span, right.span))

    def index(self, base: Expr, index: Expr, closing: Token) -> Index:
        return Index(base, index, join(base.span, token_span(closing)))

    def call(self, function: Token, arguments: tuple[Expr, ...] | None, closing: Token) -> Call:
        return Call(str(function), arguments or (), token_span(function, closing))

    def arguments(self, *arguments: Expr) -> tuple[Expr, ...]:
        return arguments

    def group(self, opening: Token, inner: Expr, closing: Token) -> Expr:
        return replace(inner, span=token_span(opening, closing))

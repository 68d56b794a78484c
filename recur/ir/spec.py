"""The user's step as written: the syntax tree that the text and the Python decorator both lower to.

Every node carries a span; equality ignores spans, so two spellings of one recurrence compare equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

MAX_CHARACTERS = 200_000  # of a file


@dataclass(frozen=True)
class Span:
    """A range of the user's source: lines and columns count from 1, the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Range:
    """An interval of declared values, e.g. ``(-inf, 0]``."""

    low: float
    high: float
    low_open: bool
    high_open: bool
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{format_number(self.low)}, {format_number(self.high)}{right}"


# --- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    value: int | float
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Name:
    """A dim (its size, or a dimension argument), an input, a param, a state, a local or a loop variable."""

    id: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Unary:
    op: Literal["-", "+"]
    operand: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Binary:
    """Arithmetic ``+ - * / @ **`` or a comparison ``< <= > >= == !=``."""

    op: str
    left: Expr
    right: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Call:
    function: str
    args: tuple[Expr, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Index:
    """``x[j]``: picks one entry along a dimension of fixed size."""

    base: Expr
    index: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


Expr = Number | Name | Unary | Binary | Call | Index


# --- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assign:
    """``target = value``, or ``target[dims] = value`` where dims is not None."""

    target: str
    dims: tuple[str, ...] | None
    value: Expr
    span: Span | None = field(default=None, compare=False, repr=False)
    target_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Output:
    """``output name = value``; ``dims`` fixes the order of the output's dimensions where given."""

    name: str
    dims: tuple[str, ...] | None
    value: Expr
    span: Span | None = field(default=None, compare=False, repr=False)
    name_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class For:
    """``for variable in range(dim):``, unrolled."""

    variable: str
    dim: str
    body: tuple[Statement, ...]
    span: Span | None = field(default=None, compare=False, repr=False)
    variable_span: Span | None = field(default=None, compare=False, repr=False)
    dim_span: Span | None = field(default=None, compare=False, repr=False)


Statement = Assign | Output | For


# --- declarations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dim:
    """``dim K`` (bound at the call), ``dim n = 2`` (size fixed) or ``dim J = K`` (alias: another name of K's size)."""

    name: str
    size: int | None = None
    alias: str | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Variable:
    """An input (one value per token and head), a param (one per head) or a state."""

    role: Literal["input", "param", "state"]
    name: str
    dims: tuple[str, ...]
    is_complex: bool = False
    range: Range | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Recurrence:
    """One head at one time step. ``dims`` and ``variables`` keep the order of declaration, the states last."""

    name: str
    doc: str | None
    dims: tuple[Dim, ...]
    variables: tuple[Variable, ...]
    body: tuple[Statement, ...]
    span: Span | None = field(default=None, compare=False, repr=False)
    filename: str = field(default="<string>", compare=False)
    source: str = field(default="", compare=False, repr=False)

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """Inputs and params in one order, the text's: the positional arguments of a call."""
        return tuple(v for v in self.variables if v.role != "state")

    @property
    def states(self) -> tuple[Variable, ...]:
        return tuple(v for v in self.variables if v.role == "state")

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(s for s in self.body if isinstance(s, Output))

    def root_dim(self, name: str) -> str:
        """The dim whose size ``name`` has: follows aliases to the first declaration."""
        table = {d.name: d for d in self.dims}
        while table[name].alias is not None:
            name = table[name].alias or name
        return name


def order_variables(variables: Iterable[Variable]) -> tuple[Variable, ...]:
    """Inputs and params first, then the states, each in the order declared: the order of every Recurrence."""
    return tuple(sorted(variables, key=lambda v: v.role == "state"))


def format_number(value: int | float) -> str:
    """A number as the language writes it; parses back to the same value."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value)

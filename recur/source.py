"""A function's source, without running it: its definition, the places of its nodes, the names around and in it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from recur.diagnostics import Diagnostic, RecurError
from recur.ir.spec import Span


@dataclass(frozen=True)
class Source:
    """A function's definition, and the file that its places count in."""

    filename: str
    text: str
    definition: ast.FunctionDef
    first_row: int
    lines: tuple[str, ...]

    def span(self, node: ast.AST) -> Span:
        row, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
        end_row, end_column = node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return Span(
            row + self.first_row, self._column(row, column), end_row + self.first_row, self._column(end_row, end_column)
        )

    def _column(self, row: int, offset: int) -> int:
        """Columns count characters; Python's count bytes of UTF-8."""
        line = self.lines[row - 1] if row <= len(self.lines) else ""
        return len(line.encode()[:offset].decode(errors="replace")) + 1


def find_source(function: Callable[..., Any]) -> Source:
    """The function's source by ``inspect``; raises RecurError where there is none."""
    name = getattr(function, "__name__", "the argument")
    if not isinstance(function, FunctionType):
        message = f"`recurrence` decorates a function, not {type(function).__name__}"
        raise RecurError([Diagnostic("R701", message, None)])
    filename = function.__code__.co_filename
    try:
        lines, _ = inspect.findsource(function)
        block, row = inspect.getsourcelines(function)
        # an indented definition stands under an `if`, so that every column keeps its place
        indented = block[0][:1].isspace()
        tree = ast.parse("".join(["if 1:\n", *block] if indented else block))
    except RecursionError:
        message = f"`{name}` nests too deeply to be read"
        error = Diagnostic("R601", message, None, help="give the parts names of their own")
        raise RecurError([error], filename) from None
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        help = "define it in a file or a notebook's cell, or pass the recurrence as text to `recur.loads`"
        message = f"the source of `{name}` is not available"
        raise RecurError([Diagnostic("R701", message, None, help=help)], filename) from None
    definition = tree.body[0].body[0] if indented else tree.body[0]  # type: ignore[attr-defined]
    if not isinstance(definition, ast.FunctionDef):
        message = "`recurrence` decorates a function that is written with `def`"
        span = Span(row, 1, row, 2)
        raise RecurError([Diagnostic("R701", message, span)], filename, "".join(lines))
    added = 1 if indented else 0
    return Source(filename, "".join(lines), definition, row - 1 - added, ("",) * added + tuple(block))


@dataclass(frozen=True)
class Scope:
    """The names around a function: those that it captures, its caller's, its module's."""

    tables: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, function: Callable[..., Any], caller: Mapping[str, Any]) -> Scope:
        captured = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                captured[name] = cell.cell_contents
            except ValueError:  # the variable is assigned later
                continue
        return cls((captured, caller, function.__globals__))

    def find(self, name: str) -> Any:
        """The object of that name; KeyError where there is none."""
        for table in self.tables:
            if name in table:
                return table[name]
        raise KeyError(name)


def assigned_names(definition: ast.FunctionDef) -> set[str]:
    """The names that the function assigns, its loops' variables included."""
    return {*find_names(definition.body, ast.Store), *subscripted_names(definition.body)}


def find_names(nodes: Sequence[ast.stmt], context: type[ast.expr_context]) -> list[str]:
    """The names loaded or stored in the statements."""
    inner = (n for node in nodes for n in ast.walk(node))
    return [n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, context)]


def subscripted_names(nodes: Sequence[ast.stmt]) -> list[str]:
    """The names assigned with their dimensions, ``r[D] = ...``: Python takes them for loaded."""
    inner = (n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Assign))
    targets = [t.value for n in inner for t in n.targets if isinstance(t, ast.Subscript)]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def target_names(node: ast.stmt) -> list[str]:
    """The names assigned in a statement, with or without their dimensions."""
    return [*find_names([node], ast.Store), *subscripted_names([node])]

"""A Recurrence as canonical text: it parses back to an equal Recurrence, and printing that gives the same text."""

from __future__ import annotations

import inspect
import itertools
import re

from recur.ir.spec import (
    Assign,
    Binary,
    Call,
    Dim,
    Expr,
    For,
    Index,
    Name,
    Number,
    Recurrence,
    Statement,
    Unary,
    Variable,
    format_number,
)

# Python's precedence: an operand is put in brackets where its own is lower than its place asks for.
COMPARISON, SUM, PRODUCT, SIGN, POWER, ATOM = range(6)
_LEVELS = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "**": POWER}
_UNPRINTABLE = re.compile(r'[\\"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def print_recurrence(recurrence: Recurrence) -> str:
    """The whole recurrence, a line for each declaration and statement, with a final newline."""
    lines = [f"recurrence {recurrence.name}:"]
    if recurrence.doc is not None:
        lines += _print_doc(recurrence.doc)
    if recurrence.dims:
        lines.append(f"    dim    {', '.join(_print_dim(d) for d in recurrence.dims)}")
    for (role, _), group in itertools.groupby(recurrence.variables, key=lambda v: (v.role, _has_suffix(v))):
        lines.append(f"    {role:<6} {', '.join(_print_variable(v) for v in group)}")
    if len(lines) > 1 and recurrence.body:
        lines.append("")
    for statement in recurrence.body:
        lines += _print_statement(statement, "    ")
    return "\n".join(lines) + "\n"


def print_expression(expression: Expr, level: int = COMPARISON) -> str:
    """An expression, in brackets where its operator binds more loosely than ``level``."""
    if isinstance(expression, Number):
        return format_number(expression.value)
    if isinstance(expression, Name):
        return expression.id
    if isinstance(expression, Call):
        return f"{expression.function}({', '.join(map(print_expression, expression.args))})"
    if isinstance(expression, Index):
        return f"{print_expression(expression.base, ATOM)}[{print_expression(expression.index)}]"
    if isinstance(expression, Unary):
        own, text = SIGN, f"{expression.op}{print_expression(expression.operand, SIGN)}"
    else:
        own, text = _print_binary(expression)
    return f"({text})" if own < level else text


def _print_binary(expression: Binary) -> tuple[int, str]:
    """The operator's level and the text: ``**`` binds to the right, and its right side may carry a sign."""
    own = _LEVELS.get(expression.op, COMPARISON)
    if own == POWER:
        left, right = print_expression(expression.left, ATOM), print_expression(expression.right, SIGN)
    else:
        left_level = SUM if own == COMPARISON else own
        left, right = print_expression(expression.left, left_level), print_expression(expression.right, own + 1)
    return own, f"{left} {expression.op} {right}"


def _print_statement(statement: Statement, indent: str) -> list[str]:
    if isinstance(statement, For):
        lines = [f"{indent}for {statement.variable} in range({statement.dim}):"]
        for inner in statement.body:
            lines += _print_statement(inner, indent + "    ")
        return lines
    dims = f"[{', '.join(statement.dims)}]" if statement.dims is not None else ""
    target = statement.target if isinstance(statement, Assign) else f"output {statement.name}"
    return [f"{indent}{target}{dims} = {print_expression(statement.value)}"]


def _print_dim(dim: Dim) -> str:
    if dim.size is not None:
        return f"{dim.name} = {dim.size}"
    return f"{dim.name} = {dim.alias}" if dim.alias is not None else dim.name


def _has_suffix(variable: Variable) -> bool:
    return variable.is_complex or variable.range is not None


def _print_variable(variable: Variable) -> str:
    dims = f"[{', '.join(variable.dims)}]" if variable.dims else ""
    suffix = " complex" if variable.is_complex else ""
    return variable.name + dims + suffix + (f" in {variable.range}" if variable.range else "")


def _print_doc(doc: str) -> list[str]:
    """The docstring: as a block where it has several lines and that reads back the same, else on one line."""
    lines = doc.split("\n")
    is_plain = '"""' not in doc and not any(_UNPRINTABLE.search(line.replace('"', "")) for line in lines)
    if len(lines) > 1 and is_plain and doc == inspect.cleandoc(doc):
        first, *rest = lines
        return [f'    """{first}', *(f"    {line}" if line else "" for line in rest), '    """']
    return [f'    "{_UNPRINTABLE.sub(_escape, doc)}"']


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    named = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return named.get(character) or f"\\u{ord(character):04x}"

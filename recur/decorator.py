"""A decorated Python function to a Recurrence: its source is read, and it never runs.

The arguments are the declarations, the body is the step, ``return`` names the outputs. Places in the result point into
the user's file.
"""

from __future__ import annotations

import ast
import builtins
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from recur.annotations import Annotation, DimName, RoleName
from recur.diagnostics import Diagnostic, RecurError
from recur.grammar.builder import Mistake
from recur.grammar.parser import MAX_DEPTH, parse_range
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
    Output,
    Range,
    Recurrence,
    Span,
    Statement,
    Unary,
    Variable,
    order_variables,
)
from recur.source import Scope, Source, assigned_names, find_names, find_source, subscripted_names, target_names

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.Pow: "**"}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_FOREIGN: dict[type[ast.AST], tuple[str, str]] = {
    ast.AugAssign: ("augmented assignment", "write `S = S + ...`"),
    ast.AnnAssign: ("annotated assignment", "write `name = ...`, or `name[K] = ...` to state its dimensions"),
    ast.If: ("`if`", "choose with `where(condition, a, b)`"),
    ast.IfExp: ("`if`", "choose with `where(condition, a, b)`"),
    ast.While: ("`while`", "write `for j in range(n):` over a dim of fixed size"),
    ast.BoolOp: ("`and` and `or`", "nest `where` for two conditions"),
    ast.Expr: ("statement without an assignment", "write `name = ...`"),
    ast.Return: ("second return", "return once, at the end"),
    ast.Attribute: ("attributes", "call the language's functions by their own names, as in `exp(x)`"),
    ast.Slice: ("slices", "an index picks one entry: `x[j]`"),
    ast.Tuple: ("tuples", "write one value"),
    ast.Pass: ("`pass`", "leave it out"),
    ast.Assign: ("assignment to several names", "assign one name a line"),
    ast.BinOp: ("such operator", "the operators are `+ - * / @ **`"),
    ast.UnaryOp: ("such operator", "the operators are `+ - * / @ **`"),
    ast.Compare: ("such comparison", "the comparisons are `< <= > >= == !=`"),
}
_STATEMENTS_HELP = "the language has assignments, loops over a dim, and one return"
_EXPRESSIONS_HELP = "the language has numbers, names, `+ - * / @ **`, comparisons, calls and `x[j]`"


class _Problem(Exception):
    """A piece of Python that cannot be lowered."""

    def __init__(self, code: str, message: str, span: Span | None, help: str | None = None) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic(code, message, span, help=help)


def read_function(function: Callable[..., Any], caller: Mapping[str, Any] | None = None) -> Recurrence:
    """The checked recurrence that a function spells out; ``caller`` are the names around it that it does not capture.

    Raises RecurError with every error, or with R701 where the function's source cannot be had.
    """
    from recur.passes.check import check_partial

    source = find_source(function)
    scope = Scope.of(function, caller or {})
    errors: list[Diagnostic] = []
    for all_names in (False, True):
        reader = _Reader(source, scope, function, all_names)
        recurrence = reader.read()
        errors = [*reader.errors, *check_partial(recurrence, frozenset(reader.tainted), not reader.errors)[1]]
        if not any(e.code == "R303" for e in errors):
            break
    if errors:
        raise RecurError(errors, source.filename, source.text)
    return recurrence


# --- the function ----------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Lowers one function. ``tainted`` are the names in what had to be left out."""

    source: Source
    scope: Scope
    function: Callable[..., Any]
    all_names: bool = False
    errors: list[Diagnostic] = field(default_factory=list)
    tainted: set[str] = field(default_factory=set)
    dims: dict[str, tuple[DimName, Span]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def read(self) -> Recurrence:
        definition = self.source.definition
        self.arguments = self._arguments(definition.args)
        self.locals = assigned_names(definition) | {a.arg for a in self.arguments}
        variables = [v for a in self.arguments if (v := self._attempt(self._variable, a)) is not None]
        states = [v.name for v in variables if v.role == "state"]
        statements, returned = self._split(definition)
        outputs = self._attempt(self._returned, returned, states) if returned is not None else None
        body = self._body(statements, outputs or [])
        return Recurrence(
            definition.name,
            ast.get_docstring(definition),
            self._declared_dims(),
            order_variables(variables),
            body,
            self._name_span(definition),
            self.source.filename,
            self.source.text,
        )

    def _attempt(self, lower: Callable[..., Any], node: ast.AST, *rest: Any) -> Any:
        """What ``lower`` makes of the node, or None where it has a problem; the problem is noted."""
        try:
            return lower(node, *rest)
        except _Problem as problem:
            self.errors.append(problem.diagnostic)
            self.tainted |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            self.tainted |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
            return None

    def _name_span(self, definition: ast.FunctionDef) -> Span:
        """The name in the line ``def name(...)``."""
        span = self.source.span(definition)
        line = self.source.lines[definition.lineno - 1]
        column = max(line.find(definition.name, definition.col_offset + 3), 0) + 1
        return Span(span.line, column, span.line, column + len(definition.name))

    # --- declarations ------------------------------------------------------------------------------------------------

    def _arguments(self, arguments: ast.arguments) -> list[ast.arg]:
        for unwanted in (arguments.vararg, arguments.kwarg, *arguments.defaults, *arguments.kw_defaults):
            if unwanted is not None:
                message = "a recurrence's arguments have no defaults and no stars"
                self._error("R703", message, unwanted, "annotate each: `x: Input[K]`")
        return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]

    def _variable(self, argument: ast.arg) -> Variable:
        span = self.source.span(argument)
        help = f"write `{argument.arg}: Input[K]`, or `Input[()]` for a number"
        if argument.annotation is None:
            raise _Problem("R703", f"the argument `{argument.arg}` has no annotation", span, help)
        annotation = self.function.__annotations__.get(argument.arg)
        if isinstance(annotation, str):
            annotation = self._annotation(argument.annotation)
        if isinstance(annotation, RoleName):
            raise _Problem("R703", f"the annotation of `{argument.arg}` has no brackets", span, help)
        if not isinstance(annotation, Annotation):
            message = f"the annotation of `{argument.arg}` is not State[...], Input[...] or Param[...]"
            raise _Problem("R703", message, span, help)
        dims = tuple(self._use(d, argument.annotation) for d in annotation.dims)
        interval = None
        if annotation.interval is not None:
            interval = self._range(annotation.interval, argument.annotation)
        return Variable(annotation.role, argument.arg, dims, annotation.is_complex, interval, span)

    def _annotation(self, node: ast.expr) -> Any:
        """The annotation that an expression spells, where Python kept it as text."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._quoted(node, node.value)
        if isinstance(node, ast.Name):
            return getattr(builtins, node.id) if hasattr(builtins, node.id) else self._find(node)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple):
            return tuple(self._annotation(e) for e in node.elts)
        if isinstance(node, ast.Subscript):
            role = self._annotation(node.value)
            return role[self._annotation(node.slice)] if isinstance(role, RoleName) else None
        if isinstance(node, ast.Attribute):
            owner = self._annotation(node.value)
            if isinstance(owner, ModuleType):
                return getattr(owner, node.attr, None)
            return owner.complex if isinstance(owner, Annotation) and node.attr == "complex" else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "range":
            owner, text = self._annotation(node.func.value), node.args[0] if len(node.args) == 1 else None
            if isinstance(owner, Annotation) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                return owner.range(text.value)
        return None

    def _quoted(self, node: ast.Constant, text: str) -> Any:
        """The annotation in a string; whatever is wrong with it is wrong at the string's place."""
        try:
            inner = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        for part in ast.walk(inner):
            ast.copy_location(part, node)
        return self._annotation(inner)

    def _find(self, node: ast.Name) -> Any:
        try:
            return self.scope.find(node.id)
        except KeyError:
            help = 'define it before the function; a dimension by `K, V = recur.dims("K V")`'
            raise _Problem("R201", f"unknown name `{node.id}`", self.source.span(node), help) from None

    def _use(self, dim: Any, node: ast.AST) -> str:
        """The language's name of a dimension, which is declared by its use."""
        span = self.source.span(node)
        if not isinstance(dim, DimName):
            shown = f"`{dim!r}`"[:40]
            raise _Problem("R703", f"{shown} is no dimension", span, 'make one with `K, V = recur.dims("K V")`')
        known = self.dims.setdefault(dim.name, (dim, span))[0]
        if (known.size, known.alias) != (dim.size, dim.alias):
            raise _Problem("R203", f"two dimensions are named `{dim.name}`", span, "make both by one call of `dims`")
        return dim.name

    def _range(self, text: Any, node: ast.AST) -> Range:
        literal = next((n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value == text), node)
        span = self.source.span(literal)
        try:
            return replace(parse_range(text if isinstance(text, str) else repr(text)), span=span)
        except Mistake as mistake:
            raise _Problem("R402", mistake.diagnostic.message, span, mistake.diagnostic.help) from None

    def _declared_dims(self) -> tuple[Dim, ...]:
        """The dims in use, in the order they were made.

        With ``all_names``, also the other names that the same ``dims`` calls gave to them: ``outer`` may need a name
        that the function does not mention.
        """
        used = {name: dim for name, (dim, _) in self.dims.items()}
        spans = {name: span for name, (_, span) in self.dims.items()}
        calls = {d.call for d in used.values()} if self.all_names else set()
        around = [v for table in self.scope.tables for v in table.values() if isinstance(v, DimName)]
        for _ in range(len(around)):
            wanted = {d.alias for d in used.values()} - set(used)
            found = [d for d in around if d.name in wanted or (d.call in calls and d.alias in used)]
            found = [d for d in found if d.name not in used]
            if not found:
                break
            used |= {d.name: d for d in reversed(found)}
        here = self._name_span(self.source.definition)
        ordered = sorted(used.values(), key=lambda d: d.order)
        return tuple(d.declaration(spans.get(d.name, here)) for d in ordered)

    # --- the return --------------------------------------------------------------------------------------------------

    def _split(self, definition: ast.FunctionDef) -> tuple[list[ast.stmt], ast.Return | None]:
        """The statements without docstring and return."""
        statements = list(definition.body)
        if ast.get_docstring(definition) is not None:
            statements = statements[1:]
        if statements and isinstance(statements[-1], ast.Return):
            returned = statements.pop()
            assert isinstance(returned, ast.Return)
            return statements, returned
        span, help = self._name_span(definition), "end with `return S, o`: the states, then the outputs"
        self.errors.append(Diagnostic("R704", f"`{definition.name}` does not return", span, help=help))
        return statements, None

    def _returned(self, node: ast.Return, states: Sequence[str]) -> list[tuple[str | None, ast.expr]]:
        """The outputs: each a local's name with the expression, or None for an expression without one."""
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] if node.value else []
        given = [v.id if isinstance(v, ast.Name) else None for v in values]
        if given[: len(states)] != list(states):
            wanted = ", ".join([*states, "o"])
            message = "the return lists the states in the order declared, then the outputs"
            raise _Problem("R704", message, self.source.span(node), f"write `return {wanted}`")
        if len(values) == len(states):
            span = self.source.span(node)
            raise _Problem("R502", "the return has no output", span, "add one after the states, as in `return S, o`")
        arguments = {a.arg for a in self.arguments}
        outputs = values[len(states) :]
        assigned = assigned_names(self.source.definition) - arguments
        return [(v.id if isinstance(v, ast.Name) and v.id in assigned else None, v) for v in outputs]

    def _body(self, nodes: Sequence[ast.stmt], outputs: list[tuple[str | None, ast.expr]]) -> tuple[Statement, ...]:
        """The statements, a local that is only returned made an output where it is assigned."""
        self._check_repeated(outputs)
        in_place = self._outputs_in_place(nodes, [name for name, _ in outputs])
        for name, _ in outputs:
            if name is not None and name not in in_place:
                self.renamed[name] = self._fresh(f"{name}_value")
        body: list[Statement] = []
        for node in nodes:
            statement = self._attempt(self._statement, node, 1)
            if isinstance(statement, Assign) and statement.target in in_place:
                spans = {"span": statement.span, "name_span": statement.target_span}
                statement = Output(statement.target, statement.dims, statement.value, **spans)
            body += [statement] if statement else []
        unnamed = [value for name, value in outputs if name is None]
        for name, value in outputs:
            if name not in in_place:
                called = name or ("o" if len(unnamed) == 1 else f"o{unnamed.index(value)}")
                expression = self._attempt(self._expression, value, 1)
                span = self.source.span(value)
                if name is None and called in self.locals:
                    message = f"the returned expression is the output `{called}`, and that name is taken"
                    self._error("R704", message, value, "assign it to a name of its own, and return that")
                    continue
                body += [Output(called, None, expression, span, span)] if expression is not None else []
        return tuple(body)

    def _check_repeated(self, outputs: Sequence[tuple[str | None, ast.expr]]) -> None:
        names = [name for name, _ in outputs]
        for i, (name, value) in enumerate(outputs):
            if name is not None and name in names[:i]:
                self._error("R203", f"the output `{name}` is returned twice", value, "return it once")

    def _outputs_in_place(self, nodes: Sequence[ast.stmt], outputs: Sequence[str | None]) -> set[str]:
        """The returned locals that are assigned once, outside of loops, in the order returned, and never read."""
        in_place: set[str] = set()
        read = find_names(nodes, ast.Load)
        writes = [name for node in nodes for name in target_names(node)]
        top = [name for node in nodes if isinstance(node, ast.Assign) for name in target_names(node)]
        last = -1
        for name in outputs:
            if name is None:
                break
            is_read = read.count(name) > subscripted_names(nodes).count(name)
            if name not in top or writes.count(name) > 1 or is_read or top.index(name) < last:
                break
            last = top.index(name)
            in_place.add(name)
        return in_place

    def _fresh(self, name: str) -> str:
        while name in self.locals or name in self.renamed.values():
            name += "_"
        return name

    # --- statements --------------------------------------------------------------------------------------------------

    def _statement(self, node: ast.stmt, depth: int) -> Statement:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, span = node.targets[0], self.source.span(node)
            name, dims = target, None
            if isinstance(target, ast.Subscript):
                name = target.value
                axes = target.slice.elts if isinstance(target.slice, ast.Tuple) else [target.slice]
                dims = tuple(self._axis(a) for a in axes)
            if isinstance(name, ast.Name):
                value = self._expression(node.value, 1)
                return Assign(self.renamed.get(name.id, name.id), dims, value, span, self.source.span(target))
            raise self._foreign(target, "write one name on the left")
        if isinstance(node, ast.Assign):
            raise self._foreign(node)
        if isinstance(node, ast.For):
            return self._loop(node, depth)
        raise self._foreign(node)

    def _axis(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            help = "the brackets of a target hold its dimensions; one entry cannot be assigned"
            raise _Problem("R204", "a target's brackets hold names of dimensions", self.source.span(node), help)
        return self._use(self._find(node), node)

    def _loop(self, node: ast.For, depth: int) -> For:
        call, span = node.iter, self.source.span(node.iter)
        is_range = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"
        if not is_range or node.orelse or not isinstance(node.target, ast.Name):
            raise _Problem("R702", "this is no loop of the language", span, "write `for j in range(n):`")
        assert isinstance(call, ast.Call)
        argument = call.args[0] if len(call.args) == 1 and not call.keywords else None
        dim = self._find(argument) if isinstance(argument, ast.Name) and argument.id not in self.locals else None
        if not isinstance(dim, DimName) or argument is None:
            help = 'make a dimension of fixed size, `n = recur.dims("n=2")`, and write `range(n)`'
            raise _Problem("R504", "a loop runs over a dimension of fixed size", span, help)
        name = self._use(dim, argument)
        body = [self._attempt(self._statement, s, depth + 1) for s in node.body]
        header = replace(self.source.span(node.target), end_line=span.end_line, end_column=span.end_column)
        statements = tuple(s for s in body if s is not None)
        return For(node.target.id, name, statements, header, self.source.span(node.target), self.source.span(argument))

    # --- expressions -------------------------------------------------------------------------------------------------

    def _expression(self, node: ast.expr, depth: int) -> Expr:
        span = self.source.span(node)
        if depth > MAX_DEPTH:
            message = f"the expression nests {MAX_DEPTH} operations deep or more"
            raise _Problem("R601", message, span, "give its parts names of their own")
        lower = functools.partial(self._expression, depth=depth + 1)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return Binary(_BINARY[type(node.op)], lower(node.left), lower(node.right), span)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return Unary("-" if isinstance(node.op, ast.USub) else "+", lower(node.operand), span)
        if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            if len(node.ops) > 1:
                raise _Problem("R106", "comparisons do not chain", span, "nest `where` for two conditions")
            return Binary(_COMPARE[type(node.ops[0])], lower(node.left), lower(node.comparators[0]), span)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.keywords:
                raise _Problem("R702", "arguments have no names", span, "write the value alone")
            return Call(node.func.id, tuple(lower(a) for a in node.args), span)
        if isinstance(node, ast.Subscript):
            return Index(lower(node.value), lower(node.slice), span)
        if isinstance(node, ast.Constant):
            return self._number(node.value, span, repr(node.value))
        if isinstance(node, ast.Name):
            return self._name(node, span)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, span)
        raise self._foreign(node.func if isinstance(node, ast.Call) else node)

    def _name(self, node: ast.Name, span: Span) -> Expr:
        if node.id in self.locals:
            return Name(self.renamed.get(node.id, node.id), span)
        try:
            found = self.scope.find(node.id)
        except KeyError:
            return Name(node.id, span)  # the checker knows the near misses
        if isinstance(found, DimName):
            return Name(self._use(found, node), span)
        return self._number(found, span, node.id)

    def _attribute(self, node: ast.Attribute, span: Span) -> Expr:
        """A module's number, such as ``math.pi``."""
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id not in self.locals:
            module = self._find(owner)
            if isinstance(module, ModuleType):
                return self._number(getattr(module, node.attr, None), span, f"{owner.id}.{node.attr}")
        raise self._foreign(node)

    def _number(self, value: Any, span: Span, shown: str) -> Expr:
        """A number as the text would write it: a negative one is a sign and a number."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            help = "numbers, dimensions, arguments and locals stand in expressions"
            raise _Problem("R705", f"`{shown[:40]}` is no number", span, help)
        try:
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
            finite = math.isfinite(number)
        except OverflowError:
            finite = False
        if not finite:
            raise _Problem("R705", f"`{shown[:40]}` is not a finite number", span, "write a finite number")
        return Unary("-", Number(-number, span), span) if number < 0 else Number(number, span)

    # --- problems ----------------------------------------------------------------------------------------------------

    def _foreign(self, node: ast.AST, help: str | None = None) -> _Problem:
        known = _STATEMENTS_HELP if isinstance(node, ast.stmt) else _EXPRESSIONS_HELP
        words, instead = _FOREIGN.get(type(node), (f"such Python ({type(node).__name__})", known))
        return _Problem("R702", f"the language has no {words}", self.source.span(node), help or instead)

    def _error(self, code: str, message: str, node: ast.AST, help: str) -> None:
        self.errors.append(Diagnostic(code, message, self.source.span(node), help=help))

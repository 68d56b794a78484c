"""The declarations of a recurrence as tables: one namespace, the dims' sizes and other names, and their errors."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from recur.diagnostics import Diagnostic, did_you_mean, listing
from recur.ir.spec import Assign, Dim, For, Output, Range, Recurrence, Span, Statement, Variable
from recur.operators import FUNCTION_NAMES

MAX_SIZE = 65_536  # of a dim of fixed size
MAX_DECLARED = 200  # dims, and again inputs, params and states together

DECLARATION_WORDS = ("recurrence", "dim", "input", "param", "state", "output", "for", "in", "range", "complex")
CALL_KEYWORDS = (
    "initial_state", "output_final_state", "cu_seqlens", "reset", "strategy", "backend", "debug", "state",
)  # fmt: skip
_RESERVED = {
    **dict.fromkeys(CALL_KEYWORDS, "a keyword of every call"),
    **dict.fromkeys(FUNCTION_NAMES, "a function's name"),
    **dict.fromkeys(DECLARATION_WORDS, "a word of the language"),
    **dict.fromkeys(keyword.kwlist, "a keyword of Python"),
}


@dataclass
class Names:
    """What every declared name of a recurrence is. ``errors`` grows while the tables are made.

    ``tainted`` are the names in lines left out for errors of their own: they may be anything. ``broken`` are declared
    names whose declaration has an error: their values are not known.
    """

    recurrence: Recurrence
    tainted: frozenset[str] = frozenset()
    dims: dict[str, Dim] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    loops: dict[str, For] = field(default_factory=dict)
    targets: dict[str, Assign] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    errors: list[Diagnostic] = field(default_factory=list)

    def size(self, dim: str) -> int | None:
        """The fixed size of a dim, or None where the call binds it."""
        return self.dims[self.roots[dim]].size

    def same_size(self, a: str, b: str) -> bool:
        """Whether two dims have one size by their declarations."""
        return self.roots[a] == self.roots[b] or (self.size(a) is not None and self.size(a) == self.size(b))

    def others(self, dim: str) -> list[str]:
        """The other declared names of a dim's size, in the order of declaration."""
        return [d for d in self.dims if d != dim and self.roots[d] == self.roots[dim]]

    def kind(self, name: str) -> str | None:
        """What a declared name is, as a message says it."""
        if name in self.dims:
            return "a dim"
        if name in self.variables:
            role = self.variables[name].role
            return f"an {role}" if role == "input" else f"a {role}"
        if name in self.loops:
            return "a loop's variable"
        return "an output" if name in self.outputs else None

    def place(self, name: str) -> Span | None:
        """Where a name is declared."""
        if name in self.outputs:
            return self.outputs[name].name_span
        if name in self.loops:
            return self.loops[name].variable_span
        found = self.dims.get(name) or self.variables.get(name)
        return found.span if found else None

    def declared(self, *names: str, label: str = "declared here") -> tuple[tuple[Span, str], ...]:
        """Second labels for a diagnostic."""
        places = [(self.place(n), label) for n in dict.fromkeys(names)]
        return tuple((span, text) for span, text in places if span is not None)


def collect_names(recurrence: Recurrence, tainted: frozenset[str] = frozenset()) -> Names:
    """The tables of a recurrence's names, with every error of its declarations."""
    names = Names(recurrence, tainted)
    _check_reserved(names, recurrence.name, recurrence.span)
    for name, span, node in sorted(_declarations(recurrence), key=lambda d: _order(d[1])):
        _check_reserved(names, name, span)
        repeated_loop = isinstance(node, For) and name in names.loops
        if names.kind(name) is None:
            _declare(names, name, node)
        elif not repeated_loop:
            help = "give one of the two another name: all names share one namespace"
            names.errors.append(
                Diagnostic("R203", f"`{name}` is declared twice", span, secondary=names.declared(name), help=help)
            )
    for assign in _assigns(recurrence.body):
        if names.kind(assign.target) is None:
            names.targets.setdefault(assign.target, assign)
            _check_reserved(names, assign.target, assign.target_span)
    names.dims = {d.name: d for d in recurrence.dims if names.dims.get(d.name) is d}
    _resolve_dims(names)
    for variable in names.variables.values():
        _check_variable(names, variable)
    return names


def check_range(interval: Range, owner: str) -> Diagnostic | None:
    """The error of a range that holds no number, or whose bounds are none."""
    low, high = interval.low, interval.high
    if math.isnan(low) or math.isnan(high) or low == math.inf or high == -math.inf:
        message, help = "the bounds are no interval", "write the lower bound first, as in `(-inf, 0]`"
    elif low > high:
        message, help = "the lower bound is above the upper one", f"write the lower bound first: `{_swap(interval)}`"
    elif low == high and (interval.low_open or interval.high_open):
        message, help = "it holds no number", "move a bound, or close both"
    elif interval != _opened(interval):
        message, help = "an infinite bound is open", f"write `{_opened(interval)}`"
    else:
        return None
    return Diagnostic("R402", f"the range {interval} of `{owner}` is not valid: {message}", interval.span, help=help)


def _swap(interval: Range) -> Range:
    return Range(interval.high, interval.low, interval.low_open, interval.high_open)


def _opened(interval: Range) -> Range:
    low_open = interval.low_open or math.isinf(interval.low)
    return Range(interval.low, interval.high, low_open, interval.high_open or math.isinf(interval.high))


def find_excess(recurrence: Recurrence) -> Diagnostic | None:
    """The error of a recurrence with more declarations than the compiler takes."""
    for declared, what in ((recurrence.dims, "dims"), (recurrence.variables, "inputs, params and states")):
        if len(declared) > MAX_DECLARED:
            message = f"`{recurrence.name}` declares {len(declared)} {what}; at most {MAX_DECLARED} are allowed"
            return Diagnostic("R602", message, recurrence.span, help="give related inputs a dimension of fixed size")
    return None


def _declarations(recurrence: Recurrence) -> Iterator[tuple[str, Span | None, Dim | Variable | Output | For]]:
    for dim in recurrence.dims:
        yield dim.name, dim.span, dim
    for variable in recurrence.variables:
        yield variable.name, variable.span, variable
    for statement in _walk(recurrence.body):
        if isinstance(statement, Output):
            yield statement.name, statement.name_span, statement
        elif isinstance(statement, For):
            yield statement.variable, statement.variable_span, statement


def _walk(body: tuple[Statement, ...]) -> Iterator[Statement]:
    for statement in body:
        yield statement
        if isinstance(statement, For):
            yield from _walk(statement.body)


def _assigns(body: tuple[Statement, ...]) -> Iterator[Assign]:
    return (s for s in _walk(body) if isinstance(s, Assign))


def _order(span: Span | None) -> tuple[int, int]:
    return (span.line, span.column) if span else (0, 0)


def _declare(names: Names, name: str, node: Dim | Variable | Output | For) -> None:
    if isinstance(node, Dim):
        names.dims[name] = node
    elif isinstance(node, Variable):
        names.variables[name] = node
    elif isinstance(node, Output):
        names.outputs[name] = node
    else:
        names.loops[name] = node


def _check_reserved(names: Names, name: str, span: Span | None) -> None:
    if name in _RESERVED:
        message = f"`{name}` is reserved: it is {_RESERVED[name]}"
        names.errors.append(Diagnostic("R205", message, span, help="choose another name"))
    elif not name.isidentifier() or not name.isascii():
        names.errors.append(Diagnostic("R205", f"`{name}` is not an ASCII name", span, help="choose another name"))


def _resolve_dims(names: Names) -> None:
    """Follows aliases to their roots; a dim whose alias leads nowhere is taken for a dim of its own."""
    for name, dim in names.dims.items():
        if dim.size is not None and not 1 <= dim.size <= MAX_SIZE:
            message = f"the size of `{name}` is {dim.size}; sizes go from 1 to {MAX_SIZE}"
            names.errors.append(Diagnostic("R602", message, dim.span, help="choose a size in that range"))
            names.broken.add(name)
        seen, root = [name], name
        while (other := names.dims[root].alias) is not None:
            if other not in names.dims:
                help = did_you_mean(other, names.dims, f"declare `dim {other}`")
                message = f"`{name}` is to be another name of `{other}`, which is no dim"
                if root == name and other not in names.tainted:
                    names.errors.append(Diagnostic("R208", message, dim.span, help=help))
                break
            if other in seen:
                message = f"`{name}` is another name of itself"
                names.errors.append(Diagnostic("R208", message, dim.span, help="let one of the names be a plain dim"))
                root = name
                break
            root = other
            seen.append(root)
        names.roots[name] = root


def _check_variable(names: Names, variable: Variable) -> None:
    for dim in dict.fromkeys(variable.dims):
        if dim not in names.dims:
            names.broken.add(variable.name)
            if dim not in names.tainted:
                names.errors.append(unknown_dim(names, dim, variable.span))
        elif variable.dims.count(dim) > 1:
            help = f"declare another name of its size, `dim J = {dim}`, and write it once"
            message = f"`{variable.name}` lists the dimension `{dim}` twice"
            names.errors.append(Diagnostic("R309", message, variable.span, help=help))
            names.broken.add(variable.name)
    if variable.range is None:
        return
    if variable.is_complex:
        message = f"`{variable.name}` is complex and takes no range"
        names.errors.append(Diagnostic("R402", message, variable.range.span, help="remove the range"))
        return
    error = check_range(variable.range, variable.name)
    if error:
        names.errors.append(error)


def unknown_dim(names: Names, dim: str, span: Span | None) -> Diagnostic:
    kind = names.kind(dim)
    if kind:
        help = f"the dims are {listing(list(names.dims), 'and')}" if names.dims else "declare one: `dim K`"
        return Diagnostic("R209", f"`{dim}` is {kind}, not a dim", span, secondary=names.declared(dim), help=help)
    fix = did_you_mean(dim, names.dims, f"declare it: `dim {dim}`")
    return Diagnostic("R208", f"unknown dimension `{dim}`", span, help=fix)

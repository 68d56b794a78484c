"""A Recurrence to its Step: every rule of the language, all errors of a recurrence together.

The statements run once, in order, over nodes in place of numbers: loops unroll, a state's name means its previous value
until it is assigned and its new one after.
"""

from __future__ import annotations

from collections.abc import Sequence

from recur.diagnostics import Diagnostic, RecurError, listing
from recur.ir.core import Node, Step, expand, is_const, leaf, version
from recur.ir.spec import Assign, For, Output, Recurrence, Statement, Variable
from recur.passes.dims import fit_target, show
from recur.passes.elaborate import MAX_OPERATIONS, Scope, TooLarge, Turn, elaborate, promote
from recur.passes.names import Names, collect_names, find_excess, unknown_dim

MAX_ERRORS = 100  # of one recurrence's statements: there the check stops


class TooManyErrors(Exception):
    """Enough errors for one reading."""


def check(recurrence: Recurrence) -> Step:
    """The checked step; raises RecurError with every error of the recurrence."""
    step, errors = check_partial(recurrence)
    if step is None:
        raise RecurError.of(recurrence, *errors)
    return step


def check_partial(
    recurrence: Recurrence, tainted: frozenset[str] = frozenset(), is_whole: bool = True
) -> tuple[Step | None, list[Diagnostic]]:
    """The step, or its errors. Where lines were left out for errors of their own (not ``is_whole``), what they may have
    held is not missed: ``tainted`` are the names in them."""
    excess = find_excess(recurrence)
    if excess:
        return None, [excess]
    names = collect_names(recurrence, tainted)
    run = _Run(names)
    try:
        run.statements(recurrence.body)
    except TooManyErrors:
        return None, names.errors + run.scope.errors
    except TooLarge:
        message = f"the step has more than {MAX_OPERATIONS} operations once its loops are unrolled"
        names.errors.append(Diagnostic("R603", message, recurrence.span, help="shorten the loops"))
        return None, names.errors + run.scope.errors
    errors = names.errors + run.scope.errors
    if is_whole:
        errors += _check_complete(names, run)
    if errors or not is_whole:
        return None, errors
    updates = tuple((v.name, run.updates[v.name]) for v in recurrence.states)
    return Step(recurrence, updates, tuple(run.outputs.items())), []


class _Run:
    """The statements of one step, carried out on nodes."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.scope = Scope(names)
        self.versions: dict[str, int] = {}
        self.updates: dict[str, Node] = {}
        self.outputs: dict[str, Node] = {}
        for state in names.variables.values():
            if state.role == "state":
                known = state.name not in names.broken
                previous = leaf("state", state.name, state.dims, state.is_complex, state.span) if known else None
                self.scope.values[state.name] = previous

    def statements(self, body: Sequence[Statement]) -> None:
        for statement in body:
            if len(self.scope.errors) > MAX_ERRORS:
                raise TooManyErrors
            if isinstance(statement, Assign):
                self.assign(statement)
            elif isinstance(statement, Output):
                self.output(statement)
            else:
                self.loop(statement)

    # --- assignments -------------------------------------------------------------------------------------------------

    def assign(self, statement: Assign) -> None:
        target, scope = statement.target, self.scope
        value = elaborate(scope, statement.value)
        variable = self.names.variables.get(target)
        is_state = variable is not None and variable.role == "state"
        if self.names.kind(target) is not None and not is_state:
            self._not_assignable(statement)
        elif variable is not None and is_state:
            self._update(statement, variable, value)
        elif statement.dims is None or not self._dims_exist(statement, statement.dims):
            scope.values[target] = value if statement.dims is None else None
        elif value is not None and is_const(value):
            scope.values[target] = expand(value, statement.dims)  # `total[V] = 0`, to be added to
        else:
            scope.values[target] = self._fit(statement, value, statement.dims)

    def _update(self, statement: Assign, state: Variable, value: Node | None) -> None:
        """A state's update; after an error it keeps its previous value, whose dims are right."""
        number = self.versions[state.name] = self.versions.get(state.name, 0) + 1
        dims = statement.dims if statement.dims and self._dims_exist(statement, statement.dims) else state.dims
        if set(dims) != set(state.dims):
            message, help = f"`{state.name}` is a state with other dimensions", f"write `{state.name} = ...`"
            self.scope.error("R304", message, statement.target_span, help, self.names.declared(state.name))
        if state.name in self.names.broken:
            return
        fitted = self._fit(statement, value, state.dims)
        if fitted is None:
            return
        if fitted.is_complex and not state.is_complex:
            help = f"declare `state {state.name}[...] complex`, or take `real({show(statement.value)})`"
            message = f"a complex value is assigned to the real state `{state.name}`"
            self.scope.error("R401", message, statement.value.span, help, self.names.declared(state.name))
            return
        new = version(promote(fitted, state.is_complex), state.name, number, statement.span)
        self.scope.values[state.name] = self.updates[state.name] = new

    def _fit(self, statement: Assign | Output, value: Node | None, dims: tuple[str, ...]) -> Node | None:
        if value is None:
            return None
        target = statement.target if isinstance(statement, Assign) else statement.name
        place = self.names.place(target) if target in self.names.variables else None
        fitted = fit_target(self.names, value, dims, target, statement.value.span, place)
        return self.scope.accept(fitted)

    def _dims_exist(self, statement: Assign | Output, dims: tuple[str, ...]) -> bool:
        span = statement.target_span if isinstance(statement, Assign) else statement.name_span
        known = True
        for dim in dict.fromkeys(dims):
            if dim not in self.names.dims:
                known = False
                if dim not in self.names.tainted:
                    self.scope.errors.append(unknown_dim(self.names, dim, span))
            elif dims.count(dim) > 1:
                known = False
                help = f"declare another name of its size: `dim J = {dim}`"
                self.scope.error("R309", f"the dimension `{dim}` is listed twice", span, help)
        return known

    def _not_assignable(self, statement: Assign) -> None:
        target = statement.target
        kind = self.names.kind(target) or ""
        role = self.names.variables[target].role if target in self.names.variables else ""
        help = "give the new value another name"
        if role:
            help += f", or declare `state {target}` if it is kept from token to token"
        elif target in self.names.outputs:
            help = "assign a local under another name, and write `output` of it last"
        message = f"`{target}` is {kind} and cannot be assigned"
        self.scope.error("R204", message, statement.target_span, help, self.names.declared(target))

    # --- outputs and loops -------------------------------------------------------------------------------------------

    def output(self, statement: Output) -> None:
        value = elaborate(self.scope, statement.value)
        if self.scope.loops:
            help = "assign a local in the loop, and write the output after it"
            self.scope.error("R109", f"the output `{statement.name}` is in a loop", statement.span, help)
        if statement.dims is not None:
            value = self._fit(statement, value, statement.dims) if self._dims_exist(statement, statement.dims) else None
        if value is not None:
            self.outputs[statement.name] = expand(value, statement.dims) if statement.dims is not None else value

    def loop(self, statement: For) -> None:
        """Unrolls a loop; one pass suffices where it has errors."""
        variable, count = statement.variable, self._trip_count(statement)
        dim = statement.dim if count is not None else None
        if variable in self.scope.loops:
            help = "give one of the loops another variable"
            self.scope.error("R203", f"`{variable}` is the variable of two nested loops", statement.variable_span, help)
            return
        before = len(self.scope.errors)
        for i in range(count or 1):
            self.scope.loops[variable] = Turn(i, dim)
            self.statements(statement.body)
            if len(self.scope.errors) > before:
                break
        self.scope.loops.pop(variable, None)

    def _trip_count(self, statement: For) -> int | None:
        """The size of the loop's dim; None, after an error, where it has none that is fixed."""
        dim, span = statement.dim, statement.dim_span
        if dim in self.names.broken or dim in self.names.tainted:
            return None
        if dim not in self.names.dims:
            self.scope.errors.append(unknown_dim(self.names, dim, span))
            return None
        fixed = self.names.size(dim)
        if fixed is None:
            root = self.names.roots[dim]
            message = f"the loop runs over `{dim}`, whose size is not fixed"
            self.scope.error("R504", message, span, f"fix it, as in `dim {root} = 2`", self.names.declared(root))
        return fixed


def _check_complete(names: Names, run: _Run) -> list[Diagnostic]:
    """What is missing from the whole: updates, outputs, inputs, tensors that bind the dims."""
    errors: list[Diagnostic] = []
    recurrence = names.recurrence
    for state in names.variables.values():
        if state.role == "state" and state.name not in run.versions:
            help = f"assign it, as in `{state.name} = ...`, or declare it as a param"
            errors.append(Diagnostic("R501", f"the state `{state.name}` is never updated", state.span, help=help))
    if not names.outputs:
        help = "write `output o = ...`"
        errors.append(Diagnostic("R502", f"`{recurrence.name}` has no output", recurrence.span, help=help))
    if not any(v.role == "input" for v in names.variables.values()):
        help = "declare one: `input x[K]`"
        errors.append(Diagnostic("R503", f"`{recurrence.name}` has no input", recurrence.span, help=help))
    bound = {names.roots[d] for v in recurrence.inputs for d in v.dims if d in names.dims}
    for name, dim in names.dims.items():
        if names.roots[name] == name and dim.size is None and dim.alias is None and name not in bound:
            spelled = [name, *names.others(name)]
            help = f"give an input or a param the dimension {listing(spelled)}, or fix its size: `dim {name} = 2`"
            message = f"no input or param has the dimension `{name}`: nothing binds its size"
            errors.append(Diagnostic("R308", message, dim.span, help=help))
    return errors

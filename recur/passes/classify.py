"""Stages into normal forms: each family is tried in turn, and what fits none is general, with the reason.

    matrix        S <- D S + b (y - a^T S)^T     contractions along one axis, outputs that contract the state
    elementwise   h <- a * h + x
    linear        h <- A h + x                   a matrix of its own for every token
    general       anything
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recur.ir.core import Node, Step, eye, leaf, topological
from recur.ir.intervals import Interval
from recur.ir.normal import ElementwiseForm, Form, GeneralForm, LinearForm, NormalForm, Program, Stage
from recur.ir.printing import format_node
from recur.ir.spec import Dim, Recurrence
from recur.passes.affine import Expander, NotAffine, Term, add_up, contract_factors, multiply, ordered, rename_factor
from recur.passes.decay import Ranges, decompose
from recur.passes.matrix import MatrixBuilder
from recur.passes.readouts import convert, find_readings
from recur.passes.structure import describe
from recur.passes.updates import Linear, NotThisForm, Update, collect_update, split_linear, unwrap


def classify(step: Step, stages: Sequence[Stage]) -> Program:
    """Every stage's normal form. The program's recurrence gains a dim where a linear form needs a name for columns."""
    forms: list[NormalForm] = []
    values: dict[str, Interval] = {}
    for stage in stages:
        forms.append(classify_stage(stage, step.recurrence, values))
        ranges = Ranges(step.recurrence, values)
        values |= {name: ranges.of(node) for name, node in stage.exports}
    return Program(_with_columns(step, forms), tuple(forms))


def classify_stage(
    stage: Stage, recurrence: Recurrence, values: Mapping[str, Interval] | None = None
) -> NormalForm:
    """One stage's normal form: the first family that fits. ``values``: the ranges of earlier stages' values."""
    ranges = Ranges(recurrence, values)
    updates = [collect_update(stage, s, recurrence) for s in stage.states]
    coupled = _coupling(updates)
    if coupled is not None:
        return _general(stage, updates, NotThisForm(*coupled))
    reasons: list[NotThisForm] = []
    for attempt in (matrix_stage, _elementwise_stage, _linear_stage):
        try:
            return attempt(stage, updates, ranges)
        except NotThisForm as reason:
            reasons.append(reason)
        except NotAffine as reason:
            reasons.append(NotThisForm(reason.why, reason.node))
    has_matrix = any(len(u.dims) > 1 for u in updates)
    return _general(stage, updates, reasons[0] if has_matrix else reasons[-1])


def _coupling(updates: Sequence[Update]) -> tuple[str, Node] | None:
    """Two states of the stage that enter one another's updates."""
    for u in updates:
        others = {base: v.state for v in updates if v is not u for base in v.bases}
        expander = Expander(others)
        if expander.depends(u.versions[-1].args[0]):
            return f"{' and '.join(v.state for v in updates)} depend on one another", u.versions[-1]
    return None


# --- matrix ---------------------------------------------------------------------------------------------------------


def matrix_stage(
    stage: Stage, updates: Sequence[Update], ranges: Ranges, vectors: bool = False
) -> NormalForm:
    """The stage with matrix forms; raises NotThisForm or NotAffine. ``vectors``: also lone vectors without reads."""
    roots = [node for _, node in stage.exports]
    readings = find_readings(updates, roots)
    builders = {u.state: MatrixBuilder(u, readings.uses(u), ranges) for u in updates}
    if not vectors and not any(b.value or b.has_reads for b in builders.values()):
        raise NotThisForm("is a vector")
    epilogue = convert(roots, readings, builders)
    forms = tuple(b.build() for b in builders.values())
    exports = tuple((name, node) for (name, _), node in zip(stage.exports, epilogue, strict=True))
    return _finish(NormalForm(stage, "matrix", forms, exports, ""))


# --- elementwise ----------------------------------------------------------------------------------------------------


def _elementwise_stage(stage: Stage, updates: Sequence[Update], ranges: Ranges) -> NormalForm:
    forms = tuple(elementwise_form(u, ranges) for u in updates)
    return _finish(NormalForm(stage, "elementwise", forms, _state_exports(stage, updates), ""))


def elementwise_form(update: Update, ranges: Ranges) -> ElementwiseForm:
    linear, plain = _terms(update)
    for p in linear:
        if p.contracted:
            raise NotThisForm("sums over the state", p.node)
    decay = add_up([multiply(p.rest) for p in linear])
    polar = decompose((decay,), ranges)
    has_log = polar.exact and polar.sign is None and polar.angle is None and not decay.is_complex
    log = polar.log if has_log else None
    return ElementwiseForm(update.state, update.dims, decay, add_up(plain), log, update.is_complex)


def _terms(update: Update) -> tuple[list[Linear], list[Node]]:
    """The whole update in the state before the step: its linear terms, and its plain ones as nodes."""
    (node,) = unwrap([update.versions[-1]], {update.state})
    terms = Expander([update.leaf]).expand(node)
    linear = [p for t in terms if t.base is not None for p in split_linear(t)]
    return linear, [multiply(t.factors) for t in terms if t.base is None]


def _state_exports(stage: Stage, updates: Sequence[Update]) -> tuple[tuple[str, Node], ...]:
    """The exports over `state` and `next` leaves."""
    keep = {u.versions[-1]: leaf("next", u.state, u.dims, u.is_complex) for u in updates}
    nodes = unwrap([node for _, node in stage.exports], set(stage.states), keep)
    return tuple((name, node) for (name, _), node in zip(stage.exports, nodes, strict=True))


# --- linear ---------------------------------------------------------------------------------------------------------


def _linear_stage(stage: Stage, updates: Sequence[Update], ranges: Ranges) -> NormalForm:
    forms = tuple(_linear_form(u, ranges.recurrence) for u in updates)
    return _finish(NormalForm(stage, "linear", forms, _state_exports(stage, updates), ""))


def _linear_form(update: Update, recurrence: Recurrence) -> LinearForm:
    linear, plain = _terms(update)
    rows = {ordered(p.contracted, update.dims): p for p in linear if p.contracted}
    if not any(p.mixed for p in linear):
        raise NotThisForm("is multiplied by no matrix")
    if len(rows) > 1:
        raise NotThisForm("is multiplied by matrices along several axes", next(iter(rows.values())).node)
    row = next(iter(rows))
    factors = [f for p in linear for f in (*p.vector, *p.rest)]
    taken = {d for n in topological(factors) for d in n.dims} | set(update.dims)
    column = tuple(_column_name(d, recurrence, taken) for d in row)
    matrix = add_up([_matrix_of(p, row, column) for p in linear])
    batch = tuple(d for d in update.dims if d not in row)
    return LinearForm(update.state, batch, row, column, matrix, add_up(plain), update.is_complex)


def _column_name(row: str, recurrence: Recurrence, taken: set[str]) -> str:
    """Another name of the row's size that no factor has: a declared one, or a new one."""
    root = recurrence.root_dim(row)
    declared = [d.name for d in recurrence.dims if recurrence.root_dim(d.name) == root]
    return next((d for d in declared if d not in taken), f"{row}_in")


def _matrix_of(p: Linear, row: tuple[str, ...], column: tuple[str, ...]) -> Node:
    if not p.contracted:
        return multiply([*p.rest, *(eye(r, c) for r, c in zip(row, column, strict=True))])
    columns = dict(zip(row, column, strict=True))
    if not p.mixed:
        return multiply([*p.rest, *(_rename_all(f, columns) for f in p.vector)])
    assert p.term.base is not None
    private = dict(zip(p.term.dims, p.term.base.dims, strict=True))
    names = {name: columns[own] for name, own in private.items() if name in p.term.over}
    inner = [d for d in p.term.over if d not in names]
    vector = contract_factors(p.vector, inner)
    return multiply([*p.rest, *(_rename_all(f, names) for f in vector)])


def _rename_all(factor: Node, names: dict[str, str]) -> Node:
    for old, new in names.items():
        factor = rename_factor(factor, old, new)
    return factor


def _with_columns(step: Step, forms: Sequence[NormalForm]) -> Step:
    known = {d.name for d in step.recurrence.dims}
    added = [
        Dim(c, alias=step.recurrence.root_dim(r))
        for normal in forms
        for form in normal.forms
        if isinstance(form, LinearForm)
        for r, c in zip(form.row, form.column, strict=True)
        if c not in known
    ]
    if not added:
        return step
    dims = (*step.recurrence.dims, *dict.fromkeys(added))
    return replace(step, recurrence=replace(step.recurrence, dims=dims))


# --- general --------------------------------------------------------------------------------------------------------


def _general(stage: Stage, updates: Sequence[Update], reason: NotThisForm) -> NormalForm:
    shown = f"{reason.why}: {format_node(_body(reason.node), 120)}" if reason.node is not None else reason.why
    nodes = unwrap([u.versions[-1] for u in updates], set(stage.states))
    forms: tuple[Form, ...] = tuple(
        GeneralForm(u.state, u.dims, node, shown, reason.span) for u, node in zip(updates, nodes, strict=True)
    )
    return _finish(NormalForm(stage, "general", forms, _state_exports(stage, updates), ""))


def _body(node: Node) -> Node:
    return node.args[0] if node.op == "version" else node


def _finish(normal: NormalForm) -> NormalForm:
    return replace(normal, structure=describe(normal))


__all__ = ["Term", "classify", "classify_stage", "matrix_stage"]

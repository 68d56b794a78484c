"""A normal form as plain updates and exports again: the definition that every strategy's plan must agree with."""

from __future__ import annotations

from recur.ir.core import Node, add, apply, contract, leaf, mul, reduce, rename, sub, substitute, version
from recur.ir.normal import (
    Decay,
    ElementwiseForm,
    Form,
    GeneralForm,
    LinearForm,
    MatrixForm,
    MaxPlusForm,
    NormalForm,
    Read,
    Stage,
    Write,
)


def restate(normal: NormalForm) -> Stage:
    """The stage whose updates and exports are those of the forms and the epilogue."""
    replacements: dict[Node, Node] = {}
    updates: list[tuple[str, Node]] = []
    for form in normal.forms:
        if isinstance(form, MatrixForm):
            node, readouts = _restate_matrix(form)
            replacements |= readouts
        else:
            node = restate_form(form)
        node = version(node, form.state, 1)
        updates.append((form.state, node))
        replacements[leaf("next", form.state, node.dims, node.is_complex)] = node
    exports = substitute([node for _, node in normal.epilogue], replacements)
    names = [name for name, _ in normal.epilogue]
    states = tuple(form.state for form in normal.forms)
    return Stage(normal.stage.name, states, tuple(updates), tuple(zip(names, exports, strict=True)))


def restate_form(form: Form) -> Node:
    if isinstance(form, ElementwiseForm):
        return add(mul(form.decay, leaf("state", form.state, form.dims, form.is_complex)), form.drive)
    if isinstance(form, MaxPlusForm):
        return apply("max", add(leaf("state", form.state, form.dims), form.log_decay), form.drive)
    if isinstance(form, LinearForm):
        state = leaf("state", form.state, form.batch + form.row, form.is_complex)
        for row, column in zip(form.row, form.column, strict=True):
            state = rename(state, row, column)
        return add(contract(form.matrix, state, form.column), form.drive)
    assert isinstance(form, GeneralForm)
    return form.update


def _restate_matrix(form: MatrixForm) -> tuple[Node, dict[Node, Node]]:
    dims = form.batch + form.key + form.value
    state = leaf("state", form.state, dims, form.is_complex)
    reads: dict[str, Node] = {}
    readouts: dict[Node, Node] = {}
    for event in form.events:
        if isinstance(event, Decay):
            state = mul(event.factor, state)
        elif isinstance(event, Read):
            reads[event.name] = contract(event.vector, state, form.key)
        elif isinstance(event, Write):
            target = event.value
            if event.read is not None:
                read = reads[event.read]
                target = apply("neg", read) if target is None else sub(target, read)
            assert target is not None
            state = add(state, contract(event.key, target, ()))
        else:
            over = form.key if event.axis == "key" else form.value
            left = form.batch + (form.value if event.axis == "key" else form.key)
            node = _sum_product(event.vector, state, over)
            readouts[leaf("readout", event.name, left, node.is_complex)] = node
    return state, readouts


def _sum_product(vector: Node, state: Node, over: tuple[str, ...]) -> Node:
    covered = all(d in vector.dims for d in over)
    if not over:
        return mul(vector, state)
    return contract(vector, state, over) if covered else reduce("sum", mul(vector, state), over)



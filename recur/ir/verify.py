"""What must hold of each IR: run on every compilation under RECUR_VERIFY=1, and in tests.

A broken rule is an error of the compiler, so it raises AssertionError with the rule and the node.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from recur.ir.core import Node, Step, leaves, topological, union_dims
from recur.ir.normal import (
    Decay,
    ElementwiseForm,
    Form,
    LinearForm,
    MatrixForm,
    MaxPlusForm,
    NormalForm,
    Program,
    Read,
    Readout,
    Write,
)
from recur.operators import OPERATORS

TENSORS = ("input", "param", "prev", "value")


def is_enabled() -> bool:
    return os.environ.get("RECUR_VERIFY") == "1"


def _require(holds: bool, rule: str, node: object) -> None:
    if not holds:
        raise AssertionError(f"{rule}: {node!r}")


# --- nodes ------------------------------------------------------------------------------------------------------------


def verify_nodes(roots: Iterable[Node]) -> None:
    """Every node's dims follow from its operation and its arguments' dims."""
    for node in topological(roots):
        _require(len(set(node.dims)) == len(node.dims), "a dim stands twice", node)
        expected = _expected_dims(node)
        _require(expected is None or set(expected) == set(node.dims), f"dims should be {expected}", node)


def _expected_dims(node: Node) -> tuple[str, ...] | None:
    """The dims that the operation gives; None for leaves and constants, which state their own."""
    op, attrs = node.op, node.attrs
    dims = [a.dims for a in node.args]
    if op in OPERATORS:
        _require(len(node.args) == OPERATORS[op].arity, "wrong number of arguments", node)
        return union_dims(*dims)
    if op in ("contract", "sum", "amax"):
        over = attrs[0]
        assert isinstance(over, tuple)
        for group in dims if op != "contract" else ():
            _require(set(over) <= set(group), "a reduction over a dim that is not there", node)
        _require(set(over) <= {d for group in dims for d in group}, "a contraction over a missing dim", node)
        return tuple(d for d in union_dims(*dims) if d not in over)
    if op == "rename":
        _require(attrs[0] in dims[0] and attrs[1] not in dims[0], "a rename that does not fit", node)
        return tuple(str(attrs[1]) if d == attrs[0] else d for d in dims[0])
    if op == "index":
        _require(attrs[0] in dims[0], "an index into a missing dim", node)
        return tuple(d for d in dims[0] if d != attrs[0])
    if op == "place":
        return (*dims[0], str(attrs[0]))
    if op == "expand":
        _require(set(dims[0]) <= set(node.dims), "an expansion that drops a dim", node)
        return node.dims
    return dims[0] if node.args else None


def _verify_kinds(nodes: Iterable[Node], allowed: tuple[str, ...], what: str) -> None:
    for n in leaves(nodes):
        _require(n.attrs[0] in allowed, f"{what} over {', '.join(allowed)} only", n)


def _verify_within(node: Node, dims: Iterable[str], what: str) -> None:
    _require(set(node.dims) <= set(dims), f"{what} has dims beyond {tuple(dims)}", node)


# --- the checked step -------------------------------------------------------------------------------------------------


def verify_step(step: Step) -> None:
    """Updates have their states' dims in order; every leaf is declared."""
    recurrence = step.recurrence
    declared = {v.name: v for v in recurrence.variables}
    nodes = [n for _, n in (*step.updates, *step.outputs)]
    verify_nodes(nodes)
    _verify_kinds(nodes, ("input", "param", "prev", "state"), "a step is")
    for n in leaves(nodes):
        variable = declared.get(str(n.attrs[1]))
        _require(variable is not None and variable.dims == n.dims, "a leaf unlike its declaration", n)
    _require(tuple(s for s, _ in step.updates) == tuple(s.name for s in recurrence.states), "states", step.updates)
    for state, node in step.updates:
        _require(node.dims == declared[state].dims, f"the update of {state} has other dims", node)
    _require(tuple(o for o, _ in step.outputs) == tuple(o.name for o in recurrence.outputs), "outputs", step.outputs)


# --- normal forms -----------------------------------------------------------------------------------------------------


def verify_program(program: Program) -> None:
    """Every stage is well formed, reads only what earlier stages export, and the outputs are all there."""
    verify_step(program.step)
    exported: dict[str, Node] = {}
    for normal in program.stages:
        verify_normal(normal)
        for n in leaves(_all_nodes(normal), "value"):
            _require(str(n.attrs[1]) in exported, "a value that no earlier stage exports", n)
            _require(set(exported[str(n.attrs[1])].dims) == set(n.dims), "a value with other dims", n)
        exported |= dict(normal.epilogue)
    for name, node in program.step.outputs:
        _require(name in exported and set(exported[name].dims) == set(node.dims), f"output {name}", node)
    states = [form.state for normal in program.stages for form in normal.forms]
    _require(len(set(states)) == len(states), "a state stands in two stages", states)
    _require({s for s, _ in program.step.updates} <= set(states), "a state is missing", states)


def _all_nodes(normal: NormalForm) -> list[Node]:
    return [n for form in normal.forms for n in _form_nodes(form)] + [n for _, n in normal.epilogue]


def _form_nodes(form: Form) -> list[Node]:
    if isinstance(form, MatrixForm):
        found: list[Node | None] = []
        for e in form.events:
            if isinstance(e, Decay):
                found += [e.factor, e.log, e.sign, e.angle]
            elif isinstance(e, Write):
                found += [e.key, e.value]
            else:
                found.append(e.vector)
        return [n for n in found if n is not None]
    if isinstance(form, ElementwiseForm):
        return [n for n in (form.decay, form.drive, form.log) if n is not None]
    if isinstance(form, MaxPlusForm):
        return [form.log_decay, form.drive]
    return [form.matrix, form.drive] if isinstance(form, LinearForm) else [form.update]


def verify_normal(normal: NormalForm) -> None:
    """One stage: coefficients are free of states, dims fit, and the epilogue uses what its family allows."""
    verify_nodes(_all_nodes(normal))
    for form in normal.forms:
        kinds = (*TENSORS, "state") if normal.family == "general" else TENSORS
        _verify_kinds(_form_nodes(form), kinds, f"the form of {form.state} is")
        if isinstance(form, MatrixForm):
            _verify_matrix(form)
        elif not isinstance(form, LinearForm):
            for node in _form_nodes(form):
                _verify_within(node, form.dims, f"a coefficient of {form.state}")
        else:
            _verify_within(form.matrix, form.batch + form.row + form.column, f"the matrix of {form.state}")
            _verify_within(form.drive, form.batch + form.row, f"the drive of {form.state}")
    own = ("readout",) if normal.family == "matrix" else ("state", "next")
    _verify_kinds([n for _, n in normal.epilogue], (*TENSORS, *own), "an epilogue is")
    readouts = {r.name for form in normal.forms if isinstance(form, MatrixForm) for r in form.readouts}
    for n in leaves([n for _, n in normal.epilogue], "readout"):
        _require(n.attrs[1] in readouts, "an unknown readout", n)


def _verify_matrix(form: MatrixForm) -> None:
    """Decays on one axis each; reads before the writes that use them; vectors with their axis' dims."""
    read: set[str] = set()
    for event in form.events:
        if isinstance(event, Decay):
            on_one_axis = not (set(event.factor.dims) & set(form.key) and set(event.factor.dims) & set(form.value))
            _require(on_one_axis, f"a decay of {form.state} over both axes", event.factor)
            _verify_within(event.factor, form.batch + form.key + form.value, f"a decay of {form.state}")
        elif isinstance(event, Read):
            _verify_within(event.vector, form.batch + form.key, f"a read of {form.state}")
            read.add(event.name)
        elif isinstance(event, Write):
            _verify_within(event.key, form.batch + form.key, f"a key of {form.state}")
            if event.value is not None:
                _verify_within(event.value, form.batch + form.value, f"a value of {form.state}")
            _require(event.read is None or event.read in read, "a write of a read that comes later", event)
        else:
            assert isinstance(event, Readout)
            axis = form.key if event.axis == "key" else form.value
            _verify_within(event.vector, form.batch + axis, f"a readout of {form.state}")

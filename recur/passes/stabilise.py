"""Exponential gates without bounds, kept in range by a running log scale (docs/mathematics.md, section 4).

    S = exp(m) S'        m <- max(m + log decay, log gate)
    S' <- exp(log decay + m_before - m) S' + exp(log gate - m) (...)

States whose gates outputs combine share one m, a max-plus state of a stage of its own. That is possible where every
output is free of the common factor (a ratio of states, say) or only shrinks by it; otherwise a note says that the spec
can overflow. m is a constant to differentiation, which is exact: no output depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from recur.ir.core import Node, add, apply, const, leaf, leaves, neg, sub
from recur.ir.normal import (
    Decay,
    ElementwiseForm,
    Event,
    Form,
    MatrixForm,
    NormalForm,
    Program,
    Read,
    Readout,
    Stage,
    Write,
)
from recur.passes.affine import add_up, flatten, multiply
from recur.passes.decay import Ranges
from recur.passes.log_scale import (
    LogScale,
    decay_logs,
    is_gated,
    log_scale_nodes,
    log_scale_of,
    products_of,
    scale_dims,
    scale_elementwise,
    write_logs,
)
from recur.passes.restate import restate
from recur.passes.scales import NONE, NotScalable, Scale, Scaled, scale_nodes, settle, single, split_gates, varies
from recur.passes.stabilise_general import stabilise_general
from recur.passes.structure import describe


def stabilise(program: Program) -> Program:
    """The program with log scales where its exponential gates need them."""
    ranges = Ranges(program.step.recurrence)
    stages = tuple(
        stabilise_general(n, program.step.recurrence, ranges) if n.family == "general" else n
        for n in program.stages
    )
    program = replace(program, stages=stages)
    gated = [state for normal in program.stages for state in _gated_states(normal, ranges)]
    for group in _groups(program, gated):
        program = _stabilise_group(program, group, ranges)
    return program


# --- which states -----------------------------------------------------------------------------------------------------


def _gated_states(normal: NormalForm, ranges: Ranges) -> list[str]:
    return [f.state for f in normal.forms if isinstance(f, (MatrixForm, ElementwiseForm)) and is_gated(f, ranges)]


def _groups(program: Program, gated: Sequence[str]) -> list[tuple[str, ...]]:
    """Gated states that meet in an output."""
    groups = [{s} for s in gated]
    for used in _used_together(program):
        met = [g for g in groups if g & used]
        if len(met) > 1:
            groups = [g for g in groups if g not in met] + [set().union(*met)]
    found = [tuple(s for s in gated if s in g) for g in groups]
    return sorted(found, key=lambda g: gated.index(g[0]))


def _used_together(program: Program) -> list[set[str]]:
    """For each output, the states that it depends on, through values that cross stages too."""
    reached: dict[str, set[str]] = {}
    for normal in program.stages:
        owner = {r.name: f.state for f in normal.forms if isinstance(f, MatrixForm) for r in f.readouts}
        vectors = {r.name: r.vector for f in normal.forms if isinstance(f, MatrixForm) for r in f.readouts}
        for name, node in normal.epilogue:
            states: set[str] = set()
            for n in leaves([node, *(vectors[n.attrs[1]] for n in leaves([node], "readout"))]):  # type: ignore[index]
                kind, used = str(n.attrs[0]), str(n.attrs[1])
                if kind == "value":
                    states |= reached.get(used, set())
                elif kind in ("state", "next", "readout"):
                    states.add(owner.get(used, used))
            reached[name] = states
    return [reached[name] for name, _ in program.step.outputs if name in reached]


# --- one group --------------------------------------------------------------------------------------------------------


def _stabilise_group(program: Program, group: tuple[str, ...], ranges: Ranges) -> Program:
    forms = [form for normal in program.stages for form in normal.forms if form.state in group]
    reason: Node | None = None
    for dims in scale_dims(forms, ranges):
        try:
            return _scaled_program(program, log_scale_of(forms, dims, ranges), ranges)
        except NotScalable as failure:
            reason = reason or failure.node
    return _with_note(program, group, forms, ranges)


def _with_note(program: Program, group: tuple[str, ...], forms: Sequence[Form], ranges: Ranges) -> Program:
    """A note where the group can overflow: outputs keep the common factor of their states."""
    logs = [n for f in forms for n in (*write_logs(f, ranges), *decay_logs(f)) if n is not None]
    high = next((n for n in dict.fromkeys(logs) if ranges.of(n)[1] == math.inf and varies(n)), None)
    if high is None:
        return program
    note = (
        f"can overflow: exp({high!r}) has no upper bound and outputs do not cancel it; declare a range, "
        "or divide by a normaliser that has the same gates"
    )
    stages = tuple(
        replace(n, notes=(*n.notes, note)) if any(f.state in group for f in n.forms) else n for n in program.stages
    )
    return replace(program, stages=stages)


# --- rewriting --------------------------------------------------------------------------------------------------------


def _scaled_program(program: Program, log_scale: LogScale, ranges: Ranges) -> Program:
    first = next(i for i, n in enumerate(program.stages) if any(f.state in log_scale.states for f in n.forms))
    exported = {name for normal in program.stages[:first] for name, _ in normal.epilogue}
    for n in leaves([log_scale.log_decay, log_scale.drive], "value"):
        if n.attrs[1] not in exported:
            raise NotScalable(n)
    outputs = {name for name, _ in program.step.outputs}
    known: dict[Node, Scaled] = {}
    stages = []
    for normal in program.stages[first:]:
        scaled, exports = _scale_stage(normal, log_scale, known, outputs, ranges)
        stages.append(scaled)
        known.update(exports)
    used = {str(n.attrs[1]) for normal in stages for n in leaves(_all_nodes(normal), "value")}
    return replace(program, stages=(*program.stages[:first], _max_plus_stage(log_scale, used), *stages))


def _all_nodes(normal: NormalForm) -> list[Node]:
    return [node for _, node in (*normal.stage.updates, *normal.stage.exports)]


def _max_plus_stage(log_scale: LogScale, used: set[str]) -> NormalForm:
    name, dims = log_scale.state, log_scale.dims
    now, before, step = log_scale_nodes(name, dims, leaf("next", name, dims))
    exports = ((f"{name}.now", now), (f"{name}.before", before), (f"{name}.step", step))
    epilogue = tuple((export, node) for export, node in exports if export in used)
    normal = NormalForm(Stage(name, (name,), (), ()), "maxplus", (log_scale.form,), epilogue, "")
    return replace(normal, stage=restate(normal), structure=describe(normal))


def _scale_stage(
    normal: NormalForm, log_scale: LogScale, known: dict[Node, Scaled], outputs: set[str], ranges: Ranges
) -> tuple[NormalForm, dict[Node, Scaled]]:
    """The stage with its scaled states and its epilogue over them; its exports that keep a scale, for later stages."""
    now, before = single(log_scale.now), single(log_scale.before)
    states = dict(known)
    forms: list[Form] = []
    for form in normal.forms:
        is_scaled = form.state in log_scale.states
        if is_scaled and isinstance(form, ElementwiseForm):
            form = scale_elementwise(form, log_scale, ranges)
            for kind, scale in (("state", before), ("next", now)):
                value = leaf(kind, form.state, form.dims, form.is_complex)
                states[value] = Scaled(value, scale)
        elif isinstance(form, MatrixForm):
            if is_scaled:
                form = _scale_matrix(form, log_scale, ranges)
            form, readouts = _scale_readouts(form, known, (before, now) if is_scaled else (NONE, NONE), ranges)
            states |= readouts
        _refuse_scaled_coefficients(form, known)
        forms.append(form)
    found = scale_nodes([node for _, node in normal.epilogue], states, ranges)
    epilogue, exports = [], {}
    for (name, node), scaled in zip(normal.epilogue, found, strict=True):
        value = settle(scaled, node) if name in outputs else scaled.value
        if name not in outputs and scaled.scale != NONE:
            crossing = leaf("value", name, node.dims, node.is_complex)
            exports[crossing] = Scaled(crossing, scaled.scale)
        epilogue.append((name, value))
    own = tuple((f.state, log_scale.state) for f in forms if f.state in log_scale.states)
    result = replace(normal, forms=tuple(forms), epilogue=tuple(epilogue), scale_of=normal.scale_of + own)
    if own:
        held = f"; {' and '.join(state for state, _ in own)} kept as exp({log_scale.state}) times a scaled state"
        result = replace(result, structure=normal.structure + held)
    return replace(result, stage=restate(result)), exports


def _refuse_scaled_coefficients(form: Form, known: dict[Node, Scaled]) -> None:
    """A coefficient may not depend on a value that keeps a scale; readouts' vectors have been dealt with."""
    nodes: list[Node] = []
    if isinstance(form, MatrixForm):
        nodes = [n for e in form.events if not isinstance(e, Readout) for n in _event_nodes(e)]
    elif isinstance(form, ElementwiseForm):
        nodes = [form.decay, form.drive]
    for n in leaves(nodes, "value"):
        if n in known:
            raise NotScalable(n)


def _event_nodes(event: Event) -> list[Node]:
    if isinstance(event, Decay):
        return [event.factor]
    if isinstance(event, Write):
        return [event.key] if event.value is None else [event.key, event.value]
    return [event.vector]


def _scale_matrix(form: MatrixForm, log_scale: LogScale, ranges: Ranges) -> MatrixForm:
    """The events on S' = exp(-m) S: the first decay also takes the scale from the last token's to this one's.

    Where there is no decay, one is inserted behind the readouts of the state before the update; reads before it get the
    step on their vectors.
    """
    step = log_scale.step
    events: list[Event] = []
    is_stepped = False
    for event in form.events:
        if not is_stepped and isinstance(event, Decay):
            events.append(_stepped(event, step))
            is_stepped = True
            continue
        if not is_stepped and isinstance(event, Write):
            at = next((i for i, e in enumerate(events) if isinstance(e, Read)), len(events))
            events.insert(at, Decay(apply("exp", step), step))
            is_stepped = True
        events.append(_scale_write(event, form, log_scale, ranges) if isinstance(event, Write) else event)
    if not is_stepped:
        events.append(Decay(apply("exp", step), step))
    decayed = next(i for i, e in enumerate(events) if isinstance(e, Decay))
    early = [replace(e, vector=multiply([e.vector, apply("exp", step)])) if isinstance(e, Read) else e
             for e in events[:decayed]]
    return replace(form, events=(*early, *events[decayed:]))


def _stepped(decay: Decay, step: Node) -> Decay:
    log = step if decay.log is None else add(decay.log, step)
    factor = apply("exp", log)
    if decay.angle is not None:
        factor = apply("polar", factor, decay.angle)
    if decay.sign is not None:
        factor = multiply([decay.sign, factor])
    return replace(decay, factor=factor, log=log, may_grow=False)  # the scale is at least the decayed one


def _scale_write(write: Write, form: MatrixForm, log_scale: LogScale, ranges: Ranges) -> Write:
    """The gate's exponent on the side whose dims it has; the key's own gates move to where m is subtracted."""
    if write.value is None:
        return write
    key_logs, key_rest = split_gates(flatten(write.key), ranges)
    products = [split_gates(factors, ranges) for factors in products_of(write.value)]
    on_key = set(form.key) & {d for n in (*key_logs, log_scale.now) for d in n.dims}
    on_value = set(form.value) & {d for logs, _ in products for n in (*logs, log_scale.now) for d in n.dims}
    if on_key and (on_value or write.read is not None or any(logs for logs, _ in products)):
        raise NotScalable(write.key)
    if on_key:
        exponent = sub(add_up(key_logs), log_scale.now) if key_logs else neg(log_scale.now)
        return replace(write, key=multiply([*key_rest, apply("exp", exponent)]))
    gates = [(add_up([*key_logs, *logs]), rest) for logs, rest in products]
    values = [
        multiply([*rest, apply("exp", neg(log_scale.now) if log == const(0) else sub(log, log_scale.now))])
        for log, rest in gates
    ]
    if key_logs and write.read is not None:
        raise NotScalable(write.key)
    return replace(write, key=multiply(key_rest), value=add_up(values))


def _scale_readouts(
    form: MatrixForm, known: dict[Node, Scaled], scales: tuple[Scale, Scale], ranges: Ranges
) -> tuple[MatrixForm, dict[Node, Scaled]]:
    """Readouts with the scale of their position and of their vector; what they contract must carry no scale."""
    before, now = scales
    events: list[Event] = []
    found: dict[Node, Scaled] = {}
    current = before
    for event in form.events:
        if isinstance(event, (Decay, Write)):
            current = now
        if isinstance(event, Readout):
            (vector,) = scale_nodes([event.vector], known, ranges)
            scale = current.plus(vector.scale)
            over = form.key if event.axis == "key" else form.value
            if scale.dims & set(over):
                raise NotScalable(event.vector)
            left = form.batch + (form.value if event.axis == "key" else form.key)
            is_complex = form.is_complex or event.vector.is_complex
            readout = leaf("readout", event.name, left, is_complex)
            found[readout] = Scaled(readout, scale)
            event = replace(event, vector=vector.value)
        events.append(event)
    return replace(form, events=tuple(events)), found

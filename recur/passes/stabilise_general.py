"""Log scales in general stages: the gates may depend on other states, so m is a state of the same stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recur.ir.core import Node, add, apply, leaf, stop
from recur.ir.normal import ElementwiseForm, GeneralForm, NormalForm
from recur.ir.spec import Recurrence
from recur.passes.affine import NotAffine
from recur.passes.classify import elementwise_form
from recur.passes.decay import Ranges
from recur.passes.log_scale import LogScale, gate_logs, is_gated, log_scale_nodes, scale_dims, scale_elementwise
from recur.passes.restate import restate, restate_form
from recur.passes.scales import NONE, NotScalable, Scaled, scale_nodes, settle, single
from recur.passes.updates import NotThisForm, Update, collect_update, unwrap


def stabilise_general(normal: NormalForm, recurrence: Recurrence, ranges: Ranges) -> NormalForm:
    """The stage with a log scale for those of its states that are h <- a h + x with unbounded exponential gates."""
    updates = [collect_update(normal.stage, s, recurrence) for s in normal.stage.states]
    forms = [f for f in (_own_form(u, ranges) for u in updates) if f is not None and is_gated(f, ranges)]
    for dims in scale_dims(forms, ranges) if forms else ():
        try:
            return _scale_general(normal, updates, forms, dims, ranges)
        except NotScalable:
            continue
    return normal


def _own_form(update: Update, ranges: Ranges) -> ElementwiseForm | None:
    """The state's update as an elementwise form whose coefficients may depend on other states."""
    try:
        return elementwise_form(update, ranges)
    except (NotThisForm, NotAffine):
        return None


def _scale_general(
    normal: NormalForm,
    updates: Sequence[Update],
    forms: Sequence[ElementwiseForm],
    dims: tuple[str, ...],
    ranges: Ranges,
) -> NormalForm:
    name = f"{forms[0].state}.log_scale"
    log_decay, drive = gate_logs(forms, dims, ranges)
    after = apply("max", add(leaf("state", name, dims), log_decay), drive)
    now, before, step = (stop(n) for n in log_scale_nodes(name, dims, after))
    log_scale = LogScale(name, dims, tuple(f.state for f in forms), log_decay, drive, now, before, step)
    known: dict[Node, Scaled] = {}
    final = {u.state: u.versions[-1] for u in updates}
    for f in forms:
        state = leaf("state", f.state, f.dims, f.is_complex)
        known[state] = Scaled(state, single(before))
    coefficients = [n for f in forms for n in (f.decay, f.drive)] + [log_decay, drive]
    for coefficient, scaled in zip(coefficients, scale_nodes(coefficients, known, ranges), strict=True):
        if scaled.scale != NONE or scaled.value != coefficient:
            raise NotScalable(coefficient)
    for f in forms:
        new = restate_form(scale_elementwise(f, log_scale, ranges))
        known[final[f.state]] = Scaled(new, single(now))
    new_states = scale_nodes([final[u.state] for u in updates], known, ranges)
    nodes = [s.value if u.state in log_scale.states else settle(s, final[u.state])
             for u, s in zip(updates, new_states, strict=True)]
    nodes = unwrap(nodes, set(normal.stage.states))
    whys = {f.state: f for f in normal.forms if isinstance(f, GeneralForm)}
    general = [replace(whys[u.state], update=node) for u, node in zip(updates, nodes, strict=True)]
    return _with_general_epilogue(replace(normal, forms=(log_scale.form, *general)), log_scale, forms, ranges)


def _with_general_epilogue(
    normal: NormalForm, log_scale: LogScale, forms: Sequence[ElementwiseForm], ranges: Ranges
) -> NormalForm:
    now, before, _ = log_scale_nodes(
        log_scale.state, log_scale.dims, leaf("next", log_scale.state, log_scale.dims)
    )
    known: dict[Node, Scaled] = {}
    for form in forms:
        for kind, scale in (("state", before), ("next", now)):
            value = leaf(kind, form.state, form.dims, form.is_complex)
            known[value] = Scaled(value, single(stop(scale)))
    found = scale_nodes([node for _, node in normal.epilogue], known, ranges)
    exports = tuple((name, settle(s, node)) for (name, node), s in zip(normal.epilogue, found, strict=True))
    own = tuple((f.state, log_scale.state) for f in forms)
    states = " and ".join(f.state for f in forms)
    structure = f"{normal.structure}; {states} kept as exp({log_scale.state}) times a scaled state"
    result = replace(normal, epilogue=exports, scale_of=own, structure=structure)
    return replace(result, stage=restate(result))

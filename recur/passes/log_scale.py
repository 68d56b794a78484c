"""The log scale m of a group of states: from which gates, over which dims, and what it does to an update.

    S = exp(m) S'        m <- max(m + log decay, log gate)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from recur.ir.core import Node, add, apply, const, leaf, neg, reduce, stop, sub, where
from recur.ir.normal import ElementwiseForm, Form, MatrixForm, MaxPlusForm
from recur.passes.affine import NotAffine, add_up, flatten, multiply, summands
from recur.passes.decay import Ranges, decompose
from recur.passes.scales import split_gates, varies

LOWEST = -1e30  # stands for a log of zero where differences of logs are taken


def is_gated(form: Form, ranges: Ranges) -> bool:
    """Whether a write holds an exponential without bounds, or the decay's log has no upper bound."""
    if any(log is not None for log in write_logs(form, ranges)):
        return True
    return any(ranges.of(log)[1] == math.inf and varies(log) for log in decay_logs(form))


def decay_logs(form: Form) -> list[Node]:
    """The exact logs of the decays; what has none is a bounded gate or a sum."""
    if isinstance(form, ElementwiseForm):
        return [form.log] if form.log is not None else []
    assert isinstance(form, MatrixForm)
    return [d.log for d in form.decays if d.log is not None and _has_exponential(d.factor)]


def _has_exponential(factor: Node) -> bool:
    return any(n.op in ("exp", "polar", "div") for n in flatten(factor))


def write_logs(form: Form, ranges: Ranges) -> list[Node | None]:
    """For each product that the form adds to its state, the log of its unbounded exponentials (None: it has none)."""
    if isinstance(form, ElementwiseForm):
        products = products_of(form.drive)
    else:
        assert isinstance(form, MatrixForm)
        values = [(w.key, w.value) for w in form.writes if w.value is not None]
        products = [(*flatten(key), *part) for key, value in values for part in products_of(value)]
    logs = [split_gates(factors, ranges)[0] for factors in products]
    return [add_up(found) if found else None for found in logs]


def products_of(node: Node) -> list[tuple[Node, ...]]:
    """The summands of a sum, the node alone where it is none."""
    if node.op not in ("add", "sub", "neg"):
        return [flatten(node)]
    try:
        return summands(node)
    except NotAffine:
        return [(node,)]


@dataclass(frozen=True)
class LogScale:
    """The group's m. ``now`` and ``before``: its value after and before the token; ``step``: before - now, 0 where the
    states are still empty (m = -inf), so that sums of log decays stay finite."""

    state: str
    dims: tuple[str, ...]
    states: tuple[str, ...]
    log_decay: Node
    drive: Node
    now: Node
    before: Node
    step: Node

    @property
    def form(self) -> MaxPlusForm:
        return MaxPlusForm(self.state, self.dims, self.log_decay, self.drive)


def log_scale_of(forms: Sequence[Form], dims: tuple[str, ...], ranges: Ranges) -> LogScale:
    """m for the forms' states, as values that a stage of its own exports."""
    name = f"{forms[0].state}.log_scale"
    log_decay, drive = gate_logs(forms, dims, ranges)
    now, before, step = (stop(leaf("value", f"{name}.{part}", dims)) for part in ("now", "before", "step"))
    return LogScale(name, dims, tuple(f.state for f in forms), log_decay, drive, now, before, step)


def gate_logs(forms: Sequence[Form], dims: tuple[str, ...], ranges: Ranges) -> tuple[Node, Node]:
    """The largest log decay and the largest log gate of the forms, over ``dims``."""
    decays = [add_up(_reduced(log, dims) for log in _all_decay_logs(f, ranges)) for f in forms]
    writes = [_reduced(log or const(0), dims) for f in forms for log in write_logs(f, ranges)]
    return _largest(decays), _largest(writes)


def _all_decay_logs(form: Form, ranges: Ranges) -> list[Node]:
    """Logs of all of the form's decays: what has no exact log gives log(abs(.))."""
    if isinstance(form, MatrixForm):
        return [d.log for d in form.decays if d.log is not None]
    assert isinstance(form, ElementwiseForm)
    log = form.log if form.log is not None else decompose(flatten(form.decay), ranges).log
    return [] if log is None else [log]


def _reduced(log: Node, dims: tuple[str, ...]) -> Node:
    return reduce("amax", log, tuple(d for d in log.dims if d not in dims))


def _largest(nodes: Iterable[Node]) -> Node:
    distinct = list(dict.fromkeys(nodes))
    result = distinct[0] if distinct else const(0)
    for node in distinct[1:]:
        result = apply("max", result, node)
    return result


def log_scale_nodes(name: str, dims: tuple[str, ...], after: Node) -> tuple[Node, Node, Node]:
    """now, before and step (see `LogScale`) from the new value of m."""
    before = leaf("state", name, dims)
    now = apply("max", after, const(LOWEST))
    return now, before, where(apply("lt", before, const(LOWEST)), const(0), sub(before, now))


def scale_dims(forms: Sequence[Form], ranges: Ranges) -> list[tuple[str, ...]]:
    """Dims that m may have, most first: those of the gates that every state of the group has."""
    shared = [d for d in _form_dims(forms[0]) if all(d in _form_dims(f) for f in forms)]
    gates = [n for f in forms for n in (*write_logs(f, ranges), *decay_logs(f)) if n is not None]
    dims = [d for d in shared if any(d in n.dims for n in gates)]
    sizes = range(len(dims), -1, -1)
    return [chosen for size in sizes for chosen in itertools.combinations(dims, size)]


def _form_dims(form: Form) -> tuple[str, ...]:
    if isinstance(form, MatrixForm):
        return form.batch + form.key + form.value
    assert isinstance(form, ElementwiseForm)
    return form.dims


def scale_elementwise(form: ElementwiseForm, log_scale: LogScale, ranges: Ranges) -> ElementwiseForm:
    step = log_scale.step
    log = None if form.log is None else add(form.log, step)
    decay = apply("exp", log if log is not None else step)
    if log is None:
        decay, log = multiply([form.decay, decay]), step if form.decay == const(1) else None
    products = [_at_scale(factors, log_scale, ranges) for factors in products_of(form.drive)]
    return replace(form, decay=decay, drive=add_up(multiply(p) for p in products), log=log)


def _at_scale(factors: tuple[Node, ...], log_scale: LogScale, ranges: Ranges) -> list[Node]:
    """A product's factors with exp(log gate - m) in place of its exponential gates."""
    logs, rest = split_gates(factors, ranges)
    return [*rest, apply("exp", sub(add_up(logs), log_scale.now) if logs else neg(log_scale.now))]

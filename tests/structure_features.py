"""What the compiler has proved of a recurrence, as words to count: which structures the random specs really reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recur.ir.core import leaves
from recur.ir.normal import Decay, ElementwiseForm, MatrixForm, NormalForm, Program, Read, Readout, Write
from recur.strategies.select import Selection

CHANGING = ("input", "prev", "value")  # leaves whose value differs from token to token

# What every run of random specs must reach: a run that misses one of these fails.
CELLS = (
    *(f"family {f}" for f in ("matrix", "elementwise", "linear", "general", "maxplus")),
    *(f"matrix decay {d}" for d in ("none", "constant", "scalar", "key", "value", "key and value")),
    *(f"matrix decay {d}" for d in ("signed", "complex")),
    *(f"elementwise decay {d}" for d in ("real", "signed", "complex")),
    *(f"reads {n}" for n in range(4)),
    *(f"reads along {axis}" for axis in ("the first dim", "the second dim")),
    *(f"reads with decay {d}" for d in ("none", "scalar", "key", "value", "key and value", "signed", "complex")),
    "read before a decay",
    "plain write beside reads",
    *(f"readout {place}" for place in ("before", "between", "after")),
    *(f"readout along {axis}" for axis in ("key", "value")),
    *(f"stages {n}" for n in (1, 2)),
    *(f"stabilised {f}" for f in ("matrix", "elementwise", "general")),
    "prev",
    "param",
    "several states",
    "several outputs",
    *(f"chunkwise {d}" for d in ("none", "constant", "scalar", "key", "value", "key and value", "signed", "complex")),
    *(f"chunkwise reads {n}" for n in range(4)),
    *(f"tiled {d}" for d in ("none", "constant", "scalar", "signed")),
    "tiled stabilised",
    "chunkwise stabilised",
    *(f"associative_scan {f}" for f in ("elementwise", "linear", "maxplus")),
    *(f"sequential {f}" for f in ("matrix", "elementwise", "linear", "general", "maxplus")),
)


def program_features(program: Program) -> frozenset[str]:
    """Features of the recurrence, whatever runs it."""
    rec = program.step.recurrence
    own = [normal for normal in program.stages if normal.family != "maxplus"]
    found = {f"family {normal.family}" for normal in program.stages} | {f"stages {len(own)}"}
    found |= {f"stabilised {normal.family}" for normal in own if normal.scale_of}
    nodes = [node for _, node in (*program.step.updates, *program.step.outputs)]
    found |= {kind for kind in ("prev", "param") if leaves(nodes, kind)}
    found |= {"several states"} if len(rec.states) > 1 else set()
    found |= {"several outputs"} if len(rec.outputs) > 1 else set()
    first_dims = {s.name: s.dims[:1] for s in rec.states}
    for form in (form for normal in program.stages for form in normal.forms):
        if isinstance(form, MatrixForm):
            found |= _matrix_features(form, first_dims[form.state])
        elif isinstance(form, ElementwiseForm):
            signed = not form.is_complex and form.log is None
            found.add(f"elementwise decay {'complex' if form.is_complex else 'signed' if signed else 'real'}")
    return frozenset(found)


def selection_features(selections: Sequence[Selection]) -> frozenset[str]:
    """Features of each stage, under the strategy that runs it."""
    return frozenset(word for s in selections for word in _stage_features(s.normal, s.strategy))


def _stage_features(normal: NormalForm, strategy: str) -> Iterator[str]:
    yield f"{strategy} {normal.family}"
    if normal.scale_of:
        yield f"{strategy} stabilised"
    for form in normal.forms:
        if isinstance(form, MatrixForm):
            yield f"{strategy} reads {min(len(form.reads), 3)}"
            yield from (f"{strategy} {kind}" for kind in decay_kinds(form))


def _matrix_features(form: MatrixForm, first: tuple[str, ...]) -> set[str]:
    kinds = decay_kinds(form)
    found = {f"matrix decay {kind}" for kind in kinds} | {f"reads {min(len(form.reads), 3)}"}
    if form.reads:
        found |= {f"reads with decay {kind}" for kind in kinds}
        found.add(f"reads along the {'first' if set(form.key) & set(first) else 'second'} dim")
    if form.reads and any(write.read is None for write in form.writes):
        found.add("plain write beside reads")
    position = {event.name: i for i, event in enumerate(form.events) if isinstance(event, Read)}
    for i, event in enumerate(form.events):
        if isinstance(event, Readout):
            found |= {f"readout along {event.axis}", f"readout {_place(form, i)}"}
        elif isinstance(event, Write) and event.read is not None:
            between = form.events[position[event.read] : i]
            found |= {"read before a decay"} if any(isinstance(e, Decay) for e in between) else set()
    return found


def decay_kinds(form: MatrixForm) -> set[str]:
    """What the form's decays vary over, and their signs."""
    found = set()
    over = set()
    for decay in form.decays:
        dims = set(decay.factor.dims)
        over |= {axis for axis, names in (("key", form.key), ("value", form.value)) if dims & set(names)}
        if not dims:
            fixed = not any(leaf.attrs[0] in CHANGING for leaf in leaves([decay.factor]))
            found.add("constant" if fixed else "scalar")
        found |= {"signed"} if decay.sign is not None else set()
        found |= {"complex"} if decay.angle is not None else set()
    found |= {" and ".join(sorted(over))} if over else set()
    return found or {"none"}


def _place(form: MatrixForm, position: int) -> str:
    changes = (Decay, Write)
    if not any(isinstance(e, changes) for e in form.events[:position]):
        return "before"
    return "between" if any(isinstance(e, changes) for e in form.events[position:]) else "after"

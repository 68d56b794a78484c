"""A stage's structure in one line, in the papers' symbols, for explain."""

from __future__ import annotations

from collections import Counter

from recur.ir.core import Node, is_const
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
    Readout,
    Write,
)
from recur.ir.printing import format_factor, format_node

WIDTH = 60


def describe(normal: NormalForm) -> str:
    """Family, kinds and equations, e.g. "matrix: scalar decay, 1 read along K: S <- exp(g) S; ..."."""
    kinds = list(dict.fromkeys(_kinds(form) for form in normal.forms))
    equations = "; ".join(_equation(form) for form in normal.forms)
    return f"{normal.family}: {' | '.join(kinds)}; {equations}"


def _kinds(form: Form) -> str:
    if isinstance(form, MatrixForm):
        return _matrix_kinds(form)
    if isinstance(form, ElementwiseForm):
        over = f"over {' '.join(form.dims)}" if form.dims else "of one number"
        kind = "complex" if form.is_complex else "real"
        return f"{kind} diagonal {over}"
    if isinstance(form, LinearForm):
        blocks = f"blocks over {' '.join(form.batch)}, " if form.batch else ""
        return f"{blocks}dense over {' '.join(form.row)}"
    if isinstance(form, MaxPlusForm):
        return "running maximum of log weights"
    return form.why if len(form.why.split(" depend on ")) > 1 else f"{form.state} {form.why}"


def _matrix_kinds(form: MatrixForm) -> str:
    parts = [_decay_kinds(form)]
    if form.reads:
        parts.append(f"{_count(len(form.reads), 'read')} along {' '.join(form.key)}")
    plain = sum(w.read is None for w in form.writes)
    if plain:
        parts.append(_count(plain, "plain write"))
    places = Counter(_place(form, i) for i, e in enumerate(form.events) if isinstance(e, Readout))
    parts += [f"{_count(n, 'readout')} {place}" for place, n in places.items()]
    return ", ".join(parts)


def _decay_kinds(form: MatrixForm) -> str:
    if not form.decays:
        return "no decay"
    names = []
    for decay in form.decays:
        dims = decay.factor.dims
        axes = [d for d in dims if d not in form.batch]
        fixed = not any(n.attrs[0] in ("input", "prev", "value") for n in _leaves(decay.factor))
        kind = f"diagonal decay over {' '.join(axes)}" if axes else "scalar decay"
        sign = "complex " if decay.angle is not None else "signed " if decay.sign is not None else ""
        names.append(f"{'fixed ' if fixed else ''}{sign}{kind}")
    return " and ".join(f"{n} {k}s" if n > 1 else k for k, n in Counter(names).items())


def _leaves(node: Node) -> list[Node]:
    from recur.ir.core import leaves

    return leaves([node])


def _place(form: MatrixForm, position: int) -> str:
    event = form.events[position]
    assert isinstance(event, Readout)
    dims = form.key if event.axis == "key" else form.value
    axis = f"along {' '.join(dims)}" if dims else "of the whole state"
    later = [e for e in form.events[position + 1 :] if not isinstance(e, (Readout, Read))]
    if not later:
        return axis
    earlier = [e for e in form.events[:position] if isinstance(e, (Decay, Write))]
    if not earlier:
        return f"{axis} before the update"
    return f"{axis} between updates"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n > 1 else ''}"


# --- equations --------------------------------------------------------------------------------------------------------


def _equation(form: Form) -> str:
    s = form.state
    if isinstance(form, MatrixForm):
        return ", ".join(_matrix_equations(form))
    if isinstance(form, ElementwiseForm):
        drive = "" if is_const(form.drive, 0.0) else f" + {_text(form.drive)}"
        return f"{s} <- {_coefficient(form.decay)}{s}{drive}"
    if isinstance(form, LinearForm):
        drive = "" if is_const(form.drive, 0.0) else f" + {_text(form.drive)}"
        return f"{s} <- {_bracket(form.matrix)} {s}{drive}"
    if isinstance(form, MaxPlusForm):
        return f"{s} <- max({s} + {_text(form.log_decay)}, {_text(form.drive)})"
    assert isinstance(form, GeneralForm)
    return f"{s} <- {_text(form.update)}"


def _matrix_equations(form: MatrixForm) -> list[str]:
    """One assignment for a run of decays and the writes behind them; reads are written into the writes."""
    s = form.state
    lines: list[str] = []
    decay = ""
    vectors = {r.name: r.vector for r in form.reads}
    pending: list[str] = []
    for event in form.events:
        if isinstance(event, Decay):
            if pending:
                lines.append(_assignment(s, decay, pending))
                decay, pending = "", []
            decay += _coefficient(event.factor)
        elif isinstance(event, Read) and decay and not pending:
            lines.append(f"{s} <- {decay}{s}")
            decay = ""
        elif isinstance(event, Read) and pending:
            lines.append(_assignment(s, decay, pending))
            decay, pending = "", []
        elif isinstance(event, Write):
            pending.append(_write(event, s, vectors))
    if decay or pending:
        lines.append(_assignment(s, decay, pending))
    return lines


def _assignment(state: str, decay: str, writes: list[str]) -> str:
    return " + ".join([f"{state} <- {decay}{state}", *writes]).replace("+ -", "- ")


def _write(write: Write, state: str, vectors: dict[str, Node]) -> str:
    key = _bracket(write.key)
    if write.read is None:
        return f"{key} {_transposed(write.value)}" if write.value is not None else key
    read = f"{_bracket(vectors[write.read])}^T {state}"
    if write.value is None:
        negated = read[1:] if read.startswith("-") else None
        return f"{key} ({negated})" if negated else f"-{key} ({read})"
    return f"{key} ({_text(write.value)} - {read})^T"


def _transposed(value: Node) -> str:
    """A row; a number stays one."""
    text = _bracket(value)
    if not value.dims:
        return text
    return f"({text})^T" if " ** " in text else f"{text}^T"


def _coefficient(node: Node) -> str:
    return "" if is_const(node, 1.0) else f"{_bracket(node)} "


def _bracket(node: Node) -> str:
    return format_factor(node, WIDTH)


def _text(node: Node) -> str:
    return format_node(node, WIDTH)

"""Nodes and normal forms as text: for explain, for messages and for the ``normal`` stage of inspect.

Text is built bottom up, once a node, and cut at a limit, so neither a deep nor a heavily shared graph is a danger.
"""

from __future__ import annotations

from collections.abc import Iterable

from recur.ir.core import Node, is_const, topological
from recur.ir.normal import (
    Decay,
    ElementwiseForm,
    Event,
    Form,
    GeneralForm,
    LinearForm,
    MatrixForm,
    MaxPlusForm,
    NormalForm,
    Program,
    Read,
    Write,
)
from recur.ir.spec import format_number
from recur.operators import OPERATORS

LIMIT = 400

# Binding strength, as in Python: comparisons, sums, products, signs, powers, atoms.
COMPARE, SUM, PRODUCT, SIGN, POWER, ATOM = range(6)
_INFIX = {"add": SUM, "sub": SUM, "mul": PRODUCT, "div": PRODUCT} | dict.fromkeys(
    ("lt", "le", "gt", "ge", "eq", "ne"), COMPARE
)


def format_node(node: Node, limit: int = LIMIT) -> str:
    """The node in the language's notation, on one line of at most ``limit`` characters."""
    return _format_all([node], limit)[node][0]


def format_factor(node: Node, limit: int = LIMIT) -> str:
    """The node as a factor beside others: in brackets unless it is a name, a number, a call or a power."""
    text, strength = _format_all([node], limit)[node]
    return text if strength >= POWER else f"({text})"


def _format_all(nodes: Iterable[Node], limit: int) -> dict[Node, tuple[str, int]]:
    texts: dict[Node, tuple[str, int]] = {}
    for node in topological(nodes):
        text, strength = _format(node, [texts[a] for a in node.args])
        texts[node] = (text, strength) if len(text) <= limit else (_cut(text, limit), ATOM)
    return texts


def _cut(text: str, limit: int) -> str:
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def _format(node: Node, args: list[tuple[str, int]]) -> tuple[str, int]:
    def at(i: int, strength: int) -> str:
        text, own = args[i]
        return text if own >= strength else f"({text})"

    op, attrs = node.op, node.attrs
    normalised = _format_normalised(node)
    if normalised is not None:
        function, position = normalised
        return f"{function}({args[position][0]})", ATOM
    if op in _INFIX:
        strength = _INFIX[op]
        return f"{at(0, strength)} {OPERATORS[op].symbol} {at(1, strength + 1)}", strength
    if op == "neg":
        return f"-{at(0, SIGN)}", SIGN
    if op == "pow":
        return f"{at(0, ATOM)} ** {format_number(_number(attrs[0]))}", POWER
    if op == "const":
        text = format_number(_number(attrs[0]))
        return text, SIGN if text.startswith("-") else ATOM
    if op == "leaf":
        return _format_leaf(str(attrs[0]), str(attrs[1])), ATOM
    if op == "size":
        return str(attrs[0]), ATOM
    if op == "contract":
        return _format_contract(node, at, args)
    if op == "stop" and node.args[0].op == "leaf":
        return args[0]
    if op == "version":
        return f"{attrs[0]}#{attrs[1]}", ATOM
    names = [a for attr in attrs for a in (attr if isinstance(attr, tuple) else (attr,))]
    parts = [text for text, _ in args] + [a if isinstance(a, str) else format_number(a) for a in names]
    if op == "index":
        return f"{at(0, ATOM)}[{attrs[1]}]", ATOM
    return f"{op}({', '.join(parts)})", ATOM


def _format_normalised(node: Node) -> tuple[str, int] | None:
    """l2norm and rmsnorm with their usual constant, by name: the function, and which argument is the vector."""
    if node.op != "mul":
        return None
    for position in (0, 1):
        x, scale = node.args[position], node.args[1 - position]
        if scale.op != "rsqrt" or len(x.dims) != 1 or scale.args[0].op != "add":
            continue
        square, epsilon = scale.args[0].args
        name = "l2norm"
        if square.op == "div" and square.args[1].op == "size":
            name, square = "rmsnorm", square.args[0]
        is_sum = is_const(epsilon, 1e-6) and square.op == "sum" and square.args[0].op == "square"
        if is_sum and square.args[0].args[0] == x:
            return name, position
    return None


def _format_leaf(kind: str, name: str) -> str:
    return f"{kind}({name})" if kind in ("prev", "next") else name


def _format_contract(node: Node, at: object, args: list[tuple[str, int]]) -> tuple[str, int]:
    x = node.args[0]
    over = node.attrs[0]
    assert callable(at) and isinstance(over, tuple)
    if not over:
        return f"outer({args[0][0]}, {args[1][0]})", ATOM
    if len(over) == 1 and x.dims[-1:] == over:
        return f"{at(0, PRODUCT)} @ {at(1, SIGN)}", PRODUCT
    return f"sum({at(0, PRODUCT)} * {at(1, SIGN)}, {', '.join(over)})", ATOM


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)


# --- normal forms --------------------------------------------------------------------------------------------------


def format_normal(program: Program) -> str:
    """The program's stages, forms, events and exports, one a line."""
    lines = [f"recurrence {program.step.recurrence.name}"]
    for number, form in enumerate(program.stages):
        lines += ["", *format_stage(form, number)]
    return "\n".join(lines) + "\n"


def format_stage(normal: NormalForm, number: int = 0) -> list[str]:
    lines = [f"stage {number} {normal.stage.name}: {normal.family}", f"  # {normal.structure}"]
    lines += [f"  # note: {note}" for note in normal.notes]
    scales = dict(normal.scale_of)
    for form in normal.forms:
        lines += format_form(form, scales.get(form.state))
    for name, node in normal.epilogue:
        lines.append(f"  export {_typed(name, node.dims, node.is_complex)} = {format_node(node)}")
    return lines


def format_form(form: Form, scale: str | None = None) -> list[str]:
    suffix = f", scaled by exp({scale})" if scale else ""
    if isinstance(form, MatrixForm):
        batch = f", batch {_names(form.batch)}" if form.batch else ""
        head = _typed(form.state, form.batch + form.key + form.value, form.is_complex)
        lines = [f"  {head}: key {_names(form.key)}, value {_names(form.value)}{batch}{suffix}"]
        return lines + [f"    {_format_event(e, form.state)}" for e in form.events]
    if isinstance(form, ElementwiseForm):
        lines = [f"  {_typed(form.state, form.dims, form.is_complex)}{suffix}", f"    decay {format_node(form.decay)}"]
        if form.log is not None:
            lines.append(f"    log   {format_node(form.log)}")
        return [*lines, f"    drive {format_node(form.drive)}"]
    if isinstance(form, MaxPlusForm):
        return [
            f"  {_typed(form.state, form.dims, False)}: running maximum",
            f"    log decay {format_node(form.log_decay)}",
            f"    drive     {format_node(form.drive)}",
        ]
    if isinstance(form, LinearForm):
        head = _typed(form.state, form.batch + form.row, form.is_complex)
        return [
            f"  {head}: row {_names(form.row)}, column {_names(form.column)}{suffix}",
            f"    matrix {format_node(form.matrix)}",
            f"    drive  {format_node(form.drive)}",
        ]
    assert isinstance(form, GeneralForm)
    return [
        f"  {_typed(form.state, form.dims, form.update.is_complex)}: {form.why}{suffix}",
        f"    next {format_node(form.update)}",
    ]


def _format_event(event: Event, state: str) -> str:
    if isinstance(event, Decay):
        parts = [f"decay   {format_factor(event.factor)}"]
        parts += [
            f"{label} {format_node(node)}"
            for label, node in (("log", event.log), ("sign", event.sign), ("angle", event.angle))
            if node is not None
        ]
        return ", ".join(parts)
    if isinstance(event, Read):
        return f"read    {event.name} = {format_factor(event.vector)} . {state}"
    if isinstance(event, Write):
        value = [] if event.value is None else [format_factor(event.value)]
        read = "" if event.read is None else f"- {event.read}"
        return f"write   {format_factor(event.key)} (x) ({' '.join([*value, read]).strip()})"
    return f"readout {event.name} = {format_factor(event.vector)} . {state} along {event.axis}"


def _names(dims: tuple[str, ...]) -> str:
    return " ".join(dims) if dims else "-"


def _typed(name: str, dims: tuple[str, ...], is_complex: bool) -> str:
    brackets = f"[{', '.join(dims)}]" if dims else ""
    return f"{name}{brackets}{' complex' if is_complex else ''}"

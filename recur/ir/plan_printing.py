"""Plans as text: buffers, kernels, and tile programs one operation a line. Made to be read and to diff."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recur.ir.plan import Gradient, Plan
from recur.ir.spec import format_number
from recur.ir.tile import Access, Attr, Axis, Buffer, Kernel, Let, Loop, Statement, Store, Value

INDENT = "  "


def format_plans(plans: Iterable[Plan]) -> str:
    """Every stage's plan, forward and backward."""
    return "\n\n".join("\n".join(format_plan(plan)) for plan in plans) + "\n"


def format_adjoints(plans: Iterable[Plan]) -> str:
    """The backward part of every stage, the last stage first: equations, tile programs and the gradients' ledger."""
    return "\n\n".join("\n".join(format_adjoint(plan)) for plan in reversed(tuple(plans))) + "\n"


def format_plan(plan: Plan) -> list[str]:
    lines = [f"stage {plan.stage}: {plan.strategy}" + (f", {plan.chunk_size}" if plan.chunk else "")]
    if plan.fixed_sizes:
        lines.append(f"  sizes {', '.join(f'{name} = {size}' for name, size in plan.fixed_sizes)}")
    lines += [f"  # {note}" for note in plan.notes]
    lines += [f"  cost  {_format_cost(plan)}"]
    for label, buffers in (
        ("arguments", plan.arguments), ("initial", plan.initial), ("results", plan.results), ("final", plan.final),
        ("saved", plan.saved), ("workspace", plan.workspace),
    ):  # fmt: skip
        if buffers:
            lines += [f"  {label}", *(f"    {line}" for line in format_buffers(buffers))]
    for direction, kernels in (("forward", plan.forward), ("backward", plan.backward)):
        for kernel in kernels:
            lines += ["", *(f"  {line}" for line in format_kernel(kernel, direction))]
    return [*lines, "", *(f"  {line}" for line in format_gradients(plan.gradients))]


def format_adjoint(plan: Plan) -> list[str]:
    lines = [f"adjoint of stage {plan.stage}: {plan.strategy}, tokens from the last to the first"]
    lines += ["  given", *(f"    {line}" for line in format_buffers(_cotangents(plan)))]
    for kernel in plan.backward:
        lines += ["", *(f"  {line}" for line in format_kernel(kernel, "backward"))]
    return [*lines, "", *(f"  {line}" for line in format_gradients(plan.gradients))]


def _cotangents(plan: Plan) -> list[Buffer]:
    return [Buffer(f"d_{b.name}", b.layout, b.dtype, b.is_complex) for b in (*plan.results, *plan.final)]


def _format_cost(plan: Plan) -> str:
    cost = plan.cost
    serial = f", {cost.serial_steps} steps one after another" if cost.serial_steps else ""
    return (
        f"{format_number(cost.flops)} operations and {format_number(cost.bytes)} bytes a token and head, "
        f"{cost.launches} launches{serial}"
    )


def format_buffers(buffers: Sequence[Buffer]) -> list[str]:
    """One line a buffer: name, layout, dtype, what it is."""
    width = max((len(b.name) for b in buffers), default=0)
    layouts = [f"[{', '.join(b.layout)}]" for b in buffers]
    wide = max((len(text) for text in layouts), default=0)
    return [
        f"{b.name:{width}}  {layout:{wide}}  {b.dtype}{' complex' if b.is_complex else ''}"
        + (f"  # {b.doc}" if b.doc else "")
        for b, layout in zip(buffers, layouts, strict=True)
    ]


def format_gradients(gradients: Sequence[Gradient]) -> list[str]:
    """The cotangent ledger: each argument's gradient as the sum of its contributions, in order."""
    width = max((len(g.of) for g in gradients), default=0)
    lines = ["gradients"]
    for gradient in gradients:
        terms = [
            c.buffer if not c.sum_over else f"sum({c.buffer}, {', '.join(c.sum_over)})" for c in gradient.contributions
        ]
        lines.append(f"  d {gradient.of:{width}} = {' + '.join(terms) or '0'}")
    return lines


# --- kernels ---------------------------------------------------------------------------------------------------------


def format_kernel(kernel: Kernel, direction: str) -> list[str]:
    lines = [f"{direction} kernel {kernel.name}" + (f": {kernel.role}" if kernel.role else "")]
    lines += [f"  | {equation}" for equation in kernel.equations]
    lines.append(f"  grid {', '.join(kernel.grid)}")
    if kernel.axes:
        lines.append(f"  axes {', '.join(_format_axis(a) for a in kernel.axes)}")
    return [*lines, *format_statements(kernel.body, 1)]


def _format_axis(axis: Axis) -> str:
    place = {"whole": "", "grid": " in tiles on the grid", "loop": " in tiles, looped"}[axis.place]
    if axis.kind == "rows":
        return f"{axis.name}: rows of a chunk{place}"
    return f"{axis.name}: {axis.extent}{place}"


def format_statements(statements: Sequence[Statement], depth: int = 0) -> list[str]:
    """A tile program, one operation a line."""
    lines: list[str] = []
    for statement in statements:
        lines += _format_loop(statement, depth) if isinstance(statement, Loop) else [_format_line(statement, depth)]
    return lines


def _format_line(statement: Let | Store, depth: int) -> str:
    if isinstance(statement, Store):
        text = f"store {_format_access(statement.access)} = {statement.value.name}"
    else:
        outs = ", ".join(_format_value(v) for v in statement.outs)
        text = f"{outs} = {_format_operation(statement)}"
    comment = f"  # {statement.comment}" if statement.comment else ""
    return f"{INDENT * depth}{text}{comment}"


def _format_loop(loop: Loop, depth: int) -> list[str]:
    over = f"tiles of {loop.axis}" if loop.over == "tiles" else loop.over
    over += f" of at most {loop.rows} rows" if loop.rows is not None else ""
    over += f" where {loop.needed.name}" if loop.needed is not None else ""
    over += f" from that of {loop.first}" if loop.first else ""
    over += f" up to that of {loop.last}" if loop.last else ""
    pad = INDENT * depth
    lines = [f"{pad}for {over}{' in reverse' if loop.reverse else ''}:"]
    lines += [f"{pad}{INDENT}carry {_format_value(c.phi)} from {c.init.name}" for c in loop.carries]
    lines += format_statements(loop.body, depth + 1)
    return lines + [f"{pad}{INDENT}next  {c.phi.name} = {c.next.name}" for c in loop.carries]


def _format_value(value: Value) -> str:
    kind = " complex" if value.is_complex else " bool" if value.is_bool else ""
    return f"{value.name}[{', '.join(value.axes)}]{kind}"


def _format_operation(let: Let) -> str:
    if let.access is not None:
        return f"{let.op} {_format_access(let.access)}"
    parts = [a.name for a in let.args] + [f"{name}={_format_attr(value)}" for name, value in let.attrs]
    return f"{let.op}({', '.join(parts)})"


def _format_access(access: Access) -> str:
    def place(index: str) -> str:
        if index == "time":
            rows = access.rows or "step"
            only = "" if access.step is None else f" at step {access.step}"
            return f"time {rows}{access.shift:+d}{only}" if access.shift else f"time {rows}{only}"
        return f"chunk{access.chunk_offset:+d}" if index == "chunk" and access.chunk_offset else index

    return f"{access.buffer}[{', '.join(place(i) for i in access.index)}]"


def _format_attr(value: Attr) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(value)})"
    if isinstance(value, (bool, str)):
        return str(value)
    return format_number(value)

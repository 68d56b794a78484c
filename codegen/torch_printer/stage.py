"""A plan as two torch functions: <stage>_forward and <stage>_backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from textwrap import wrap

from recur.codegen.torch_printer.function import Function
from recur.codegen.torch_printer.kept_states import keep_states
from recur.codegen.torch_printer.kernel import KernelPrinter
from recur.codegen.torch_printer.memory import TIME, Form, forms_of, layout_of, same_sizes, time_part
from recur.codegen.torch_printer.tensors import atom
from recur.ir.plan import Gradient, Plan
from recur.ir.tile import Buffer, Kernel
from recur.passes.join_segments import join_segments


def print_stage(plan: Plan) -> str:
    """The source of the stage's two functions, deterministic.

    <stage>_forward(arguments, initial) gives (results, final, saved), three tuples of tensors;
    <stage>_backward(arguments, initial, saved, d_results, d_final) gives the gradients in the ledger's order, and is
    left out where there are none. Tensors are as the plan's layouts say, except that saved ones stay in chunks where
    the backward pass reads them so. The functions of `library` that the source calls are the module's to define.
    """
    plan = keep_states(join_segments(plan))
    functions = [print_forward(plan)] + ([print_backward(plan)] if plan.gradients else [])
    return "\n\n\n".join(functions) + "\n"


def saved_forms(plan: Plan) -> dict[str, Form]:
    """The saved buffers that both passes use in one and the same form, which they are then kept in."""
    forms = forms_of((*plan.forward, *plan.backward))
    return {b.name: forms[b.name][0] for b in plan.saved if len(forms.get(b.name, ())) == 1}


def print_forward(plan: Plan) -> str:
    forms = forms_of(plan.forward)
    same = same_sizes(plan.forward)
    begin = partial(Function, plan, plan.arguments + plan.initial, {}, forms, dims_of(plan), same)
    function = print_kernels(begin, plan.forward)
    tiled = saved_forms(plan)
    results = [delivered(function, b) for b in plan.results]
    final = [delivered(function, b) for b in plan.final]
    saved = [function.tiles[b.name, tiled[b.name]] if b.name in tiled else function.declared(b) for b in plan.saved]
    print_return(function, [tuple_of(results), tuple_of(final), tuple_of(saved)])
    return assemble(f"{plan.stage}_forward", function, docstring(plan, plan.forward))


def print_backward(plan: Plan) -> str:
    cotangents = tuple(Buffer("d_" + b.name, b.layout, b.dtype, b.is_complex) for b in plan.results + plan.final)
    parameters = plan.arguments + plan.initial + plan.saved + cotangents
    forms, same = forms_of(plan.backward), same_sizes(plan.backward)
    begin = partial(Function, plan, parameters, saved_forms(plan), forms, dims_of(plan), same)
    function = print_kernels(begin, plan.backward)
    gradients = [gradient(function, line) for line in plan.gradients]
    print_return(function, [tuple_of(gradients)])
    return assemble(f"{plan.stage}_backward", function, docstring(plan, plan.backward))


def print_kernels(begin: Callable[..., Function], kernels: Sequence[Kernel]) -> Function:
    """A function with the kernels' lines; a draft finds the results that are used again and so not overwritten."""
    draft = begin()
    print_each(draft, kernels)
    function = begin(kept=frozenset(draft.reused))
    print_each(function, kernels)
    return function


def print_each(function: Function, kernels: Sequence[Kernel]) -> None:
    for kernel in kernels:
        at = len(function.lines)
        KernelPrinter(function, kernel).run()
        if kernel.role and len(kernels) > 1:
            function.lines[at:at] = ["", f"    # {kernel.role}"]


def delivered(function: Function, buffer: Buffer) -> str:
    """A result as the caller gets it: in its layout and type, contiguous."""
    text = function.declared(buffer)
    if any(time_part(form) in TIME for name, form in function.tiles if name == buffer.name):
        text = f"{atom(text)}.contiguous()"
    dtype = result_dtype(function, buffer)
    return f"{atom(text)}.to({dtype})" if dtype else text


def result_dtype(function: Function, buffer: Buffer) -> str | None:
    """What a result is converted to; None where it is kept in the type of sums."""
    first = function.parameters[0]
    wanted = first.name if buffer.dtype == "operand" else buffer.dtype.removeprefix("input:")
    source = next((b for b in function.parameters if b.name == wanted), None)
    if source is None:
        return None
    argument = function.arguments[source.name]
    name = function.capture(f"{argument}_dtype", f"{argument}.dtype")
    if buffer.is_complex == source.is_complex:
        return name
    return f"{function.dtype}.to_complex()" if buffer.is_complex else f"{name}.to_real()"


def gradient(function: Function, line: Gradient) -> str:
    """An argument's gradient: its contributions, summed over what they are partial in (autograd sees to the type)."""
    terms = []
    for contribution in line.contributions:
        buffer = function.buffer(contribution.buffer)
        text, layout = function.declared(buffer), layout_of(buffer)
        dims = [layout.index(d) for d in contribution.sum_over if d in layout]
        if dims:
            text = f"{atom(text)}.sum({dims[0] if len(dims) == 1 else tuple(dims)})"
        terms.append(text)
    text = " + ".join(terms) if terms else "None"
    return function.assign("d_" + line.of, text) if terms else text


def dims_of(plan: Plan) -> tuple[str, ...]:
    """The dimensions whose sizes the arguments tell."""
    buffers = plan.arguments + plan.initial
    found = []
    for buffer in buffers:
        layout = layout_of(buffer)
        found += [d for i, d in enumerate(layout) if not (d in ("B", "T", "H") and i < 3)]
    return tuple(dict.fromkeys(found))


def docstring(plan: Plan, kernels: Sequence[Kernel]) -> list[str]:
    lines = [f'    """{plan.stage}, {plan.strategy}.']
    for kernel in kernels:
        if kernel.equations:
            lines += ["", f"    {kernel.role or kernel.name}:", *(f"        {e}" for e in kernel.equations)]
    return [*lines, '    """'] if len(lines) > 1 else [lines[0] + '"""']


def assemble(name: str, function: Function, doc: list[str]) -> str:
    parameters = ", ".join(function.arguments[b.name] for b in function.parameters)
    head = f"def {name}({parameters}):"
    if len(head) > 120:
        head = "\n    ".join([f"def {name}(", *wrap(parameters, 116)]) + "\n):"
    body = function.lines[1:] if function.lines and not function.lines[0] else function.lines
    return "\n".join([head, *doc, *function.prologue(), *body])


def print_return(function: Function, parts: list[str]) -> None:
    text = f"return {', '.join(parts)}"
    if len(text) <= 116:
        function.line(text)
        return
    inner = [part + "," for part in parts] if len(parts) > 1 else [parts[0][1:-1]]
    function.lines.append("    return (")
    function.lines += [f"        {line}" for part in inner for line in wrap(part, 112)]
    function.lines.append("    )")


def tuple_of(texts: list[str]) -> str:
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"

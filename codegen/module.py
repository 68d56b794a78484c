"""A recurrence as one readable Python file: its stages' code, their autograd functions, and what calls them.

The file imports torch (and triton), not recur. Its text is a function of the program, the plans and the sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from textwrap import indent, wrap
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recur.codegen.helpers import needed_functions
from recur.codegen.shell import Shell
from recur.codegen.torch_printer.function import identifier
from recur.diagnostics import Diagnostic, RecurError
from recur.ir.normal import MaxPlusForm, NormalForm, Program
from recur.ir.plan import Plan
from recur.ir.spec import Recurrence
from recur.ir.tile import Buffer
from recur.passes.plan_dims import clear_dims

if TYPE_CHECKING:
    from recur.codegen.triton_printer import StageConfig

FOLDER = Path(__file__).parent

Stages = tuple[list[str], Callable[[str], str], str]  # code, the printer of the definitions it needs, imports


def print_module(
    program: Program,
    plans: Sequence[Plan],
    sizes: Mapping[str, int],
    backend: str,
    configs: Sequence[StageConfig] | None = None,
) -> str:
    """The module's text for ``backend`` ("torch" or "triton"); ``plans`` are those of ``program.stages``, in order.

    ``configs``: how each plan's kernels are launched, for triton; else by rules of thumb.

    The module defines ``<recurrence>(inputs and params in the text's order, *, initial_state=None,
    output_final_state=False) -> (outputs, final)``; shapes and types in its docstring. Raises RecurError where a plan
    does not fit the backend.
    """
    if backend == "triton":
        refuse_limits(program.step.recurrence, plans)
    rec, given = program.step.recurrence, sizes
    program, sizes = clear_dims(program, sizes)
    plans = [callable_plan(program, plan) for plan in plans]
    shell = Shell(program, tuple(plans), is_compiled=backend == "triton")
    stages, helpers, imports = print_stages(program, plans, sizes, backend, configs)
    body = shell.body()
    code = "\n".join(stages)
    shell_helpers = needed_functions("\n".join(["_dense", *body]), FOLDER / "shell_library.py")
    text = environment().get_template("module.jinja").render(
        header=header(rec, program, plans, sizes, command(rec, plans, given, backend), backend),
        imports=imports.strip(),
        helpers="\n\n\n".join(t.strip() for t in (shell_helpers, helpers(code)) if t.strip()),
        stages=[
            shell.stage(plan, title(normal, plan), text)
            for normal, plan, text in zip(program.stages, plans, stages, strict=True)
        ],
        name=shell.function_name,
        parameters=shell.parameters,
        doc=shell.doc(),
        body=body,
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def refuse_limits(rec: Recurrence, plans: Sequence[Plan]) -> None:
    for plan in plans:
        for reason in plan.limits:
            message = f"the triton backend does not run {plan.stage} under {plan.strategy}: {reason}"
            raise RecurError.of(rec, Diagnostic("R803", message, rec.span, help="use backend='torch'"))


def callable_plan(program: Program, plan: Plan) -> Plan:
    """The plan with a stage name that Python takes, and with an argument that tells how many tokens there are."""
    arguments = plan.arguments
    if not any("T" in b.layout[:3] for b in arguments):
        first = next(v for v in program.step.recurrence.inputs if v.role == "input")
        arguments += (Buffer(first.name, ("B", "T", "H", *first.dims), f"input:{first.name}", first.is_complex),)
    return replace(plan, stage=identifier(plan.stage), arguments=arguments)


def print_stages(
    program: Program,
    plans: Sequence[Plan],
    sizes: Mapping[str, int],
    backend: str,
    configs: Sequence[StageConfig] | None,
) -> Stages:
    """Each stage's code, the printer of the definitions that it calls, and the imports."""
    if backend == "torch":
        from recur.codegen import torch_printer

        return [torch_printer.print_stage(plan).strip() for plan in plans], torch_printer.print_helpers, "import torch"
    from recur.codegen import triton_printer

    configs = configs or [triton_printer.default_config(plan, sizes) for plan in plans]
    code = [
        triton_printer.print_stage(plan, config, start_values(normal, plan)).strip()
        for normal, plan, config in zip(program.stages, plans, configs, strict=True)
    ]
    return code, triton_printer.print_helpers, triton_printer.HEADER


def start_values(normal: NormalForm, plan: Plan) -> dict[str, float]:
    """What each initial state holds where none is given: zero, and a log scale the logarithm of zero."""
    forms = zip(normal.forms, plan.initial, strict=True)
    return {b.name: float("-inf") if isinstance(form, MaxPlusForm) else 0.0 for form, b in forms}


@cache
def environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip


# --- the header -------------------------------------------------------------------------------------------------------


def header(
    rec: Recurrence, program: Program, plans: Sequence[Plan], sizes: Mapping[str, int], again: str, backend: str
) -> str:
    """What the file holds: recurrence, structure, strategy, shapes, versions and the command that prints it again."""
    lines = [f"{rec.name}, printed for {backend}.", "", "The recurrence, one head at one token:", ""]
    lines += indent(spec_text(rec), "    ").splitlines()
    lines += ["", "Stages:", ""]
    for normal, plan in zip(program.stages, plans, strict=True):
        lines += [f"    {title(normal, plan)}", *(f"        {line}" for line in about(normal, plan))]
    lines += ["", "Shapes:", ""]
    shapes = glossary(program.step.recurrence, plans, sizes, backend)
    width = max(4, *(len(name) for name, _ in shapes))
    lines += [f"    {name:<{width}} {meaning}" for name, meaning in shapes]
    lines += ["", f"Printed by {versions(backend)}; again with", "", f"    {again}", ""]
    return "\n".join(line.rstrip() for line in lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def spec_text(rec: Recurrence) -> str:
    from recur.ir.printer import print_recurrence

    return print_recurrence(rec).strip("\n")


def title(normal: NormalForm, plan: Plan) -> str:
    states = ", ".join(normal.stage.states)
    return f"{plan.stage}: {plan.strategy} for {states}" if states else f"{plan.stage}: {plan.strategy}"


def about(normal: NormalForm, plan: Plan) -> list[str]:
    """The structure and the strategy's reasons, wrapped."""
    cost = plan.cost
    chunk = f", {plan.chunk_size}" if plan.chunk else ""
    work = f"{cost.flops:.4g} operations and {cost.bytes:.4g} bytes a token and head, as modelled"
    texts = [normal.structure, *normal.notes, *plan.notes, work + chunk]
    return [line for text in texts for line in wrap(text, 108)]


def glossary(rec: Recurrence, plans: Sequence[Plan], sizes: Mapping[str, int], backend: str) -> list[tuple[str, str]]:
    entries = [("B", "sequences"), ("T", "tokens"), ("H", "heads")]
    if any(plan.chunk for plan in plans):
        rows = "rows" if any(plan.steps > 1 for plan in plans) else "tokens"
        entries += [("N", "chunks of the sequence"), ("C", f"{rows} of a chunk")]
    for dim in rec.dims:
        if dim.alias is not None:
            entries.append((dim.name, f"another name for {dim.alias}"))
        elif dim.size is not None:
            entries.append((dim.name, f"= {dim.size}"))
        elif backend == "triton":
            entries.append((dim.name, f"= {sizes[dim.name]} in this file"))
        else:
            entries.append((dim.name, "from the tensors"))
    return entries


def versions(backend: str) -> str:
    names = ["recur", "torch", *(["triton"] if backend == "triton" else [])]
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(name)
    return ", ".join(found)


def command(rec: Recurrence, plans: Sequence[Plan], sizes: Mapping[str, int], backend: str) -> str:
    """The command line that prints this file; ``rec`` may have come from elsewhere than a file of its own."""
    file = PurePath(rec.filename).name if rec.filename.endswith(".rec") else f"{rec.name}.rec"
    free = [d.name for d in rec.dims if d.size is None and d.alias is None and d.name in sizes]
    dims = f" --dims {','.join(f'{d}={sizes[d]}' for d in free)}" if free else ""
    strategies = ",".join(plan.strategy for plan in plans)
    text = f"recur emit {file} --backend {backend} --strategy {strategies}{dims} -o {rec.name}.py"
    return " \\\n        ".join(wrap(text, 108, break_long_words=False, break_on_hyphens=False))

"""The compiler's intermediate forms as text, one for each stage of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recur.diagnostics import Diagnostic, RecurError, did_you_mean, listing
from recur.ir.normal import Program
from recur.ir.plan import Plan
from recur.strategies.select import Request, select

if TYPE_CHECKING:
    from recur.codegen.triton_printer import StageConfig

STAGES = ("ir", "normal", "adjoint", "plan", "torch", "triton", "ptx")
TARGETS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121")


def print_stage(program: Program, stage: str, sizes: dict[str, int], strategy: Request, target: str = "sm_90") -> str:
    """"ir" (the step as written), "normal" (the structure found), "plan" (kernels and buffers), "adjoint" (the plan's
    backward part), "torch" or "triton" (the generated module), "ptx" (the kernels compiled for ``target``).

    Raises RecurError for an unknown stage or target and for a strategy that does not apply.
    """
    rec = program.step.recurrence
    if target not in TARGETS:
        fix = did_you_mean(str(target), TARGETS, f"targets are {listing(TARGETS, 'and')}")
        raise RecurError.of(rec, Diagnostic("R802", f"unknown target `{target}`", rec.span, help=fix))
    if stage not in STAGES:
        fix = did_you_mean(str(stage), STAGES, f"stages are {listing(STAGES, 'and')}")
        raise RecurError.of(rec, Diagnostic("R802", f"unknown stage `{stage}`", rec.span, help=fix))
    if stage == "ir":
        from recur.ir.printer import print_recurrence

        return print_recurrence(rec)
    if stage == "normal":
        from recur.ir.printing import format_normal

        return format_normal(program)
    plans = tuple(s.plan for s in select(program, sizes, strategy))
    if stage in ("plan", "adjoint"):
        from recur.ir.plan_printing import format_adjoints, format_plans

        return format_plans(plans) if stage == "plan" else format_adjoints(plans)
    if stage == "ptx":
        from recur.runtime.assembly import print_ptx
        from recur.runtime.load import load_module

        return print_ptx(load_module(rec.name, print_source(program, plans, sizes, "triton")), target)
    return print_source(program, plans, sizes, stage)


def print_source(
    program: Program,
    plans: Sequence[Plan],
    sizes: dict[str, int],
    backend: str,
    configs: Sequence[StageConfig] | None = None,
) -> str:
    """The generated module's text. Raises RecurError where the backend cannot hold the step."""
    from recur.codegen.module import print_module

    try:
        return print_module(program, plans, sizes, backend, configs)
    except ValueError as error:
        rec = program.step.recurrence
        fix = "use the torch backend" if backend == "triton" else "use another strategy"
        message = f"the {backend} backend cannot hold the step: {error}"
        raise RecurError.of(rec, Diagnostic("R803", message, rec.span, help=fix)) from error

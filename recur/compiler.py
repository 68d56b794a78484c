"""The compiler, as one function per goal: what becomes what, in order."""

from __future__ import annotations

from recur.ir import verify
from recur.ir.core import Step
from recur.ir.normal import Program, Stage
from recur.ir.spec import Recurrence
from recur.passes.check import check
from recur.passes.classify import classify
from recur.passes.ratios import simplify_ratios
from recur.passes.stabilise import stabilise
from recur.passes.stages import infer_stages


def compile_program(recurrence: Recurrence) -> Program:
    """The recurrence's stages in normal form; raises RecurError with every error of the recurrence."""
    step: Step = simplify_ratios(check(recurrence))
    stages: tuple[Stage, ...] = infer_stages(step)
    program: Program = stabilise(classify(step, stages))
    if verify.is_enabled():
        verify.verify_program(program)
    return program

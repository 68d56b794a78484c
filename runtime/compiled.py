"""A recurrence under chosen strategies for one backend: selected, printed, loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recur.codegen.torch_printer.function import identifier
from recur.diagnostics import Diagnostic, RecurError, did_you_mean, listing
from recur.inspection import print_source
from recur.ir.normal import Program
from recur.ir.spec import Recurrence
from recur.runtime.load import interpreter_is_whole, load_module, triton_interprets
from recur.strategies.select import Request, Selection, select

BACKENDS = ("torch", "triton")


@dataclass(frozen=True)
class Backend:
    """Where generated code runs, why there, and whether the choice was the compiler's (which may then fall back)."""

    name: str
    why: str
    automatic: bool = False


@dataclass(frozen=True)
class Compiled:
    """Generated code ready to be called: ``function(*tensors, initial_state=None, output_final_state=False)``."""

    selections: tuple[Selection, ...]
    backend: Backend
    source: str
    function: Callable[..., Any]


def choose_backend(rec: Recurrence, requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend that a call takes: Triton on a GPU, torch elsewhere and for float64.

    Raises RecurError for an unknown backend, and for Triton on float64 or where neither a GPU nor its interpreter is.
    """
    if requested == "auto":
        if device.type != "cuda":
            return Backend("torch", f"the inputs are on the {device.type.upper()}", automatic=True)
        if dtype in (torch.float64, torch.complex128):
            return Backend("torch", "the inputs are float64", automatic=True)
        return Backend("triton", "the inputs are on a GPU", automatic=True)
    if requested not in BACKENDS:
        known = did_you_mean(str(requested), BACKENDS, f"backends are {listing(BACKENDS, 'and')}")
        raise RecurError.of(rec, Diagnostic("R802", f"unknown backend `{requested}`", rec.span, help=known))
    if requested == "triton" and device.type != "cuda" and not triton_interprets():
        message = f"the triton backend needs a GPU; the inputs are on the {device.type.upper()}"
        fix = "use backend='torch', or set TRITON_INTERPRET=1 to interpret the kernels"
        raise RecurError.of(rec, Diagnostic("R803", message, rec.span, help=fix))
    if requested == "triton" and triton_interprets() and not interpreter_is_whole():
        message = "TRITON_INTERPRET was set after Triton had been imported"
        fix = "set it before the first import of triton, best in the command line"
        raise RecurError.of(rec, Diagnostic("R803", message, rec.span, help=fix))
    if requested == "triton" and dtype in (torch.float64, torch.complex128):
        fix = "use backend='torch', or float32 inputs"
        raise RecurError.of(rec, Diagnostic("R803", "the triton backend computes in float32", rec.span, help=fix))
    return Backend(requested, "asked for")


def compile_for(program: Program, sizes: dict[str, int], strategy: Request, backend: Backend) -> Compiled:
    """Selects, prints and loads. A backend that the compiler chose itself falls back to torch, with one warning."""
    rec = program.step.recurrence
    selections = select(program, sizes, strategy)
    plans = tuple(s.plan for s in selections)
    try:
        source = print_source(program, plans, sizes, backend.name)
    except RecurError as error:
        if not backend.automatic or backend.name == "torch":
            raise
        reason = error.diagnostics[0].message
        warnings.warn(f"{rec.name} runs on torch: {reason}", stacklevel=4)
        backend = Backend("torch", f"Triton was not taken: {reason}", automatic=True)
        source = print_source(program, plans, sizes, "torch")
    module = load_module(rec.name, source)
    return Compiled(selections, backend, source, getattr(module, identifier(rec.name)))

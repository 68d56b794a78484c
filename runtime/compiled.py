"""A recurrence under chosen strategies for one backend: selected, printed, loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from recur.codegen.segments import FULL, _segments
from recur.codegen.setting import EXPLANATIONS, USUAL, Setting
from recur.diagnostics import Diagnostic, RecurError, did_you_mean, listing
from recur.ir import verify
from recur.ir.spec import Recurrence
from recur.runtime import stored
from recur.runtime.arguments import Call, wants_gradients
from recur.runtime.load import interpreter_is_whole, load_module, triton_interprets
from recur.runtime.stored import Printed
from recur.runtime.tuning import records
from recur.runtime.tuning.records import Case

if TYPE_CHECKING:
    from recur.ir.normal import Program
    from recur.strategies.select import Request

BACKENDS = ("torch", "triton")
CHUNK = 64  # tokens, of the stages whose walks may be few
MANY_CHANNELS = 8192  # two walks of 32 channels for each of 128 multiprocessors


@dataclass(frozen=True)
class Backend:
    """Where generated code runs, why there, and whether the choice was the compiler's (which may then fall back)."""

    name: str
    why: str
    automatic: bool = False


@dataclass(frozen=True)
class Compiled:
    """Generated code ready to be called: ``function(*tensors, initial_state=None, output_final_state=False)``."""

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


def compile_for(
    rec: Recurrence,
    program: Callable[[], Program],
    sizes: dict[str, int],
    strategy: Request,
    backend: Backend,
    case: Case | None = None,
    setting: Setting = USUAL,
) -> Compiled:
    """Selects, prints and loads; what an earlier process has printed is only loaded, and ``program`` not asked for.

    A backend that the compiler chose itself falls back to torch, with one warning. ``case``: takes the configurations
    that were tuned for it, if there are some. ``setting``: see `setting_of`.
    """
    key = stored.make_key(rec, sizes, strategy, backend.name, case, setting)
    printed = None if verify.is_enabled() else stored.find(rec, key)
    if printed is None:
        backend, printed = print_for(program(), sizes, strategy, backend, case, setting)
        stored.keep(stored.make_key(rec, sizes, strategy, backend.name, case, setting), printed)
    module = load_module(rec.name, printed.text)
    return Compiled(backend, printed.text, getattr(module, printed.function))


def setting_of(call: Call) -> Setting:
    """What default launches depend on. Only a GPU has no room for long chunks of float32; the interpreter has."""
    wide = call.device.type == "cuda" and call.dtype == torch.float32
    sequences = call.batch * call.heads
    few_walks = has_few_walks(sequences, call.tokens, wants_gradients(call.tensors.values()))
    return Setting(few_walks, wide, has_many_channels(sequences, call.sizes))


def explain_setting(program: Program, sizes: dict[str, int], strategy: Request, setting: Setting) -> list[str]:
    """What a call's default launches are for, where the setting changes some."""
    from recur.passes.plan_dims import clear_dims
    from recur.runtime.tuning.space import default_configs
    from recur.strategies.select import select

    plans = tuple(s.plan for s in select(program, sizes, strategy))
    cleared = clear_dims(program, sizes)[1]
    usual = default_configs(plans, cleared)
    chosen = [name for name, is_set in setting._asdict().items() if is_set]
    return [
        EXPLANATIONS[name] for name in chosen if default_configs(plans, cleared, Setting(**{name: True})) != usual
    ]


def has_many_channels(sequences: int, sizes: Mapping[str, int]) -> bool:
    """Whether walks with a program for a few channels fill a GPU, the largest dim of a state taken for its channels."""
    return sequences * max(sizes.values(), default=1) >= MANY_CHANNELS


def has_few_walks(sequences: int, tokens: int, with_backward: bool) -> bool:
    """Whether walks with a program for every segment of B * H = ``sequences`` leave half of a GPU idle."""
    return sequences * _segments(sequences, -(-tokens // CHUNK), FULL, with_backward)[0] <= FULL // 2


def print_for(
    program: Program,
    sizes: dict[str, int],
    strategy: Request,
    backend: Backend,
    case: Case | None = None,
    setting: Setting = USUAL,
) -> tuple[Backend, Printed]:
    """The backend that can hold the recurrence, and the module for it."""
    from recur.codegen.torch_printer.function import identifier
    from recur.inspection import print_source
    from recur.passes.plan_dims import clear_dims
    from recur.runtime.tuning.space import default_configs
    from recur.strategies.select import select

    rec = program.step.recurrence
    plans = tuple(s.plan for s in select(program, sizes, strategy))
    function = identifier(rec.name)
    configs = records.find(program, plans, sizes, case) if case is not None else None
    if configs is None and setting != USUAL and backend.name == "triton":
        configs = default_configs(plans, clear_dims(program, sizes)[1], setting)
    try:
        return backend, Printed(print_source(program, plans, sizes, backend.name, configs), function)
    except RecurError as error:
        if not backend.automatic or backend.name == "torch":
            raise
        reason = error.diagnostics[0].message
        warnings.warn(f"{rec.name} runs on torch: {reason}", stacklevel=5)
        backend = Backend("torch", f"Triton was not taken: {reason}", automatic=True)
        return backend, Printed(print_source(program, plans, sizes, "torch"), function)

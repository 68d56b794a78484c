"""Tuning one recurrence for one shape on the GPU that is here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from recur.codegen.torch_printer.function import identifier
from recur.codegen.triton_printer.layout import all_buffers
from recur.codegen.triton_printer.stage import function_name
from recur.codegen.triton_printer.work import count_segments
from recur.diagnostics import RecurError
from recur.explain import default_sizes
from recur.inspection import print_source
from recur.ir.normal import Program
from recur.ir.plan import Plan
from recur.ir.spec import Recurrence
from recur.passes.plan_dims import clear_dims
from recur.runtime import cache
from recur.runtime.arguments import Call, bind_arguments
from recur.runtime.build import KernelReport, build_kernel, kernels_of, shared_limit
from recur.runtime.load import load_module
from recur.runtime.tuning import records
from recur.runtime.tuning.records import Case, Failure
from recur.runtime.tuning.search import Outcome, Result, Tried, TuningError, search
from recur.runtime.tuning.space import EFFORTS, Change, Configs, default_configs, to_plain
from recur.runtime.tuning.trial import Task
from recur.runtime.tuning.worker import Worker
from recur.strategies.select import Request, select

if TYPE_CHECKING:
    from recur.runtime.op import Op

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
PASSING = "OutOfMemoryError"  # a failure of the moment, and not of the configuration
Row = tuple[Any, tuple[str, ...], Mapping[str, int]]
SPILLED = 64  # bytes a thread that a candidate may spill: a few registers cost less than a narrower tile


def tune(
    program: Program,
    task: Task,
    strategy: Request = "auto",
    effort: str = "quick",
    report: Callable[[Tried], None] = lambda tried: None,
    compiled: Callable[[int, int], None] = lambda done, of: None,
) -> Result:
    """Searches, and stores what it finds. ``report`` hears of each configuration, ``compiled`` of compilations.

    Raises TuningError where there is no GPU and where the default configuration itself fails.
    """
    if not torch.cuda.is_available():
        raise TuningError("tuning needs a GPU, and none is here")
    if task.dtype not in DTYPES:
        raise TuningError(f"{task.dtype} runs on the torch backend, where there is nothing to tune")
    plans = plans_of(program, task.sizes, strategy)
    device = torch.device("cuda", torch.cuda.current_device())
    case = records.case_of(task.sizes, task.dtypes, task.batch * task.heads, task.tokens, device)
    _, sizes = clear_dims(program, task.sizes)
    bench = GpuBench(program, plans, task, case, default_configs(plans, sizes), compiled)
    try:
        result = search(plans, sizes, EFFORTS[effort], bench, report)
    finally:
        bench.worker.stop()
    measured = {
        "forward_us": round(1e6 * result.best.forward, 1),
        "both_us": round(1e6 * result.best.both, 1),
        "default_both_us": round(1e6 * result.default.both, 1),
        "tried": len(result.tried),
        "shape": {"B": task.batch, "T": task.tokens, "H": task.heads, **task.sizes},
        "name": task.recurrence.name,
    }
    records.keep(records.make_key(program, plans, case), to_plain(result.configs), measured)
    return result


def plans_of(program: Program, sizes: Mapping[str, int], strategy: Request) -> tuple[Plan, ...]:
    return tuple(s.plan for s in select(program, dict(sizes), strategy))


def make_task(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Task:
    """The task of a call's tensors, or of sizes B, T, H (1 where not given) and of every dim. Raises ValueError."""
    rec = op.recurrence
    if args or any(isinstance(x, torch.Tensor) for x in kwargs.values()):
        return task_of(rec, bind_arguments(rec, args, kwargs))
    lead = {axis: int(kwargs.get(axis, 1)) for axis in ("B", "T", "H")}
    dims = {d.name for d in rec.dims}
    given = {name: size for name, size in kwargs.items() if name in dims or name not in lead}
    dtypes = tuple(torch.complex64 if v.is_complex else dtype for v in rec.inputs)
    return Task(rec, default_sizes(op.program, given), lead["B"], lead["T"], lead["H"], dtypes)


def task_of(rec: Recurrence, call: Call) -> Task:
    dtypes = tuple(x.dtype for x in call.tensors.values())
    return Task(rec, call.sizes, call.batch, call.tokens, call.heads, dtypes)


@dataclass
class GpuBench:
    """Compiles candidates here, in parallel and without running them, and measures them in a child process."""

    program: Program
    plans: Sequence[Plan]
    task: Task
    case: Case
    default: Configs
    compiled: Callable[[int, int], None]
    worker: Worker = field(init=False)
    printed: dict[Configs, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        function = identifier(self.task.recurrence.name)
        self.worker = Worker("recur.runtime.tuning.trial:Trial", (self.task, self.print(self.default), function))

    def print(self, configs: Configs) -> str:
        if configs not in self.printed:
            text = print_source(self.program, self.plans, dict(self.task.sizes), "triton", configs)
            self.printed[configs] = text
        return self.printed[configs]

    def changed_rows(self, change: Change) -> list[Row]:
        """The kernels that a change has changed, as rows of the module's tables."""
        plan = self.plans[change.stage]
        stage = identifier(plan.stage)
        functions = {function_name(stage, k) for k in plan.forward + plan.backward if k.name in change.kernels}
        return [row for row in kernels_of(self.module(change.configs)) if row[0].__name__ in functions]

    def module(self, configs: Configs) -> ModuleType:
        return load_module(self.task.recurrence.name, self.print(configs))

    def compile(self, changes: Sequence[Change]) -> list[str]:
        found = []
        refused = [self.refuse(change) for change in changes]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for reason in pool.map(lambda change, reason: reason or self.refuse_built(change), changes, refused):
                found.append(reason)
                self.compiled(len(found), len(changes))
        return found

    def refuse(self, change: Change) -> str:
        """Why a candidate need not even be compiled: it cannot be printed, or has failed before."""
        try:
            rows = self.changed_rows(change)
        except RecurError as error:
            return error.diagnostics[0].message
        known = records.find_failure(self.case.device, self.case.triton, *identify(rows))
        return "" if known is None else f"quarantined: {known.reason}"

    def refuse_built(self, change: Change) -> str:
        """Why a candidate is not worth a run: it does not compile or fit, or it spills."""
        major, minor = torch.cuda.get_device_capability()
        target, dtype = f"sm_{major}{minor}", DTYPES[self.task.dtype]
        reports = (build_kernel(*row, target, dtype, self.absent(change)) for row in self.changed_rows(change))
        return next((reason for report in reports if (reason := refuse_kernel(report))), "")

    def absent(self, change: Change) -> set[str]:
        """The tensors that a call without initial and final state leaves out: its kernels are in the cache then."""
        plan, config = self.plans[change.stage], change.configs[change.stage]
        finals = {b.name for b in plan.final}
        finals |= {b.name for b in all_buffers(plan).values() if b.of in finals}
        found = {b.name for b in plan.initial} | {f"d_{b.name}" for b in plan.final}
        if count_segments(plan, config, self.task.batch * self.task.heads, self.task.tokens) == 1:
            found |= {b.name for b in all_buffers(plan).values() if b.of in found}
        return {re.sub(r"\W", "_", name) for name in found | finals}

    def measure(self, change: Change) -> Outcome:
        value, failure = self.worker(self.print(change.configs))
        if not failure:
            return Outcome(*value)
        if PASSING not in failure:
            kernel_hash, launch = identify(self.changed_rows(change))
            kernels = ", ".join(change.kernels)
            records.quarantine(Failure(self.case.device, self.case.triton, kernels, kernel_hash, launch, failure))
        return Outcome(failure=failure)


def identify(rows: Sequence[Row]) -> tuple[str, str]:
    """What a failure is remembered by: a digest of the kernels' sources, and their constants and options."""
    sources = "\n".join(kernel.src for kernel, _, _ in rows)
    launches = (", ".join(f"{name}={value}" for name, value in options.items()) for _, _, options in rows)
    return cache.digest(sources), "; ".join(launches)


def refuse_kernel(report: KernelReport) -> str:
    if report.registers == 0:
        return report.findings[0]
    if report.shared > shared_limit(report.target):
        return f"{report.name} needs {report.shared} bytes of shared memory"
    if report.stack > SPILLED:
        return f"{report.name} spills {report.stack} bytes a thread"
    return ""

"""Times, memory and kernels of one callable on a device, and what the device can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .operators import Operator, Shape
from .peers import Peer, Tensors

Run = Callable[[], Any]
LEAST, MOST = 10, 200  # repetitions
BEYOND_CACHE = 150e6  # bytes of inputs that rotate, where one set would stay in the L2 cache
MOST_SETS = 8


@dataclass(frozen=True)
class Machine:
    """Bytes a second of a copy (read and written), and floating-point operations a second of a bfloat16 product."""

    copy: float
    matmul: float


def measure_machine(device: str) -> Machine:
    words, side = (2**28, 8192) if device == "cuda" else (2**22, 256)
    source = torch.randn(words, device=device)
    target = torch.empty_like(source)
    copy = 2 * 4 * words / (1e-3 * milliseconds([lambda: target.copy_(source)], device, 200))
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    return Machine(copy, 2 * side**3 / (1e-3 * milliseconds([lambda: a @ b], device, 200)))


def milliseconds(runs: Sequence[Run], device: str, budget: float) -> float:
    """The median time of one run, in turn over ``runs``, in about ``budget`` milliseconds after warming up.

    On a GPU between events in the stream: a run that the host issues too slowly counts with its gaps.
    """
    for run in runs:
        run()
    _synchronise(device)
    start = time.perf_counter()
    for i in range(3):
        runs[i % len(runs)]()
    _synchronise(device)
    once = max(1e3 * (time.perf_counter() - start) / 3, 1e-3)
    count = min(MOST, max(LEAST, int(budget / once)))
    if device != "cuda":
        return median(_host_time(runs[i % len(runs)]) for i in range(count))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for i in range(max(3, count // 10)):
        runs[i % len(runs)]()
    for i, (begin, end) in enumerate(events):
        begin.record()
        runs[i % len(runs)]()
        end.record()
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in events)


def _host_time(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- a peer's runs ----------------------------------------------------------------------------------------------------


def input_sets(inputs: Tensors, device: str) -> list[Tensors]:
    """The inputs, and as many copies as it takes to leave the cache."""
    size = sum(x.numel() * x.element_size() for x in inputs.values())
    count = min(MOST_SETS, max(1, round(BEYOND_CACHE / size))) if device == "cuda" else 1
    return [inputs] + [{n: x.clone() for n, x in inputs.items()} for _ in range(count - 1)]


def prepared_sets(peer: Peer, sets: list[Tensors]) -> list[Tensors]:
    with torch.no_grad():
        return [{n: _detached(x) for n, x in peer.prepare(x, peer.derived).items()} for x in sets]


def _detached(x: Any) -> Any:
    return x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x


def forward(peer: Peer, x: Tensors) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return peer.kernel(x, False)[0]

    return run


def forward_backward(peer: Peer, x: Tensors, weights: Tensor) -> Run:
    """Output and the gradients of all inputs. Fresh leaves each time: a captured run must not share graph nodes."""

    def run() -> tuple[Any, ...]:
        leaves = {n: _detached(y) for n, y in x.items()}
        output, _ = peer.kernel(leaves, False)
        wanted = [y for y in leaves.values() if isinstance(y, Tensor) and y.requires_grad]
        return (output.detach(), *torch.autograd.grad(output, wanted, weights, allow_unused=True))

    return run


def graphed(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """Each run as a CUDA graph; or none and why."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for run in runs:
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graphs, results, pool = [], [], torch.cuda.graph_pool_handle()
        for run in runs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                results.append(run())  # kept: a later graph of the pool must not reuse what this one writes
            graphs.append(graph)
    except (RuntimeError, ValueError, AssertionError) as error:
        torch.cuda.synchronize()
        return [], f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"
    return [_replay(graph, result) for graph, result in zip(graphs, results, strict=True)], ""


def _replay(graph: torch.cuda.CUDAGraph, result: Any) -> Run:
    def run() -> Any:
        graph.replay()
        return result

    return run


def peak_memory(run: Run) -> float | None:
    """MiB that a run needs beyond what is allocated before it."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- floors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floors:
    """Milliseconds that no schedule goes under: every tensor moved once; the step's own products, at the matmul rate.

    Forward + backward reads the inputs twice and the output's gradient, and writes output and gradients; each product
    has two more in its gradient.
    """

    forward_memory: float
    both_memory: float
    forward_arithmetic: float
    both_arithmetic: float


def floors(what: Operator, shape: Shape, inputs: Tensors, output: Tensor, machine: Machine) -> Floors:
    read = sum(x.numel() * x.element_size() for x in inputs.values())
    written = output.numel() * output.element_size()
    entries = shape.head * (shape.value or shape.head)
    if "M" in dict(what.sizes):  # two states, keys by slots and slots by values
        entries = dict(what.sizes)["M"] * (shape.head + (shape.value or shape.head)) // 2
    work = 2.0 * what.products * entries * shape.batch * shape.tokens * shape.heads
    scale = 1e3
    return Floors(
        scale * (read + written) / machine.copy,
        scale * (3 * read + 2 * written) / machine.copy,
        scale * work / machine.matmul,
        scale * 3 * work / machine.matmul,
    )


# --- kernels ----------------------------------------------------------------------------------------------------------


def kernel_floors(op: Any, shape: Shape, inputs: Tensors, machine: Machine) -> dict[str, dict[str, Any]]:
    """By kernel, under default launches: the least microseconds for its bytes and its products, programs and steps."""
    from recur.codegen.triton_printer.stage import function_name
    from recur.codegen.triton_printer.work import Extent, count_segments, count_work
    from recur.passes.plan_dims import clear_dims
    from recur.runtime.arguments import bind_arguments
    from recur.runtime.tuning.space import default_configs
    from recur.runtime.tuning.tune import plans_of

    call = bind_arguments(op.recurrence, (), inputs)
    _, sizes = clear_dims(op.program, call.sizes)
    plans = plans_of(op.program, call.sizes, "auto")
    found: dict[str, dict[str, Any]] = {}
    for plan, config in zip(plans, default_configs(plans, sizes), strict=True):
        count = count_segments(plan, config, shape.batch * shape.heads, shape.tokens)
        extent = Extent(shape.batch, shape.tokens, shape.heads, count)
        for kernel in plan.forward + plan.backward:
            work = count_work(plan, kernel, config, extent)
            found[function_name(plan.stage, kernel)] = {
                "memory": 1e6 * work.bytes / machine.copy,
                "arithmetic": 1e6 * work.products / machine.matmul,
                "programs": work.programs,
                "steps": work.steps,
            }
    return found


def profile(run: Run, times: int = 5) -> list[dict[str, Any]]:
    """GPU time by kernel, slowest first: name, launches and microseconds of one run."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run()
    torch.cuda.synchronize()
    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(times):
            run()
        torch.cuda.synchronize()
    kernels = [e for e in found.key_averages() if e.device_type == DeviceType.CUDA]
    rows = [
        {
            "kernel": e.key[:90],
            "launches": round(e.count / times, 2),
            "microseconds": round(e.self_device_time_total / times, 1),
        }
        for e in kernels
    ]
    return sorted((r for r in rows if r["microseconds"] > 0), key=lambda r: -r["microseconds"])

"""One task in a process of its own: a fault on the GPU, a hang or a broken peer costs that task alone.

    python -m bench.compare.worker < task.json

Every finding is a line on standard output, "@@ " and JSON; everything else there is noise of packages. Kinds of tasks:
machine: what the device does at best. warm: compiles and tunes one contestant, so that its kernels lie in the disk
caches. measure: checks and times an operator's contestants. first_call: imports, compiles and runs recur's operator.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import importlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STARTED = time.time()

from triton.errors import TritonError  # noqa: E402

from recur.diagnostics import RecurError  # noqa: E402

MARK = "@@ "
TUNING = {"warmup": 2, "rep": 10}  # milliseconds a candidate of a peer's autotuner is run for
Failures = (
    RuntimeError, ValueError, TypeError, AssertionError, AttributeError, ImportError, KeyError, OSError, RecurError,
    TritonError,
)  # fmt: skip
GRACE = 15.0  # seconds that a turn may last beyond its share
POISON = ("illegal memory access", "misaligned address", "unspecified launch failure", "device-side assert")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is asked for.

    deadline: seconds since the epoch after which it starts nothing more. checked: whether a contestant at given dims
    (by `check_key`) passed a check that another worker made. turn: a file that workers lock while they time, each for
    ``share`` seconds at most, so that they can start before their turn.
    """

    kind: str
    device: str
    deadline: float = math.inf
    operator: str = ""
    shapes: tuple[str, ...] = ()
    contestants: tuple[str, ...] = ()
    check_tokens: int = 1000
    timed: bool = True
    profiled: bool = False
    budget: float = 150.0
    copy: float = 1.0
    matmul: float = 1.0
    lock: str = ""
    checked: dict[str, bool] = dataclasses.field(default_factory=dict)
    turn: str = ""
    share: float = math.inf

    @property
    def backend(self) -> str:
        return "triton" if self.device == "cuda" else "torch"


def main() -> None:
    stated: dict[str, Any] = json.loads(sys.stdin.read())
    stated |= {n: tuple(x) for n, x in stated.items() if isinstance(x, list)}
    task = Task(**stated)
    {"machine": machine, "warm": warm, "measure": measure, "first_call": first_call}[task.kind](task)


def tell(event: str, **found: Any) -> None:
    print(MARK + json.dumps({"event": event, **found}), flush=True)


def machine(task: Task) -> None:
    import torch

    from .measure import measure_machine

    found = measure_machine(task.device)
    name = torch.cuda.get_device_name() if task.device == "cuda" else "CPU"
    tell("machine", device=name, copy=found.copy, matmul=found.matmul)


# --- who takes part ---------------------------------------------------------------------------------------------------


def contestants(task: Task, op: Any) -> list[Any]:
    """The task's contestants in its order: "recur", "recur STRATEGY", and peers by their names."""
    from .peers import peers_of, recur_itself

    known = {p.name: p for p in peers_of(task.operator, ("all",))}
    found = []
    for name in task.contestants:
        if name.split()[0] == "recur":
            strategy = name.removeprefix("recur").strip() or "auto"
            found.append(recur_itself(op, strategy, task.backend, name))
        elif name in known:
            found.append(known[name])
    return found


@contextmanager
def short_tuning(task: Task) -> Iterator[None]:
    """Triton's autotuners time their candidates shortly, and one at a time over all processes of this run.

    Compiling, which is most of it, goes on in parallel. Where nothing is timed, a few candidates are enough.
    """
    if task.device != "cuda":
        yield
        return
    testing: Any = importlib.import_module("triton.testing")
    autotuner = importlib.import_module("triton.runtime.autotuner").Autotuner
    original: Callable[..., Any] = testing.do_bench
    prune: Callable[..., list[Any]] = autotuner.prune_configs

    def do_bench(fn: Callable[[], Any], *args: Any, quantiles: Any = None, **options: Any) -> Any:
        fn()
        with open(task.lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return original(fn, **TUNING, quantiles=quantiles)

    def few(self: Any, *args: Any, **options: Any) -> list[Any]:
        found = list(prune(self, *args, **options))
        return found if len(found) <= 2 else [found[0], found[len(found) // 2]]

    testing.do_bench = do_bench
    if not task.timed:
        autotuner.prune_configs = few
    try:
        yield
    finally:
        testing.do_bench, autotuner.prune_configs = original, prune


def warm(task: Task) -> None:
    """First the calls that are timed, for which a peer's autotuner should choose, then the one that is checked."""
    from . import check, measure
    from .operators import Shape, draw, load, operator

    what = operator(task.operator)
    op = load(what)
    with short_tuning(task):
        for peer in contestants(task, op):
            shapes = list({s.per_token: s for s in reversed(list(map(Shape.parse, task.shapes)))}.values())
            for shape in shapes:
                if task.timed:
                    inputs = draw(op, what, shape, task.device)
                    (prepared,) = measure.prepared_sets(peer, [inputs])
                    run_twice(peer, prepared)
                check.run(peer, check_inputs(op, what, shape, task, peer.multiple))
        tell("warm", contestant=task.contestants[0])


def run_twice(peer: Any, prepared: dict[str, Any]) -> None:
    """Without and with gradients."""
    import torch

    from . import measure

    output = measure.forward(peer, prepared)()
    try:
        measure.forward_backward(peer, prepared, torch.ones_like(output))()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        tell("note", text=f"{peer.name}: {type(error).__name__}: {str(error)[:200]}")


def check_inputs(op: Any, what: Any, shape: Any, task: Task, multiple: int) -> dict[str, Any]:
    """Inputs of one sequence at a ragged length, or at one that the contestant takes."""
    from .operators import draw

    tokens = -(-task.check_tokens // multiple) * multiple
    short = dataclasses.replace(shape, batch=1, tokens=tokens)
    return draw(op, what, short, task.device, seed=3)


# --- checking and timing ----------------------------------------------------------------------------------------------


def measure(task: Task) -> None:
    from .operators import Shape, load, operator

    what = operator(task.operator)
    op = load(what)
    peers = contestants(task, op)
    shapes = list(map(Shape.parse, task.shapes))
    checked = dict(task.checked)
    with short_tuning(task):
        for shape in shapes:
            unknown = [p for p in peers if check_key(p.name, shape) not in checked]
            for name, passed in check_all(task, op, what, shape, unknown):
                checked[check_key(name, shape)] = passed
        if task.timed:
            if task.turn:
                load_kernels(task, op, what, shapes, peers)
            with in_turn(task) as task:
                time_and_capture(task, op, what, shapes, peers, checked)


def check_key(contestant: str, shape: Any) -> str:
    """A contestant at the dims that its kernels are compiled for."""
    return f"{contestant} {shape.per_token}"


def load_kernels(task: Task, op: Any, what: Any, shapes: list[Any], peers: list[Any]) -> None:
    """One short run of everyone, so that packages are imported and kernels loaded before the worker's turn."""
    from . import check

    for shape in {s.per_token: s for s in shapes}.values():
        for peer in peers:
            try:
                check.run(peer, check_inputs(op, what, shape, task, peer.multiple))
            except Failures as error:  # timing it says so
                leave_if_poisoned(error)


@contextmanager
def in_turn(task: Task) -> Iterator[Task]:
    """The task with its deadline, once no other worker times. A worker that hangs in its turn is ended by an alarm."""
    if not task.turn:
        yield task
        return
    with open(task.turn, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signal.alarm(math.ceil(task.share + GRACE))
        yield dataclasses.replace(task, deadline=min(task.deadline, time.time() + task.share))


def time_and_capture(
    task: Task, op: Any, what: Any, shapes: list[Any], peers: list[Any], checked: dict[str, bool]
) -> None:
    timed: list[tuple[Any, Any, dict[str, Any]]] = []
    for shape in shapes:
        timed += [(shape, *found) for found in time_all(task, op, what, shape, peers, checked)]
    if task.device == "cuda":
        capture_all(task, op, what, timed)


def check_all(task: Task, op: Any, what: Any, shape: Any, peers: list[Any]) -> Iterator[tuple[str, bool]]:
    """Whether each contestant is within the limits; says by how much."""
    from . import check

    heads = sorted({0, shape.heads - 1})
    exact: dict[int, Any] = {}
    for peer in peers:
        if peer.yardstick:
            continue
        tell("begin", contestant=peer.name, shape=shape.label, stage="check")
        found: dict[str, Any] = {"contestant": peer.name, "shape": shape.label}
        try:
            inputs = check_inputs(op, what, shape, task, peer.multiple)
            tokens = next(x.shape[1] for x in inputs.values() if x.dim() > 2)
            if tokens not in exact:
                exact[tokens] = check.exact(op, inputs, heads)
            result = check.run(peer, inputs)
            errors = check.errors(check.on_heads(result, op, heads), exact[tokens])
            off = check.over_limit(errors, what)
            found |= {"tokens": tokens, "errors": errors, "off": off, "failed": result.failed}
        except Failures as error:
            leave_if_poisoned(error)
            found |= {"errors": {}, "off": ["everything"], "failed": f"{type(error).__name__}: {str(error)[:200]}"}
        tell("check", **found)
        yield peer.name, not found["off"] and not found["failed"]
    gc.collect()


def time_all(
    task: Task, op: Any, what: Any, shape: Any, peers: list[Any], checked: dict[str, bool]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Eager times; gives the contestants that were timed and their rows."""
    from . import measure as m
    from .operators import draw

    inputs = draw(op, what, shape, task.device)
    sets = m.input_sets(inputs, task.device)
    mine = None
    for peer in peers:
        row: dict[str, Any] = {"contestant": peer.name, "shape": shape.label}
        is_recur = peer.package == "recur"
        if is_recur and not checked.get(check_key(peer.name, shape), False):
            tell("row", **row, skipped="fails its check")
            continue
        if time.time() > task.deadline:
            tell("row", **row, skipped="out of time")
            continue
        tell("begin", **row, stage="time")
        try:
            if is_recur and mine is None:
                tell("floors", shape=shape.label, **floors_of(task, op, what, shape, inputs, peer))
            row |= time_one(task, peer, sets, shape.label)
            if not is_recur and not peer.yardstick and mine is not None:
                row |= beside(what, mine, peer, inputs)
            if is_recur and mine is None:
                mine = peer
        except Failures as error:
            leave_if_poisoned(error)
            row |= {"skipped": f"{type(error).__name__}: {str(error)[:200]}"}
        release(task.device)
        tell("row", **row)
        if "skipped" not in row:
            yield peer, row


def capture_all(task: Task, op: Any, what: Any, timed: list[tuple[Any, Any, dict[str, Any]]]) -> None:
    """Times as CUDA graphs, after everything else: a capture that fails can leave the allocator in disorder."""
    from . import measure as m
    from .operators import draw

    for shape in dict.fromkeys(shape for shape, _, _ in timed):
        sets = m.input_sets(draw(op, what, shape, task.device), task.device)
        for peer, row in ((p, r) for s, p, r in timed if s == shape):
            if time.time() > task.deadline:
                return
            tell("begin", contestant=peer.name, shape=shape.label, stage="capture")
            row |= capture_one(task, peer, sets, with_gradient="no_gradient" not in row)
            tell("row", **row)


def floors_of(task: Task, op: Any, what: Any, shape: Any, inputs: dict[str, Any], peer: Any) -> dict[str, float]:
    from . import measure as m

    output = m.forward(peer, inputs)()
    rates = m.Machine(task.copy, task.matmul)
    return dataclasses.asdict(m.floors(what, shape, inputs, output, rates))


def time_one(task: Task, peer: Any, sets: list[dict[str, Any]], label: str) -> dict[str, Any]:
    """Eager times in milliseconds, peak memory in MiB, and, for recur, its kernels."""
    from . import measure as m
    from .operators import Shape, load, operator

    stages = stages_of(peer, sets)
    found: dict[str, Any] = {"sets": len(sets)}
    try:
        stages["both"][0]()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found["no_gradient"] = f"{type(error).__name__}: {str(error)[:160]}"
        del stages["both"]
    for stage, runs in stages.items():
        found[f"{stage}_ms"] = m.milliseconds(runs, task.device, task.budget)
    if "both" in stages:
        found["peak_mb"] = m.peak_memory(stages["both"][0])
    if task.profiled and peer.package == "recur" and task.device == "cuda":
        rates = m.Machine(task.copy, task.matmul)
        known = m.kernel_floors(load(operator(task.operator)), Shape.parse(label), sets[0], rates)
        for stage, runs in stages.items():
            kernels = [k | known.get(k["kernel"], {}) for k in m.profile(runs[0])]
            tell("profile", contestant=peer.name, shape=label, stage=stage, kernels=kernels)
    return found


def stages_of(peer: Any, sets: list[dict[str, Any]]) -> dict[str, list[Callable[[], Any]]]:
    """The runs that are timed, one for each set of inputs."""
    import torch

    from . import measure as m

    prepared = m.prepared_sets(peer, sets)
    weights = torch.randn_like(m.forward(peer, prepared[0])())
    forward = [m.forward(peer, x) for x in prepared]
    return {"forward": forward, "both": [m.forward_backward(peer, x, weights) for x in prepared]}


def capture_one(task: Task, peer: Any, sets: list[dict[str, Any]], with_gradient: bool) -> dict[str, Any]:
    from . import measure as m

    found: dict[str, Any] = {}
    for stage, runs in stages_of(peer, sets).items():
        if stage == "both" and not with_gradient:
            continue
        captured, why = m.graphed(runs)
        if captured:
            found[f"{stage}_graph_ms"] = m.milliseconds(captured, task.device, task.budget)
        else:
            found[f"{stage}_graph_failed"] = why
        del captured
        release(task.device)
    return found


def beside(what: Any, mine: Any, peer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """At the timed shape: how far recur and a peer, both in bfloat16, lie apart, and what lies further than allowed."""
    from . import check

    first = check.run(peer, inputs, with_states=False)
    second = check.run(mine, inputs, with_states=False)
    found = check.errors(second, first)
    return {"apart": found, "apart_off": check.over_limit(found, what, check.BETWEEN_TWO)}


def leave_if_poisoned(error: BaseException) -> None:
    """After a fault on the GPU nothing more can run in this process; another one goes on without the contestant."""
    if any(sign in str(error) for sign in POISON):
        raise error


def release(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def first_call(task: Task) -> None:
    """Forward and backward in a process that has done nothing yet. Seconds, from the interpreter's start."""
    import torch

    import recur  # noqa: F401

    from .operators import Shape, draw, load, operator

    imported = time.time()
    what = operator(task.operator)
    op = load(what)
    inputs = {n: x.requires_grad_() for n, x in draw(op, what, Shape.parse(task.shapes[0]), task.device).items()}
    synchronise = torch.cuda.synchronize if task.device == "cuda" else (lambda: None)
    synchronise()
    ready = time.time()
    output, _ = op(**inputs, backend=task.backend)
    output.backward(torch.ones_like(output))
    synchronise()
    done = time.time()
    tell("first_call", imports=imported - STARTED, inputs=ready - imported, call=done - ready)


if __name__ == "__main__":
    main()

"""What the host pays: microseconds of a call beside the kernels' own time, and seconds of the first call in a process.

    python bench/host_time.py [--out bench/results] [OPERATOR ...]

Every operator runs in processes of its own: one with all caches empty, then one that finds them filled. The first call
is forward and backward at small sizes, kernels compiled for head dims of 128; its parts are timed one by one. Calls are
timed at sizes whose kernels take less than the host does. Without a GPU the kernels are compiled for sm_90 and loaded
and launched by a mock (tests/mock_gpu.py): the host's own work is all there but CUDA's part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
OPERATORS = ("linear_attention", "simple_gla", "retnet", "gla", "gated_delta_net", "rwkv7", "mlstm_exp", "hgrn", "lru")
D, CALLS = 128, 300
OWN = ("load", "forward", "backward")  # the parts of the first call that are not the start of torch and CUDA
CALL = ("forward", "forward, to differentiate", "forward + backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", metavar="OPERATOR", help="what the processes do")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    rows = []
    for name in options.operators:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"operator": name, "cold": run(name, folder), "warm": run(name, folder)})
        print(format_row(rows[-1]), flush=True)
    if options.out is not None:
        write_report(options.out, rows)


def run(name: str, folder: str) -> dict[str, Any]:
    """`measure` in a fresh process whose caches lie in ``folder``."""
    caches = {"RECUR_CACHE_DIR": f"{folder}/recur", "TRITON_CACHE_DIR": f"{folder}/triton"}
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, env={**os.environ, **caches}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


class Laps:
    """Seconds between one `lap` and the next; those before a `skip` count for nothing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.skip()

    def skip(self) -> None:
        self.start = time.perf_counter()

    def lap(self, name: str) -> None:
        self.seconds[name] = time.perf_counter() - self.start
        self.skip()


def measure(name: str) -> dict[str, Any]:
    """Seconds of the first call's parts, and microseconds of calls after it."""
    laps = Laps()
    import torch

    laps.lap("import torch")
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.ones(1, device="cuda").sum().item()
    laps.lap("start CUDA")
    import recur
    from recur import zoo

    op = recur.load(zoo.path(name))
    laps.lap("load")
    with mock(has_gpu):
        inputs = draw(op, has_gpu)
        wait = torch.cuda.synchronize if has_gpu else lambda: None
        wait()
        laps.skip()
        output = first_output(op(**inputs))
        wait()
        laps.lap("forward")
        weight = torch.ones_like(output)
        torch.autograd.backward(output, weight)
        wait()
        laps.lap("backward")
        calls = time_calls(op, inputs, weight, wait)
    device = torch.cuda.get_device_name() if has_gpu else "no GPU, a mock for sm_90"
    return {"first": laps.seconds, "calls": calls, "device": device}


def mock(has_gpu: bool) -> AbstractContextManager[Any]:
    if has_gpu:
        return nullcontext()
    from mock_gpu import mock_gpu

    return mock_gpu()


def draw(op: Any, has_gpu: bool) -> dict[str, Any]:
    import torch
    from inputs import random_inputs

    sizes = {d.name: D for d in op.recurrence.dims}
    drawn = random_inputs(op.recurrence, B=1, T=64, H=1, sizes=sizes, dtype=torch.float32)
    device = "cuda" if has_gpu else "cpu"
    kept = {n: x if x.is_complex() else x.to(torch.bfloat16) for n, x in drawn.items()}
    return {n: x.to(device).requires_grad_() for n, x in kept.items()}


def first_output(result: tuple[Any, Any]) -> Any:
    outputs, _ = result
    return outputs[0] if isinstance(outputs, tuple) else outputs


def time_calls(op: Any, inputs: dict[str, Any], weight: Any, wait: Callable[[], None]) -> dict[str, float]:
    """Microseconds of the host for each kind of call; the GPU is waited for after each, outside the time."""
    import torch

    def forward() -> None:
        op(**inputs)

    def both() -> None:
        torch.autograd.backward(first_output(op(**inputs)), weight)

    with torch.no_grad():
        found = [median_time(forward, wait)]
    return dict(zip(CALL, [*found, median_time(forward, wait), median_time(both, wait)], strict=True))


def median_time(call: Callable[[], None], wait: Callable[[], None]) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
        wait()
    return statistics.median(times)


# --- the report -------------------------------------------------------------------------------------------------------


def format_row(row: dict[str, Any]) -> str:
    """Operator; host microseconds; seconds of the first call, without and with the start of torch and CUDA."""
    calls = " | ".join(f"{row['warm']['calls'][kind]:.0f}" for kind in CALL)
    seconds = []
    for state in ("cold", "warm"):
        first = row[state]["first"]
        own = [first[part] for part in OWN]
        seconds += [*(f"{part:.2f}" for part in own), f"{sum(own):.2f}", f"{sum(first.values()):.2f}"]
    return f"| {row['operator']} | {calls} | {' | '.join(seconds)} |"


def write_report(folder: Path, rows: list[dict[str, Any]]) -> None:
    from importlib.metadata import version

    about = {"device": rows[0]["warm"]["device"], "cores": os.cpu_count()}
    about |= {"torch": version("torch"), "triton": version("triton"), "command": " ".join(["python", *sys.argv])}
    (folder / "host_time.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    parts = [f"{state}: {part}" for state in ("cold", "warm") for part in (*OWN, "sum", "with torch and CUDA")]
    columns = ["operator", *(f"{kind}, us" for kind in CALL), *(f"{part}, s" for part in parts)]
    table = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *map(format_row, rows)]
    lines = ["# Host time", "", ", ".join(f"{k}: {v}" for k, v in about.items()), "", *table, ""]
    (folder / "host_time.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

"""Recurrences whose decay runs over the key dims, on a GPU: checked against float64, then timed, kernel by kernel.

    python bench/diag_check.py [--only NAME ...] [--jobs 12] [--no-check] [--no-times] [--kernels]

The checks are gpu_check.py's (outputs, final states, gradients, equal bits of two runs, causality), at ragged lengths
of several chunks, ordinary and extreme gates. The times are gpu_times.py's; ``--kernels`` adds each kernel's own time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

NAMES = ("gla", "hgrn2", "rwkv6", "kda", "rwkv7", "dplr")
CASES = (  # tokens, head dims
    (130, {"K": 64, "V": 64}),
    (67, {"K": 48, "V": 80}),
    (300, {"K": 128, "V": 128}),
)
SHAPES = ((2, 16384, 16, 128), (4, 2048, 16, 128))  # B, T, H, D


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        if not options.no_check:
            kinds = ("float32", "bfloat16")
            tasks = [(name, dtype, *case) for name in options.only for dtype in kinds for case in CASES]
            for line in pool.imap(check, tasks, chunksize=1):
                print(line, flush=True)
        if options.no_times:
            return
        from gpu_times import compile_operator, copy_rate, format_row, time_operator

        tasks = [(name, "chunkwise") for name in options.only]
        failed = dict(zip(options.only, pool.map(compile_operator, tasks, chunksize=1), strict=True))
    rate = copy_rate()
    for name in options.only:
        if failed[name]:
            print(name, failed[name], flush=True)
            continue
        for shape in SHAPES:
            print(format_row(time_operator(name, "chunkwise", shape, rate)), flush=True)
            if options.kernels:
                print_kernels(name, shape)


def check(task: tuple[str, str, int, dict[str, int]]) -> str:
    """One line: the worst error and the verdict, for ordinary gates and for extreme ones."""
    import gpu_check
    import inputs
    from triton.errors import TritonError

    import recur
    from recur.zoo import path

    name, dtype, tokens, sizes = task
    op = recur.load(str(path(name)))
    draw = inputs.random_inputs
    line = f"{name:8} {dtype:9} T={tokens:<4} K={sizes['K']:<4} V={sizes['V']:<4}"
    for extreme in (False, True):
        inputs.random_inputs = lambda *a, extreme=extreme, **k: draw(*a, **k, extreme=extreme)
        try:
            row = gpu_check.check_case(op, "chunkwise", dtype, tokens, sizes)
        except (TritonError, RuntimeError, ValueError) as error:
            row = {"errors": {"": float("nan")}, "verdict": f"{type(error).__name__}: {str(error)[-300:]}"}
        worst = max(row["errors"].items(), key=lambda item: item[1])
        line += f"  {'extreme' if extreme else 'ordinary'}: {worst[1]:.1e} ({worst[0]}) {row['verdict']}"
    return line


def print_kernels(name: str, shape: tuple[int, int, int, int]) -> None:
    """Milliseconds a launch of each kernel, forward and backward."""
    import torch
    from gpu_times import prepare
    from torch.profiler import ProfilerActivity, profile

    op, tensors = prepare(name, shape)
    weight = torch.randn_like(op(**tensors, strategy="chunkwise")[0])

    def both() -> Any:
        out, _ = op(**tensors, strategy="chunkwise")
        return torch.autograd.grad(out, list(tensors.values()), weight)

    both()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            both()
        torch.cuda.synchronize()
    for event in sorted(found.key_averages(), key=lambda e: -e.self_device_time_total):
        if event.self_device_time_total > 0:
            print(f"    {event.key[:60]:60} {event.self_device_time_total / 5e3:8.3f} ms  x{event.count // 5}")


if __name__ == "__main__":
    main()

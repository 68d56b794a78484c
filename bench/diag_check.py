"""Recurrences whose decay runs over the key dims, on a GPU, against float64 under ordinary and extreme gates.

    python bench/diag_check.py [--only NAME ...] [--jobs 12]

The checks are gpu_check.py's (outputs, final states, gradients, equal bits of two runs, causality), at ragged lengths
of several chunks. `python -m bench.compare --profile` times their kernels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

NAMES = ("gla", "hgrn2", "rwkv6", "kda", "rwkv7", "dplr")
CASES = (  # tokens, head dims
    (130, {"K": 64, "V": 64}),
    (67, {"K": 48, "V": 80}),
    (300, {"K": 128, "V": 128}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--jobs", type=int, default=12)
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        kinds = ("float32", "bfloat16")
        tasks = [(name, dtype, *case) for name in options.only for dtype in kinds for case in CASES]
        for line in pool.imap(check, tasks, chunksize=1):
            print(line, flush=True)


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


if __name__ == "__main__":
    main()

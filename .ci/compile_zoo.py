"""Compiles every recurrence of the zoo ahead of time, forward and backward, with its default strategy and sizes.

    python .ci/compile_zoo.py [--target sm_90] [--record]

Fails where a kernel does not compile, does not fit, or spills without being named in spills.txt beside this file;
--record writes that list anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

SIZES = {"slice_block_diagonal": {"b": 4, "D": 16}}  # with D = 64 its step is too large for a GPU's registers
KNOWN = Path(__file__).parent / "spills.txt"


def compile_recurrence(name: str, target: str) -> tuple[str, list[str], list[str], float]:
    """(a row to print, what fails, the kernels that spill, seconds)."""
    import recur
    from recur import zoo
    from recur.diagnostics import RecurError
    from recur.runtime.build import build_module, shared_limit
    from recur.runtime.load import load_module

    start = time.perf_counter()
    op = recur.load(zoo.path(name))
    try:
        report = build_module(load_module(op.name, op.source("triton", **SIZES.get(name, {}))), target)
    except (RecurError, RuntimeError) as error:
        return f"{name:30s} does not compile", [f"{name}: {error}"], [], time.perf_counter() - start
    kernels = report.kernels
    limit = shared_limit(target)
    problems = [
        f"{name}: {k.name} needs {k.shared} of {limit} bytes of shared memory" for k in kernels if k.shared > limit
    ]
    spills = [f"{name} {k.name}" for k in kernels if k.stack]
    row = (f"{name:30s} {len(kernels):2d} kernels, registers up to {max(k.registers for k in kernels):3d}, "
           f"shared memory up to {max(k.shared for k in kernels):6d}, {len(spills)} spill")  # fmt: skip
    return row, problems, spills, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--record", action="store_true", help="write spills.txt anew")
    options = parser.parse_args()
    from recur import zoo

    problems: list[str] = []
    spills: list[str] = []
    with ProcessPoolExecutor(2) as pool:
        for row, failed, spilled, seconds in pool.map(partial(compile_recurrence, target=options.target), zoo.names()):
            print(f"{row}  ({seconds:.1f} s)", flush=True)
            problems += failed
            spills += spilled
    if options.record:
        KNOWN.write_text("".join(f"{kernel}\n" for kernel in spills))
    known = KNOWN.read_text().splitlines()
    problems += [f"{kernel} spills and is not in {KNOWN.name}" for kernel in spills if kernel not in known]
    for kernel in known:
        if kernel not in spills:
            print(f"note: {kernel} no longer spills; take it out of {KNOWN.name}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(zoo.names())} recurrences compiled for {options.target}, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

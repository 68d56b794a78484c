"""GPU time by kernel of forward and backward, beside what the kernel's bytes and products take at least.

    python -m bench.kernels [--shape "B2 T16384 H16 D128"] [--segments N] [--out bench/results] [OPERATOR ...]

``--segments``: so many for every sequence, whatever recur would take (codegen/segments.py).
Everything is compiled in parallel processes first; nothing is checked here (bench/gpu_check.py does). Whole passes are
medians between events in the stream, kernels means of five runs by torch.profiler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .compare.measure import Machine, kernel_floors, measure_machine, milliseconds, profile
from .compare.operators import Shape, draw, load, operator
from .compare.report import profile_table

OPERATORS = ("linear_attention", "simple_gla", "gla", "gated_delta_net", "kda", "rwkv7", "mlstm_exp", "hgrn",
             "gated_slot_attention", "gated_delta_product")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="B2 T16384 H16 D128")
    parser.add_argument("--segments", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", action="store_true", help="run each operator once, and time nothing")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    options = parser.parse_args()
    shape = Shape.parse(options.shape)
    if options.segments:
        force_segments(options.segments)
    if options.compile:
        for name in options.operators:
            passes(name, shape)["forward + backward"]()
        return
    command = [sys.executable, "-m", "bench.kernels", "--compile", "--shape", options.shape]
    command += ["--segments", str(options.segments)] if options.segments else []
    for process in [subprocess.Popen([*command, name]) for name in options.operators]:
        process.wait()
    machine = measure_machine("cuda")
    head = f"# Kernels, {shape.label}\n\n`{' '.join(['python -m bench.kernels', *sys.argv[1:]])}`\n\n"
    head += f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copies {machine.copy / 1e12:.2f} TB/s, "
    parts = [head + f"multiplies bfloat16 at {machine.matmul / 1e12:.0f} TFLOP/s. Floors in microseconds.\n"]
    for name in options.operators:
        parts.append(measure(name, shape, machine))
        print(parts[-1], flush=True)
    if options.out:
        (options.out / "kernels.md").write_text("\n".join(parts))


def force_segments(count: int) -> None:
    """Modules printed by this process cut every sequence into so many segments; none is taken from a cache."""
    import os
    import tempfile

    os.environ["RECUR_CACHE_DIR"] = tempfile.mkdtemp()
    from recur.codegen.helpers import definitions_of
    from recur.codegen.triton_printer.helpers import SEGMENTS

    definitions_of(SEGMENTS)["_segments"] = f"""\
def _segments(walks, chunks, programs, two_pay):
    return {count}, (chunks + {count - 1}) // {count}
"""


def measure(name: str, shape: Shape, machine: Machine) -> str:
    """One operator's section: both passes' times, then their kernels."""
    runs = passes(name, shape)
    times = ", ".join(f"{stage} {milliseconds([run], 'cuda', 100):.3f} ms" for stage, run in runs.items())
    what = operator(name)
    op = load(what)
    known = kernel_floors(op, shape, draw(op, what, shape, "cuda"), machine)
    kernels = [k | known.get(k["kernel"], {}) for k in profile(runs["forward + backward"])]
    found = {"operator": name, "shape": shape.label, "contestant": "recur", "stage": "both", "kernels": kernels}
    return f"{profile_table(found)}\n\n{times}\n"


def passes(name: str, shape: Shape) -> dict[str, Any]:
    what = operator(name)
    op = load(what)
    inputs = {n: x.requires_grad_() for n, x in draw(op, what, shape, "cuda").items()}
    weights = torch.randn_like(op(**inputs)[0])

    def forward() -> Any:
        with torch.no_grad():
            return op(**inputs)[0]

    def both() -> Any:
        output, _ = op(**inputs)
        return torch.autograd.grad(output, list(inputs.values()), weights, allow_unused=True)

    return {"forward": forward, "forward + backward": both}


if __name__ == "__main__":
    main()

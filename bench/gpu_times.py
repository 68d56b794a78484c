"""Forward and forward + backward times of generated operators on a GPU, bfloat16, beside the memory floor.

    python bench/gpu_times.py --out bench/results

The floor reads each input once and writes each output once (backward: inputs and the output's gradient read, the
inputs' gradients written), at the copy rate measured in the same run. Kernels are compiled first, one process an
operator. Correctness is bench/gpu_check.py's business; here every result must at least be finite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

SHAPES = ((2, 16384, 16, 128), (4, 2048, 16, 128))  # B, T, H, D
OPERATORS = (
    ("linear_attention", "auto"),
    ("simple_gla", "chunkwise"),
    ("simple_gla", "tiled"),
    ("mamba2", "auto"),
    ("gla", "auto"),
    ("delta_net", "auto"),
    ("gated_delta_net", "auto"),
    ("rwkv7", "auto"),
    ("mlstm_sig", "chunkwise"),
    ("mlstm_sig", "tiled"),
    ("hgrn", "auto"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--jobs", type=int, default=12)
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        compiled = dict(zip(OPERATORS, pool.map(compile_operator, OPERATORS, chunksize=1), strict=True))
    rate = copy_rate()
    rows = []
    for task in OPERATORS:
        for shape in SHAPES if compiled[task] == "" else ():
            rows.append(time_operator(*task, shape, rate))
            print(format_row(rows[-1]), flush=True)
        if compiled[task]:
            print(*task, compiled[task], flush=True)
    write_report(options.out, rows, rate)


def compile_operator(task: tuple[str, str]) -> str:
    """Runs the operator once at a small T, which leaves its kernels in the disk cache; what went wrong, or nothing."""
    from triton.errors import TritonError

    name, strategy = task
    try:
        op, inputs = prepare(name, (1, 64, 1, 128))
        outputs, _ = op(**inputs, strategy=strategy)
        outputs.float().sum().backward()
    except (TritonError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error)[-200:]}"
    return ""


def prepare(name: str, shape: tuple[int, int, int, int]) -> tuple[Any, dict[str, Any]]:
    import torch
    from inputs import random_inputs

    import recur
    from recur.zoo import path

    B, T, H, D = shape
    op = recur.load(str(path(name)))
    sizes = {d.name: D for d in op.recurrence.dims}
    drawn = random_inputs(op.recurrence, B=B, T=T, H=H, sizes=sizes, dtype=torch.float32)
    return op, {n: x.to(torch.bfloat16).cuda().requires_grad_() for n, x in drawn.items()}


def time_operator(name: str, strategy: str, shape: tuple[int, int, int, int], rate: float) -> dict[str, Any]:
    import torch
    from triton.testing import do_bench

    op, inputs = prepare(name, shape)
    leaves = list(inputs.values())
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    output, _ = op(**inputs, strategy=strategy)
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, weight)
    peak = torch.cuda.max_memory_allocated() - base
    assert all(torch.isfinite(x).all() for x in (output, *gradients)), name

    def forward() -> Any:
        with torch.no_grad():
            return op(**inputs, strategy=strategy)

    def both() -> Any:
        out, _ = op(**inputs, strategy=strategy)
        return torch.autograd.grad(out, leaves, weight)

    read = sum(x.numel() * x.element_size() for x in leaves)
    written = output.numel() * output.element_size()
    return {
        "operator": name,
        "strategy": strategy,
        "shape": shape,
        "forward_ms": do_bench(forward, warmup=50, rep=200, return_mode="median"),
        "both_ms": do_bench(both, warmup=50, rep=300, return_mode="median"),
        "forward_floor_ms": 1e3 * (read + written) / rate,
        "both_floor_ms": 1e3 * (3 * read + 2 * written) / rate,
        "peak_mb": peak / 2**20,
    }


def copy_rate() -> float:
    """Bytes a second of a device-to-device copy, read and written."""
    import torch
    from triton.testing import do_bench

    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (do_bench(lambda: target.copy_(source), return_mode="median") * 1e-3)


def format_row(r: dict[str, Any]) -> str:
    shape = "B{} T{} H{} D{}".format(*r["shape"])
    times = f"{r['forward_ms']:8.3f} ms ({r['forward_ms'] / r['forward_floor_ms']:5.1f}x floor)"
    both = f"{r['both_ms']:8.3f} ms ({r['both_ms'] / r['both_floor_ms']:5.1f}x floor)"
    return f"{r['operator']:18} {r['strategy']:10} {shape:22} {times}  {both}  {r['peak_mb']:8.0f} MB"


def write_report(folder: Path, rows: list[dict[str, Any]], rate: float) -> None:
    import torch
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    about |= {"copy_bytes_per_second": f"{rate:.3e}", "command": " ".join(["python", *sys.argv])}
    (folder / "gpu_times.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    lines = ["# Times on a GPU", "", ", ".join(f"{k}: {v}" for k, v in about.items()), "", "```"]
    (folder / "gpu_times.md").write_text("\n".join([*lines, *(format_row(r) for r in rows), "```", ""]))


if __name__ == "__main__":
    main()

"""Elementwise and selective scans on a GPU under several launches: checked against the reference, then timed.

    python bench/scan_times.py [--only hgrn mamba1] [--quick] [--out bench/results]

Each (operator, launch) is compiled and checked in a process of its own, several at once, at a ragged length in
bfloat16 against the step-by-step reference in float64; then timed, one process after another, at the shapes below, the
median of many. A process that does not come back is ended and reported. The floor reads and writes each tensor once at
the copy rate measured here: inputs and output forward, and inputs, the output's gradient and the inputs' gradients
backward. The selective scans' other floor is one exponential a state and token, 16 a cycle and multiprocessor.
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

SHAPES = ((8, 4096, 16, 128), (2, 16384, 16, 128), (1, 65536, 8, 128))  # B, T, H, D
SELECTIVE = ("mamba1", "longhorn")
OPERATORS = ("hgrn", "mingru", *SELECTIVE, "lru")
LIMITS = {"output": 0.005, "final": 0.005, "gradient": 0.02}
TIMEOUT = 150

# rows: tokens in a chunk; width: channels in a tile; warps; runs: of tokens in a chunk; relay: a program for every
# chunk; anew: which computes its tiles twice, forward and backward; vector: neighbouring channels of a thread;
# registers: of a thread, at most, forward and backward; stages: chunks in flight where one program walks.
Launch = dict[str, Any]
ELEMENTWISE: tuple[Launch, ...] = (
    {},
    {"anew": (False, False)},
    {"anew": (True, True)},
    {"rows": 256, "warps": 8},
    {"warps": 8},
    {"registers": (128, 168)},
    {"registers": (96, 128)},
    {"warps": 8, "registers": (80, 128)},
    {"warps": 8, "registers": (64, 96)},
    {"rows": 64, "width": 32, "registers": (80, 128)},
    {"rows": 64, "width": 32, "warps": 8, "registers": (48, 80)},
    {"warps": 8, "vector": 2, "runs": 16, "registers": (80, 128)},
    {"rows": 256, "width": 16},
    {"rows": 64, "width": 64},
    {"rows": 64, "width": 32},
    {"width": 64, "warps": 8},
    {"width": 16},
    {"relay": False, "stages": 3, "warps": 8},
)
STATES: tuple[Launch, ...] = (
    {},
    {"anew": (False, False)},
)
# Of walks over tokens: rows; states: of one token in a thread, forward and backward; stages: chunks in flight; walks:
# so many programs of one warp, at most, where sequences are cut into segments.
WALKS: tuple[Launch, ...] = (
    {},
    {"walks": 528},
    {"walks": 1056},
    {"walks": 2112},
    {"states": (16, 4), "walks": 1056},
    {"states": (16, 16), "walks": 1056},
    {"states": (8, 4), "walks": 1056},
    {"states": (8, 8), "walks": 2112},
    {"rows": 4, "walks": 1056},
    {"rows": 4, "states": (8, 4), "walks": 2112},
    {"rows": 16, "states": (8, 4), "walks": 1056},
    {"stages": 2, "walks": 1056},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=OPERATORS)
    parser.add_argument("--quick", action="store_true", help="the default launch alone")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--jobs", type=int, default=8)
    options = parser.parse_args()
    tasks = [(name, launch) for name in options.only for launch in launches(name)[: 1 if options.quick else None]]
    verdicts: dict[int, Any] = {}
    for start in range(0, len(tasks), options.jobs):
        batch = range(start, min(start + options.jobs, len(tasks)))
        verdicts.update(zip(batch, in_processes(check, [tasks[i] for i in batch]), strict=True))
    rows = []
    for i, (name, launch) in enumerate(tasks):
        print(f"{name} {launch}: {verdicts[i]}", flush=True)
        if isinstance(verdicts[i], dict) and all(
            error <= LIMITS[what.split()[0]] for what, error in verdicts[i].items()
        ):
            (found,) = in_processes(time_shapes, [(name, launch)])
            for row in found if isinstance(found, list) else [{"failed": found}]:
                rows.append({"operator": name, "launch": launch, **row})
                print("   ", " ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scan_times.json").write_text(json.dumps(rows, indent=1) + "\n")


def launches(name: str) -> tuple[Launch, ...]:
    return ELEMENTWISE if name in ("hgrn", "mingru") else WALKS if name in SELECTIVE else STATES


def in_processes(work: Any, tasks: list[tuple[str, Launch]]) -> list[Any]:
    """What each task's process sends back, or why it sent nothing."""
    context = multiprocessing.get_context("spawn")
    running = []
    for task in tasks:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=answer, args=(work, task, send))
        process.start()
        send.close()
        running.append((process, receive))
    answers = []
    for process, receive in running:
        try:
            answers.append(receive.recv() if receive.poll(TIMEOUT) else f"nothing in {TIMEOUT} s")
        except EOFError:
            answers.append("the process ended")
        process.kill()
        process.join()
    return answers


def answer(work: Any, task: tuple[str, Launch], send: Any) -> None:
    from triton.errors import TritonError

    try:
        send.send(work(*task))
    except (TritonError, RuntimeError, ValueError, AssertionError, KeyError) as error:
        send.send(f"{type(error).__name__}: {str(error)[-300:]}")


def use_launch(launch: Launch) -> None:
    """Scans of this process are planned and printed for the launch; modules of other launches are not found again."""
    import os
    import tempfile
    from dataclasses import replace

    os.environ["RECUR_CACHE_DIR"] = tempfile.mkdtemp()
    from recur.codegen.triton_printer import config, stage, work
    from recur.ir.tile import Kernel
    from recur.runtime import compiled
    from recur.strategies import walked_scan
    from recur.strategies.elementwise_scan import Scan

    if launch:  # as told, however many channels a call has
        compiled.MANY_CHANNELS = sys.maxsize
    chosen = config.scan_launch
    for option, attribute in (("rows", "chunk"), ("warps", "warps"), ("runs", "run_count")):
        if option in launch:
            setattr(Scan, attribute, launch[option])
    walked_scan.ROWS = launch.get("rows", walked_scan.ROWS)
    walked_scan.STAGES = launch.get("stages", walked_scan.STAGES)
    work.SCAN_WALKS = stage.SCAN_WALKS = launch.get("walks", work.SCAN_WALKS)
    if "states" in launch:
        walked_scan.THREAD_STATES, walked_scan.BACKWARD_STATES = launch["states"]
    if "width" in launch:
        fitted = Scan.widths.func
        Scan.widths = property(  # type: ignore[assignment,method-assign]
            lambda scan: tuple((axis, launch["width"]) for axis, _ in fitted(scan))
        )

    def scan_launch(kernel: Kernel, *args: Any) -> config.Launch:
        found = chosen(kernel, *args)
        given = {key: launch[key] for key in ("relay", "vector") if key in launch}
        given["num_stages"] = launch.get("stages", found.num_stages)
        for key in ("anew", "registers"):
            if key in launch:
                given[key] = launch[key][kernel.name.endswith("backward")]
        return replace(found, **given)

    config.scan_launch = scan_launch


def prepare(name: str, shape: tuple[int, int, int, int]) -> tuple[Any, dict[str, Any]]:
    import torch
    from inputs import random_inputs

    import recur
    from recur.zoo import path

    B, T, H, D = shape
    op = recur.load(str(path(name)))
    D = min(D, 64) if name == "lru" else D
    sizes = {d.name: 16 if d.name == "N" and name in SELECTIVE else D for d in op.recurrence.dims}
    few = random_inputs(op.recurrence, B=1, T=64, H=H, sizes=sizes, dtype=torch.float32)
    inputs = {}
    for v in op.recurrence.inputs:
        x = few[v.name].cuda()
        x = x if x.is_complex() else x.to(torch.bfloat16)
        if v.role == "input":  # the same 64 tokens over and over: only their number matters to the time
            x = x.repeat(B, T // 64, *[1] * (x.dim() - 2)).contiguous()
        inputs[v.name] = x.requires_grad_()
    return op, inputs


def check(name: str, launch: Launch) -> dict[str, float]:
    """Errors, RMS(reference - result) / RMS(reference), of the output, the final state and every gradient."""
    import torch
    from inputs import random_inputs

    import recur
    from recur.zoo import path

    use_launch(launch)
    op = recur.load(str(path(name)))
    D = 64 if name == "lru" else 128
    sizes = {d.name: 16 if d.name == "N" and name in SELECTIVE else D for d in op.recurrence.dims}
    drawn = random_inputs(op.recurrence, B=2, T=1111, H=2, sizes=sizes, dtype=torch.float32)
    tensors = {n: x if x.is_complex() else x.to(torch.bfloat16) for n, x in drawn.items()}
    results = []
    for call, on, wide in ((op, "cuda", False), (op, "cuda", False), (op.reference, "cpu", True)):
        x = {n: widened(t, wide).to(on).requires_grad_() for n, t in tensors.items()}
        output, final = call(**x, output_final_state=True)
        generator = torch.Generator().manual_seed(1)
        weigh = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in (output, final)]
        loss = sum((y.real * w.to(on, y.real.dtype)).sum() for y, w in zip((output, final), weigh, strict=True))
        gradients = torch.autograd.grad(loss, list(x.values()))
        named = {f"gradient {n}": g for n, g in zip(x, gradients, strict=True)}
        results.append({"output": output.detach(), "final": final.detach(), **named})
    for n, value in results[0].items():
        assert torch.equal(value, results[1][n]), f"{n} differs between two runs"
    return {n: rms_error(results[2][n], value) for n, value in results[0].items()}


def widened(x: Any, wide: bool) -> Any:
    import torch

    if not wide:
        return x.detach().clone()
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def rms_error(wanted: Any, found: Any) -> float:
    difference = (wanted - found.cpu().to(wanted.dtype)).abs().pow(2).mean().sqrt()
    return round(float(difference / wanted.abs().pow(2).mean().sqrt()), 5)


def time_shapes(name: str, launch: Launch) -> list[dict[str, Any]]:
    import torch

    use_launch(launch)
    rate = copy_rate()
    rows = []
    for shape in SHAPES:
        op, inputs = prepare(name, shape)
        streams = [x for x in inputs.values() if x.dim() > 2 and x.shape[:2] == shape[:2]]
        read = sum(x.numel() * x.element_size() for x in streams)
        largest = max(x.numel() * x.element_size() for x in streams)
        with torch.no_grad():
            forward = median_ms(lambda op=op, inputs=inputs: op(**inputs))
        output, _ = op(**inputs)
        cotangent = torch.randn_like(output)
        leaves = list(inputs.values())
        del output

        def both(op: Any = op, inputs: Any = inputs, leaves: Any = leaves, cotangent: Any = cotangent) -> None:
            torch.autograd.grad(op(**inputs)[0], leaves, cotangent)

        total = median_ms(both)
        floors = ((read + largest) / rate * 1e3, (3 * read + 2 * largest) / rate * 1e3)
        row: dict[str, Any] = {"shape": "x".join(map(str, shape)), "forward_ms": forward, "both_ms": total}
        row |= {"floors_ms": [round(f, 4) for f in floors], "of_copy": [round(forward / floors[0], 2),
                round(total / floors[1], 2)]}  # fmt: skip
        if name in SELECTIVE:
            B, T, H, D = shape
            device = torch.cuda.get_device_properties(0)
            row["exponentials_ms"] = round(B * T * H * D * 16 / (device.multi_processor_count * 16 * 1.7e9) * 1e3, 3)
        row["peak_mb"] = torch.cuda.max_memory_allocated() // 2**20
        rows.append(row)
        del op, inputs, leaves, cotangent, streams
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return rows


def median_ms(call: Any, repeats: int = 20) -> float:
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)  # the host gets ahead, so launches do not count
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(sorted(times)[repeats // 2], 4)


def copy_rate() -> float:
    """Bytes read and written a second by a copy of 512 MB."""
    import torch

    x = torch.empty(2**28, dtype=torch.bfloat16, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() * 2 / (median_ms(lambda: y.copy_(x)) * 1e-3)


if __name__ == "__main__":
    main()

"""Every zoo recurrence under every strategy that applies, on a GPU, against the step-by-step reference in float64.

    python bench/gpu_check.py --out bench/results [--only NAME ...] [--strategy NAME] [--jobs 12]

Outputs, final states and all gradients, from random inputs with an initial state and a loss on outputs and final
states, in bfloat16 and float32, at ragged lengths, with head dims of 64, of 128 and such that are no powers of two, the
fourth (--cases 4) with several segments. The error is RMS(reference - result) / RMS(reference). Two runs must give
equal bits, and no output may depend on later tokens. Each recurrence has a process of its own: a fault on the GPU costs
that one alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

LIMITS = {"float32": {"result": 1e-4, "gradient": 1e-3}, "bfloat16": {"result": 8e-3, "gradient": 2e-2}}
CASES = (  # tokens, head dims
    (130, {"K": 64, "V": 64, "N": 16, "D": 64}),
    (200, {"K": 128, "V": 128, "N": 16, "D": 128}),
    (67, {"K": 48, "V": 80, "N": 12, "D": 40}),
    (1100, {"K": 64, "V": 64, "N": 16, "D": 2048}),  # two segments; channels that fill a GPU
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--strategy", default=None)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--cases", type=int, nargs="*", default=[1, 2, 3], help="numbers, from 1, of CASES")
    options = parser.parse_args()

    from recur.zoo import names

    chosen = [n for n in names() if options.only is None or n in options.only]
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        tasks = [(name, options.strategy, options.cases) for name in chosen]
        for found in pool.imap_unordered(check_recurrence, tasks, chunksize=1):
            rows += found
            for row in found:
                print(format_row(row), flush=True)
    rows.sort(key=lambda r: (r["recurrence"], r["strategy"], r["dtype"], r["tokens"]))
    write_report(options.out, rows)
    failed = [r for r in rows if r["verdict"] != "ok"]
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")


def check_recurrence(task: tuple[str, str | None, int]) -> list[dict[str, Any]]:
    from triton.errors import TritonError

    import recur
    from recur.zoo import path

    name, only, cases = task
    rows = []
    op = recur.load(str(path(name)))
    for tokens, given in (CASES[number - 1] for number in cases):
        sizes = fitting(op, given)
        for dtype in ("float32", "bfloat16"):
            for strategy in [only] if only else applicable_strategies(op, sizes):
                row = {"recurrence": name, "strategy": strategy, "dtype": dtype, "tokens": tokens}
                start = time.time()
                try:
                    row |= check_case(op, strategy, dtype, tokens, sizes)
                except (
                    TritonError,
                    RuntimeError,
                    ValueError,
                    AssertionError,
                    recur.RecurError,
                    KeyError,
                    TypeError,
                ) as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    row |= {
                        "verdict": f"{type(error).__name__}: {str(error)[-300:]} ({Path(where.filename).name})"
                    }
                rows.append(row | {"seconds": round(time.time() - start, 1)})
    return rows


def fitting(op: Any, sizes: dict[str, int]) -> dict[str, int]:
    """A quarter for the dims whose pairs a state or a token's matrix has."""
    from recur.explain import DEFAULT_SIZE, default_sizes

    usual = default_sizes(op.program)
    return {d: n // 4 if n > 16 and usual.get(d, DEFAULT_SIZE) < DEFAULT_SIZE else n for d, n in sizes.items()}


def applicable_strategies(op: Any, sizes: dict[str, int]) -> list[str]:
    from inputs import dim_sizes

    from recur.strategies.select import select

    selections = select(op.program, dim_sizes(op.recurrence, sizes))
    return list(dict.fromkeys(name for s in selections for name in s.applicable))


def check_case(op: Any, strategy: str, dtype: str, tokens: int, sizes: dict[str, int]) -> dict[str, Any]:
    import torch
    from inputs import random_inputs

    kind = getattr(torch, dtype)
    drawn = random_inputs(op.recurrence, B=2, T=tokens, H=3, sizes=sizes, dtype=torch.float32)

    def place(x: torch.Tensor) -> torch.Tensor:
        return (x if x.is_complex() else x.to(kind)).cuda().requires_grad_()

    inputs = {n: place(x) for n, x in drawn.items()}
    exact = {
        n: x.detach().to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_()
        for n, x in inputs.items()
    }
    outputs, final = run(op, inputs, strategy)
    wanted, wanted_final = run(op, exact, "reference")
    loss_weights = [torch.randn_like(w) for w in [*wanted.values(), *wanted_final.values()]]
    found_gradients = gradients(inputs, [*outputs.values(), *final.values()], loss_weights)
    again = run(op, inputs, strategy)
    repeated = gradients(inputs, [*again[0].values(), *again[1].values()], loss_weights)
    wanted_gradients = gradients(exact, [*wanted.values(), *wanted_final.values()], loss_weights)
    errors = {f"result {n}": rms(outputs[n], wanted[n]) for n in wanted}
    errors |= {f"result final {n}": rms(final[n], wanted_final[n]) for n in wanted_final}
    errors |= {f"gradient {n}": rms(found_gradients[n], wanted_gradients[n]) for n in inputs}
    same = all(torch.equal(found_gradients[n], repeated[n]) for n in inputs)
    bad = [k for k, e in errors.items() if not e <= LIMITS[dtype][k.split()[0]]]
    verdict = "ok" if not bad else "off: " + ", ".join(bad)
    verdict += "" if same else "; two runs differ"
    if not is_causal(op, inputs, strategy, tokens):
        verdict += "; depends on later tokens"
    return {"verdict": verdict, "errors": {k: float(f"{e:.3g}") for k, e in errors.items()}}


def run(op: Any, inputs: dict[str, Any], strategy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if strategy == "reference":
        outputs, final = op.reference(**inputs, output_final_state=True)
    else:
        outputs, final = op(**inputs, output_final_state=True, strategy=strategy, backend="triton")
    listed = outputs if isinstance(outputs, tuple) else (outputs,)
    states = final if isinstance(final, dict) else {"state": final}
    # A scaled state is only defined together with its scale: compare the product.
    scaled = {n: s * s.new_tensor(1).exp() ** 0 for n, s in states.items() if not n.endswith(".log_scale")}
    for n in scaled:
        if f"{n}.log_scale" in states:
            scale = states[f"{n}.log_scale"].detach().exp()
            scaled[n] = scaled[n] * scale.reshape(scale.shape + (1,) * (scaled[n].dim() - scale.dim()))
    return {str(i): x for i, x in enumerate(listed)}, scaled


def gradients(inputs: dict[str, Any], values: list[Any], weights: list[Any]) -> dict[str, Any]:
    import torch

    used = [(v, w.to(v.dtype)) for v, w in zip(values, weights, strict=True) if v.requires_grad]
    found = torch.autograd.grad([v for v, _ in used], list(inputs.values()), [w for _, w in used], allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(inputs.items(), found, strict=True)}


def rms(found: Any, wanted: Any) -> float:
    import torch

    wide = torch.complex128 if wanted.is_complex() else torch.float64
    found, wanted = found.detach(), wanted.detach()
    difference = (found.to(wide) - wanted).abs().pow(2).mean().sqrt()
    return float(difference / wanted.abs().pow(2).mean().sqrt().clamp(min=1e-12))


def is_causal(op: Any, inputs: dict[str, Any], strategy: str, tokens: int) -> bool:
    """Changes every input from the middle on: earlier outputs keep their bits. Both runs are without gradients."""
    import torch

    outputs, _ = run(op, {n: x.detach() for n, x in inputs.items()}, strategy)
    middle = tokens // 2
    per_token = {v.name for v in op.recurrence.variables if v.role == "input"}
    changed = {}
    for name, x in inputs.items():
        y = x.detach().clone()
        if name in per_token:
            y[:, middle:] = y[:, middle:].flip(1)
        changed[name] = y
    later, _ = run(op, changed, strategy)
    return all(torch.equal(later[n][:, :middle], outputs[n][:, :middle]) for n in outputs)


def format_row(row: dict[str, Any]) -> str:
    worst = max(row.get("errors", {"": 0.0}).items(), key=lambda item: item[1])
    text = f"{row['recurrence']:28} {row['strategy']:17} {row['dtype']:9} T={row['tokens']:<4} {row['seconds']:6.1f} s"
    return f"{text}  worst {worst[1]:.1e} ({worst[0]})  {row['verdict']}"


def write_report(folder: Path, rows: list[dict[str, Any]]) -> None:
    import torch
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    about |= {"command": " ".join(["python", *sys.argv])}
    (folder / "gpu_check.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    lines = ["# Zoo on a GPU against float64", "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += [
        "| recurrence | strategy | dtype | T | worst RMS error | of | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        worst = max(r.get("errors", {"": 0.0}).items(), key=lambda item: item[1])
        cells = (r["recurrence"], r["strategy"], r["dtype"], r["tokens"], f"{worst[1]:.1e}", worst[0], r["verdict"])
        lines.append("| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |")
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Decoding, one token for many sequences at once, on a GPU: the state's bytes a second beside those of a copy.

    python -m bench.decode [--out bench/results] [OPERATOR ...]

The state [B, H, K, V] in float32 is larger than the cache; a step reads it once and writes it once, and its inputs are
small beside it. Times are medians, eager and as a CUDA graph. The step's output and state are compared with the
step-by-step definition in float64 first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from .compare.measure import graphed, measure_machine, milliseconds
from .compare.operators import Shape, draw, load, operator

OPERATORS = ("linear_attention", "simple_gla", "gated_delta_net", "gla", "kda", "rwkv7", "mlstm_sig")
SHAPE = Shape.parse("B256 T1 H16 D128")
LIMIT = 5e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    options = parser.parse_args()
    copy = measure_machine("cuda").copy
    head = [f"# Decoding, {SHAPE.label.replace(' T1', '')}", ""]
    head += [f"`{' '.join(['python -m bench.decode', *sys.argv[1:]])}`", ""]
    head += [f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copies {copy / 1e12:.2f} TB/s.", ""]
    head += [
        "| operator | state MB | eager ms | graph ms | of the copy rate | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(head), flush=True)
    rows = []
    for name in options.operators:
        rows.append(measure_step(name, copy))
        print(rows[-1], flush=True)
    if options.out:
        (options.out / "decode.md").write_text("\n".join([*head, *rows]) + "\n")


def measure_step(name: str, copy: float) -> str:
    """One operator's row of the table. The rate counts the state alone, read and written, by the graph if it exists."""
    what = operator(name)
    op = load(what)
    with torch.no_grad():
        inputs = draw(op, what, SHAPE, "cuda")
        per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}
        token = {n: x.squeeze(1) if n in per_token else x for n, x in inputs.items()}
        _, state = op.step(None, **token)
        error = judge(op, inputs, state, op.step(state, **token))
        runs = [lambda: op.step(state, **token)]
        eager = milliseconds(runs, "cuda", 200)
        captured, failure = graphed(runs)
        graph = milliseconds(captured, "cuda", 200) if captured else None
    size = sum(x.numel() * x.element_size() for x in entries(state).values())
    rate = 2 * size / (1e-3 * (graph or eager))
    times = (f"{eager:.3f}", failure if graph is None else f"{graph:.3f}")
    cells = (name, f"{size / 1e6:.0f}", *times, f"{rate / copy:.0%}")
    return f"| {' | '.join(cells)} | {error:.1e}{'' if error <= LIMIT else ' (too large)'} |"


def entries(state: Any) -> dict[str, torch.Tensor]:
    return state if isinstance(state, dict) else {"state": state}


def judge(op: Any, inputs: dict[str, torch.Tensor], state: Any, found: tuple[Any, Any]) -> float:
    """The largest RMS error of a step's output and state, on the first few sequences."""
    few = 4
    per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}

    def exact(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.complex128 if x.is_complex() else torch.float64)

    given = {n: exact(x[:few] if n in per_token else x) for n, x in inputs.items()}
    start = {n: exact(x[:few]) for n, x in entries(state).items()}
    start = start if isinstance(state, dict) else start["state"]
    output, final = op.reference(**given, initial_state=start, output_final_state=True)
    pairs = [(output.squeeze(1), found[0][:few])]
    pairs += [(wanted, entries(found[1])[n][:few]) for n, wanted in entries(final).items()]
    return max(
        float((exact(x) - wanted).abs().square().mean().sqrt() / wanted.abs().square().mean().sqrt())
        for wanted, x in pairs
    )


if __name__ == "__main__":
    main()

"""Gated DeltaNet forward and backward on the CPU: recur's torch backend, the step-by-step reference, PyTorch by hand.

    OMP_NUM_THREADS=2 python bench/cpu_gated_delta_net.py

Writes bench/results/cpu_gated_delta_net.json and .md. Times are in milliseconds, each the shortest of 20 runs.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

import recur
from recur import zoo

RESULTS = Path(__file__).parent / "results"
CHUNKS = (16, 32, 64, 128)
Inputs = dict[str, Tensor]


def make_inputs(batch: int, tokens: int, heads: int, key: int, value: int) -> Inputs:
    """q, k [B, T, H, K] with |k| = 1, v [B, T, H, V], g and beta [B, T, H], all leaves."""
    generator = torch.Generator().manual_seed(0)

    def normal(*dims: int) -> Tensor:
        return torch.randn(batch, tokens, heads, *dims, generator=generator)

    q, k, v = normal(key), torch.nn.functional.normalize(normal(key), dim=-1), normal(value)
    g, beta = torch.nn.functional.logsigmoid(normal() + 3), torch.sigmoid(normal())
    return {n: x.requires_grad_() for n, x in {"q": q, "k": k, "v": v, "g": g, "beta": beta}.items()}


# --- by hand ---------------------------------------------------------------------------------------------------------
#
# With G the running sum of g inside a chunk of C tokens and D_ts = exp(G_t - G_s) for t >= s, the chunk's corrections
# U [C, V] solve (I + A) U = beta (v - exp(G) k S_0), A_ts = beta_t D_ts (k_t . k_s) for t > s. Then
#     o = scale (exp(G) q S_0 + (D * q k') U),    S_C = exp(G_C) S_0 + (exp(G_C - G) k)' U.
# Both sides are linear in S_0: with X = (I + A)^-1 beta v and W = (I + A)^-1 beta exp(G) k, U = X - W S_0.


def chunk_quantities(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Everything that no other chunk enters, as batched products over [B, H, chunks, ...]."""
    q, k, v = (x.transpose(1, 2).unflatten(2, (-1, chunk)) for x in (q, k, v))
    g, beta = (x.transpose(1, 2).unflatten(2, (-1, chunk)) for x in (g, beta))
    total = g.cumsum(-1)
    lower = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    system = (beta[..., None] * decay * (k @ k.mT)).tril(-1)
    grown = total.exp()[..., None]
    right = beta[..., None] * torch.cat((v, grown * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    x, w = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    last = total[..., -1:]
    return grown * q, decay * (q @ k.mT), x, w, (last - total).exp()[..., None] * k, last.exp()[..., None]


def by_hand_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """Chunk after chunk: two small products on the path from state to state."""
    decayed_q, scores, x, w, decayed_k, last = chunk_quantities(q, k, v, g, beta, chunk)
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    states, corrections = [], []
    columns = (t.unbind(2) for t in (x, w, decayed_k.mT, last))
    for x_c, w_c, k_c, last_c in zip(*columns, strict=True):
        states.append(state)
        corrections.append(x_c - w_c @ state)
        state = last_c * state + k_c @ corrections[-1]
    o = decayed_q @ torch.stack(states, 2) + scores @ torch.stack(corrections, 2)
    return (q.shape[-1] ** -0.5 * o).flatten(2, 3).transpose(1, 2)


def by_hand_transitions(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """S_C = M S_0 + N with M = exp(G_C) I - k' W [K, K] and N = k' X: one product on the path from state to state."""
    decayed_q, scores, x, w, decayed_k, last = chunk_quantities(q, k, v, g, beta, chunk)
    transition = last * torch.eye(k.shape[-1]) - decayed_k.mT @ w
    new = decayed_k.mT @ x
    heads = q.shape[0] * q.shape[2]
    state = q.new_zeros(heads, q.shape[3], v.shape[3])
    states = []
    for m_c, n_c in zip(transition.flatten(0, 1).unbind(1), new.flatten(0, 1).unbind(1), strict=True):
        states.append(state)
        state = torch.baddbmm(n_c, m_c, state)
    before = torch.stack(states, 1).unflatten(0, (q.shape[0], q.shape[2]))
    o = decayed_q @ before + scores @ (x - w @ before)
    return (q.shape[-1] ** -0.5 * o).flatten(2, 3).transpose(1, 2)


# --- timing ----------------------------------------------------------------------------------------------------------


def forward_backward(function: Callable[[], Tensor], inputs: Inputs) -> list[Tensor]:
    """The output and the gradients of a fixed weighting of it."""
    o = function()
    weight = torch.linspace(-1, 1, o.numel()).view(o.shape)
    return [o.detach(), *torch.autograd.grad(o, list(inputs.values()), weight)]


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Each one's shortest run of all rounds; they take turns, so that a busy moment of the machine hits them all."""
    times = dict.fromkeys(functions, math.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name] = min(times[name], 1e3 * (time.perf_counter() - start))
    return {name: round(t, 2) for name, t in times.items()}


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Over output and gradients, relative to each one's largest entry."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def measure(inputs: Inputs, rounds: int) -> dict[str, object]:
    op = recur.load(zoo.path("gated_delta_net"))
    candidates: dict[str, Callable[[], Tensor]] = {"recur, torch backend": lambda: op(**inputs, backend="torch")[0]}
    for chunk in CHUNKS:
        if inputs["q"].shape[1] % chunk == 0:
            candidates[f"by hand, loop, chunk {chunk}"] = lambda c=chunk: by_hand_loop(**inputs, chunk=c)
            candidates[f"by hand, transitions, chunk {chunk}"] = lambda c=chunk: by_hand_transitions(**inputs, chunk=c)
    candidates["reference"] = lambda: op.reference(**inputs)[0]
    runs: dict[str, Callable[[], list[Tensor]]] = {
        name: lambda f=function: forward_backward(f, inputs) for name, function in candidates.items()
    }
    expected = runs["reference"]()
    differences = {name: largest_difference(run(), expected) for name, run in runs.items() if name != "reference"}
    reference = runs.pop("reference")
    times = milliseconds(runs, rounds) | milliseconds({"reference": reference}, 2)
    return {"milliseconds": times, "differences": differences}


def summarise(found: dict[str, object], setting: dict[str, object]) -> dict[str, object]:
    times: dict[str, float] = found["milliseconds"]  # type: ignore[assignment]
    by_hand = {name: t for name, t in times.items() if name.startswith("by hand")}
    best = min(by_hand, key=lambda name: by_hand[name])
    mine = times["recur, torch backend"]
    return {
        **setting,
        **found,
        "best by hand": best,
        "times faster than the reference": round(times["reference"] / mine, 1),
        "of the best by hand": round(mine / by_hand[best], 2),
    }


def as_markdown(result: dict[str, object]) -> str:
    times: dict[str, float] = result["milliseconds"]  # type: ignore[assignment]
    rows = "\n".join(f"| {name} | {t:.2f} |" for name, t in sorted(times.items(), key=lambda item: item[1]))
    return (
        f"# Gated DeltaNet on the CPU, forward and backward\n\n`{result['command']}`\n\n{result['shape']}, float32, "
        f"{result['threads']} threads, {result['cpu']}, torch {result['torch']}\n\n| | ms |\n| --- | ---: |\n{rows}\n\n"
        f"recur's torch backend is {result['times faster than the reference']} times faster than the reference and "
        f"takes {result['of the best by hand']} of the time of the best by hand ({result['best by hand']}).\n"
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@click.command()
@click.option("--batch", default=1)
@click.option("--tokens", default=2048)
@click.option("--heads", default=4)
@click.option("--key", default=64)
@click.option("--value", default=64)
@click.option("--rounds", default=20)
@click.option("--save/--no-save", default=True, help="Write bench/results.")
def main(batch: int, tokens: int, heads: int, key: int, value: int, rounds: int, save: bool) -> None:
    """Time gated DeltaNet, forward and backward, on the CPU."""
    setting: dict[str, object] = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python bench/cpu_gated_delta_net.py",
        "shape": f"B{batch} T{tokens} H{heads} K{key} V{value}",
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }
    result = summarise(measure(make_inputs(batch, tokens, heads, key, value), rounds), setting)
    print(as_markdown(result))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "cpu_gated_delta_net.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "cpu_gated_delta_net.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()

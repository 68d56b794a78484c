"""Gated DeltaNet forward and backward on the CPU: recur's torch backend, the step-by-step reference, PyTorch by hand.

    OMP_NUM_THREADS=1 python bench/cpu_gated_delta_net.py

Writes bench/results/cpu_gated_delta_net.json and .md (with more threads their number is in the name). Times are in
milliseconds, each the shortest of 20 runs.
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


# The same with its gradient by hand: with R = dL/dS_C, dO scaled, a = beta exp(G) k and e = exp(G_C - G) k,
#     Z = (I + A)^-T ((D * q k')' dO + e R),    dL/dS_0 = M' R + (exp(G) q)' dO - a' Z|_{R=0},
# and all else is local to a chunk, at once for all of them.


class ByHand(torch.autograd.Function):
    """by_hand_transitions, keeping what the backward pass needs and overwriting what nobody reads again."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        q, k, v = (x.transpose(1, 2).unflatten(2, (-1, chunk)).contiguous() for x in (q, k, v))
        g, beta = (x.transpose(1, 2).unflatten(2, (-1, chunk)).contiguous() for x in (g, beta))
        total = g.cumsum(-1)
        decay = (total[..., :, None] - total[..., None, :]).tril_().exp_().tril_()
        grown, last = total.exp()[..., None], total[..., -1:]
        kept, last = (last - total).exp()[..., None], last.exp()[..., None]
        system = (k @ k.mT).mul_(decay).mul_(beta[..., None]).tril_(-1)
        eye = torch.eye(chunk).expand_as(system)
        inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
        a, e = k * (beta[..., None] * grown), k * kept
        x, w = inverse @ (beta[..., None] * v), inverse @ a
        transition = (e.mT @ w).neg_()
        transition.diagonal(dim1=-2, dim2=-1).add_(last[..., 0])
        before = walk(transition, e.mT @ x)
        u = x.sub_(w @ before)
        scores = (q @ k.mT).mul_(decay)
        o = (q @ before).mul_(grown).add_(scores @ u).mul_(q.shape[-1] ** -0.5)
        ctx.save_for_backward(
            q, k, v, beta, grown, kept, last, decay, system, inverse, a, e, transition, before, u, scores
        )
        return o.flatten(2, 3).transpose(1, 2)

    @staticmethod
    def backward(ctx, d_o: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def, override]
        q, k, v, beta, grown, kept, last, *chunks, before, u, scores = ctx.saved_tensors
        decay, system, inverse, a, e, transition = chunks
        d_o = d_o.transpose(1, 2).unflatten(2, (-1, q.shape[3])) * q.shape[-1] ** -0.5
        z = inverse.mT @ (scores.mT @ d_o)
        after = walk(transition.mT, (q.mT @ (d_o * grown)).sub_(a.mT @ z), reverse=True)
        z += inverse.mT @ (e @ after)
        d_v = z * beta[..., None]
        d_beta = (z * v).sum(-1)
        pairs_q, pairs_a = d_o @ u.mT, (z @ u.mT).neg_()
        from_decay = (pairs_q * scores).addcmul_(pairs_a, system)
        pairs_q *= decay
        pairs_a.mul_(decay).tril_(-1)
        d_q = (d_o @ before.mT).mul_(grown)
        d_a = (z @ before.mT).mul_(grown).neg_()
        d_k = (u @ after.mT).mul_(kept)
        to_end = (k * d_k).sum(-1)
        d_total = (q * d_q).sum(-1) + beta * (k * d_a).sum(-1) - to_end + from_decay.sum(-1) - from_decay.sum(-2)
        d_total[..., -1] += to_end.sum(-1) + last[..., 0, 0] * (before * after).sum((-1, -2))
        d_q += pairs_q @ k
        d_a += pairs_a @ k
        d_k += pairs_q.mT @ q
        d_k += (pairs_a * beta[..., None]).mT @ k
        d_k.addcmul_(d_a, beta[..., None])
        d_beta += (d_a * k).sum(-1)
        d_g = d_total.flip(-1).cumsum(-1).flip(-1)
        gradients = (x.flatten(2, 3).transpose(1, 2) for x in (d_q, d_k, d_v, d_g, d_beta))
        return (*gradients, None)


def walk(transition: Tensor, new: Tensor, reverse: bool = False) -> Tensor:
    """The states before each chunk (``reverse``: after it) of S <- M S + N, [B, H, chunks, ...] of both."""
    lead, count = new.shape[:2], new.shape[2]
    transition, new = transition.flatten(0, 1), new.flatten(0, 1)
    state, states = torch.zeros_like(new[:, 0]), torch.empty_like(new)
    for n in reversed(range(count)) if reverse else range(count):
        states[:, n] = state
        state = torch.baddbmm(new[:, n], transition[:, n], state)
    return states.unflatten(0, lead)


def by_hand_gradient(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> Tensor:
    return ByHand.apply(q, k, v, g, beta, chunk)


# --- timing ----------------------------------------------------------------------------------------------------------


def forward_backward(function: Callable[[], Tensor], inputs: Inputs) -> list[Tensor]:
    """The output and the gradients of a fixed weighting of it."""
    o = function()
    weight = torch.linspace(-1, 1, o.numel()).view(o.shape)
    return [o.detach(), *torch.autograd.grad(o, list(inputs.values()), weight)]


Times = dict[str, dict[str, float]]
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int) -> Times:
    """By clock, each one's shortest run of all rounds; they take turns, so that a busy moment hits them all."""
    times = {clock: dict.fromkeys(functions, math.inf) for clock in CLOCKS}
    for _ in range(rounds):
        for name, function in functions.items():
            start = {clock: now() for clock, now in CLOCKS.items()}
            function()
            for clock, now in CLOCKS.items():
                times[clock][name] = min(times[clock][name], round(1e3 * (now() - start[clock]), 2))
    return times


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
            candidates[f"by hand, own gradient, chunk {chunk}"] = lambda c=chunk: by_hand_gradient(**inputs, chunk=c)
    candidates["reference"] = lambda: op.reference(**inputs)[0]
    runs: dict[str, Callable[[], list[Tensor]]] = {
        name: lambda f=function: forward_backward(f, inputs) for name, function in candidates.items()
    }
    expected = runs["reference"]()
    differences = {name: largest_difference(run(), expected) for name, run in runs.items() if name != "reference"}
    reference = runs.pop("reference")
    times, slow = milliseconds(runs, rounds), milliseconds({"reference": reference}, 2)
    return {"milliseconds": {clock: times[clock] | slow[clock] for clock in CLOCKS}, "differences": differences}


def summarise(found: dict[str, object], setting: dict[str, object]) -> dict[str, object]:
    """By clock: the best by hand, and how recur compares with it and with the reference."""
    times: Times = found["milliseconds"]  # type: ignore[assignment]
    compared = {}
    for clock, t in times.items():
        best = min((name for name in t if name.startswith("by hand")), key=lambda name: t[name])
        mine = t["recur, torch backend"]
        compared[clock] = {
            "best by hand": best,
            "times faster than the reference": round(t["reference"] / mine, 1),
            "of the best by hand": round(mine / t[best], 2),
        }
    return {**setting, **found, "compared": compared}


def as_markdown(result: dict[str, object]) -> str:
    times: Times = result["milliseconds"]  # type: ignore[assignment]
    names = sorted(times["processor"], key=lambda name: times["processor"][name])
    rows = "\n".join(f"| {n} | {times['processor'][n]:.2f} | {times['wall'][n]:.2f} |" for n in names)
    compared: dict[str, dict[str, object]] = result["compared"]  # type: ignore[assignment]
    verdicts = "\n".join(
        f"By {clock} time recur's torch backend is {c['times faster than the reference']} times faster than the "
        f"reference and takes {c['of the best by hand']} of the time of the best by hand ({c['best by hand']})."
        for clock, c in compared.items()
    )
    return (
        f"# Gated DeltaNet on the CPU, forward and backward\n\n`{result['command']}`\n\n{result['shape']}, float32, "
        f"{result['threads']} threads, {result['cpu']}, torch {result['torch']}\n\n"
        "On a busy machine the processor's time is the one to read.\n\n"
        f"| | processor, ms | wall, ms |\n| --- | ---: | ---: |\n{rows}\n\n{verdicts}\n"
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
        threads = torch.get_num_threads()
        name = "cpu_gated_delta_net" + (f"_{threads}_threads" if threads > 1 else "")
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / f"{name}.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()

"""A recurrence invented on the spot: written twice, explained, inspected, checked against the oracle and trained.

    python examples/quickstart.py --plot quickstart.png

The invention: a memory that corrects what it has stored under a key, as DeltaNet's does, and that fades only while it
writes, so that it keeps everything while it is read. The task: pairs of a key and a value, some keys more than once,
then keys alone; the answer is the value last stored under the key.
"""

# The language's functions are no Python names: a decorated function's source is read, and it never runs.
# ruff: noqa: F821
# mypy: disable-error-code="name-defined"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import Input, State
from recur.examples.layer import RecurrentLayer
from recur.examples.plots import save_curves
from recur.runtime.op import Op

TEXT = """
recurrence fading_delta:
    "A delta rule that fades only while it writes."
    dim    K, V
    input  q[K], k[K], v[V], w
    state  S[K, V]

    rate = sigmoid(w)
    key = l2norm(k)
    S = (1 - 0.125 * rate) * S
    S = S + rate * outer(key, v - key @ S)
    output o = l2norm(q) @ S
"""

K, V = recur.dims("K V")


@recur.recurrence
def fading_delta(S: State[K, V], q: Input[K], k: Input[K], v: Input[V], w: Input[()]):  # type: ignore[no-untyped-def]
    "A delta rule that fades only while it writes."
    rate = sigmoid(w)
    key = l2norm(k)
    S = (1 - 0.125 * rate) * S
    S = S + rate * outer(key, v - key @ S)
    o = l2norm(q) @ S
    return S, o


@dataclass(frozen=True)
class Settings:
    """The task's sizes and the schedule."""

    steps: int = 200
    keys: int = 16
    values: int = 16
    pairs: int = 24
    batch: int = 32
    width: int = 32
    rate: float = 1e-2
    device: str = "cpu"
    backend: str = "auto"
    seed: int = 0


def difference_from_oracle(op: Op, backend: str, device: str = "cpu") -> tuple[float, float]:
    """The largest differences, of outputs and of gradients, from the definition run step by step in float64."""
    torch.manual_seed(0)
    shapes = [(2, 100, 3, 16), (2, 100, 3, 16), (2, 100, 3, 24), (2, 100, 3)]
    exact = [torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for shape in shapes]
    single = [x.detach().float().requires_grad_() for x in exact]
    expected, _ = op.reference(*exact)
    found, _ = op(*single, backend=backend)
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)  # one output
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, exact, weight)
    ours = torch.autograd.grad(found, single, weight.float())
    largest = max((a - b).abs().max().item() for a, b in zip(ours, gradients, strict=True))
    return (found - expected).abs().max().item(), largest


class Recall(nn.Module):
    """Keys and values [B, T] -> logits of the value under the key [B, T, values]; settings.values marks a question."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.keys, self.values = nn.Embedding(s.keys, s.width), nn.Embedding(s.values + 1, s.width)
        self.layer = RecurrentLayer(fading_delta, s.width, heads=1, conv=1, backend=s.backend)
        self.head = nn.Linear(s.width, s.values)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.head(self.layer(self.keys(keys) + self.values(values)))


def recall_batch(settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs, then as many questions about keys seen: keys, values as shown, and the questions' answers."""
    s = settings
    keys = torch.randint(s.keys, (s.batch, s.pairs), generator=generator)
    values = torch.randint(s.values, (s.batch, s.pairs), generator=generator)
    asked = keys.gather(1, torch.randint(s.pairs, (s.batch, s.pairs), generator=generator))
    age = torch.arange(1, s.pairs + 1) * (asked[:, :, None] == keys[:, None, :])
    answers = values.gather(1, age.argmax(-1))
    shown = torch.cat((values, torch.full_like(values, s.values)), dim=1)
    return torch.cat((keys, asked), dim=1), shown, answers


def train_recall(settings: Settings, report: Callable[[str], None] = print) -> list[tuple[int, float]]:
    """(step, accuracy of the answers since the last report); every batch is new, so this measures unseen sequences."""
    s = settings
    torch.manual_seed(s.seed)
    generator = torch.Generator().manual_seed(s.seed)
    model = Recall(s).to(s.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.rate, weight_decay=0.0)
    curve, recent = [], []
    for step in range(1, s.steps + 1):
        keys, values, answers = (x.to(s.device) for x in recall_batch(s, generator))
        logits = model(keys, values)[:, s.pairs :]
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append((logits.argmax(-1) == answers).float().mean())
        if step % max(1, s.steps // 8) == 0:
            curve.append((step, torch.stack(recent).mean().item()))
            recent.clear()
            report(f"  step {step:4d}  loss {loss.item():.4f}  answers right {curve[-1][1]:.3f}")
    return curve


def tour(settings: Settings, report: Callable[[str], None] = print) -> list[tuple[int, float]]:
    """Everything the script shows; returns the curve of training."""
    op = recur.loads(TEXT)
    report(TEXT)
    same = op.source("ir") == fading_delta.source("ir")
    report(f"the decorated function lowers to {'the same' if same else 'another'} form\n")
    report(str(op.explain(K=32, V=32)))
    report("\nthe structure found, as recur inspect --stage normal prints it:\n\n" + op.source("normal", K=32, V=32))
    outputs, gradients = difference_from_oracle(op, settings.backend, settings.device)
    report(f"\nlargest difference from the step-by-step definition in float64: outputs {outputs:.1e}, "
           f"gradients {gradients:.1e}\n\ntraining a layer of one head on recall:")  # fmt: skip
    return train_recall(settings, report)


def save(curve: list[tuple[int, float]], path: str | Path) -> None:
    save_curves(path, {"fading_delta": curve}, {}, "step", "answers right", "Associative recall")


@click.command()
@click.option("--steps", default=Settings.steps)
@click.option("--batch", default=Settings.batch)
@click.option("--device", default="cpu")
@click.option("--backend", default="auto", help="triton, torch or auto.")
@click.option("--seed", default=0)
@click.option("--plot", "plot_path", default=None, metavar="PNG", help="Where to save the curve (needs matplotlib).")
def main(plot_path: str | None, **options: object) -> None:
    """Invent a recurrence, look at what the compiler makes of it, and train with it."""
    curve = tour(Settings(**options))  # type: ignore[arg-type]
    if plot_path:
        save(curve, plot_path)


if __name__ == "__main__":
    main()

r"""Multi-query associative recall: how many pairs of a key and a value a state of a given size holds.

    python examples/associative_recall.py --small
    python examples/associative_recall.py --autocast --state 32 --vocabulary 512 --minutes 4
    python examples/associative_recall.py --small --recurrence retnet --recurrence kda

A sequence shows pairs of a key and a value, then the keys again in random places; at each, the model is asked for the
key's value. An additive memory of size K x V mixes what it holds under keys that are not orthogonal, and the delta rule
corrects what it stored under a key. arXiv 2312.04927 sets the task; arXiv 2406.06484 finds the delta rule ahead at its
sizes. With states of 32 and a vocabulary of 512 it is: bench/results/recall_gpu.md. The small setting does not show it:
bench/results/recall_cpu.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import zoo
from recur.examples.layer import Block, RecurrentLayer, free_dims
from recur.examples.training import Report, Schedule, Table, override, run_note, train, training_options

COMPARED = ("linear_attention", "gla", "delta_net")


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule.

    pairs: the numbers of pairs trained on, the larger ones joining in the first half, and tested. A sequence has
        2 * pairs tokens that show them, then 2 * pairs * spread, where every second may be a key, its value after it.
    states: sizes of the recurrence's dims (K and V); one model for each.
    minutes: for all models together.
    conv: taps of the layer's convolution, by which a value's position sees its key.
    """

    pairs: tuple[int, ...] = (4, 8, 16, 32, 64)
    states: tuple[int, ...] = (16, 32, 64)
    vocabulary: int = 8192
    spread: int = 3
    width: int = 128
    layers: int = 2
    heads: int = 1
    conv: int = 4
    batch: int = 128
    steps: int = 4000
    rate: float = 2e-3
    minutes: float = math.inf
    test_batches: int = 8
    device: str = "cpu"
    backend: str = "auto"
    autocast: bool = False
    seed: int = 0


SMALL = Settings(pairs=(4, 8, 16, 32), states=(16,), vocabulary=64, spread=1, layers=1, batch=32, steps=1500, rate=5e-3)


def recall_batch(pairs: int, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and answers, [batch, 2 * pairs * (1 + spread)], -1 where nothing is asked; on the generator's device.

    Keys are the first half of the vocabulary, distinct in a sequence, values the second; the last token fills. Gaps
    between a pair and its question follow a power law: most are short, some as long as the sequence.
    """
    s, device = settings, generator.device
    half, slots = s.vocabulary // 2, pairs * s.spread
    keys = torch.rand(s.batch, half, generator=generator, device=device).topk(pairs).indices
    values = torch.randint(half, s.vocabulary, (s.batch, pairs), generator=generator, device=device)
    weights = torch.arange(1.0, slots + 1, device=device).reciprocal().expand(s.batch, -1)
    asked = torch.multinomial(weights, pairs, generator=generator)  # the slot in which each pair is asked for
    later = torch.full((s.batch, slots, 2), s.vocabulary, device=device)
    later[..., 0].scatter_(1, asked, keys)
    later[..., 1].scatter_(1, asked, values)
    answers = torch.full((s.batch, slots, 2), -1, device=device)
    answers[..., 0].scatter_(1, asked, values)
    shown = torch.stack((keys, values), -1)
    return (
        torch.cat((shown.flatten(1), later.flatten(1)), 1),
        torch.cat((torch.full_like(shown, -1).flatten(1), answers.flatten(1)), 1),
    )


class RecallModel(nn.Module):
    """Tokens [B, T] -> logits of the next token at the positions asked for [asked, vocabulary]."""

    def __init__(self, recurrence: str, state: int, settings: Settings) -> None:
        super().__init__()
        s, op = settings, recur.load(zoo.path(recurrence))
        sizes = dict.fromkeys(free_dims(op.recurrence), state)
        layers = [RecurrentLayer(op, s.width, s.heads, sizes, conv=s.conv, backend=s.backend) for _ in range(s.layers)]
        self.embedding = nn.Embedding(s.vocabulary + 1, s.width)
        self.blocks = nn.Sequential(*(Block(layer, s.width) for layer in layers))
        self.head = nn.Sequential(nn.RMSNorm(s.width, eps=1e-6), nn.Linear(s.width, s.vocabulary, bias=False))

    def forward(self, tokens: Tensor, asked: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens))[asked])


def train_model(recurrence: str, state: int, settings: Settings, report: Report = print) -> list[float]:
    """Trains one model from nothing; its accuracy for each number of pairs, on sequences not seen."""
    s = settings
    torch.manual_seed(s.seed)
    model = RecallModel(recurrence, state, s).to(s.device)
    report(f"{recurrence}, dims of {state}: {sum(p.numel() for p in model.parameters()):,} parameters")
    generator = torch.Generator(s.device).manual_seed(s.seed)

    def logits_and_answers(pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens, answers = recall_batch(pairs, s, generator)
        asked = answers >= 0
        with torch.autocast(torch.device(s.device).type, dtype=torch.bfloat16, enabled=s.autocast):
            return model(tokens, asked).float(), answers[asked]

    def loss_at(step: int, progress: float) -> Tensor:
        return F.cross_entropy(*logits_and_answers(pick_from_curriculum(s.pairs, step, progress), generator))

    train(model, loss_at, Schedule(s.steps, s.rate, s.minutes, solved=1e-3), report)
    unseen = torch.Generator(s.device).manual_seed(s.seed + 1)
    with torch.no_grad():
        return [
            sum(
                (logits.argmax(-1) == answers).float().mean().item()
                for logits, answers in (logits_and_answers(pairs, unseen) for _ in range(s.test_batches))
            )
            / s.test_batches
            for pairs in s.pairs
        ]


def pick_from_curriculum(items: Sequence[int], step: int, progress: float) -> int:
    """The items in turn; the first one from the start, the later ones joining over the first half of training."""
    joined = min(len(items), 1 + int(2 * progress * len(items)))
    return items[step % joined]


def compare(recurrences: Sequence[str], settings: Settings, report: Report = print) -> Table:
    """Accuracy for each number of pairs, by recurrence and size of the state."""
    models = [(name, state) for state in settings.states for name in recurrences]
    share = replace(settings, minutes=settings.minutes / len(models))
    rows = {f"{name}, dims of {state}": train_model(name, state, share, report) for name, state in models}
    return Table("Associative recall", "answers right", "pairs", settings.pairs, rows)


@click.command()
@click.option("--recurrence", "recurrences", multiple=True, default=COMPARED, help="Of the zoo; repeatable.")
@click.option("--state", "states", type=int, multiple=True, help="Size of the recurrence's dims; repeatable.")
@click.option("--vocabulary", type=int, help="Half keys, half values.")
@click.option("--small", is_flag=True, help="Some minutes on a CPU, about 80 s a model.")
@click.option("--autocast/--no-autocast", default=False, help="bfloat16 inside the model.")
@training_options
def main(recurrences: tuple[str, ...], small: bool, results: str | None, plot: str | None, **options: object) -> None:
    """Compare recurrences by the pairs of keys and values that their states hold."""
    settings = override(SMALL if small else Settings(), options)
    found = compare(recurrences, settings)
    print(found)
    if results:
        found.save(results, run_note(settings))
    if plot:
        found.plot(plot)


if __name__ == "__main__":
    main()

r"""A byte-level language model on real text: the Python standard library's source files of the running interpreter.

    python examples/language_model.py --recurrence gated_delta_net --plot language_model.png
    python examples/language_model.py --device cuda --autocast --steps 3000 --rate 2e-3 \
        --width 512 --layers 6 --heads 8 --batch 32 --length 1024

Files are split into train and held-out ones; the model's bits per byte on the held-out files are printed beside those
of a bigram model. The first command takes a few minutes on two CPU cores.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recur
from recur import zoo
from recur.examples.layer import Block, RecurrentLayer
from recur.examples.plots import save_curves
from recur.examples.training import pick_device

BYTES = 256
TARGET = 0.75  # of the bigram model's bits per byte


@dataclass(frozen=True)
class Corpus:
    """Text as bytes: [N] uint8 tensors of files joined, and how many files each has."""

    train: Tensor
    held_out: Tensor
    train_files: int
    held_out_files: int


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule. length is in bytes; rate is AdamW's at its peak."""

    recurrence: str = "gated_delta_net"
    steps: int = 500
    width: int = 128
    layers: int = 2
    heads: int = 2
    sizes: dict[str, int] = field(default_factory=dict)
    batch: int = 8
    length: int = 256
    rate: float = 4e-3
    held_out_bytes: int = 1 << 17
    device: str = "cpu"
    backend: str = "auto"
    strategy: str = "auto"
    autocast: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """Bits per byte on the held-out files, and the curve of training: (step, mean bits per byte since the last)."""

    model: float
    bigram: float
    curve: list[tuple[int, float]]
    seconds: float

    @property
    def ratio(self) -> float:
        return self.model / self.bigram


def read_standard_library(held_out_share: float = 0.1) -> Corpus:
    """The interpreter's own library, without its tests. A file is held out by the hash of its name alone."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    files = sorted(f for f in root.rglob("*.py") if not skipped & set(f.relative_to(root).parts))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for file in files:
        digest = hashlib.sha256(file.relative_to(root).as_posix().encode()).digest()
        parts[digest[0] < 256 * held_out_share].append(file.read_bytes())
    train, held_out = (torch.frombuffer(bytearray(b"\n".join(parts[x])), dtype=torch.uint8) for x in (False, True))
    return Corpus(train, held_out, len(parts[False]), len(parts[True]))


def held_out_windows(text: Tensor, settings: Settings) -> Tensor:
    """Windows of the trained length, evenly over the held-out bytes: [windows, length + 1]."""
    windows = max(1, min(settings.held_out_bytes, len(text) - 1) // settings.length)
    starts = torch.linspace(0, len(text) - settings.length - 1, windows).long()[:, None]
    return text[starts + torch.arange(settings.length + 1)].long()


def bigram_bits(train: Tensor, windows: Tensor, smoothing: float = 0.1) -> float:
    """Bits per byte of the windows under p(b | a) = (count(a b) + s) / (count(a) + 256 s), counted on train."""
    counts = torch.bincount(train[:-1].long() * BYTES + train[1:].long(), minlength=BYTES * BYTES).view(BYTES, BYTES)
    smoothed = counts.double() + smoothing
    log_p = (smoothed / smoothed.sum(1, keepdim=True)).log2()
    return -log_p[windows[:, :-1], windows[:, 1:]].mean().item()


class LanguageModel(nn.Module):
    """Bytes [B, T] -> logits of the next byte [B, T, 256]."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        s = settings
        op = recur.load(zoo.path(s.recurrence))
        layers = [
            RecurrentLayer(op, s.width, s.heads, s.sizes, backend=s.backend, strategy=s.strategy)
            for _ in range(s.layers)
        ]
        self.embedding = nn.Embedding(BYTES, s.width)
        self.blocks = nn.Sequential(*(Block(layer, s.width) for layer in layers))
        self.head = nn.Sequential(nn.RMSNorm(s.width, eps=1e-6), nn.Linear(s.width, BYTES))

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(text)))


def train_model(corpus: Corpus, settings: Settings, report: Callable[[str], None] = print) -> Result:
    """Trains on the corpus' train bytes and measures on its held-out ones. Bits are per byte."""
    s = settings
    torch.manual_seed(s.seed)
    model = LanguageModel(s).to(s.device)
    windows = held_out_windows(corpus.held_out, s)
    bigram = bigram_bits(corpus.train, windows)
    report(f"{s.recurrence}: {sum(p.numel() for p in model.parameters()):,} parameters, {s.steps} steps of "
           f"{s.batch} x {s.length} bytes on {s.device}")  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_then_cosine(step, s.steps))
    start, curve, recent = time.perf_counter(), [], []
    for step, batch in enumerate(random_batches(corpus.train, s)):
        loss = next_byte_loss(model, batch, s)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.detach() / math.log(2))
        if (step + 1) % max(1, s.steps // 20) == 0:
            curve.append((step + 1, torch.stack(recent).mean().item()))
            recent.clear()
            report(f"  step {step + 1:5d}  {curve[-1][1]:.3f} bits per byte  {time.perf_counter() - start:6.1f} s")
    return Result(held_out_bits(model, windows, s), bigram, curve, time.perf_counter() - start)


def warmup_then_cosine(step: int, steps: int) -> float:
    """The factor on the learning rate: up over a twentieth of the steps, then down to a twentieth of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def random_batches(text: Tensor, settings: Settings) -> Iterator[Tensor]:
    """settings.steps batches [batch, length + 1] of bytes, the same ones for a seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    offsets = torch.arange(settings.length + 1)
    for _ in range(settings.steps):
        starts = torch.randint(len(text) - settings.length - 1, (settings.batch, 1), generator=generator)
        yield text[starts + offsets].long().to(settings.device)


def next_byte_loss(model: nn.Module, batch: Tensor, settings: Settings) -> Tensor:
    """The mean cross-entropy in nats of bytes 1.. given those before, for a batch [B, T + 1]."""
    device = torch.device(settings.device).type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.autocast):
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def held_out_bits(model: nn.Module, windows: Tensor, settings: Settings) -> float:
    """Bits per byte on windows [N, T + 1], each of which starts from nothing."""
    with torch.no_grad():
        batches = windows.to(settings.device).split(4 * settings.batch)
        losses = [next_byte_loss(model, batch, settings) * len(batch) for batch in batches]
    return (torch.stack(losses).sum() / len(windows) / math.log(2)).item()


def show_corpus(corpus: Corpus) -> str:
    return (
        f"train: {corpus.train_files} files, {len(corpus.train):,} bytes; "
        f"held out: {corpus.held_out_files} files, {len(corpus.held_out):,} bytes"
    )


def show(result: Result) -> str:
    verdict = "at or below" if result.ratio <= TARGET else "above"
    return (
        f"held-out files: {result.model:.3f} bits per byte; a bigram model's: {result.bigram:.3f}; "
        f"ratio {result.ratio:.3f}, {verdict} {TARGET}; {result.seconds:.0f} s"
    )


def save(results: dict[str, Result], path: str | Path) -> None:
    """Saves the training curves and the two held-out levels."""
    curves = {f"{name}, training": r.curve for name, r in results.items()}
    levels = {f"{name}, held out": r.model for name, r in results.items()}
    levels["bigram, held out"] = next(iter(results.values())).bigram
    save_curves(path, curves, levels, "step", "bits per byte", "Bytes of the Python standard library")


def parse_sizes(value: str) -> dict[str, int]:
    return {name: int(size) for name, size in (item.split("=") for item in value.split(",") if item)}


@click.command()
@click.option(
    "--recurrence", "recurrences", multiple=True, default=("gated_delta_net",), help="Of the zoo; repeatable."
)
@click.option("--steps", default=Settings.steps)
@click.option("--width", default=Settings.width)
@click.option("--layers", default=Settings.layers)
@click.option("--heads", default=Settings.heads)
@click.option("--sizes", default="", metavar="K=32,V=64", help="Head dims; width / heads where left out.")
@click.option("--batch", default=Settings.batch)
@click.option("--length", default=Settings.length)
@click.option("--rate", default=Settings.rate)
@click.option("--device", default="auto", help="cuda, cpu or auto.")
@click.option("--backend", default="auto", help="triton, torch or auto.")
@click.option("--strategy", default="auto")
@click.option("--autocast/--no-autocast", default=False, help="bfloat16 inside the model.")
@click.option("--seed", default=0)
@click.option("--plot", "plot_path", default=None, metavar="PNG", help="Where to save the curves (needs matplotlib).")
def main(recurrences: tuple[str, ...], sizes: str, device: str, plot_path: str | None, **options: object) -> None:
    """Train byte-level language models on the Python standard library's source."""
    corpus = read_standard_library()
    print(show_corpus(corpus))
    results = {}
    for name in recurrences:
        settings = Settings(name, sizes=parse_sizes(sizes), device=pick_device(device), **options)  # type: ignore
        results[name] = train_model(corpus, settings)
        print(show(results[name]))
    if plot_path:
        save(results, plot_path)


if __name__ == "__main__":
    main()

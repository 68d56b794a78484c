"""How a stage is run: its kernels forward and backward, the buffers between them, and where gradients come together.

A plan is complete: printing it needs nothing but the target's syntax. Sizes are names; a kernel never depends on T, B
or H at compile time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recur.ir.tile import Buffer, Kernel

Strategy = Literal["associative_scan", "chunkwise", "tiled", "sequential", "newton"]
STRATEGIES: tuple[Strategy, ...] = ("associative_scan", "chunkwise", "tiled", "sequential", "newton")


@dataclass(frozen=True)
class Reject:
    """Why a strategy does not apply: one sentence, in the user's terms."""

    reason: str


@dataclass(frozen=True)
class Contribution:
    """One term of an input's gradient: a buffer, and the dimensions that are summed away, in the buffer's order.

    ``buffer`` has the input's layout with extra leading/inner dims in `sum_over` (tiles, chunks, batch).
    """

    buffer: str
    sum_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gradient:
    """The cotangent ledger's line of one differentiable argument: its contributions are added in this order."""

    of: str
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Cost:
    """What a strategy is modelled to take, per token and head unless said otherwise."""

    flops: float
    bytes: float
    launches: int
    serial_steps: str = ""


@dataclass(frozen=True)
class Plan:
    """One stage under one strategy.

    ``arguments``   tensors that the stage reads: inputs, params, `prev.x`, earlier stages' values   (layouts B T H ...)
    ``initial``     initial states (layout B H ...), always present at run time (zeros where the user gave none)
    ``results``     tensors that the stage gives: outputs and exported values (B T H ...)
    ``final``       final states, in the order of ``initial``
    ``saved``       buffers that the forward pass leaves for the backward pass, besides the arguments
    ``workspace``   buffers used within one pass
    ``cotangents``  for each of results and final, the buffer that holds its incoming gradient: "d_" + name
    ``gradients``   the ledger, a line for every differentiable argument and initial state
    ``fused``       dims that stand for several, row-major: each with its dims; ``fixed_sizes``: sizes no tensor tells
    ``folded``      dims that kernels take for heads: H runs over all pairs of a head and their entries, row-major
    ``views``       tensors whose dims differ by these two, with the caller's own dims (what follows B, T and H)
    ``wide_chunk``  instead of ``chunk`` on a GPU for operands of four bytes, of which not as many fit into a program
    ``steps``       of a token, each with a row of its own in chunks (see interleave): a chunk holds ``chunk`` tokens
    ``limits``      why one program's tiles do not fit a GPU, for a backend that has programs; mostly empty
    """

    stage: str
    strategy: Strategy
    arguments: tuple[Buffer, ...]
    initial: tuple[Buffer, ...]
    results: tuple[Buffer, ...]
    final: tuple[Buffer, ...]
    saved: tuple[Buffer, ...]
    workspace: tuple[Buffer, ...]
    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]
    gradients: tuple[Gradient, ...]
    cost: Cost
    chunk: int | None = None
    wide_chunk: int | None = None
    steps: int = 1
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    fixed_sizes: tuple[tuple[str, int], ...] = field(default=())
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folded: tuple[str, ...] = ()
    views: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def chunk_size(self) -> str:
        """What a chunk holds, in words; empty where there are none."""
        each = f" with {self.steps} rows each" if self.steps > 1 else ""
        return f"chunks of {self.chunk} tokens{each}" if self.chunk else ""

    def buffer(self, name: str) -> Buffer:
        groups = (self.arguments, self.initial, self.results, self.final, self.saved, self.workspace)
        return next(b for group in groups for b in group if b.name == name)


Choice = Plan | Reject

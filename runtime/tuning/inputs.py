"""Random inputs to check and time with: inside the declared ranges, and tame enough for states to stay finite."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recur.ir.spec import Range, Recurrence, Variable


def draw_inputs(
    rec: Recurrence, sizes: Mapping[str, int], batch: int, tokens: int, heads: int, dtypes: Sequence[torch.dtype],
    seed: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Inputs [B, T, H, *dims] and params [H, *dims] in the text's order; the same seed gives the same numbers."""
    lead = {"input": (batch, tokens, heads), "param": (heads,)}
    drawn = (_draw(v, lead[v.role], sizes, seed) for v in rec.inputs)
    return tuple(x.to(dtype) for x, dtype in zip(drawn, dtypes, strict=True))


def _draw(v: Variable, lead: tuple[int, ...], sizes: Mapping[str, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {v.name}".encode()))
    shape = (*lead, *(sizes[d] for d in v.dims))
    if v.range is not None:
        return _in_range(v.range, torch.rand(shape, generator=generator))
    x = torch.randn(shape, generator=generator, dtype=torch.complex64 if v.is_complex else torch.float32)
    if v.dims:  # of unit norm, so that a state that is read and corrected stays bounded
        x = x / x.abs().square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return x


def _in_range(declared: Range, u: Tensor) -> Tensor:
    """Uniform ``u`` moved inside the range; towards an infinite bound as far as an exponential distribution goes."""
    low, high = declared.low, declared.high
    if math.isinf(low) and math.isinf(high):
        return 2 * u - 1
    if math.isinf(low):
        return high + 0.1 * torch.log1p(-0.999 * u) - 1e-3
    if math.isinf(high):
        return low - 0.1 * torch.log1p(-0.999 * u) + 1e-3
    return low + (high - low) * (0.01 + 0.98 * u)

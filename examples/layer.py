"""A sequence layer around any recurrence: projections for every input that the spec declares, as it declares them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recur.ir.spec import Binary, Name, Range, Recurrence, Variable
from recur.runtime.op import Op


class RecurrentLayer(nn.Module):
    """[B, T, width] -> [B, T, width]: a short causal convolution, a projection per input, the recurrence, a projection.

    op: the recurrence, made by recur.load, recur.loads or @recur.recurrence.
    heads: H of the recurrence; every head has its own projections and params.
    sizes: the sizes of the spec's dims; those left out have ``width // heads``.
    conv: taps of the depthwise convolution; 1 for none.
    backend, strategy: handed to the op.
    """

    def __init__(
        self,
        op: Op,
        width: int,
        heads: int,
        sizes: Mapping[str, int] | None = None,
        *,
        conv: int = 4,
        backend: str = "auto",
        strategy: str = "auto",
    ) -> None:
        super().__init__()
        self.op, self.heads, self.backend, self.strategy = op, heads, backend, strategy
        rec = op.recurrence
        self.sizes = dim_sizes(rec, width // heads, sizes or {})
        self.unit = matmul_operands(rec)
        self.inputs = [v for v in rec.inputs if v.role == "input"]
        self.widths = [heads * self._numbers(v) for v in self.inputs]
        self.conv = nn.Conv1d(width, width, conv, padding=conv - 1, groups=width) if conv > 1 else None
        self.project_in = nn.Linear(width, sum(self.widths))
        self.params = nn.ParameterDict(
            {v.name: nn.Parameter(self._initial_param(v)) for v in rec.inputs if v.role == "param"}
        )
        out = self._output_width()
        self.norm = nn.RMSNorm(out // heads, eps=1e-6)
        self.project_out = nn.Linear(out, width, bias=False)
        self._spread_gates()

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        outputs, _ = self.op(*self.arguments(x), backend=self.backend, strategy=self.strategy)
        return self.project_out(self.norm(join_outputs(outputs)).flatten(2))

    def arguments(self, x: Tensor) -> list[Tensor]:
        """The recurrence's inputs and params, in their order, for [B, T, width]; each inside its declared range."""
        columns = dict(zip((v.name for v in self.inputs), self.project_in(x).split(self.widths, dim=-1), strict=True))
        found = []
        for v in self.op.recurrence.inputs:
            raw = columns[v.name].unflatten(-1, (self.heads, -1)) if v.name in columns else self.params[v.name]
            if v.role == "input" and v.dims and v.name in self.unit:
                # A delta rule erases along k: |k| <= 1 keeps it stable, and no other recurrence minds.
                raw = F.normalize(raw.float(), dim=-1).to(raw.dtype)
            found.append(self._shape(v, raw))
        return found

    def _shape(self, v: Variable, raw: Tensor) -> Tensor:
        """[..., numbers] as [..., *dims], complex where declared, inside the range."""
        dims = [self.sizes[d] for d in v.dims]
        if v.is_complex:
            return torch.view_as_complex(raw.reshape(*raw.shape[:-1], *dims, 2).float())
        return into_range(raw.reshape(*raw.shape[:-1], *dims), v.range)

    def _numbers(self, v: Variable) -> int:
        return math.prod(self.sizes[d] for d in v.dims) * (2 if v.is_complex else 1)

    def _initial_param(self, v: Variable) -> Tensor:
        scale = self.sizes[v.dims[-1]] ** -0.5 if len(v.dims) > 1 else 0.5
        return scale * torch.randn(self.heads, self._numbers(v))

    def _output_width(self) -> int:
        """All outputs' numbers over all heads, from a call on one token."""
        with torch.no_grad():
            outputs, _ = self.op.reference(*self.arguments(torch.zeros(1, 1, self.project_in.in_features)))
        return join_outputs(outputs).flatten(2).shape[-1]

    def _spread_gates(self) -> None:
        """Log-decays start between forgetting in a few steps and in hundreds."""
        with torch.no_grad():
            for v, bias in zip(self.inputs, self.project_in.bias.split(self.widths), strict=True):
                if v.range is not None and math.isinf(v.range.low) and v.range.high == 0:
                    bias.copy_(torch.linspace(1, 6, bias.numel()))
                elif v.range is not None:
                    bias.zero_()


def dim_sizes(rec: Recurrence, default: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Every dim's size. Raises ValueError for a size given to no dim, or to one whose size the spec fixes."""
    free = [d.name for d in rec.dims if d.size is None and d.alias is None]
    for name in sizes:
        if name not in free:
            raise ValueError(f"{rec.name} has no free dim {name}: it has {', '.join(free)}")
    found = {d.name: d.size or sizes.get(d.name, default) for d in rec.dims if d.alias is None}
    return found | {d.name: found[rec.root_dim(d.name)] for d in rec.dims if d.alias is not None}


def into_range(x: Tensor, range: Range | None) -> Tensor:
    """Any number into a declared range: a sigmoid where both ends are finite, a softplus where one is."""
    if range is None or (math.isinf(range.low) and math.isinf(range.high)):
        return x
    if math.isinf(range.low):
        return range.high + F.logsigmoid(x)
    if math.isinf(range.high):
        return range.low + F.softplus(x)
    return range.low + (range.high - range.low) * torch.sigmoid(x)


def join_outputs(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Every output's numbers side by side: [B, T, H, numbers]."""
    found = [outputs] if isinstance(outputs, Tensor) else outputs
    real = [torch.view_as_real(o) if o.is_complex() else o for o in found]
    return torch.cat([o.flatten(3) if o.ndim > 3 else o.unsqueeze(3) for o in real], dim=-1)


def matmul_operands(rec: Recurrence) -> frozenset[str]:
    """The names that the step contracts as they are, as k and q in ``k @ S`` and ``q @ S``."""
    nodes = (n for statement in rec.body for n in walk(statement))
    pairs = [(n.left, n.right) for n in nodes if isinstance(n, Binary) and n.op == "@"]
    return frozenset(x.id for pair in pairs for x in pair if isinstance(x, Name))


def walk(node: object) -> Iterator[object]:
    """A syntax tree's nodes, the node itself first."""
    yield node
    for field in fields(node) if is_dataclass(node) else ():
        value = getattr(node, field.name)
        for child in value if isinstance(value, tuple) else (value,):
            if is_dataclass(child):
                yield from walk(child)

"""A sequence layer around any recurrence, with a projection for every input that its spec declares; a block of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recur.ir.spec import Binary, Call, Expr, Index, Name, Range, Recurrence, Unary, Variable
from recur.runtime.op import Op


class RecurrentLayer(nn.Module):
    """[B, T, width] -> [B, T, width]: a short causal convolution, a projection per input, the recurrence, a projection.

    op: the recurrence, made by recur.load, recur.loads or @recur.recurrence.
    heads: H of the recurrence; every head has its own projections and params.
    sizes: the sizes of the spec's dims; those left out have ``width // heads``, or less (see dim_sizes).
    conv: taps of the depthwise convolution; 1 for none.
    gate_bias: where inputs with a range start inside it, before the sigmoid: 0 for the middle. Log-decays are spread.
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
        gate_bias: float = 0.0,
        backend: str = "auto",
        strategy: str = "auto",
    ) -> None:
        super().__init__()
        self.op, self.heads, self.backend, self.strategy = op, heads, backend, strategy
        rec = op.recurrence
        self.sizes = dim_sizes(rec, width // heads, sizes or {})
        self.bounded = factors_of_state(rec)
        self.free = [d.name for d in rec.dims if d.size is None]
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
        self._start_gates(gate_bias)

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
            found.append(self._shape(v, raw))
        return found

    def _shape(self, v: Variable, raw: Tensor) -> Tensor:
        """[..., numbers] as [..., *dims], complex where declared, inside the range."""
        dims = [self.sizes[d] for d in v.dims]
        if v.is_complex:
            return torch.view_as_complex(raw.reshape(*raw.shape[:-1], *dims, 2).float())
        x = raw.reshape(*raw.shape[:-1], *dims)
        if v.range is None and v.role == "input" and v.name in self.bounded:
            x = bound(x.float(), [i - len(dims) for i, d in enumerate(v.dims) if d in self.free]).to(x.dtype)
        return into_range(x, v.range)

    def _numbers(self, v: Variable) -> int:
        return math.prod(self.sizes[d] for d in v.dims) * (2 if v.is_complex else 1)

    def _initial_param(self, v: Variable) -> Tensor:
        scale = self.sizes[v.dims[-1]] ** -0.5 if len(v.dims) > 1 else 0.5
        if len(v.dims) > 2:  # a map from an input to a transition: what it adds to one is small at first
            scale *= 0.1
        return scale * torch.randn(self.heads, self._numbers(v))

    def _output_width(self) -> int:
        """All outputs' numbers over all heads, from a call on one token."""
        with torch.no_grad():
            outputs, _ = self.op.reference(*self.arguments(torch.zeros(1, 1, self.project_in.in_features)))
        return join_outputs(outputs).flatten(2).shape[-1]

    def _start_gates(self, gate_bias: float) -> None:
        """Log-decays start between forgetting in a few steps and in hundreds, other gates where they are told."""
        with torch.no_grad():
            for v, bias in zip(self.inputs, self.project_in.bias.split(self.widths), strict=True):
                if v.range is not None and math.isinf(v.range.low) and v.range.high == 0:
                    bias.copy_(torch.linspace(1, 6, bias.numel()))
                elif v.range is not None:
                    bias.fill_(gate_bias)


class Block(nn.Module):
    """x + recurrence(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: RecurrentLayer, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def free_dims(rec: Recurrence) -> list[str]:
    """The dims whose sizes a caller chooses."""
    return [d.name for d in rec.dims if d.size is None and d.alias is None]


def dim_sizes(rec: Recurrence, default: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Every dim's size. One left out has the default, or the power of two at which no variable of three or more dims
    has more numbers than a matrix of the default's side: based's S2[K, J, V] would have 64 ** 3.

    Raises ValueError for a size given to no dim, or to one whose size the spec fixes.
    """
    free = free_dims(rec)
    for name in sizes:
        if name not in free:
            raise ValueError(f"{rec.name} has no free dim {name}: it has {', '.join(free)}")
    variables = [[d for d in map(rec.root_dim, v.dims) if d in free] for v in (*rec.inputs, *rec.states)]
    rank = {d: max((len(dims) for dims in variables if d in dims), default=1) for d in free}
    fitting = {d: default if r <= 2 else 1 << int(2 * math.log2(default) / r) for d, r in rank.items()}
    found = {d.name: d.size or sizes.get(d.name) or fitting[d.name] for d in rec.dims if d.alias is None}
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


def bound(x: Tensor, axes: Sequence[int]) -> Tensor:
    """What multiplies a state, so that the state does not explode: vectors over the axis of length one, matrices over
    the last two axes of a spectral norm of at most one, by |A|_2^2 <= |A|_1 |A|_inf, with equality for permutations.
    """
    if len(axes) < 2:
        return F.normalize(x, dim=axes[0]) if axes else x
    columns, rows = (x.abs().sum(axis, keepdim=True).amax(tuple(axes[-2:]), keepdim=True) for axis in axes[-2:])
    return x / (columns * rows).sqrt().clamp(min=1)


def factors_of_state(rec: Recurrence) -> frozenset[str]:
    """The names that multiply an expression of a state as they are: q in ``q @ S``, b, a in ``outer(b, a[j] @ S)``."""
    states = {v.name for v in rec.states}
    found: set[str] = set()
    for left, right in (pair for statement in rec.body for pair in products(statement)):
        for factor, other in ((left, right), (right, left)):
            if any(isinstance(n, Name) and n.id in states for n in walk(other)):
                found |= plain_names(factor)
    return frozenset(found)


def products(node: object) -> Iterator[tuple[Expr, Expr]]:
    """The operands of every product inside a node."""
    for n in walk(node):
        if isinstance(n, Binary) and n.op in ("*", "@"):
            yield n.left, n.right
        elif isinstance(n, Call) and n.function == "outer":
            yield n.args[0], n.args[1]


def plain_names(node: Expr) -> set[str]:
    """The names that an expression is made of by arithmetic and indexing, and not through a function."""
    match node:
        case Name():
            return {node.id}
        case Index():
            return plain_names(node.base)
        case Unary():
            return plain_names(node.operand)
        case Binary():
            return plain_names(node.left) | plain_names(node.right)
    return set()


def walk(node: object) -> Iterator[object]:
    """A syntax tree's nodes, the node itself first."""
    yield node
    for field in fields(node) if is_dataclass(node) else ():
        value = getattr(node, field.name)
        for child in value if isinstance(value, tuple) else (value,):
            if is_dataclass(child):
                yield from walk(child)

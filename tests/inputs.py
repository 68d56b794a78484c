"""Random inputs for any recurrence: inside the declared ranges, and tame enough for its recurrence to stay finite."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from recur.ir.spec import Assign, Binary, Call, Expr, For, Name, Range, Recurrence, Statement, Variable
from recur.runtime.step import expressions

EXTREMES = (0.0, -1e-8, -0.5, -20.0, -150.0, -1e3)  # of a log gate: no decay at all ... a cut


def dim_sizes(rec: Recurrence, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Every declared dim's size, aliases included: as given, as fixed, else 5, 7, 3, 6, ... in turn.

    A dim under a Walsh-Hadamard transform gets 8.
    """
    defaults = iter((5, 7, 3, 6, 4, 8, 2, 9))
    transformed = {
        rec.root_dim(a.id)
        for statement in rec.body
        for e in expressions(statement)
        if isinstance(e, Call) and e.function == "hadamard"
        for a in e.args[1:]
        if isinstance(a, Name)
    }
    roots: dict[str, int] = {}
    for d in rec.dims:
        if d.alias is None:
            default = 8 if d.name in transformed else next(defaults)
            roots[d.name] = d.size if d.size is not None else (sizes or {}).get(d.name, default)
    return {d.name: roots[rec.root_dim(d.name)] for d in rec.dims}


def random_inputs(
    rec: Recurrence,
    B: int = 2,
    T: int = 7,
    H: int = 2,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    extreme: bool = False,
    scale: float = 1.0,
    requires_grad: bool = False,
) -> dict[str, Tensor]:
    """Tensors for every input [B, T, H, *dims] and param [H, *dims], by name.

    A declared range is honoured (its interior). Names without a range are normal; where the step contracts its state
    (a delta rule, a recurrent matrix) they get unit norm along their last dim of free size, and transition matrices
    a smaller one, so that products of transitions stay bounded. The same seed gives a name the same values whatever
    else is declared, in any dtype.

    extreme: one gate in four with an upper bound of 0 becomes 0, -1e-8, -0.5, -20, -150 or -1000.
    scale: multiplies the names without a range.
    """
    lengths = dim_sizes(rec, sizes)
    tame = reads_its_state(rec)
    found = {}
    for v in rec.inputs:
        shape = ((B, T, H) if v.role == "input" else (H,)) + tuple(lengths[d] for d in v.dims)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {v.name}".encode()))
        x = _draw(v, rec, shape, generator, tame) * (1.0 if v.range else scale)
        if extreme and v.range is not None and v.range.high == 0 and math.isinf(v.range.low):
            x = _with_extremes(x, generator)
        x = x.to(dtype.to_complex() if v.is_complex else dtype) if dtype.itemsize >= 4 else x.to(dtype)
        found[v.name] = x.requires_grad_(requires_grad)
    return found


def random_state(
    rec: Recurrence, B: int = 2, H: int = 2, sizes: Mapping[str, int] | None = None, seed: int = 0,
    dtype: torch.dtype = torch.float64, *, requires_grad: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """An initial state: every declared state [B, H, *dims], normal, or inside its range.

    States that a quotient divides by are drawn positive.
    """
    lengths = dim_sizes(rec, sizes)
    divisors = _divisors(rec)
    found = {}
    for v in rec.states:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} state {v.name}".encode()))
        x = _draw(v, rec, (B, H, *(lengths[d] for d in v.dims)), generator, False)
        x = x.abs() + 0.5 if v.name in divisors and not v.is_complex else x
        found[v.name] = x.to(dtype.to_complex() if v.is_complex else dtype).requires_grad_(requires_grad)
    return found


def reads_its_state(rec: Recurrence) -> bool:
    """Whether a contraction of a state, or of what was computed from one, enters an update."""
    contracted: dict[str, bool] = {s.name: False for s in rec.states}  # names computed from a state: by a contraction?
    statements = list(_assignments(rec.body))
    for _ in statements:
        for statement in statements:
            nodes = list(expressions(statement.value))
            sources = _names(nodes) & contracted.keys()
            if sources:
                products = [n for n in nodes if isinstance(n, Binary) and n.op == "@"]
                reads = any(_names(list(expressions(n))) & contracted.keys() for n in products)
                known = contracted.get(statement.target, False)
                contracted[statement.target] = known or reads or any(contracted[n] for n in sources)
    return any(contracted[s.name] for s in rec.states)


def _divisors(rec: Recurrence) -> set[str]:
    """The names that some quotient's denominator is computed from, through locals."""
    nodes = [e for statement in rec.body for e in expressions(statement)]
    quotients = [n for n in nodes if isinstance(n, Binary) and n.op == "/"]
    found = {name for n in quotients for name in _names(list(expressions(n.right)))}
    states = {v.name for v in rec.states}
    for statement in reversed(list(_assignments(rec.body))):
        if statement.target in found and statement.target not in states:
            found |= _names(list(expressions(statement.value)))
    return found


def _names(nodes: list[Expr]) -> set[str]:
    return {n.id for n in nodes if isinstance(n, Name)}


def _assignments(body: tuple[Statement, ...]) -> Iterator[Assign]:
    for statement in body:
        if isinstance(statement, For):
            yield from _assignments(statement.body)
        elif isinstance(statement, Assign):
            yield statement


def _draw(v: Variable, rec: Recurrence, shape: tuple[int, ...], generator: torch.Generator, tame: bool) -> Tensor:
    if v.range is not None:
        return _in_range(v.range, shape, generator)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if v.is_complex:
        x = torch.complex(x, torch.randn(shape, generator=generator, dtype=torch.float64)) / math.sqrt(2)
    roots = [rec.root_dim(d) for d in v.dims]
    if tame and v.dims:
        matrix = [axis for axis, root in enumerate(roots) if roots.count(root) > 1]
        if matrix:  # a transition: Frobenius norm 0.7, with the dims after it
            axes = tuple(range(x.ndim - len(roots) + matrix[0], x.ndim))
            x = 0.7 * x / torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        else:
            fixed = {d.name for d in rec.dims if d.size is not None}
            sized = [axis for axis, root in enumerate(roots) if root not in fixed] or [-1]
            x = x / torch.linalg.vector_norm(x, dim=x.ndim - len(roots) + sized[-1], keepdim=True)
    return x


def _in_range(r: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if math.isfinite(r.low) and math.isfinite(r.high):
        unit = torch.rand(shape, generator=generator, dtype=torch.float64)
        return r.low + (r.high - r.low) * (0.02 + 0.96 * unit)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if math.isinf(r.low) and math.isinf(r.high):
        return x
    away = torch.nn.functional.softplus(x)
    return r.low + away if math.isfinite(r.low) else r.high - away


def _with_extremes(x: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.tensor(EXTREMES, dtype=x.dtype)
    chosen = values[torch.randint(len(EXTREMES), x.shape, generator=generator)]
    return torch.where(torch.rand(x.shape, generator=generator, dtype=x.dtype) < 0.25, chosen, x)

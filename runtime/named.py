"""Tensors whose dimensions have names: the rules of the language's operators, for one token of every sequence and head.

A value is laid out [batch, head, *dims]; batch and head may have size 1 (a param, a constant). This module is part of
the reference: it states the meaning independently of the compiler, and shares nothing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recur.runtime import scaled
from recur.runtime.scaled import Scaled, Value


@dataclass(frozen=True)
class Named:
    value: Value
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dims:
    """The declared dimensions in order: every name's size, the name it is an alias of, and which are fixed."""

    sizes: dict[str, int]
    roots: dict[str, str]
    fixed: tuple[str, ...]

    def alias(self, name: str, taken: Iterable[str]) -> str:
        """The first declared other name of the same size's root that is not taken."""
        taken = set(taken)
        for other, root in self.roots.items():
            if root == self.roots[name] and other != name and other not in taken:
                return other
        raise ValueError(f"outer: both operands have {name}; declare another name for it, e.g. dim {name}2 = {name}")


def merged(*operands: tuple[str, ...]) -> tuple[str, ...]:
    """An elementwise result's dimensions: those of the operand that has them all, else by first appearance."""
    union = tuple(dict.fromkeys(name for dims in operands for name in dims))
    return next((dims for dims in operands if len(dims) == len(union)), union)


def arranged(x: Named, dims: tuple[str, ...]) -> Value:
    """x's value laid out [batch, head, *dims], size 1 where x lacks a dimension."""
    present = [name for name in dims if name in x.dims]
    order = [0, 1, *(2 + x.dims.index(name) for name in present)]

    def lay_out(t: Tensor) -> Tensor:
        t = t.permute(order)
        for axis, name in enumerate(dims):
            if name not in x.dims:
                t = t.unsqueeze(2 + axis)
        return t

    return scaled.remap(lay_out, x.value)


def expanded(x: Named, dims: tuple[str, ...], dim_table: Dims) -> Value:
    """As arranged, with every dimension at its full size."""
    sizes = [dim_table.sizes[name] for name in dims]
    return scaled.remap(lambda t: t.expand(*t.shape[:2], *sizes), arranged(x, dims))


# --- elementwise -----------------------------------------------------------------------------------------------------


def multiplicative(operation: Callable[..., Value], *operands: Named) -> Named:
    """Aligned by name; what an operand lacks is broadcast."""
    dims = merged(*(x.dims for x in operands))
    return Named(operation(*(arranged(x, dims) for x in operands)), dims)


def additive(operation: Callable[..., Value], a: Named, b: Named, what: str) -> Named:
    """Aligned by name; both have the same names, or one has none."""
    check_same_names(a, b, what)
    return multiplicative(operation, a, b)


def check_same_names(a: Named, b: Named, what: str) -> None:
    if a.dims and b.dims and set(a.dims) != set(b.dims):
        raise ValueError(f"{what}: operands have dimensions {_show(a.dims)} and {_show(b.dims)}")


def outer(x: Named, y: Named, dim_table: Dims) -> Named:
    for name in y.dims:
        if name in x.dims:
            y = rename(y, name, dim_table.alias(name, (*x.dims, *y.dims)))
    return multiplicative(scaled.multiply, x, y)


def rename(x: Named, old: str, new: str) -> Named:
    if old not in x.dims or (new in x.dims and new != old):
        raise ValueError(f"rename: cannot rename {old} to {new} in {_show(x.dims)}")
    return replace(x, dims=tuple(new if name == old else name for name in x.dims))


# --- contractions and reductions -------------------------------------------------------------------------------------


def contract(x: Named, y: Named, term_by_term: bool = False) -> Named:
    """x @ y: over x's last dimension; other shared names are aligned. ``term_by_term``: no fused product."""
    if not x.dims or x.dims[-1] not in y.dims:
        raise ValueError(f"@: nothing to contract between {_show(x.dims)} and {_show(y.dims)}")
    over = x.dims[-1]
    kept = (*x.dims[:-1], *(name for name in y.dims if name not in x.dims))
    every = (*kept, over)
    a, b = arranged(x, every), arranged(y, every)
    if term_by_term or isinstance(a, Scaled) or isinstance(b, Scaled):
        return Named(scaled.total(scaled.multiply(a, b), -1), kept)
    axes = {name: position for position, name in enumerate(("", " ", *every))}
    dtype = torch.promote_types(a.dtype, b.dtype)
    assert isinstance(x.value, Tensor) and isinstance(y.value, Tensor)
    operands = (
        x.value.to(dtype),
        [axes[n] for n in ("", " ", *x.dims)],
        y.value.to(dtype),
        [axes[n] for n in ("", " ", *y.dims)],
    )
    return Named(torch.einsum(*operands, [axes[n] for n in ("", " ", *kept)]), kept)


def only_dim(x: Named, what: str) -> str:
    if len(x.dims) != 1:
        raise ValueError(f"{what}: say over which of {_show(x.dims)}")
    return x.dims[0]


def reduce(operation: Callable[[Value, int], Value], x: Named, over: str, what: str) -> Named:
    if over not in x.dims:
        raise ValueError(f"{what}: {over} is not among {_show(x.dims)}")
    rest = tuple(name for name in x.dims if name != over)
    return Named(operation(arranged(x, (*rest, over)), -1), rest)


def mean(x: Value, axis: int) -> Value:
    size = (x.mantissa if isinstance(x, Scaled) else x).shape[axis]
    return scaled.multiply(scaled.total(x, axis), torch.tensor(1 / size, dtype=real_dtype(x)))


def norm(x: Value, axis: int) -> Value:
    if isinstance(x, Scaled):
        return scaled.sqrt(scaled.total(scaled.square(scaled.mantissawise(torch.abs)(x)), axis))
    return torch.linalg.vector_norm(x, dim=axis)


def normalised(average: Callable[[Value, int], Value], x: Named, over: str, epsilon: float, what: str) -> Named:
    """x * rsqrt(average(square(x)) + epsilon)."""
    size = reduce(average, multiplicative(scaled.square, x), over, what)
    offset = torch.tensor(epsilon, dtype=real_dtype(x.value))
    scale = Named(scaled.rsqrt(scaled.add(size.value, offset)), size.dims)
    return multiplicative(scaled.multiply, x, scale)


def softmax(x: Named, over: str) -> Named:
    if over not in x.dims:
        raise ValueError(f"softmax: {over} is not among {_show(x.dims)}")
    return Named(torch.softmax(scaled.materialise(x.value), 2 + x.dims.index(over)), x.dims)


def hadamard(x: Named, over: str, size: int) -> Named:
    """The unnormalised Walsh-Hadamard transform in Sylvester's order: H_1 = 1, H_2n = [[H, H], [H, -H]]."""
    if over not in x.dims or size & (size - 1):
        raise ValueError(f"hadamard: {over} must be among {_show(x.dims)} and its size {size} a power of two")
    device = (x.value.mantissa if isinstance(x.value, Scaled) else x.value).device
    matrix = torch.ones(1, 1, dtype=real_dtype(x.value), device=device)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    new = over + "'"
    transformed = contract(Named(matrix[None, None], (new, over)), x)
    return Named(arranged(transformed, tuple(new if n == over else n for n in x.dims)), x.dims)


def eye(row: str, column: str, dim_table: Dims, like: Tensor) -> Named:
    if dim_table.sizes[row] != dim_table.sizes[column] or row == column:
        raise ValueError(f"eye: {row} and {column} must be two names of one size")
    return Named(torch.eye(dim_table.sizes[row], dtype=like.dtype, device=like.device)[None, None], (row, column))


# --- indexing and assignment -----------------------------------------------------------------------------------------


def pick(x: Named, over: str, position: int) -> Named:
    axis = 2 + x.dims.index(over)
    rest = tuple(name for name in x.dims if name != over)
    return Named(scaled.remap(lambda t: t.select(axis, position), x.value), rest)


def assigned(x: Named, dims: tuple[str, ...], dim_table: Dims, target: str) -> Named:
    """x as the value of a name declared over ``dims``: matched by name, a missing name supplied by its one alias."""
    missing = [name for name in dims if name not in x.dims]
    for name in missing:
        left_over = [n for n in x.dims if n not in dims and dim_table.roots[n] == dim_table.roots[name]]
        if len(left_over) != 1:
            raise ValueError(f"{target}{_show(dims)} cannot take a value over {_show(x.dims)}: {name} is missing")
        x = rename(x, left_over[0], name)
    if len(x.dims) != len(dims):
        raise ValueError(f"{target}{_show(dims)} cannot take a value over {_show(x.dims)}")
    return Named(arranged(x, dims), dims)


def is_complex(x: Value) -> bool:
    return (x.mantissa if isinstance(x, Scaled) else x).is_complex()


def real_dtype(x: Value) -> torch.dtype:
    dtype = x.mantissa.dtype if isinstance(x, Scaled) else x.dtype
    return dtype.to_real() if dtype.is_complex else dtype


def _show(dims: tuple[str, ...]) -> str:
    return f"[{', '.join(dims)}]" if dims else "a number"

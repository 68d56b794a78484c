"""Evaluates nodes with torch, one at a time, as plainly as the definitions read: what tests compare passes with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recur.ir.core import Node, topological
from recur.operators import OPERATORS

Dims = tuple[str, ...]


def evaluate(nodes: Sequence[Node], leaves: dict[Node, Tensor], sizes: dict[str, int]) -> list[Tensor]:
    """The nodes' values; a value's shape is any leading batch dims, then node.dims.

    ``leaves`` gives a tensor for every leaf, or for any other node (its arguments are then not looked at). Batch dims
    broadcast against each other. Differentiable. Constants take the precision of the leaves (float64 without any).
    """
    dtype = torch.float64
    for leaf in leaves.values():
        dtype = leaf.dtype.to_real()
    values: dict[Node, Tensor] = {}
    for node in topological(nodes):
        if node in leaves:
            values[node] = leaves[node]
        elif node.op != "leaf" and all(a in values for a in node.args):
            values[node] = _evaluate_node(node, [values[a] for a in node.args], sizes, dtype)
    return [values[node] for node in nodes]


def align(value: Tensor, dims: Dims, wanted: Dims) -> Tensor:
    """The value with its named axes in the order ``wanted``, of size 1 where it has none."""
    batch = value.dim() - len(dims)
    kept = [d for d in wanted if d in dims]
    assert len(kept) == len(dims), f"{dims} do not fit into {wanted}"
    value = value.permute([*range(batch), *(batch + dims.index(d) for d in kept)])
    for position, dim in enumerate(wanted):
        if dim not in dims:
            value = value.unsqueeze(batch + position)
    return value


def _evaluate_node(node: Node, values: list[Tensor], sizes: dict[str, int], dtype: torch.dtype) -> Tensor:
    if node.op in OPERATORS:
        return _evaluate_elementwise(node, values, dtype)
    attrs = node.attrs
    dims = node.args[0].dims if node.args else ()
    match node.op:
        case "const":
            return torch.tensor(attrs[0], dtype=dtype)
        case "size":
            return torch.tensor(sizes[attrs[0]], dtype=dtype)
        case "eye":
            return torch.eye(sizes[attrs[0]], dtype=dtype)
        case "contract":
            full = tuple(dict.fromkeys((*node.dims, *attrs[0])))
            left, right = (align(v, a.dims, full) for v, a in zip(values, node.args, strict=True))
            return _reduce(torch.sum, left * right, full, attrs[0])
        case "sum" | "amax":
            return _reduce(torch.sum if node.op == "sum" else torch.amax, values[0], dims, attrs[0])
        case "expand":
            aligned = align(values[0], dims, node.dims)
            batch = aligned.shape[: aligned.dim() - len(node.dims)]
            return aligned.expand(*batch, *(sizes[d] for d in node.dims))
        case "rename" | "version":
            return values[0]
        case "stop":
            return values[0].detach()
        case "index":
            return values[0].select(dims.index(attrs[0]) - len(dims), attrs[1])
        case "place":
            onehot = torch.zeros(sizes[attrs[0]], dtype=dtype)
            onehot[attrs[1]] = 1
            return torch.where(onehot.bool(), values[0].unsqueeze(-1), 0)
        case "hadamard":
            axis = dims.index(attrs[0]) - len(dims)
            matrix = _hadamard_matrix(sizes[attrs[0]]).to(values[0].dtype)
            return (values[0].movedim(axis, -1) @ matrix).movedim(-1, axis)
    raise ValueError(f"unknown operation {node.op!r}")


def _evaluate_elementwise(node: Node, values: list[Tensor], dtype: torch.dtype) -> Tensor:
    aligned = [align(v, a.dims, node.dims) for v, a in zip(values, node.args, strict=True)]
    if node.op in ("complex", "polar"):
        aligned = [v.to(dtype) for v in torch.broadcast_tensors(*aligned)]
    if node.op == "where":  # torch.where promotes real to complex but cannot differentiate that
        aligned[1:] = [
            v + torch.zeros((), dtype=torch.promote_types(aligned[1].dtype, aligned[2].dtype)) for v in aligned[1:]
        ]
    names = {f"x{i}": v for i, v in enumerate(aligned)}
    attributes = {"exponent": repr(node.attrs[0])} if node.op == "pow" else {}
    return eval(OPERATORS[node.op].torch.format(*names, **attributes), {"torch": torch, "math": math}, names)


def _reduce(kind, value: Tensor, dims: Dims, over: Dims) -> Tensor:  # type: ignore[no-untyped-def]
    axes = [dims.index(d) - len(dims) for d in over]
    return kind(value, dim=axes) if axes else value


def _hadamard_matrix(n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    assert matrix.shape[0] == n, "a Hadamard transform needs a power of two"
    return matrix

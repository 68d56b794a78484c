"""The kernel that leaves scalar decays and factors of rows in memory (see stored_gates, weights)."""

from __future__ import annotations

from collections.abc import Callable

from recur.ir.tile import Access, Builder, Kernel
from recur.strategies.chunk.gates import Gate
from recur.strategies.chunk.shape import Shape
from recur.strategies.chunk.stored_gates import (
    GATE_EQUATIONS,
    StoredGates,
    distinct,
    end_access,
    nonzero_name,
    rows_access,
    stored_scales,
)
from recur.strategies.chunk.tiles import Tiles, load_keys
from recur.strategies.chunk.weights import Weights


def emit_gates_kernel(shape: Shape, stored: dict[str, StoredGates]) -> Kernel:
    """Every family's gates, all chunks at once: a program holds the L rows of a chunk.

    Where the stage takes passes, the weights that they give, and the factors of rows.
    """
    b = Builder()
    tiles = Tiles(b)
    for family in distinct(stored):
        gates = load_keys(tiles, family.form).key_gates
        assert gates is not None
        if shape.pass_forms:
            Weights(family).store(b, gates)
        parts = family.signs if shape.pass_forms else family.parts
        store_gate(b, family, "chunk", gates.end, end_access, parts)
        for stage in family.stages:
            gate = next(gates.at[i] for i in gates.at if family.stage(i) == stage)
            store_gate(b, family, stage, gate, rows_access, parts)
    for scale, buffer in stored_scales(shape).items():
        rows, zero, one = tiles.node(scale, "scale"), b.const(0.0, name="zero"), b.const(1.0, name="one")
        b.store(rows_access(buffer), rows)
        is_zero = b.map("eq", rows, zero, name="is_zero")
        b.store(rows_access(nonzero_name(buffer)), b.where(is_zero, one, rows, name="nonzero"))
    axes = tuple(a for a in shape.axes if a.name not in shape.value)
    warps = 4 if shape.pass_forms else 1
    return Kernel("gates", ("batch", "head", "chunk"), axes, tuple(b.statements), GATE_EQUATIONS, "gates", warps=warps)


def store_gate(
    b: Builder,
    family: StoredGates,
    where: int | str,
    gate: Gate,
    access: Callable[[str], Access],
    parts: tuple[str, ...],
) -> None:
    for part, value in (("log", gate.log), ("cuts", gate.cuts), ("unit", gate.unit)):
        if part in parts and value is not None:
            b.store(access(family.buffer(part, where)), value)

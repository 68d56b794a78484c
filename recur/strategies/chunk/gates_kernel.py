"""The kernel that leaves scalar decays in memory (see stored_gates)."""

from __future__ import annotations

from collections.abc import Callable

from recur.ir.tile import Access, Builder, Kernel
from recur.strategies.chunk.gates import Gate
from recur.strategies.chunk.shape import Shape, key_only
from recur.strategies.chunk.stored_gates import GATE_EQUATIONS, StoredGates, distinct, end_access, rows_access
from recur.strategies.chunk.tiles import Tiles, load_keys


def emit_gates_kernel(shape: Shape, stored: dict[str, StoredGates]) -> Kernel:
    """Every family's gates, all chunks at once: a program holds the L rows of a chunk."""
    b = Builder()
    tiles = Tiles(b)
    for family in distinct(stored):
        gates = load_keys(tiles, family.form).key_gates
        assert gates is not None
        store_gate(b, family, "chunk", gates.end, end_access)
        for stage in family.stages:
            gate = next(gates.at[i] for i in gates.at if family.stage(i) == stage)
            store_gate(b, family, stage, gate, rows_access)
    grid = ("batch", "head", "chunk")
    return Kernel("gates", grid, key_only(shape), tuple(b.statements), GATE_EQUATIONS, "gates", warps=1)


def store_gate(b: Builder, family: StoredGates, where: int | str, gate: Gate, access: Callable[[str], Access]) -> None:
    for part, value in (("log", gate.log), ("cuts", gate.cuts), ("unit", gate.unit)):
        if part in family.parts and value is not None:
            b.store(access(family.buffer(part, where)), value)

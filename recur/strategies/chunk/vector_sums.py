"""What every chunk adds to a vector's state, and to its adjoint, for all chunks at once (see families)."""

from __future__ import annotations

from dataclasses import replace

from recur.ir.tile import Builder, Kernel
from recur.strategies.chunk.adjoint import readout_keys, readout_values
from recur.strategies.chunk.families import sums_access, vector_part
from recur.strategies.chunk.gradients import load_cotangents
from recur.strategies.chunk.shape import Shape, key_only
from recur.strategies.chunk.tiles import Rows, Tiles
from recur.strategies.chunk.weights import weighted_chunk


def emit_vector_sums(shape: Shape, adjoint: bool) -> Kernel:
    """A program holds the rows of a chunk: (2^(G_C - G) B)^T 1, or Q~^T dO."""
    b = Builder(complex_buffers=shape.complex_buffers)
    tiles = Tiles(b)
    for form in vector_part(shape).forms:
        chunk = replace(weighted_chunk(shape, tiles, form, "key"), is_summed=False)
        if adjoint:
            cotangents = load_cotangents(b, shape, form)
            values: dict[str, Rows] = readout_values(chunk, cotangents)
            rows = [(side.vector, values[side.name], "start") for side in readout_keys(chunk, cotangents)]
        else:
            rows = [(key, chunk.form.values[j], "end") for j, key in chunk.form.keys.items()]
        for vector, value, which in rows:
            added = chunk.into_state(vector, value, vector.position, which, "read" if adjoint else "written")
            b.store(sums_access(form, vector.position), added)
    name = "reverse_vector_sums" if adjoint else "vector_sums"
    equation = "Q~^T dO" if adjoint else "(2^(G_C - G) B)^T 1"
    grid = ("batch", "head", "chunk")
    return Kernel(name, grid, key_only(shape), tuple(b.statements), (equation,), "vectors", warps=4)

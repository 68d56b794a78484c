"""Pairs of a chunk's rows in memory: P[c, s] of every reader and write, decays included, zero where s is not seen.

A walk that loads them is spared a product and the decays of all pairs at every one of its steps. Backward, E[c, s] of
every query and write goes from one kernel of gradients to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.normal import Event, MatrixForm, Read, Readout, Write
from recur.ir.tile import Buffer, Value
from recur.strategies.chunk.adjoint import Query, queries_of
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.shape import Shape, pair_access
from recur.strategies.chunk.tiles import Tiles, Vector, load_keys, load_values


def pairs_name(form: MatrixForm, later: int, earlier: int) -> str:
    return f"pairs_{form.state}_{later}_{earlier}"


def stored_pairs(form: MatrixForm) -> list[tuple[int, int]]:
    """The positions (reader, write) whose pairs are kept: all but those of the system, which is kept inverted."""
    readers = [i for i, e in enumerate(form.events) if isinstance(e, Read) or _reads_keys(e)]
    writes = [(i, e) for i, e in enumerate(form.events) if isinstance(e, Write)]
    return [
        (r, w)
        for r in readers
        for w, write in writes
        if isinstance(form.events[r], Readout) or write.read is None
    ]


def _reads_keys(event: Event) -> bool:
    return isinstance(event, Readout) and event.axis == "key"


def evidence_name(form: MatrixForm, query: Query, j: int) -> str:
    """The buffer of E, a query's pairs with the write number j over the value dims."""
    return f"E_{form.state}_{query.name}_{j}"


def evidence_buffers(shape: Shape) -> tuple[Buffer, ...]:
    """E of every query and write, between the kernels of the backward pass that write and read it."""
    return tuple(
        Buffer(evidence_name(form, query, j), ("B", "T", "H", "C"), "operand")
        for form in shape.forms
        for query in queries_of(form)
        for j in range(len(form.writes))
    )


def pair_buffers(form: MatrixForm) -> list[Buffer]:
    return [Buffer(pairs_name(form, *pair), ("B", "T", "H", "C"), "operand") for pair in stored_pairs(form)]


@dataclass
class PairedChunk(Chunk):
    """The equations of a chunk whose pairs lie in memory."""

    def _scores(self, x: Vector, y: Vector, name: str, crossing: int) -> Value:
        form = self.form.form
        if crossing or (x.position, y.position) not in stored_pairs(form):
            return super()._scores(x, y, name, crossing)
        return self.b.load(name, pair_access(pairs_name(form, x.position, y.position)), ("c", "s"))


def paired_chunk(tiles: Tiles, form: MatrixForm) -> PairedChunk:
    return PairedChunk(tiles, load_values(tiles, load_keys(tiles, form)))

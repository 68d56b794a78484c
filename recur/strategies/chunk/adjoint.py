"""One chunk of the backward pass, on the same pairs and decays as the forward equations.

Every term of the adjoint is a *query*: a key-side row kx and a value-side row vx at one position, which has read
sum_k kx S[k, v] vx[v]. A readout along the key dims is (q, dO); along the value dims (dO, x); a solved read, once Z is
known, is (a, -Z). With P = tril(Kx~ B^T) and E = tril(Vx U^T), summed over the queries,

    dU   = P^T Vx + (2^{G_C - G} B) dS_C          Z = Tm^T dU over the solved writes       dY = Z there, dU elsewhere
    dS_0 = 2^{G_C} dS_C + Kx~^T Vx                dKx = Vx S_0^T + E B^
    dB   = E^T Kx~ + 2^{G_C} U dS_C^T
    dVx  = Kx~ S_0 + P U

Of complex numbers, whatever is not the cotangent itself enters conjugated (PyTorch's convention); (kx, vx) of a
value-axis readout is then (conj dO, conj x).
"""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.core import Node
from recur.ir.normal import MatrixForm, Read
from recur.ir.tile import Value
from recur.strategies.chunk.equations import Blocks, Chunk
from recur.strategies.chunk.tiles import Rows, Vector, conj, conj_rows, signed


@dataclass(frozen=True)
class Query:
    """A readout, or the read of a solved write: its vector's expression and position."""

    name: str
    node: Node
    position: int
    write: int | None = None


def queries_of(form: MatrixForm) -> list[Query]:
    """The readouts, then the reads of the solved writes, in the order of `readout_keys` and `read_keys`."""
    reads = {e.name: (i, e.vector) for i, e in enumerate(form.events) if isinstance(e, Read)}
    found = [Query(r.name, r.vector, form.events.index(r)) for r in form.readouts]
    for j, write in enumerate(form.writes):
        if write.read is not None:
            position, node = reads[write.read]
            found.append(Query(f"solved_{j}", node, position, j))
    return found


@dataclass(frozen=True)
class KeySide:
    """A query's key-side row; ``name`` is the readout's or the read's."""

    name: str
    vector: Vector


def readout_keys(chunk: Chunk, cotangents: dict[str, Value]) -> list[KeySide]:
    """The key sides of the readouts: the query itself, or, for a value-axis readout, its cotangent."""
    sides = []
    for readout in chunk.form.form.readouts:
        if readout.axis == "key":
            vector = chunk.form.queries[readout.name]
        else:
            position = chunk.form.form.events.index(readout)
            rows = Rows(conj(chunk.b, cotangents[readout.name]))
            rows = signed(chunk.b, chunk.form.key_gates, position, rows)
            vector = Vector(rows.tile, rows.scale, readout.vector, position)
        sides.append(KeySide(readout.name, vector))
    return sides


def readout_values(chunk: Chunk, cotangents: dict[str, Value]) -> dict[str, Rows]:
    """The value sides of the readouts: the cotangent, or, for a value-axis readout, its vector."""
    return {
        r.name: Rows(cotangents[r.name]) if r.axis == "key" else conj_rows(chunk.b, chunk.form.queries[r.name])
        for r in chunk.form.form.readouts
    }


def read_keys(chunk: Chunk) -> list[KeySide]:
    form = chunk.form
    return [KeySide(f"solved_{j}", form.read_of(j)) for j in form.solved]


def solved_adjoint(chunk: Chunk, inverse: Blocks, d_u: dict[int, Value]) -> dict[int, Value]:
    """Z = Tm^T dU over the solved writes."""
    b, z = chunk.b, {}
    for i in chunk.form.solved:
        terms = [
            b.rename(b.contract(conj(b, inverse[j, i]), d_u[j], ("c",), name="Z"), "s", "c", name="Z")
            for j in chunk.form.solved
        ]
        z[i] = chunk.sum_of(terms, "Z")
    return z


def adjoint_values(
    chunk: Chunk,
    j: int,
    sides: list[KeySide],
    values: dict[str, Rows],
    adjoint_state: Value,
    scores: dict[tuple[str, int], Value] | None = None,
) -> tuple[Value, Value]:
    """dU of write j: (all of it, the part that comes from after the chunk)."""
    key = chunk.form.keys[j]
    from_after = chunk.against_state(key, key.position, "end", adjoint_state, "key", "b_R", adjoint=True)
    terms = [from_after]
    for side in sides:
        pairs = scores[side.name, j] if scores is not None else chunk.scores(side.vector, key)
        terms.append(chunk.gather_values(pairs, values[side.name], side.vector.position, key.position, "dU"))
    return chunk.sum_of(terms, "dU"), from_after


def previous_adjoint(chunk: Chunk, sides: list[KeySide], values: dict[str, Rows], adjoint_state: Value) -> Value:
    """dS_0 = 2^{G_C} dS_C + Kx~^T Vx."""
    state = chunk.decayed(adjoint_state, name="R", adjoint=True)
    for side in sides:
        read = chunk.into_state(
            conj_rows(chunk.b, side.vector), values[side.name], side.vector.position, "start", "read"
        )
        state = chunk.b.add(state, read, name="R_previous")
    return state

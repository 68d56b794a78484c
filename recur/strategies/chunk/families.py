"""States without reads under scalar decays: those that share decays, write keys and queries are columns of one state.

With F = [S | n] for a matrix S and a vector n of one family, U = [V | 1] and dO likewise, the equations of a chunk hold
as they stand: what pairs of tokens are worth, tril(dO U^T) D, is one tile for the family. A vector goes along in the
walks of its family's matrix. What a chunk adds to it is one vector, the sum of its keys, or of its queries backward:
these are found for all chunks at once, before the walks, and no tile of the matrix sums the rows again.

A decay given as a factor f, the same for all tokens of a head, is at least LEAST_FACTOR here: what is left of a state
under it is below rounding anyway, and d log f / f is the factor's gradient down to f = 0. (Of factors that differ from
token to token some may cut, and have a gradient all the same: those stages take no passes.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from recur.ir.core import Node, apply, const, is_const, leaves, topological
from recur.ir.normal import Decay, MatrixForm, Readout, Write
from recur.ir.tile import Access, Buffer, next_power_of_two
from recur.strategies.chunk.gates import CUT, is_plain_factor
from recur.strategies.chunk.scales import scale_keys
from recur.strategies.chunk.shape import LEAST_WIDTH, Shape, event_nodes, mixed_dims, needs_whole_values
from recur.strategies.operands import entries

MOST_ENTRIES = 128 * 128  # of a tile of the state
LEAST_FACTOR = 2.0 ** (CUT + 1)  # of decays that are factors: none of them cuts


def takes_passes(shape: Shape) -> bool:
    """Whether walks with a tile of the state hold the stage: else every chunk's states go to memory.

    An epilogue that mixes value dims is in the way of the forward walk's tiles alone (see `tiled`).
    """
    is_plain = all(
        f.key
        and not f.is_complex
        and all(r.axis == "key" for r in f.readouts)
        and all(not d.factor.dims and d.angle is None and not (is_plain_factor(d) and varies(d)) for d in f.decays)
        for f in shape.forms
    )
    dims = set(shape.key + shape.value)
    coefficients = [n for f in shape.forms for e in f.events for n in event_nodes(e)]
    mixes = any(dims & mixed_dims(n) for n in topological(coefficients))
    sizes = dict(shape.sizes)
    fits = LEAST_WIDTH * max(entries(shape.key, sizes), entries(shape.value, sizes)) <= MOST_ENTRIES
    written = [w.value for f in map(scale_keys, shape.forms) if not f.value for w in f.writes]
    has_ones = all(value is not None and is_const(value, 1.0) for value in written)
    can_tile = bool(shape.value) and not needs_whole_values(replace(shape, epilogue=()))
    return shape.splits and can_tile and not shape.fused and is_plain and has_ones and not mixes and fits


def varies(decay: Decay) -> bool:
    """Whether a decay differs from token to token."""
    return any(x.attrs[0] != "param" for x in leaves([decay.factor]))


def prepare_passes(shape: Shape) -> Shape:
    """The stage with the scales of what is written on the keys, where all forms of a family have them, and decays that
    are factors bounded."""
    forms = tuple(bound_factors(scale_keys(f)) for f in shape.forms)
    return replace(shape, forms=forms, pass_forms=forms)


def bound_factors(form: MatrixForm) -> MatrixForm:
    """The form with the logs of bounded moduli for decays that are factors."""
    events = (
        replace(e, log=apply("log", bounded_modulus(e))) if isinstance(e, Decay) and is_plain_factor(e) else e
        for e in form.events
    )
    return replace(form, events=tuple(events))


def bounded_modulus(decay: Decay) -> Node:
    return apply("max", apply("abs", decay.factor), const(LEAST_FACTOR))


@dataclass(frozen=True)
class Family:
    """Forms with the same decays, write keys and queries; matrices first. The first of all gives the name."""

    forms: tuple[MatrixForm, ...]

    @property
    def lead(self) -> MatrixForm:
        return self.forms[0]

    @property
    def name(self) -> str:
        return self.lead.state


def infer_families(shape: Shape) -> list[Family]:
    """Of a stage that takes passes; of all of it, where the shape is a part."""
    known: dict[tuple[object, ...], list[MatrixForm]] = {}
    for form in sorted(shape.pass_forms, key=lambda f: not f.value):
        known.setdefault(tuple(map(_shared, form.events)), []).append(form)
    return [Family(tuple(forms)) for forms in known.values()]


def _shared(event: object) -> tuple[object, ...]:
    """What of an event a family has in common."""
    if isinstance(event, Decay):
        return ("decay", event.log, event.sign)
    if isinstance(event, Write):
        return ("write", event.key)
    assert isinstance(event, Readout)
    return ("readout", event.vector)


def holds_whole(shape: Shape) -> bool:
    """Whether a program holds the whole state: a stage's one matrix. One walk finds the cotangents of values and keys
    then."""
    return write_tiles(shape) == 1


def write_tiles(shape: Shape) -> int:
    """In how many tiles of the value dims one walk finds the cotangents of values and keys; 0 where two walks do.

    Two tiles leave two partial sums of the keys' cotangents. Beside values twice as wide as keys these weigh less than
    a second walk over all that the first has loaded. (Of a vector both would have the whole.)
    """
    sizes = dict(shape.sizes)
    keys, values = (next_power_of_two(entries(dims, sizes)) for dims in (shape.key, shape.value))
    if sum(bool(f.value) for f in shape.pass_forms) != 1 or keys * values > 2 * MOST_ENTRIES:
        return 0
    if keys * values <= MOST_ENTRIES:
        return 1
    return 2 if values == 2 * keys and len(shape.value) == 1 and not vector_part(shape).forms else 0


def write_dims(shape: Shape) -> tuple[str, ...]:
    """The dim in tiles of which walks find the cotangents of keys, where there are several tiles."""
    return {0: shape.key[:1], 1: (), 2: shape.value}[write_tiles(shape)]


def write_width(shape: Shape) -> int:
    """Of those tiles."""
    return next_power_of_two(entries(shape.value, dict(shape.sizes))) // write_tiles(shape)


def sums_access(form: MatrixForm, position: int) -> Access:
    """Of what the rows of one event add to a vector, or to its adjoint, over a chunk."""
    return Access(f"sum_{form.state}_{position}", ("batch", "chunk", "head", *form.key))


def sum_buffers(shape: Shape, of: type[Write | Readout]) -> tuple[Buffer, ...]:
    """Those that the writes add to vectors, or the readouts to their adjoints."""
    return tuple(
        Buffer(sums_access(form, i).buffer, ("B", "N", "H", *form.key), doc="what a chunk adds to a vector")
        for form in vector_part(shape).forms
        for i, event in enumerate(form.events)
        if isinstance(event, of)
    )


def matrix_part(shape: Shape) -> Shape:
    """The forms with value dims."""
    return replace(shape, forms=tuple(f for f in shape.forms if f.value))


def vector_part(shape: Shape) -> Shape:
    """The forms without."""
    return replace(shape, forms=tuple(f for f in shape.forms if not f.value))

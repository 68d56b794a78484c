"""States without reads under scalar decays: those that share decays, write keys and queries are columns of one state.

With F = [S | n] for a matrix S and a vector n of one family, U = [V | 1] and dO likewise, the equations of a chunk hold
as they stand: what pairs of tokens are worth, tril(dO U^T) D, is one tile for the family. A vector's states are few
numbers: walks of their own leave them in memory for every chunk, and the tiles of the others' value dims do not each
walk them again.

A decay given as a factor f, the same for all tokens of a head, is at least LEAST_FACTOR here: what is left of a state
under it is below rounding anyway, and d log f / f is the factor's gradient down to f = 0. (Of factors that differ from
token to token some may cut, and have a gradient all the same: those stages take no passes.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from recur.ir.core import Node, apply, const, is_const, leaf, leaves, topological
from recur.ir.normal import Decay, MatrixForm, Readout, Write
from recur.ir.tile import next_power_of_two
from recur.strategies.chunk.gates import CUT, is_plain_factor
from recur.strategies.chunk.scales import scale_keys
from recur.strategies.chunk.shape import LEAST_WIDTH, Shape, mixed_dims
from recur.strategies.operands import entries

MOST_ENTRIES = 128 * 128  # of a tile of the state
LEAST_FACTOR = 2.0 ** (CUT + 1)  # of decays that are factors: none of them cuts


def takes_passes(shape: Shape) -> bool:
    """Whether walks with a tile of the state hold the stage: else every chunk's states go to memory."""
    is_plain = all(
        f.key
        and not f.is_complex
        and all(r.axis == "key" for r in f.readouts)
        and all(not d.factor.dims and d.angle is None and not (is_plain_factor(d) and varies(d)) for d in f.decays)
        for f in shape.forms
    )
    tiled = set(shape.key + shape.value)
    mixes = any(tiled & mixed_dims(n) for n in topological(shape.nodes))
    sizes = dict(shape.sizes)
    fits = LEAST_WIDTH * max(entries(shape.key, sizes), entries(shape.value, sizes)) <= MOST_ENTRIES
    written = [w.value for f in map(scale_keys, shape.forms) if not f.value for w in f.writes]
    has_ones = all(value is not None and is_const(value, 1.0) for value in written)
    return shape.splits and not shape.whole_values and not shape.fused and is_plain and has_ones and not mixes and fits


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


def joins_writes(shape: Shape) -> bool:
    """Whether one walk finds the cotangents of values and keys: a program holds the whole adjoint of the one matrix."""
    sizes = dict(shape.sizes)
    matrices = [f for f in shape.pass_forms if f.value]
    padded = math.prod(next_power_of_two(entries(dims, sizes)) for dims in (shape.key, shape.value))
    return len(matrices) == 1 and padded <= MOST_ENTRIES


def kept_axes(form: MatrixForm) -> tuple[str, ...]:
    """The dims of states in memory at every chunk's start, in the order in which walks over tiles of the key dim hold
    them (see passes)."""
    return form.value + form.key


def vector_part(shape: Shape) -> Shape | None:
    """The forms without value dims as a stage whose results are their readouts; None where there are none."""
    forms = tuple(f for f in shape.forms if not f.value)
    names = {r.name: shape.result_of(r.name) or r.name for f in forms for r in f.readouts}
    epilogue = tuple((result, leaf("readout", name, ())) for name, result in names.items())
    return replace(shape, forms=forms, epilogue=epilogue, value=(), whole_values=True) if forms else None


def matrix_part(shape: Shape) -> Shape:
    """The forms with value dims. The stage's results stay with them, but those that are a vector's readout alone."""
    own = {r.name for f in shape.forms if f.value for r in f.readouts}
    epilogue = tuple((n, x) for n, x in shape.epilogue if not shape.trivial_epilogue or _readout(x) in own)
    return replace(shape, forms=tuple(f for f in shape.forms if f.value), epilogue=epilogue)


def _readout(node: Node) -> str:
    return str(node.attrs[1])

"""The structure that the compiler has proved: stages, and each stage's normal form (docs/mathematics.md, section 1).

Nodes here are per-token expressions over leaves

    input, param, prev      the user's tensors (prev: the previous token's input)
    value                   an output or local of an earlier stage (one value per token)
    state, next             a state of this stage before / after the token's step   (elementwise, linear and general)
    readout                 a readout of a matrix state                              (epilogues of matrix forms)

A complex number is one node; printers split it where the target has no complex type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from recur.ir.core import Node, Step
from recur.ir.spec import Span

Family = Literal["matrix", "elementwise", "maxplus", "linear", "general"]


# --- matrix states: S in R^{K x V}, an ordered list of events per token ----------------------------------------------


@dataclass(frozen=True)
class Decay:
    """S <- factor * S. ``factor`` has a subset of the state's dims.

    factor = sign * exp(log) (* exp(i angle) where complex): ``log`` is the natural log of the modulus, simplified from
    the product that the user wrote (None: modulus one); ``sign`` is +1 or -1 (None: never negative). ``may_grow``: its
    modulus is not known to be at most one.
    """

    factor: Node
    log: Node | None
    sign: Node | None = None
    angle: Node | None = None
    span: Span | None = field(default=None, compare=False)
    may_grow: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Read:
    """r_i = sum over the key dims of vector * S, at this position. ``vector`` has key (and batch) dims."""

    name: str
    vector: Node
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Write:
    """S <- S + key (x) (value - r), r the earlier read named ``read`` (None: a plain write; value None: zero).

    ``key`` has key (and batch) dims, ``value`` value (and batch) dims; scalar factors are on the read's vector and on
    the value.
    """

    key: Node
    value: Node | None
    read: str | None = None
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Readout:
    """name = sum over ``axis``'s dims of vector * S, at this position; ``axis`` is "key" or "value"."""

    name: str
    vector: Node
    axis: Literal["key", "value"] = "key"
    span: Span | None = field(default=None, compare=False)


Event = Decay | Read | Write | Readout


def map_event(event: Event, change: Callable[[Node], Node]) -> Event:
    """The event with every one of its expressions changed."""

    def maybe(node: Node | None) -> Node | None:
        return None if node is None else change(node)

    if isinstance(event, Decay):
        log, sign, angle = maybe(event.log), maybe(event.sign), maybe(event.angle)
        return replace(event, factor=change(event.factor), log=log, sign=sign, angle=angle)
    if isinstance(event, Write):
        return replace(event, key=change(event.key), value=maybe(event.value))
    return replace(event, vector=change(event.vector))


@dataclass(frozen=True)
class MatrixForm:
    """One matrix state. Reads contract ``key``; dims in ``batch`` are aligned everywhere (they act as more heads).

    ``events`` in the order in which they happen within a token.
    """

    state: str
    batch: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    events: tuple[Event, ...]
    is_complex: bool = False

    @property
    def reads(self) -> tuple[Read, ...]:
        return tuple(e for e in self.events if isinstance(e, Read))

    @property
    def writes(self) -> tuple[Write, ...]:
        return tuple(e for e in self.events if isinstance(e, Write))

    @property
    def decays(self) -> tuple[Decay, ...]:
        return tuple(e for e in self.events if isinstance(e, Decay))

    @property
    def readouts(self) -> tuple[Readout, ...]:
        return tuple(e for e in self.events if isinstance(e, Readout))


# --- the other families ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ElementwiseForm:
    """h <- decay * h + drive, elementwise over the state's dims. ``log`` and ``sign`` as in `Decay`, where known."""

    state: str
    dims: tuple[str, ...]
    decay: Node
    drive: Node
    log: Node | None = None
    is_complex: bool = False


@dataclass(frozen=True)
class MaxPlusForm:
    """m <- max(m + log_decay, drive): the running log scale of stabilised states; a constant to autodiff."""

    state: str
    dims: tuple[str, ...]
    log_decay: Node
    drive: Node


@dataclass(frozen=True)
class LinearForm:
    """h[batch, row] <- sum over column of matrix[batch, row, column] * h[batch, column] + drive[batch, row].

    ``column`` are other names for ``row``'s sizes (aliases), pairwise.
    """

    state: str
    batch: tuple[str, ...]
    row: tuple[str, ...]
    column: tuple[str, ...]
    matrix: Node
    drive: Node
    is_complex: bool = False


@dataclass(frozen=True)
class GeneralForm:
    """Any update: next state = ``update``, a node over the stage's previous states. ``why`` it is no affine form."""

    state: str
    dims: tuple[str, ...]
    update: Node
    why: str
    span: Span | None = field(default=None, compare=False)


Form = MatrixForm | ElementwiseForm | MaxPlusForm | LinearForm | GeneralForm


@dataclass(frozen=True)
class Stage:
    """States that depend on one another, with what they export. Nodes are over the leaves of this module's docstring.

    ``updates``: (state, new value) over `state` leaves. ``exports``: (name, value) for every output and for every value
    that a later stage reads, over `state` (before the step) and `version` nodes.
    """

    name: str
    states: tuple[str, ...]
    updates: tuple[tuple[str, Node], ...]
    exports: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class NormalForm:
    """A stage classified. ``forms``: one a state. ``epilogue``: the stage's exports, as nodes over

    `readout` leaves (matrix), `state` and `next` leaves (the other families), and the stage's inputs.
    ``structure``: one line in the paper's symbols, for explain. ``scale_of``: for each stabilised state, the name of
    its log scale (the state of a `MaxPlusForm` of an earlier stage).
    """

    stage: Stage
    family: Family
    forms: tuple[Form, ...]
    epilogue: tuple[tuple[str, Node], ...]
    structure: str
    notes: tuple[str, ...] = ()
    scale_of: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Program:
    """Every stage of a recurrence in order, with the checked step it came from."""

    step: Step
    stages: tuple[NormalForm, ...]

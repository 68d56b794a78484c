"""Segments: runs of whole chunks that programs walk at the same time, where the state is not read by its own writes.

Over a segment the state goes from S to D * S + P, with D the product of the segment's decays and P what it writes into
an empty state. Two kernels come before a walk, and only where there are several segments:

    local     D and P of every segment at once
    starts    S at every segment's start, one segment after the other

The adjoint state R goes the same way from the last segment to the first, with the decays conjugated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recur.ir.normal import MatrixForm
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.equations import Chunk
from recur.strategies.chunk.gates import class_decays
from recur.strategies.chunk.shape import Shape, state_access
from recur.strategies.chunk.tiles import conj

CLASSES = ("key", "value")

# The step of one form's state over a chunk, by the form's number: what follows the state, and the chunk's equations.
Advance = Callable[[int, Value], tuple[Value, Chunk]]


@dataclass(frozen=True)
class Walk:
    """Names of what walks over a form's state: S forward (``adjoint`` False), R backward.

    ``given``: the buffer of the whole sequence's first state; ``result``: that of its last.
    """

    shape: Shape
    form: MatrixForm
    adjoint: bool = False

    @property
    def state(self) -> str:
        return f"R_{self.form.state}" if self.adjoint else self.form.state

    @property
    def given(self) -> str:
        return f"d_final_{self.form.state}" if self.adjoint else self.form.state

    @property
    def result(self) -> str:
        return f"d_{self.form.state}" if self.adjoint else f"final_{self.form.state}"

    @property
    def axes(self) -> tuple[str, ...]:
        return self.shape.state_axes(self.form)

    @property
    def start(self) -> Access:
        return self._access(self.given, "start")

    @property
    def end(self) -> Access:
        return self._access(self.result, "end")

    def _access(self, whole: str, part: str) -> Access:
        if not self.shape.splits:
            return state_access(whole, self.axes)
        return segment_access(f"{part}_{self.state}", self.axes)

    def decay_axes(self, which: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d for _, e in class_decays(self.form, which) for d in e.factor.dims))

    @property
    def classes(self) -> list[str]:
        return [c for c in CLASSES if class_decays(self.form, c)]

    def decay(self, which: str) -> str:
        return f"over_{self.state}_{which}"

    @property
    def start_buffer(self) -> Buffer:
        layout, first = ("B", "G", "H", *self.axes), -1 if self.adjoint else 0
        return Buffer(f"start_{self.state}", layout, "accumulate", self.form.is_complex,
                      f"{self.state} where every segment's walk starts", self.given, first)  # fmt: skip

    @property
    def end_buffer(self) -> Buffer:
        layout, last = ("B", "G", "H", *self.axes), 0 if self.adjoint else -1
        return Buffer(f"end_{self.state}", layout, "accumulate", self.form.is_complex,
                      f"{self.state} where it ends", self.result, last)  # fmt: skip

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What only one pass uses."""
        layout, is_complex = ("B", "G", "H", *self.axes), self.form.is_complex
        decays = [
            Buffer(self.decay(c), ("B", "G", "H", *self.decay_axes(c)), "accumulate",
                   self.decay(c) in self.shape.complex_buffers, "the product of a segment's decays")
            for c in self.classes
        ]  # fmt: skip
        written = "what a segment writes into an empty state"
        return (Buffer(f"local_{self.state}", layout, "accumulate", is_complex, written), *decays)


def segment_access(buffer: str, dims: tuple[str, ...]) -> Access:
    return Access(buffer, ("batch", "segment", "head", *dims))


def walks(shape: Shape, adjoint: bool = False) -> list[Walk]:
    return [Walk(shape, form, adjoint) for form in shape.forms]


def emit_local(shape: Shape, adjoint: bool, begin: Callable[[Builder], Advance], equation: str) -> Kernel:
    """D and P of every segment; ``begin`` gives the step over a chunk in the loop's body."""
    b = Builder(complex_buffers=shape.complex_buffers)
    inner = b.nested()
    advance = begin(inner)
    carries: list[Carry] = []
    ends: list[tuple[Access, Value]] = []
    for index, walk in enumerate(walks(shape, adjoint)):
        empty = b.zeros(walk.axes, walk.state, walk.form.is_complex)
        state = inner.phi(walk.state, empty)
        following, chunk = advance(index, state)
        carries.append(Carry(state, empty, following))
        ends.append((segment_access(f"local_{walk.state}", walk.axes), state))
        for which in walk.classes:
            factor = chunk.class_over_chunk(which)
            carry = decay_carry(b, inner, conj(inner, factor) if adjoint else factor)
            carries.append(carry)
            ends.append((segment_access(walk.decay(which), walk.decay_axes(which)), carry.phi))
    b.loop("chunks", inner, tuple(carries), reverse=adjoint)
    for access, value in ends:
        b.store(access, value)
    name = "reverse_local" if adjoint else "local"
    equations = (equation, "D <- 2^G_C D")
    return Kernel(name, shape.segment_grid, shape.axes, tuple(b.statements), equations, "segments", joins_segments=True)


def decay_carry(b: Builder, inner: Builder, factor: Value) -> Carry:
    """The running product of one class's decays over the chunks."""
    one = b.full(factor.axes, 1.0, name="D")
    phi = Value(inner.name("D"), factor.axes, factor.is_complex)
    return Carry(phi, one, inner.mul(phi, factor, name="D"))


def emit_starts(shape: Shape, adjoint: bool) -> Kernel:
    """Every segment's first state, from D and P of those before it."""
    b = Builder(complex_buffers=shape.complex_buffers)
    inner = b.nested()
    carries = []
    for walk in walks(shape, adjoint):
        first = b.load(walk.state, state_access(walk.given, walk.axes), walk.axes)
        state = inner.phi(walk.state, first)
        inner.store(walk.start, state)
        written = inner.load("P", segment_access(f"local_{walk.state}", walk.axes), walk.axes)
        kept = state
        for which in walk.classes:
            axes = walk.decay_axes(which)
            kept = inner.mul(kept, inner.load("D", segment_access(walk.decay(which), axes), axes), name=walk.state)
        carries.append(Carry(state, first, inner.add(kept, written, name=walk.state)))
    b.loop("segments", inner, tuple(carries), reverse=adjoint)
    name = "reverse_starts" if adjoint else "starts"
    letter = "R" if adjoint else "S"
    equations = (f"{letter} <- D {letter} + P",)
    return Kernel(name, shape.grid, shape.axes, tuple(b.statements), equations, "segments", joins_segments=True)

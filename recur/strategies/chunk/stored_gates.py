"""Scalar decays of every chunk in memory: their running logs, cuts and signs, from one kernel for all chunks at once.

Scans and sums along a chunk's tokens are short but slow: a walk that would wait for them at every chunk loads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.normal import Decay, MatrixForm
from recur.ir.tile import Access, Buffer, Builder
from recur.strategies.chunk.gates import Gate, Gates, can_cut, class_decays
from recur.strategies.chunk.shape import Shape

GATE_EQUATIONS = ("G_t: the running log2 decay from the chunk's start to token t",)


@dataclass(frozen=True)
class StoredGates:
    """The decays that forms have in common: where their gates lie in memory. ``form``: the first that has them."""

    form: MatrixForm

    @property
    def name(self) -> str:
        return self.form.state

    @property
    def decays(self) -> list[tuple[int, Decay]]:
        return class_decays(self.form, "key")

    @property
    def parts(self) -> tuple[str, ...]:
        """What is kept at a position: the log, and where there are any, the number of cuts and the sign."""
        cuts = any(can_cut(d.log) for _, d in self.decays)
        signs = any(d.sign is not None for _, d in self.decays)
        return ("log", *(("cuts",) if cuts else ()), *(("unit",) if signs else ()))

    def stage(self, position: int) -> int:
        """How many of a token's decays come before a position: positions with the same number share their gate."""
        return sum(i < position for i, _ in self.decays)

    @property
    def stages(self) -> list[int]:
        """Those at which something is written or read."""
        return sorted({self.stage(i) for i, e in enumerate(self.form.events) if not isinstance(e, Decay)})

    def buffer(self, part: str, where: int | str) -> str:
        return f"{part}_{self.name}_{where}"

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        tokens = [Buffer(self.buffer(p, n), ("B", "N", "H", "C")) for n in self.stages for p in self.parts]
        return (*tokens, *(Buffer(self.buffer(p, "chunk"), ("B", "N", "H")) for p in self.parts))

    def load_end(self, b: Builder) -> Gate:
        """The whole chunk's: G_C, its cuts, its sign."""
        found = {p: b.load(f"{p}_C", end_access(self.buffer(p, "chunk")), ()) for p in self.parts}
        return Gate(found["log"], found.get("cuts"), found.get("unit"))

    def load_rows(self, b: Builder, rows: str, end: Gate, past_the_end: float | None = None) -> Gates:
        """The gates of a tile's rows; ``past_the_end``: G beyond the sequence (0 where it is not given)."""
        at: dict[int, Gate] = {}
        for stage in self.stages:
            found = {p: b.load(p, rows_access(self.buffer(p, stage), rows), (rows,)) for p in self.parts}
            log = found["log"] if past_the_end is None else b.valid(found["log"], rows, past_the_end, name="log")
            gate = Gate(log, found.get("cuts"), found.get("unit"))
            at |= {i: gate for i in range(len(self.form.events)) if self.stage(i) == stage}
        return Gates((), at, end)


def rows_access(buffer: str, rows: str = "c") -> Access:
    """A number a token with those of a chunk side by side: layout B N H C."""
    return Access(buffer, ("batch", "chunk", "head", rows))


def end_access(buffer: str) -> Access:
    return Access(buffer, ("batch", "chunk", "head"))


def stored_gates(shape: Shape) -> dict[str, StoredGates]:
    """By state; forms with the same decays at the same positions share them."""
    known: dict[tuple[object, ...], StoredGates] = {}
    found: dict[str, StoredGates] = {}
    for form in shape.forms:
        decays = class_decays(form, "key")
        if decays:
            key = (len(form.events), *((i, d.log, d.sign) for i, d in decays))
            found[form.state] = known.setdefault(key, StoredGates(form))
    return found


def scalar_gates(shape: Shape) -> dict[str, StoredGates]:
    """The stored gates of those states whose key class has real scalar decays alone."""
    return {
        state: stored
        for state, stored in stored_gates(shape).items()
        if all(not d.factor.dims and d.angle is None for _, d in stored.decays)
    }


def distinct(stored: dict[str, StoredGates]) -> list[StoredGates]:
    return list({s.name: s for s in stored.values()}.values())

"""Gradients of decays over dims that are given as factors, which may be zero: nothing is divided by them.

The derivative by one factor is the sum of all pairs that straddle it, with that factor left out. For the decay d of
token t, with x_r the rows that read, y_s the rows that write, M[r, s] their product along the other axis, and D(.., ..)
the product of all decays between two positions,

    X_t[r] = sum over s before d_t of M[r, s] D(d_t, s) y_s       what row r would read if it stood right before d_t
    dd_t   = sum over r after d_t of x_r D(r, d_t) X_t[r]         D without d_t on either side

X runs along t by a scan, X <- D X + M y, for every r: tiles [c, s, dims] with c the row r and s the token t. The state
at the chunk's start is one more write; the adjoint state at its end is one more row, kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recur.ir.tile import Builder, Value
from recur.strategies.chunk.gates import Gates
from recur.strategies.chunk.tiles import conj


@dataclass(frozen=True)
class Writer:
    """y [c, dims] at an event's position, and what of it reaches the adjoint state at the chunk's end [c, dims]."""

    rows: Value
    at_end: Value
    position: int


@dataclass(frozen=True)
class Reader:
    """x [c, dims] at an event's position; M [c, s] by writer; what it reads of the state at the start [c, dims]."""

    rows: Value
    pairs: tuple[Value, ...]
    from_start: Value
    position: int


@dataclass(frozen=True)
class FactorGradient:
    """``both`` [dims]: the state at the chunk's start times the adjoint at its end."""

    b: Builder
    gates: Gates
    readers: Sequence[Reader]
    writers: Sequence[Writer]
    both: Value

    def of(self, decay: int) -> Value:
        """The cotangent [c, dims] of the modulus of the decay at a position, for every token."""
        total = self._to_end(decay)
        for reader in self.readers:
            total = self.b.add(total, self._to_reader(reader, decay), name="d_factor")
        return total

    def _between(self, later: Value, earlier: Value, name: str) -> Value:
        return self.b.exp2(self.b.sub(later, earlier, name="elapsed"), name=name)

    @property
    def _before(self) -> Value:
        """G at the token's start."""
        return self.gates.at[0].log

    @property
    def _after(self) -> Value:
        """G at the token's end."""
        return self.b.previous(self._before, self.gates.end.log, "c", "after_token", reverse=True)

    def _past(self, decay: int) -> Value:
        """G right after the decay."""
        return self.gates.at[decay + 1].log if decay + 1 in self.gates.at else self._after

    def _prefix(self, amounts: Sequence[Value], start: Value, rows: str, decay: int) -> Value:
        """X right before the decay of each token along ``rows``: from each writer's amounts at its own position."""
        b, at, before, after = self.b, self.gates.at, self._before, self._after
        moved = (lambda x: b.rename(x, "c", "s")) if rows == "s" else (lambda x: x)
        written = None
        for writer, amount in zip(self.writers, amounts, strict=True):
            kept = b.mul(amount, moved(self._between(after, at[writer.position].log, "kept")), name="written")
            written = kept if written is None else b.add(written, kept, name="written")
        decayed = moved(b.exp2(after, name="from_start"))
        following = b.mul(decayed, start, name="X_start")
        if written is not None:
            step = b.expand(moved(self._between(after, before, "token_decay")), written.axes, name="token_decay")
            _, own = b.scan(step, written, rows, names=("running", "own"))
            following = b.add(own, following, name="X_after")
        x = b.previous(following, start, rows, name="X_before")
        x = b.mul(x, moved(self._between(at[decay].log, before, "earlier")), name="X")
        for writer, amount in zip(self.writers, amounts, strict=True):
            if writer.position < decay:
                own = b.mul(amount, moved(self._between(at[decay].log, at[writer.position].log, "since")), name="own")
                x = b.add(x, own, name="X")
        return x

    def _to_reader(self, reader: Reader, decay: int) -> Value:
        b = self.b
        amounts = [
            b.mul(pairs, b.rename(writer.rows, "c", "s"), name="M_y")
            for pairs, writer in zip(reader.pairs, self.writers, strict=True)
        ]
        x = self._prefix(amounts, reader.from_start, "s", decay)
        seen = b.after("c", "s", 0 if reader.position > decay else 1)
        zero = b.const(0.0, name="zero")
        elapsed = b.sub(self.gates.at[reader.position].log, b.rename(self._past(decay), "c", "s"), name="elapsed")
        weight = b.exp2(b.where(seen, elapsed, zero, name="elapsed"), name="D")
        read = b.mul(b.mul(weight, reader.rows, name="D_x"), x, name="read")
        kept = b.where(seen, read, zero, name="straddling")
        return b.rename(b.sum(kept, ("c",), name="straddling"), "s", "c", name="straddling")

    def _to_end(self, decay: int) -> Value:
        b, end = self.b, self.gates.end
        x = self._prefix([w.at_end for w in self.writers], self.both, "c", decay)
        x = b.mul(x, self._between(end.log, self._past(decay), "to_end"), name="d_factor")
        return x if end.unit is None else b.mul(x, conj(b, end.unit), name="d_factor")

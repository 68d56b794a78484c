"""Gradients of log decays inside one chunk, from float32 tiles and anchored at the chunk's ends.

Scalar decays: the cotangent of the log decay of token t is the sum of all pairs that straddle it (nothing cancels):

    sum over c >= t > s of M[c, s], M = E * P     rows that read the chunk's start, c >= t
    rows written before t that outlive the chunk  2^{G_C} <S_0, dS_C>

Decays over dims: each read adds kx * dkx and each write takes off b * db from its position on, plus <S_C, dS_C>.
"Before" and "after" follow the positions of the events within a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.tile import Builder, Value


@dataclass(frozen=True)
class Row:
    """A per-row amount [c, dims] credited at an event's position."""

    amount: Value
    position: int


def later_sum(b: Builder, row: Row, decay: int, name: str = "later") -> Value:
    """Sum over the rows whose event comes after the decay at position ``decay`` of token t, for each t."""
    exclusive = b.cumsum(row.amount, "c", exclusive=row.position > decay, name="before")
    return b.sub(b.sum(row.amount, ("c",), name="in_all"), exclusive, name=name)


def earlier_sum(b: Builder, row: Row, decay: int, name: str = "earlier") -> Value:
    """Sum over the rows whose event comes before the decay at position ``decay`` of token t, for each t."""
    return b.cumsum(row.amount, "c", exclusive=row.position > decay, name=name)


def straddling_sum(b: Builder, pairs: Value, later: int, earlier: int, decay: int) -> Value:
    """For each token t the sum of M[c, s] over the pairs on either side of the decay at position ``decay``.

    Those read after it, less those written after it.
    """
    read, written = pair_rows(b, pairs, later, earlier, decay)
    return b.sub(later_sum(b, read, decay), later_sum(b, written, decay), name="straddling")


def pair_rows(b: Builder, pairs: Value, later: int, earlier: int, decay: int) -> tuple[Row, Row]:
    """What every token reads, and what is read of it, in pairs M[c, s].

    A token's own pair is left out where both its events are on one side of the decay: it is large where decays are
    strong, and would leave its rounding behind.
    """
    if not earlier < decay < later:
        pairs = b.where(b.after("c", "s", 1), pairs, b.const(0.0, name="zero"), name="M")
    rows = b.sum(pairs, ("s",), name="M_rows")
    columns = b.rename(b.sum(pairs, ("c",), name="M_columns"), "s", "c", name="M_columns")
    return Row(rows, later), Row(columns, earlier)


@dataclass
class Straddling:
    """The sum of all pairs on either side of the scalar decay at position ``decay``, as its parts come.

    Rows are added up first and summed along the tokens once: scans are slow beside products. They may come from a body
    nested in that of ``b`` if they are sums that leave it.
    """

    b: Builder
    decay: int
    after: dict[bool, list[tuple[Row, int]]] = field(default_factory=dict)
    before: dict[bool, list[tuple[Row, int]]] = field(default_factory=dict)

    def add_read(self, row: Row, sign: int = 1) -> None:
        """What a token reads of before the chunk."""
        self.after.setdefault(row.position > self.decay, []).append((row, sign))

    def add_written(self, row: Row) -> None:
        """What a token's write leaves to after the chunk."""
        self.before.setdefault(row.position > self.decay, []).append((row, 1))

    def add_pairs(self, pairs: Value, later: int, earlier: int) -> None:
        """Pairs [c, s] inside the chunk; see `straddling_sum`."""
        read, written = pair_rows(self.b, pairs, later, earlier, self.decay)
        self.add_read(read)
        self.add_read(written, sign=-1)

    def total(self) -> Value:
        """All but what goes across the whole chunk, 2^{G_C} <S_0, dS_C>."""
        parts = [later_sum(self.b, self._sum(rows), self.decay) for rows in self.after.values()]
        parts += [earlier_sum(self.b, self._sum(rows), self.decay) for rows in self.before.values()]
        total = parts[0]
        for part in parts[1:]:
            total = self.b.add(total, part, name="d_log")
        return total

    def _sum(self, rows: list[tuple[Row, int]]) -> Row:
        (first, sign), *others = rows
        amount = first.amount if sign > 0 else self.b.neg(first.amount, name=first.amount.name)
        for row, sign in others:
            grow = self.b.add if sign > 0 else self.b.sub
            amount = grow(amount, row.amount, name="worth")
        return Row(amount, first.position)

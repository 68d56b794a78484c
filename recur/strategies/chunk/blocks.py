"""Pairs of rows by blocks of a chunk, under decays over the key dims that are not too strong.

A chunk is one block of rows or two. With F the running sum before the block of row c, and D that at the end of the
block of row s, rows c > s have

    2^(G_c - G_s) = 2^(G_c - F) 2^(F - G_s)   in one block        2^(G_c - F) 2^(D - G_s)   in two, where D is F

Only F - G_s is above 0, and not above F - G_c. So let row c be *near* where F - G_c is within the room r of the operand
type for all key dims at hand. Then three tiles have the pairs of near readers in one block and all pairs of two blocks:

    P = X Y^T or X W^T,     X = x 2^(G - F),     Y = b 2^min(F - G, r),     W = b 2^(D - G)

and with E the cotangent of P, in parts E_Y (of near readers) and E_W,

    dx = 2^(G - F) (E_Y Y + E_W W)        db = 2^(F - G) E_Y^T X + 2^(D - G) E_W^T X

The other readers' pairs within their blocks are left to halves.py. Whether a row is near depends on no later row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.tile import Builder, Value
from recur.strategies.chunk.gates import Gates
from recur.strategies.chunk.once import Once

BLOCK = 32  # rows: in longer blocks, ordinary decays leave the last rows far


@dataclass
class Blocks:
    """``log``: G after every token's last decay; ``rows``: the readers' and writes' rows [c, key dims] by position.

    ``is_one``: the chunk is one block, so that F is 0.
    """

    b: Builder
    gates: Gates
    log: Value
    rows: dict[int, Value]
    key: tuple[str, ...]
    is_one: bool
    once: Once = field(default_factory=Once)

    # which rows are near

    @property
    def is_near(self) -> Value:
        return self.once(("near",), lambda: self.b.map("le", self._passed, self._room, name="is_near"))

    @property
    def has_far(self) -> Value:
        """Whether there are other rows."""
        most = self.once(("most",), lambda: self.b.amax(self._passed, ("c",), name="most"))
        return self.once(("far",), lambda: self.b.map("gt", most, self._room, name="has_far"))

    @property
    def _room(self) -> Value:
        return self.once(("room",), self.b.room)

    @property
    def _passed(self) -> Value:
        """The largest F - G of each row."""
        return self.once(("passed",), lambda: self.b.amax(self._until(self.log), self.key, name="passed"))

    @property
    def _start(self) -> Value:
        return self.once(("start",), lambda: self.b.start(self.log, "c", BLOCK, name="F"))

    def _until(self, log: Value) -> Value:
        """F - G."""
        b = self.b
        emit = lambda: b.neg(log, name="until") if self.is_one else b.sub(self._start, log, name="until")  # noqa: E731
        return self.once(("until", log.name), emit)

    # factors and tiles by position

    def down(self, position: int) -> Value:
        """2^(G - F)"""
        b, log = self.b, self.gates.at[position].log
        emit = lambda: b.exp2(log if self.is_one else b.sub(log, self._start, name="since"), name="down")  # noqa: E731
        return self.once(("down", log.name), emit)

    def up(self, position: int) -> Value:
        """2^min(F - G, r)"""
        b, log = self.b, self.gates.at[position].log
        emit = lambda: b.exp2(b.map("min", self._until(log), self._room, name="until"), name="up")  # noqa: E731
        return self.once(("up", log.name), emit)

    def onward(self, position: int) -> Value:
        """2^(D - G)"""
        b, log = self.b, self.gates.at[position].log
        end = self.once(("end",), lambda: b.end(self.log, "c", BLOCK, name="D"))
        return self.once(("onward", log.name), lambda: b.exp2(b.sub(end, log, name="left"), name="onward"))

    def reader(self, position: int) -> Value:
        """X, rounded to the operand type."""
        return self._tile("X", position, self.down(position))

    def write(self, position: int) -> Value:
        """Y, rounded."""
        return self._tile("Y", position, self.up(position))

    def write_before(self, position: int) -> Value:
        """W, rounded."""
        return self._tile("W", position, self.onward(position))

    def _tile(self, name: str, position: int, factor: Value) -> Value:
        row, b = self.rows[position], self.b
        return self.once((name, row.name, factor.name), lambda: b.rounded(b.mul(row, factor, name=name), name=name))

    def scores(self, reader: int, write: int) -> Value:
        """P[c, s] where c > s and row c is near or s in another block; anything elsewhere."""
        b, x = self.b, self.reader(reader)
        beside = b.contract(x, b.rename(self.write(write), "c", "s"), self.key, name="P")
        if self.is_one:
            return beside
        across = b.contract(x, b.rename(self.write_before(write), "c", "s"), self.key, name="P")
        is_across = self.once(("across",), lambda: b.across("c", "s", BLOCK))
        return b.where(is_across, across, beside, name="P")

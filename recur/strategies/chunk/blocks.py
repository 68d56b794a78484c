"""Pairs of rows within blocks of a chunk, under decays over the key dims that are not too strong.

With F the running sum before a block, rows c >= s of the block have

    2^(G_c - G_s) = 2^(G_c - F) 2^(F - G_s)

where the first exponent is not above 0 and the second one not above F - G_c. So let a row c be *near* where F - G_c is
within the room r of the operand type for all key dims at hand. Of near readers one product of matrices has all pairs,

    P = X Y^T,     X = x 2^(G - F) of near rows, else 0,     Y = b 2^min(F - G, r)

and with E the cotangent of P where s comes before c, dx = 2^(G - F) E Y and db = 2^(F - G) E^T X. All other pairs are
left to halves.py. Whether a row is near depends on no later row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recur.ir.tile import Builder, Value
from recur.strategies.chunk.gates import Gates

BLOCK = 32  # rows: of longer blocks, ordinary decays leave the last rows far


@dataclass
class Blocks:
    """``log``: G after every token's last decay; ``rows``: the readers' and writes' rows [c, key dims] by position.

    ``is_chunk``: blocks are whole chunks, and F is 0.
    """

    b: Builder
    gates: Gates
    log: Value
    rows: dict[int, Value]
    key: tuple[str, ...]
    is_chunk: bool
    known: dict[tuple[str, ...], Value] = field(default_factory=dict)

    def once(self, key: tuple[str, ...], emit: Callable[[], Value]) -> Value:
        if key not in self.known:
            self.known[key] = emit()
        return self.known[key]

    @property
    def within(self) -> tuple[int, int | None]:
        """The levels whose halves are in one block."""
        return (0, None if self.is_chunk else BLOCK.bit_length() - 1)

    @property
    def beyond(self) -> tuple[int, int | None]:
        return (BLOCK.bit_length() - 1, None)

    @property
    def room(self) -> Value:
        return self.once(("room",), self.b.room)

    @property
    def passed(self) -> Value:
        """The largest F - G of a row."""
        return self.once(("passed",), lambda: self.b.amax(self._until(self.log), self.key, name="passed"))

    @property
    def is_near(self) -> Value:
        return self.once(("near",), lambda: self.b.map("le", self.passed, self.room, name="is_near"))

    @property
    def all_near(self) -> Value:
        """Whether every row is."""

        def emit() -> Value:
            return self.b.map("le", self.b.amax(self.passed, ("c",), name="passed"), self.room, name="all_near")

        return self.once(("all",), emit)

    def reader_factor(self, position: int) -> Value:
        """2^(G - F) of near rows, 0 of others."""
        b, log = self.b, self.gates.at[position].log

        def emit() -> Value:
            since = log if self.is_chunk else b.sub(log, self._start, name="since")
            return b.where(self.is_near, b.exp2(since, name="down"), b.const(0.0, name="zero"), name="down")

        return self.once(("down", log.name), emit)

    def write_factor(self, position: int) -> Value:
        b, log = self.b, self.gates.at[position].log
        emit = lambda: b.exp2(b.map("min", self._until(log), self.room, name="until"), name="up")  # noqa: E731
        return self.once(("up", log.name), emit)

    def reader(self, position: int) -> Value:
        """X, rounded to the operand type."""
        return self._tile("X", position, self.reader_factor(position))

    def write(self, position: int) -> Value:
        """Y, rounded to the operand type."""
        return self._tile("Y", position, self.write_factor(position))

    def beside(self) -> Value:
        """Whether row s comes before row c in one block."""
        b = self.b
        emit = lambda: b.after("c", "s", 1) if self.is_chunk else b.beside("c", "s", BLOCK)  # noqa: E731
        return self.once(("beside",), emit)

    @property
    def _start(self) -> Value:
        return self.once(("start",), lambda: self.b.start(self.log, "c", BLOCK, name="F"))

    def _until(self, log: Value) -> Value:
        """F - G."""
        b = self.b
        emit = lambda: b.neg(log, name="until") if self.is_chunk else b.sub(self._start, log, name="until")  # noqa: E731
        return self.once(("until", log.name), emit)

    def _tile(self, name: str, position: int, factor: Value) -> Value:
        row, b = self.rows[position], self.b
        return self.once((name, row.name, factor.name), lambda: b.rounded(b.mul(row, factor, name=name), name=name))

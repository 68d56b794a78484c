"""Pairs of a chunk's rows under decays over the key dims, by halves of blocks.

The weight 2^(G_c - G_s) of a pair differs from entry to entry, and its two factors leave every float's range. But rows
c > s are in the right and in the left half of one block of 2^(l + 1) rows for just one level l. With A the running sum
after the left half's last token, G_c <= A <= G_s, so

    2^(G_c - G_s) = 2^(G_c - A) 2^(A - G_s),     no exponent above 0

and at its level a row either only reads (in a right half) or is only read (in a left half). So one tile has both sides,

    X = x 2^(G - A) in right halves,  b 2^(A - G) in left halves       of a reader x and a write b

and of the product with itself those pairs count that are apart at the level:

    P = X X^T                    E: the cotangent of P where rows are apart and s comes before c
    Z = E X + E^T X              dx = 2^(G - A) Z in right halves,  db = 2^(A - G) Z in left halves

A decay's log has the cotangent x dx - b db, summed over the rows on its later side. It is taken as X Z, X rounded as
the product has it: what a pair that does not straddle the decay adds on one side is exactly what it takes off on the
other. A token's own pair has no level: it is a product of rows.

Each level costs a tile and a product, so most pairs are those of blocks.py: what is left for the levels within a block
are the pairs of the readers that are not near. Where all rows are, no level is gone through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from recur.ir.tile import Builder, Carry, Value
from recur.strategies.chunk.blocks import BLOCK, Blocks
from recur.strategies.chunk.gates import Gates
from recur.strategies.chunk.once import Once

Pair = tuple[int, int]  # the positions of a reader and a write


@dataclass
class Halves:
    """The tiles of one level, in the body of the loop over levels.

    ``log``: G after every token's last decay; ``rows``: the readers' and writes' rows [c, key dims] by position;
    ``done``: which rows read nothing, None where all of them read.
    """

    b: Builder
    gates: Gates
    log: Value
    rows: dict[int, Value]
    done: Value | None = None
    once: Once = field(default_factory=Once)

    @property
    def is_right(self) -> Value:
        return self.once(("right",), lambda: self.b.right("c"))

    @property
    def is_apart(self) -> Value:
        return self.once(("apart",), lambda: self.b.apart("c", "s"))

    def factor(self, pair: Pair) -> Value:
        """2^(G - A) in right halves, 2^(A - G) in left halves."""
        later, earlier = (self.gates.at[p].log for p in pair)
        return self.once(("factor", later.name, earlier.name), lambda: self._factor(later, earlier))

    def _factor(self, later: Value, earlier: Value) -> Value:
        b = self.b
        anchor = self.once(("anchor",), lambda: b.middle(self.log, "c", name="A"))
        since, until = b.sub(later, anchor, name="since"), b.sub(anchor, earlier, name="until")
        factor = b.exp2(b.where(self.is_right, since, until, name="elapsed"), name="factor")
        return factor if self.done is None else b.mul(factor, self.once(("counts",), self._counts), name="factor")

    def _counts(self) -> Value:
        """0 for a row in a right half that reads nothing."""
        b, one = self.b, self.b.const(1.0, name="one")
        assert self.done is not None
        reads = b.where(self.done, b.const(0.0, name="zero"), one, name="reads")
        return b.where(self.is_right, reads, one, name="counts")

    def tile(self, pair: Pair) -> Value:
        """X, rounded to the operand type."""
        x, y = (self.rows[p] for p in pair)
        factor = self.factor(pair)

        def emit() -> Value:
            chosen = x if x is y else self.b.where(self.is_right, x, y, name="x")
            return self.b.rounded(self.b.mul(chosen, factor, name="X"), name="X")

        return self.once(("tile", x.name, y.name, factor.name), emit)


def emit_scores(b: Builder, blocks: Blocks, halves: Halves, pairs: list[Pair]) -> dict[Pair, Value]:
    """P[c, s] of each pair over the key dims at hand where c > s; anything where c <= s.

    ``halves``: in a body of its own, which becomes that of the loop over levels.
    """
    scores = {pair: blocks.scores(*pair) for pair in pairs}
    inner = halves.b
    readers, writes = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    carries = []
    for (reader, write), before in scores.items():
        # Of a tile one side is needed here: that of tiles which other pairs have too.
        left = halves.tile((reader, writes[min(readers.index(reader), len(writes) - 1)]))
        right = halves.tile((readers[min(writes.index(write), len(readers) - 1)], write))
        product = inner.contract(left, inner.rename(right, "c", "s"), blocks.key, name="X_X")
        phi = inner.phi("P", before)
        found = inner.where(blocks.is_near, phi, product, name="P")
        carries.append(Carry(phi, before, inner.where(halves.is_apart, found, phi, name="P")))
    b.loop("levels", inner, tuple(carries), rows=BLOCK, needed=blocks.has_far)
    return {pair: carry.phi for pair, carry in zip(pairs, carries, strict=True)}


def own_weight(b: Builder, gates: Gates, pair: Pair) -> Value | None:
    """The decays of one token that stand between its write and its reader; None where there are none."""
    later, earlier = (gates.at[p].log for p in pair)
    return None if later is earlier else b.exp2(b.sub(later, earlier, name="between"), name="between")


def own_products(b: Builder, gates: Gates, rows: dict[int, Value], pair: Pair) -> Value:
    """x b of a token's own pair, entry by entry."""
    product = b.mul(rows[pair[0]], rows[pair[1]], name="own")
    weight = own_weight(b, gates, pair)
    return product if weight is None else b.mul(product, weight, name="own")

"""Sums of tiles, and sums along a chunk's rows as products."""

from __future__ import annotations

from recur.ir.tile import Builder, Value


def sum_of(b: Builder, terms: list[Value], name: str) -> Value:
    result = terms[0]
    for term in terms[1:]:
        result = b.add(result, term, name=name)
    return result


def ones_where(b: Builder, condition: Value, name: str = "ones") -> Value:
    return b.where(condition, b.const(1.0, name="one"), b.const(0.0, name="zero"), name=name)


def sum_rows(b: Builder, ones: Value, x: Value, name: str) -> Value:
    """For every row c the sum of x over the rows s where ``ones``, a tile [c, s] of ones and zeros, has a one.

    Scans along the rows of a tile are slow beside products. The two operands that add up to x hold 16 of its binary
    digits in bfloat16, and all in float32.
    """
    leading = b.rounded(x, name="leading")
    parts = (leading, b.sub(x, leading, name="trailing"))
    return sum_of(b, [b.contract(ones, b.rename(part, "c", "s"), ("s",), name=name) for part in parts], name)

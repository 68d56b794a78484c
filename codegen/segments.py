"""How walks over sequences are cut into segments, which are walked at the same time; a library of printed modules."""

from __future__ import annotations

FULL = 128  # programs of eight warps that fill a GPU: one for each of its multiprocessors


def _segments(walks: int, chunks: int, programs: int, two_pay: bool) -> tuple[int, int]:
    """(segments, chunks in each), for so many walks over whole sequences where ``programs`` of them fill a GPU.

    Long segments may be 256, two programs of eight warps a multiprocessor one after the other; short ones just fill it.
    ``two_pay``: whether two alone are worth finding the state between them.
    """
    count = max(min(256 // walks, chunks // 32), min(programs // walks, chunks // 8), 1)
    return _cut(chunks, 1 if 2 * walks > programs or (count == 2 and not two_pay) else count)


def _scan_segments(walks: int, chunks: int, programs: int) -> tuple[int, int]:
    """The same for walks of one warp, of which many fill a GPU."""
    return _cut(chunks, max(1, min(programs // walks, chunks // 32)))


def _cut(chunks: int, count: int) -> tuple[int, int]:
    """At most so many segments of equal length, and that length."""
    length = max(1, (chunks + count - 1) // count)
    return max(1, (chunks + length - 1) // length), length

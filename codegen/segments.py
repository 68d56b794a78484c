"""How walks over sequences are cut into segments, which are walked at the same time; modules have this in print."""

from __future__ import annotations


def segments(walks: int, chunks: int, with_backward: bool = True) -> tuple[int, int]:
    """(segments, chunks in each), where so many walks over whole sequences do not fill a GPU by themselves.

    Long ones for two programs a multiprocessor, or short ones for one. Two alone do not pay without a backward pass:
    finding the state between them is half of the walk.
    """
    count = max(min(256 // walks, chunks // 32), min(128 // walks, chunks // 8), 1)
    if 4 * walks > 256 or (count == 2 and not with_backward):
        count = 1
    length = max(1, (chunks + count - 1) // count)
    return max(1, (chunks + length - 1) // length), length


def scan_segments(walks: int, chunks: int, programs: int) -> tuple[int, int]:
    """The same for walks of one warp, of which many fill a GPU."""
    count = max(1, min(programs // walks, chunks // 32))
    length = max(1, (chunks + count - 1) // count)
    return max(1, (chunks + length - 1) // length), length

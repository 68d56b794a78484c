"""How walks over sequences are cut into segments, which are walked at the same time; modules have this in print."""

from __future__ import annotations


def segments(walks: int, chunks: int, programs: int, two_pay: bool) -> tuple[int, int]:
    """(segments, chunks in each), for so many walks over whole sequences where ``programs`` of them fill a GPU.

    Long segments may be 256, two programs of eight warps a multiprocessor one after the other; short ones just fill it.
    ``two_pay``: whether two alone are worth finding the state between them.
    """
    count = max(min(256 // walks, chunks // 32), min(programs // walks, chunks // 8), 1)
    if 2 * walks > programs or (count == 2 and not two_pay):
        count = 1
    length = max(1, (chunks + count - 1) // count)
    return max(1, (chunks + length - 1) // length), length


def scan_segments(walks: int, chunks: int, programs: int) -> tuple[int, int]:
    """The same for walks of one warp, of which many fill a GPU."""
    count = max(1, min(programs // walks, chunks // 32))
    length = max(1, (chunks + count - 1) // count)
    return max(1, (chunks + length - 1) // length), length

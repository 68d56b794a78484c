"""What of a call, beside its sizes, the launches of its kernels depend on."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """few_walks: walks with a program for every segment would leave half of a GPU idle. wide: operands of four bytes.
    many_channels: elementwise scans have so many channels that walks with a program for a few of them fill a GPU.
    """

    few_walks: bool = False
    wide: bool = False
    many_channels: bool = False


USUAL = Setting()
EXPLANATIONS = {
    "few_walks": "for few walks: two programs where one would hold a whole state of 128 x 128",
    "wide": "for float32: shorter chunks where one program has all of a chunk's gradients",
    "many_channels": "for many channels: elementwise scans of one state walk the sequence",
}

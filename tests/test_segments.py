"""Chunkwise stages in several segments in Triton's interpreter: a GPU takes them where whole sequences do not fill it.

test_triton_printer.py runs this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os

import pytest
import torch
from compare import compare
from test_families import RECURRENCES

from recur.codegen.helpers import definitions_of
from recur.codegen.triton_printer.helpers import SEGMENTS
from recur.zoo import path

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")

OF_ONE_CHUNK = '''
def {name}(walks, chunks, *rule):
    """Every chunk a segment of its own."""
    return chunks, 1
'''


def cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_segments", "_scan_segments"):
        monkeypatch.setitem(definitions_of(SEGMENTS), name, OF_ONE_CHUNK.format(name=name))


NAMES = ("simple_gla", "mamba2", "retnet", "mlstm_exp", "gateloop", "gla", "value_gated", "linear_attention_normalised")


@pytest.mark.parametrize("loss", ("both", "final"))
@pytest.mark.parametrize("name", NAMES)
def test_every_chunk_a_segment(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_into_chunks(monkeypatch)
    sizes = {"K": 4, "V": 6, "N": 4, "P": 6}
    options = {"sizes": sizes, "dtype": torch.float32, "tolerance": 4e-4, "loss": loss}
    compare(path(name).read_text(), "auto", "triton", T=130, B=1, H=1, **options)


@pytest.mark.parametrize("name", ("simple_gla", "mlstm_exp"))
def test_tiles_of_the_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dims that the backward walks cut, into tiles that do not come out even."""
    cut_into_chunks(monkeypatch)
    options = {"sizes": {"K": 80, "V": 72}, "dtype": torch.float32, "tolerance": 4e-4}
    compare(path(name).read_text(), "auto", "triton", T=70, B=1, H=1, **options)


@pytest.mark.parametrize("loss", ("both", "final"))
@pytest.mark.parametrize("name", ("mamba1", "longhorn", "s4d_real"))
def test_walks_over_tokens(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All states of a channel in one thread; more channels than a program has, and a ragged end."""
    cut_into_chunks(monkeypatch)
    options = {"sizes": {"D": 37, "N": 8}, "dtype": torch.float32, "tolerance": 4e-4, "loss": loss}
    compare(path(name).read_text(), "associative_scan", "triton", T=37, B=1, H=1, **options)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_families(name: str, extreme: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that share weights, in segments and in tiles of the state."""
    cut_into_chunks(monkeypatch)
    options = {"sizes": {"K": 68, "V": 6}, "dtype": torch.float32, "tolerance": 4e-4, "extreme": extreme}
    compare(RECURRENCES[name], "chunkwise", "triton", T=130, B=1, H=1, **options)

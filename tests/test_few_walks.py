"""Launches for calls whose walks over the sequences leave half of a GPU idle, and for float32."""

from __future__ import annotations

import os

import pytest
import torch
from compare import compare

import recur
from recur import zoo
from recur.codegen.triton_printer import Launch, default_config
from recur.runtime.compiled import has_few_walks
from recur.strategies.select import select

SIZES = {"K": 128, "V": 128}


def launches(name: str, few_walks: bool, sizes: dict[str, int] | None = None) -> dict[str, Launch]:
    op = recur.load(zoo.path(name))
    (selection,) = select(op.program, sizes or SIZES, "auto")
    return dict(default_config(selection.plan, sizes or SIZES, few_walks=few_walks).launches)


@pytest.mark.parametrize("name", ["linear_attention", "simple_gla"])
def test_walks_with_a_whole_state_are_halved(name: str) -> None:
    many, few = launches(name, False), launches(name, True)
    changed = {kernel for kernel in many if many[kernel] != few[kernel]}
    assert changed == {"local", "forward", "reverse_local"}
    assert (many["forward"].blocks, many["forward"].num_warps) == ((("V", 128),), 8)
    assert (few["forward"].blocks, few["forward"].num_warps) == ((("V", 64),), 4)


def test_narrow_walks_stay() -> None:
    assert launches("gated_delta_net", False) == launches("gated_delta_net", True)
    small = {"K": 64, "V": 64}
    assert launches("linear_attention", False, small) == launches("linear_attention", True, small)


@pytest.mark.parametrize(
    ("sequences", "tokens", "few"),
    [(64, 2048, True), (16, 512, True), (256, 1024, False), (64, 4096, False), (32, 4096, True), (32, 16384, False)],
)
def test_what_few_walks_are(sequences: int, tokens: int, few: bool) -> None:
    assert has_few_walks(sequences, tokens) == few


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", ["linear_attention", "simple_gla"])
def test_results_are_the_same(name: str) -> None:
    op = recur.load(zoo.path(name))
    compare(op, backend="triton", B=1, T=67, sizes=SIZES, dtype=torch.float32, tolerance=1e-5)
    assert "BV=64" in next(iter(op._compiled.values())).source


@pytest.mark.parametrize(("name", "chunk"), [("delta_net", 32), ("gla", None)])
def test_float32_takes_shorter_chunks_where_one_kernel_has_all_gradients(name: str, chunk: int | None) -> None:
    op = recur.load(zoo.path(name))
    (selection,) = select(op.program, SIZES, "auto")
    usual, wide = (default_config(selection.plan, SIZES, wide=wide) for wide in (False, True))
    assert wide.chunk == (chunk or usual.chunk)
    assert (usual == wide) == (chunk is None)

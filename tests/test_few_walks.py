"""Launches for calls whose walks over the sequences leave half of a GPU idle or fill it, and for float32."""

from __future__ import annotations

import os

import pytest
import torch
from compare import compare

import recur
from recur import zoo
from recur.codegen.segments import _segments
from recur.codegen.setting import Setting
from recur.codegen.triton_printer import Launch, default_config
from recur.runtime import compiled
from recur.runtime.compiled import explain_setting, has_few_walks, has_many_channels
from recur.strategies.select import select

SIZES = {"K": 128, "V": 128}


def launches(name: str, few_walks: bool, sizes: dict[str, int] | None = None) -> dict[str, Launch]:
    op = recur.load(zoo.path(name))
    (selection,) = select(op.program, sizes or SIZES, "auto")
    return dict(default_config(selection.plan, sizes or SIZES, setting=Setting(few_walks)).launches)


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


def test_walks_with_half_a_state_stay() -> None:
    wide = {"K": 128, "V": 256}
    many, few = launches("mlstm_sig", False, wide), launches("mlstm_sig", True, wide)
    assert few["write_gradients"] == many["write_gradients"]
    assert (few["write_gradients"].blocks, few["write_gradients"].num_warps) == ((("V", 128),), 8)


@pytest.mark.parametrize(
    ("sequences", "tokens", "forward", "both"),
    [
        (64, 2048, True, False),
        (64, 900, True, True),
        (16, 512, True, True),
        (256, 1024, False, False),
        (16, 4096, False, False),
        (32, 16384, False, False),
    ],
)
def test_what_few_walks_are(sequences: int, tokens: int, forward: bool, both: bool) -> None:
    assert has_few_walks(sequences, tokens, with_backward=False) == forward
    assert has_few_walks(sequences, tokens, with_backward=True) == both


def test_explanations_name_what_changes_launches() -> None:
    everything = Setting(few_walks=True, wide=True, many_channels=True)

    def named(name: str, **sizes: int) -> list[str]:
        op = recur.load(zoo.path(name))
        return [x.partition(":")[0] for x in explain_setting(op.program, sizes, "auto", everything)]

    assert named("linear_attention", K=128, V=128) == ["for few walks", "for float32"]
    assert named("gla", K=64, V=64) == []
    assert named("hgrn", D=64) == ["for many channels"]


@pytest.mark.parametrize(
    ("walks", "chunks", "programs", "alone", "if_two_pay"),
    [
        (128, 64, 128, 1, 1),
        (128, 64, 256, 1, 2),
        (64, 32, 128, 1, 2),
        (64, 32, 256, 4, 4),
        (64, 256, 128, 4, 4),
        (32, 256, 128, 8, 8),
        (32, 32, 128, 4, 4),
        (16, 64, 128, 8, 8),
        (16, 1024, 128, 16, 16),
        (1, 3, 128, 1, 1),
        (300, 0, 256, 1, 1),
    ],
)
def test_segments(walks: int, chunks: int, programs: int, alone: int, if_two_pay: int) -> None:
    for two_pay, expected in ((False, alone), (True, if_two_pay)):
        count, length = _segments(walks, chunks, programs, two_pay)
        assert count == expected
        assert (count - 1) * length < max(chunks, 1) <= max(count * length, 1)


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
    usual, wide = (default_config(selection.plan, SIZES, setting=Setting(wide=wide)) for wide in (False, True))
    assert wide.chunk == (chunk or usual.chunk)
    assert (usual == wide) == (chunk is None)


@pytest.mark.parametrize(
    ("sequences", "sizes", "many"),
    [(128, {"D": 128}, True), (32, {"D": 128}, False), (1, {"D": 4096}, False), (4, {"D": 2048, "N": 4}, True)],
)
def test_what_many_channels_are(sequences: int, sizes: dict[str, int], many: bool) -> None:
    assert has_many_channels(sequences, sizes) == many


@pytest.mark.parametrize("name", ["hgrn", "mingru", "mamba1", "lru"])
def test_many_channels_are_walked(name: str) -> None:
    """Scans of one state a channel; what has several is left as it is."""
    (selection,) = select(recur.load(zoo.path(name)).program, {"D": 128, "N": 16}, "auto")
    settings = (Setting(many_channels=many) for many in (False, True))
    usual, many = (default_config(selection.plan, {"D": 128, "N": 16}, setting=setting) for setting in settings)
    assert (usual != many) == (name in ("hgrn", "mingru"))
    if usual != many:
        assert all(launch.relay for _, launch in usual.launches)
        assert all((launch.relay, launch.num_stages) == (False, 3) for _, launch in many.launches)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1")
@pytest.mark.parametrize("T", [1, 63, 65, 150])
def test_walks_of_many_channels(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MANY_CHANNELS", 1)
    op = recur.load(zoo.path("hgrn"))
    compare(op, backend="triton", B=1, T=T, sizes={"D": 40}, dtype=torch.float32, tolerance=2e-4)
    assert "relay_ptr" not in next(iter(op._compiled.values())).source

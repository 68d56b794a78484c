"""On a real GPU: what no mock and no interpreter can tell about launching and tuning.  python -m pytest -m gpu"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compare import compare
from inputs import random_inputs

import recur
from recur import zoo
from recur.runtime.tuning import records, tune
from recur.runtime.tuning.space import Effort

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAMES = ("linear_attention", "gated_delta_net", "mlstm_exp", "hgrn")


def draw(op: Any, T: int = 130, **options: Any) -> dict[str, torch.Tensor]:
    sizes = {d.name: 64 for d in op.recurrence.dims}
    drawn = random_inputs(op.recurrence, 2, T, 2, sizes, dtype=torch.float32)
    return {n: x.to(torch.bfloat16).cuda().requires_grad_(**options) for n, x in drawn.items()}


@pytest.mark.parametrize("loss", ("both", "outputs", "final"))
@pytest.mark.parametrize("initial", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_states_and_cotangents_given_and_absent(name: str, initial: bool, loss: str) -> None:
    sizes = {d.name: 64 for d in recur.load(zoo.path(name)).recurrence.dims}
    options = {"sizes": sizes, "dtype": torch.float32, "device": "cuda", "tolerance": 1e-3}
    compare(zoo.path(name).read_text(), "auto", "triton", T=130, initial=initial, loss=loss, **options)


@pytest.mark.parametrize("name", ("linear_attention", "simple_gla"))
def test_several_segments(name: str) -> None:
    sizes = {d.name: 64 for d in recur.load(zoo.path(name)).recurrence.dims}
    options = {"sizes": sizes, "dtype": torch.float32, "device": "cuda", "tolerance": 1e-3}
    for initial in (False, True):
        compare(zoo.path(name).read_text(), "auto", "triton", B=1, T=64 * 64 + 3, H=1, initial=initial, **options)


@pytest.mark.parametrize("name", NAMES)
def test_addresses_that_are_not_aligned(name: str) -> None:
    op = recur.load(zoo.path(name))
    x = draw(op)
    shifted = {n: torch.cat((t.reshape(-1)[:1], t.reshape(-1)))[1:].view(t.shape).detach() for n, t in x.items()}
    assert all(t.data_ptr() % 16 for t in shifted.values())
    torch.testing.assert_close(op(**shifted)[0], op(**x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_and_other_streams(name: str) -> None:
    op = recur.load(zoo.path(name))
    x = draw(op)
    weight = torch.randn_like(op(**x)[0].detach())

    def step() -> tuple[torch.Tensor, ...]:
        output, _ = op(**x)
        # A graph kept alive keeps its leaves on the stream that it was made on, which a capture may not join.
        return output.detach(), *torch.autograd.grad(output, list(x.values()), weight)

    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(expected, beside, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device() -> None:
    op = recur.load(zoo.path("gated_delta_net"))
    x = draw(op)
    there = {n: t.to("cuda:1") for n, t in x.items()}
    assert torch.equal(op(**there)[0].to("cuda:0"), op(**x)[0])


def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(tune.EFFORTS, "quick", Effort((32, 64), (4,), (2, 3), (32, 64), 1))
    records.fingerprint.cache_clear()
    op = recur.load(zoo.path("simple_gla"))
    x = draw(op, T=512)
    before, _ = op(**x)
    result = op.tune(**x)
    assert result.best.seconds <= result.default.seconds and not result.tried[0].outcome.failure
    (entry,) = records.entries()
    assert entry["name"] == "simple_gla" and entry["shape"]["T"] == 512
    after, _ = op(**x)
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)
    records.fingerprint.cache_clear()

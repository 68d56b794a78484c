"""A compiled recurrence as the user meets it: calls, states, steps, errors, explanations, sources. Torch backend."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_close, compare, differentiate
from inputs import random_inputs
from torch import Tensor

import recur
from recur import zoo
from recur.diagnostics import RecurError
from recur.runtime import compiled
from recur.runtime.load import PREFIX

EMA = """
recurrence ema:
    "An average."
    dim K
    input x[K], a in (0, 1)
    state s[K]
    s = a * s + x
    output o = s
"""
SHIFT = """
recurrence shift:
    dim K, V
    input k[K], v[V]
    input g in (-inf, 0]
    param w[V]
    state S[K, V], n[K]
    S = exp(g) * S + outer(prev(k), w * v)
    n = n + k
    output o = k @ S
    output m[V, K] = outer(w, n)
"""


@pytest.fixture(scope="module")
def ema() -> Any:
    return recur.loads(EMA)


@pytest.fixture(scope="module")
def shift() -> Any:
    return recur.loads(SHIFT)


def inputs(op: Any, T: int = 9, **options: Any) -> dict[str, Tensor]:
    return random_inputs(op.recurrence, B=2, T=T, H=3, **options)


# --- calls -----------------------------------------------------------------------------------------------------------


def test_one_output_is_a_tensor_and_several_a_tuple(ema: Any, shift: Any) -> None:
    o, final = ema(**inputs(ema))
    assert o.shape == (2, 9, 3, 5) and final is None
    (o, m), final = shift(*inputs(shift).values(), output_final_state=True)
    assert o.shape == (2, 9, 3, 7) and m.shape == (2, 9, 3, 7, 5)
    shapes = {name: tuple(x.shape) for name, x in final.items()}
    assert shapes == {"S": (2, 3, 5, 7), "n": (2, 3, 5), "prev.k": (2, 3, 5)}


def test_a_state_of_one_entry_is_a_tensor(ema: Any) -> None:
    x = inputs(ema)
    _, final = ema(**x, output_final_state=True)
    assert isinstance(final, Tensor) and final.shape == (2, 3, 5)
    o, _ = ema(**x, initial_state=final)
    again, _ = ema(**x, initial_state={"s": final})
    assert torch.equal(o, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(ema: Any, dtype: torch.dtype) -> None:
    x = inputs(ema, dtype=dtype, requires_grad=True)
    o, final = ema(**x, output_final_state=True)
    assert o.dtype == dtype and final.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    o.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == dtype for t in x.values())
    exact, _ = ema.reference(**{n: t.detach().double() for n, t in x.items()})
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(o.double(), exact, rtol=tolerance, atol=tolerance)


def test_outputs_have_the_first_inputs_dtype(shift: Any) -> None:
    x = inputs(shift, dtype=torch.float32)
    (o, m), final = shift(**x | {"k": x["k"].bfloat16()}, output_final_state=True)
    assert o.dtype == m.dtype == torch.bfloat16 and final["S"].dtype == torch.float32


def test_one_head_drops_its_axis(shift: Any) -> None:
    x = inputs(shift)
    bare = {n: t[0] if n == "w" else t[:, :, 0] for n, t in x.items()}
    one = {n: t[:1] if n == "w" else t[:, :, :1] for n, t in x.items()}
    (o, m), final = shift(**bare, output_final_state=True)
    (o1, m1), final1 = shift(**one, output_final_state=True)
    assert torch.equal(o, o1.squeeze(2)) and torch.equal(m, m1.squeeze(2))
    assert all(torch.equal(final[n], final1[n].squeeze(1)) for n in final)
    again, _ = shift(**bare, initial_state=final)
    assert torch.equal(again[0], shift(**one, initial_state=final1)[0][0].squeeze(2))


def test_inputs_may_be_strided(ema: Any) -> None:
    x = inputs(ema)
    strided = {n: t.transpose(0, 2).contiguous().transpose(0, 2) for n, t in x.items()}
    assert torch.equal(ema(**strided)[0], ema(**x)[0])


def test_two_calls_with_the_state_handed_over_are_one(shift: Any) -> None:
    x = inputs(shift, T=13)
    whole, final = shift(**x, output_final_state=True)
    first, state = shift(**{n: t if n == "w" else t[:, :5] for n, t in x.items()}, output_final_state=True)
    rest = {n: t if n == "w" else t[:, 5:] for n, t in x.items()}
    second, end = shift(**rest, initial_state=state, output_final_state=True)
    for a, b, c in zip(whole, first, second, strict=True):
        torch.testing.assert_close(torch.cat([b, c], 1), a)
    for name in final:
        torch.testing.assert_close(end[name], final[name])


def test_steps_are_a_call(shift: Any) -> None:
    x = inputs(shift, T=6)
    whole, final = shift(**x, output_final_state=True)
    state = None
    for t in range(6):
        outputs, state = shift.step(state, **{n: v if n == "w" else v[:, t] for n, v in x.items()})
        for o, expected in zip(outputs, whole, strict=True):
            torch.testing.assert_close(o, expected[:, t])
    for name in final:
        torch.testing.assert_close(state[name], final[name])


def test_steps_of_one_head(ema: Any) -> None:
    o, state = ema.step(None, torch.ones(2, 4), torch.full((2,), 0.5))
    assert o.shape == state.shape == (2, 4)
    o, state = ema.step(state, x=torch.ones(2, 4), a=torch.full((2,), 0.5))
    assert torch.equal(o, torch.full((2, 4), 1.5))


def test_reference_is_the_same_call(shift: Any) -> None:
    x = inputs(shift)
    found, final = shift(**x, output_final_state=True)
    expected, state = shift.reference(*x.values(), output_final_state=True, strategy="auto", backend="auto", debug=True)
    for a, b in zip((*found, *final.values()), (*expected, *state.values()), strict=True):
        torch.testing.assert_close(a, b)
    assert shift.reference(**x)[1] is None


@pytest.mark.parametrize("source", [EMA, SHIFT])
def test_gradcheck(source: str) -> None:
    op = recur.loads(source)
    x = random_inputs(op.recurrence, B=1, T=3, H=1, sizes={"K": 2, "V": 3}, requires_grad=True)
    _, final = op(**{n: t.detach() for n, t in x.items()}, output_final_state=True)
    state = final if isinstance(final, dict) else {"s": final}
    leaves = [*x.values(), *(t.clone().requires_grad_() for t in state.values())]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        initial = dict(zip(state, tensors[len(x) :], strict=True))
        outputs, final = op(*tensors[: len(x)], initial_state=initial, output_final_state=True)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return (*outputs, *(final.values() if isinstance(final, dict) else (final,)))

    assert torch.autograd.gradcheck(call, leaves)


def test_gradients_repeat_bit_for_bit(shift: Any) -> None:
    x = inputs(shift, T=40, dtype=torch.float32, requires_grad=True)
    runs = []
    for _ in range(2):
        (o, m), _ = shift(**x)
        runs.append(torch.autograd.grad(o.sum() + m.square().sum(), list(x.values())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_loss_on_the_final_state_alone(shift: Any) -> None:
    x = inputs(shift, requires_grad=True)
    results = []
    for call in (shift, shift.reference):
        _, final = call(**x, output_final_state=True)
        results.append(differentiate({f"final {n}": t for n, t in final.items()}, x, "final", 0))
    assert_close(*results, 1e-9, "shift")


def test_only_the_gradients_asked_for(shift: Any) -> None:
    x = inputs(shift)
    x["v"].requires_grad_()
    (o, _), _ = shift(**x)
    (grad,) = torch.autograd.grad(o.sum(), [x["v"]])
    assert grad.shape == x["v"].shape
    (o, _), _ = shift(**inputs(shift))
    assert not o.requires_grad


# --- states ----------------------------------------------------------------------------------------------------------


def test_states_are_known_before_any_call() -> None:
    entries = recur.loads(SHIFT).states
    assert list(entries) == ["S", "n", "prev.k"]
    assert entries["S"].dims == ("K", "V") and entries["prev.k"].dims == ("K",)
    assert entries["S"].dtype == torch.float32 and str(entries["n"]) == "n: [B, H, K] float32"
    assert recur.load(zoo.path("lru")).states["x"].dtype == torch.complex64


def test_missing_entries_are_zero(shift: Any) -> None:
    x = inputs(shift)
    _, state = shift(**x, output_final_state=True)
    zeros = {n: torch.zeros_like(t) for n, t in state.items()}
    part, _ = shift(**x, initial_state={"S": state["S"]})
    whole, _ = shift(**x, initial_state=zeros | {"S": state["S"]})
    assert all(torch.equal(a, b) for a, b in zip(part, whole, strict=True))


def test_wrong_states_are_named(ema: Any, shift: Any) -> None:
    x, y = inputs(ema), inputs(shift)
    with pytest.raises(TypeError, match=r"has no entry `t`; .*`s`"):
        ema(**x, initial_state={"t": torch.zeros(2, 3, 5)})
    with pytest.raises(TypeError, match=r"`initial_state` must be a dict.*`prev\.k`"):
        shift(**y, initial_state=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"`s` must be \[B, H, K\] = \[2, 3, 5\]; found \[2, 3, 4\]"):
        ema(**x, initial_state=torch.zeros(2, 3, 4))
    with pytest.raises(TypeError, match="`initial_state`'s `s` is declared real"):
        ema(**x, initial_state=torch.zeros(2, 3, 5, dtype=torch.complex64))
    with pytest.raises(TypeError, match="None, a tensor or a dict of tensors; found int"):
        ema(**x, initial_state=3)
    with pytest.raises(TypeError, match="`state` has no entry"):
        ema.step({"t": x["x"]}, x["x"][:, 0], x["a"][:, 0])


# --- options ---------------------------------------------------------------------------------------------------------


def test_packed_sequences_are_refused_for_now(ema: Any) -> None:
    x = inputs(ema)
    with pytest.raises(NotImplementedError, match="`cu_seqlens` is not supported yet"):
        ema(**x, cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(NotImplementedError, match="`reset` is not supported yet"):
        ema(**x, reset=torch.zeros(2, 9, dtype=torch.bool))
    assert ema.reference(**x, reset=torch.ones(2, 9, dtype=torch.bool))[0].equal(x["x"])


def test_strategies_and_backends_that_do_not_apply(ema: Any) -> None:
    x = inputs(ema)
    with pytest.raises(RecurError, match=r"R801.*`chunkwise` does not apply to `s`"):
        ema(**x, strategy="chunkwise")
    with pytest.raises(RecurError, match="did you mean `sequential`"):
        ema(**x, strategy="sequental")
    with pytest.raises(RecurError, match="2 strategies for 1 stages"):
        ema(**x, strategy=["auto", "auto"])
    with pytest.raises(RecurError, match="unknown backend `cuda`"):
        ema(**x, backend="cuda")


def test_triton_needs_a_gpu_or_its_interpreter(ema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RecurError, match="needs a GPU"):
        ema(**inputs(ema), backend="triton")


def test_triton_does_not_take_float64(ema: Any) -> None:
    with pytest.raises(RecurError, match="computes in float32"):
        compiled.choose_backend(ema.recurrence, "triton", torch.device("cuda"), torch.float64)
    assert compiled.choose_backend(ema.recurrence, "auto", torch.device("cuda"), torch.float64).name == "torch"


def test_every_strategy_gives_the_same(ema: Any) -> None:
    x = inputs(ema)
    o, _ = ema(**x, strategy="associative_scan")
    for strategy in ("sequential", ["sequential"], ["auto"]):
        torch.testing.assert_close(ema(**x, strategy=strategy)[0], o)


def test_debug_checks_ranges_and_results(ema: Any) -> None:
    x = inputs(ema)
    ema(**x, debug=True)
    with pytest.raises(ValueError, match="`a` leaves its declared range"):
        ema(**x | {"a": x["a"] + 1}, debug=True)
    with pytest.raises(FloatingPointError, match="output `o` is not finite"):
        ema(**x | {"x": x["x"] * torch.inf}, debug=True)


def test_a_fallback_is_announced_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from recur.codegen import module
    from recur.runtime.compiled import Backend

    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path))
    real = module.print_module

    def refuse(program: Any, plans: Any, sizes: Any, backend: str, configs: Any) -> str:
        if backend == "triton":
            raise ValueError("a tile of 4096 entries does not fit")
        return real(program, plans, sizes, backend, configs)

    monkeypatch.setattr(module, "print_module", refuse)
    monkeypatch.setattr("recur.runtime.op.choose_backend", lambda *args: Backend("triton", "pretended", automatic=True))
    op = recur.loads(EMA)
    x = inputs(op)
    with pytest.warns(UserWarning, match="ema runs on torch: .* a tile of 4096 entries does not fit"):
        op(**x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op(**x)


def test_a_call_compiles_once_for_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    op = recur.loads(EMA)
    count = []
    real = compiled.compile_for
    monkeypatch.setattr("recur.runtime.op.compile_for", lambda *args: count.append(args) or real(*args))
    for T in (3, 4, 5):
        op(**inputs(op, T=T))
    assert len(count) == 1
    op(**inputs(op, sizes={"K": 3}))
    assert len(count) == 2


# --- what it says about itself ---------------------------------------------------------------------------------------


def test_names(ema: Any) -> None:
    assert ema.name == ema.__name__ == "ema" and ema.__doc__ == "An average."
    assert repr(ema) == "<recurrence ema(x[B, T, H, K], a[B, T, H]) -> o>"
    assert ema.recurrence.name == "ema"


def test_copies_and_pickles(ema: Any) -> None:
    x = inputs(ema)
    for other in (copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))):
        assert other.recurrence == ema.recurrence and torch.equal(other(**x)[0], ema(**x)[0])


def test_explain(ema: Any) -> None:
    found = ema.explain(K=16)
    assert found.startswith("ema  (K = 16)") and "associative_scan" in found and "backend" in found
    assert json.loads(json.dumps(found.data))["stages"][0]["states"] == ["s"]
    assert "K = 5" in ema.explain(**inputs(ema))
    assert ema.explain(strategy="sequential").data["stages"][0]["strategy"] == "sequential"
    with pytest.raises(ValueError, match="no dim Q"):
        ema.explain(Q=3)


@pytest.mark.parametrize("stage", ["ir", "normal", "adjoint", "plan", "torch", "triton"])
def test_source(ema: Any, stage: str) -> None:
    text = ema.source(stage, K=16)
    assert len(text.splitlines()) > 3 and ema.source(stage, K=16) == text


def test_source_refuses_unknown_stages(ema: Any) -> None:
    with pytest.raises(RecurError, match="did you mean `plan`"):
        ema.source("plann")


def test_tracebacks_point_into_the_generated_file(ema: Any) -> None:
    x = inputs(ema)
    ema(**x)
    function = next(iter(ema._compiled.values())).function
    assert function.__module__.startswith(PREFIX)
    with open(function.__code__.co_filename) as file:
        assert "def ema(" in file.read()


# --- names that generated code uses too ------------------------------------------------------------------------------

AXES = """
recurrence torch:
    dim H, c
    input tl[H], dtype[c], ctx[H], device in (-inf, 0]
    state given[H, c]
    batch = exp(device) * given
    given = batch + outer(tl, dtype)
    output final = ctx @ given
"""


@pytest.mark.parametrize("strategy", ["chunkwise", "tiled", "sequential"])
def test_names_of_axes_and_of_generated_variables_are_free(strategy: str) -> None:
    compare(AXES, strategy, T=5)


def test_a_dim_may_be_called_like_the_axis_of_heads() -> None:
    op = recur.loads(AXES)
    assert op.states["given"].dims == ("H", "c")
    assert "(H = 16, c = 64)" in op.explain(H=16)
    assert "--dims H=16,c=64" in op.source("torch", H=16)

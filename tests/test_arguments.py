"""A call's tensors against the declarations: what is bound, and how each mistake is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recur.api import read
from recur.runtime.arguments import bind_arguments, check_finite, check_ranges
from recur.runtime.op import Op

SPEC = """
recurrence cell:
    dim    K, V
    dim    n = 2
    input  q[K], k[n, K], v[V]
    input  g in (-inf, 0], beta in (0, 1)
    input  z complex
    param  w[K]
    state  S[K, V]
    S = exp(g) * S + beta * outer(k[0] + k[1] * w, v)
    output o = q @ S + real(z)
"""
REC = read(SPEC)
B, T, H, K, V = 2, 5, 3, 4, 6


def tensors(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "q": torch.randn(B, T, H, K),
        "k": torch.randn(B, T, H, 2, K),
        "v": torch.randn(B, T, H, V),
        "g": -torch.rand(B, T, H),
        "beta": torch.rand(B, T, H),
        "z": torch.randn(B, T, H, dtype=torch.complex64),
        "w": torch.randn(H, K),
    }
    return found | changes


def test_sizes_come_from_the_tensors() -> None:
    call = bind_arguments(REC, tuple(tensors().values()), {})
    assert (call.batch, call.tokens, call.heads, call.has_heads) == (B, T, H, True)
    assert call.sizes == {"K": K, "V": V, "n": 2}
    assert list(call.tensors) == ["q", "k", "v", "g", "beta", "z", "w"]
    assert call.state_dtype == torch.float32


def test_position_and_keyword_agree() -> None:
    given = tensors()
    q, k, *_ = given.values()
    call = bind_arguments(REC, (q, k), {n: given[n] for n in ("w", "z", "beta", "g", "v")})
    assert all(call.tensors[n] is given[n] for n in given)


def test_one_head_without_its_axis() -> None:
    given = {n: x[0] if n == "w" else x[:, :, 0] for n, x in tensors().items()}
    call = bind_arguments(REC, (), given)
    assert not call.has_heads and call.heads == 1
    assert call.tensors["q"].shape == (B, T, 1, K) and call.tensors["w"].shape == (1, K)


def test_one_token_without_the_time_axis() -> None:
    given = {n: x if n == "w" else x[:, 0] for n, x in tensors().items()}
    call = bind_arguments(REC, (), given, one_token=True)
    assert call.tokens == 1 and call.tensors["k"].shape == (B, 1, H, 2, K)
    bare = {n: x[0] if n == "w" else x[:, 0] for n, x in given.items()}
    call = bind_arguments(REC, (), bare, one_token=True)
    assert not call.has_heads and call.tensors["k"].shape == (B, 1, 1, 2, K)


def test_low_precision_may_be_mixed_with_float32() -> None:
    call = bind_arguments(REC, (), tensors(q=torch.randn(B, T, H, K).bfloat16()))
    assert call.dtype == torch.bfloat16 and call.state_dtype == torch.float32


def double(given: dict[str, Any]) -> dict[str, Any]:
    return {n: x.to(torch.complex128 if x.is_complex() else torch.float64) for n, x in given.items()}


def test_float64_gives_float64_states() -> None:
    assert bind_arguments(REC, (), double(tensors())).state_dtype == torch.float64


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "none": ({"w": None}, TypeError, "`w` must be a tensor [H, K]; found NoneType"),
    "number": ({"g": -0.5}, TypeError, "`g` must be a tensor [B, T, H]; found float"),
    "list": ({"g": [0.0]}, TypeError, "found list"),
    "rank": (
        {"q": torch.randn(K)},
        ValueError,
        "`q` must be [B, T, H, K] (or [B, T, K] for one head); found 1 axes: [4]",
    ),
    "no head": ({"g": torch.zeros(B, T)}, ValueError, "g.unsqueeze(2)"),
    "size": (
        {"k": torch.randn(B, T, H, 2, 7)},
        ValueError,
        "`k` has K = 7, but K = 4 by `q`; expected [B, T, H, n, K], found [2, 5, 3, 2, 7]",
    ),
    "fixed size": ({"k": torch.randn(B, T, H, 3, K)}, ValueError, "`k` has n = 3, but n = 2 by `dim n = 2`"),
    "batch": ({"v": torch.randn(1, T, H, V)}, ValueError, "`v` has B = 1, but B = 2 by `q`"),
    "tokens": ({"v": torch.randn(B, 4, H, V)}, ValueError, "`v` has T = 4, but T = 5 by `q`"),
    "heads": ({"v": torch.randn(B, T, 2, V)}, ValueError, "`v` has H = 2, but H = 3 by `q`"),
    "grouped": (
        {"k": torch.randn(B, T, 1, 2, K)},
        ValueError,
        "not supported yet; use op.reference, or k.repeat_interleave(3, dim=2)",
    ),
    "grouped param": ({"w": torch.randn(1, K)}, ValueError, "w.repeat_interleave(3, dim=0)"),
    "integers": (
        {"q": torch.ones(B, T, H, K, dtype=torch.int64)},
        TypeError,
        "`q` has dtype torch.int64; use .to(torch.float32)",
    ),
    "complex": (
        {"q": torch.randn(B, T, H, K, dtype=torch.complex64)},
        TypeError,
        "`q` is declared real; found torch.complex64",
    ),
    "real": (
        {"z": torch.randn(B, T, H)},
        TypeError,
        "`z` is declared complex; found torch.float32; use .to(torch.complex64)",
    ),
    "double": ({"w": torch.randn(H, K).double()}, TypeError, "`w` in float64"),
    "device": (
        {"w": torch.randn(H, K, device="meta")},
        ValueError,
        "`w` is on meta, but the first input is on cpu",
    ),
    "unknown": (
        {"bta": torch.zeros(B, T, H)},
        TypeError,
        "`bta` is no argument of this recurrence; did you mean `beta`?",
    ),
}


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        bind_arguments(REC, (), tensors(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_found_after_good_calls(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    op = Op(REC)
    op(**tensors())
    for _ in range(2):
        with pytest.raises(kind) as caught:
            op(**tensors(**changes))
        assert message in str(caught.value)


@pytest.mark.parametrize("one_token", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_a_second_call_runs_as_the_first(one_token: bool, bare: bool) -> None:
    op = Op(REC)
    for _ in range(3):
        given = tensors()
        if one_token:
            given = {n: x if n == "w" else x[:, 0] for n, x in given.items()}
        if bare:
            given = {n: x.select(0 if n == "w" else 1 if one_token else 2, 0) for n, x in given.items()}
        found, _ = op.step(**given) if one_token else op(**given)
        expected, _ = Op(REC).step(**given) if one_token else Op(REC)(**given)
        assert torch.equal(found, expected)
    assert len(op._known) == 1


def test_arguments_missing_twice_or_too_many() -> None:
    given = tensors()
    with pytest.raises(TypeError, match="missing `beta` and `w`"):
        bind_arguments(REC, (), {n: x for n, x in given.items() if n not in ("beta", "w")})
    with pytest.raises(TypeError, match="`q` is given twice: by position 1 and by name"):
        bind_arguments(REC, (given["q"],), given)
    with pytest.raises(TypeError, match="8 positional arguments"):
        bind_arguments(REC, (*given.values(), given["q"]), {})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_size_may_be_zero(axis: int) -> None:
    given = {n: x if n == "w" else x.narrow(axis, 0, 0) for n, x in tensors().items()}
    with pytest.raises(ValueError, match=f"`q` has {'BTH'[axis]} = 0"):
        bind_arguments(REC, (), given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ranges_admit_rounded_end_points(dtype: torch.dtype) -> None:
    given = {n: x if x.is_complex() else x.to(dtype) for n, x in tensors().items()}
    for g, beta in ((0.0, 1.0), (float("-inf"), 0.0)):
        check_ranges(REC, given | {"g": torch.full((1,), g, dtype=dtype), "beta": torch.full((1,), beta, dtype=dtype)})


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_values_outside_a_range_are_found(value: float) -> None:
    beta = torch.full((B, T, H), 0.5)
    beta[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"`beta` leaves its declared range \(0, 1\): 1 of 30 values.*\[1, 2, 0\]"):
        check_ranges(REC, tensors(beta=beta))


def test_results_that_are_not_finite_are_found() -> None:
    check_finite("output `o`", torch.ones(3))
    with pytest.raises(FloatingPointError, match=r"output `o` is not finite: 2 of 3 values, the first at \[1\] is inf"):
        check_finite("output `o`", torch.tensor([1.0, float("inf"), float("nan")]))

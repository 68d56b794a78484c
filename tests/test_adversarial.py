"""Numbers that break naive kernels, on the torch backend against the oracle: the zoo and a few chosen recurrences.

Every buffer that generated code leaves uninitialised starts as NaN here, so that what is read unwritten shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from compare import assert_close, cast, compare, differentiate, log_scales, random_entries, run
from inputs import dim_sizes, random_inputs, reads_its_state
from test_strategies import cases
from torch import Tensor

from recur import zoo
from recur.api import load, loads
from recur.ir.spec import Variable
from recur.runtime.op import Op
from recur.strategies.select import select

GATES = {
    "scalar": ("", "a * S"),
    "over_keys": ("[K]", "a * S"),
    "over_values": ("[V]", "S * a"),
    "before_a_read": ("", "a * S - 0.5 * outer(k, k @ S)"),
    "over_keys_before_a_read": ("[K]", "a * S - 0.5 * outer(k, k @ S)"),
}
CHOSEN = {  # decays given as plain factors, which may be zero
    **{
        f"factor_{name}_{word}": f"recurrence factor_{name}_{word}:\n    dim K, V\n    input q[K], k[K], v[V]\n"
        f"    input a{dims} in {interval}\n    state S[K, V]\n    S = {old} + outer(k, v)\n    output o = q @ S\n"
        for name, (dims, old) in GATES.items()
        for word, interval in (("positive", "[0, 1]"), ("signed", "[-1, 1]"))
    },
    "factor_elementwise": """
recurrence factor_elementwise:
    dim D
    input x[D], a[D] in [-1, 1]
    state h[D]
    h = a * h + x
    output o = h
""",
    "factor_product": """
recurrence factor_product:
    dim K, V
    input q[K], k[K], v[V], a[K] in [0, 1], b[V] in [0, 1]
    state S[K, V]
    output before = q @ S
    S = a * S * b + outer(k, v)
    output o = q @ S
""",
    "factor_complex": """
recurrence factor_complex:
    dim K, V
    input q[K], k[K], v[V], r[K] in [0, 1], theta[K]
    state S[K, V] complex
    S = polar(r, theta) * S + outer(k, v)
    output o = real(q @ S)
""",
}  # fmt: skip


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _make=make, **k: _make(*a, **k).fill_(float("nan")))


@cache
def op_of(name: str) -> Op:
    return loads(CHOSEN[name]) if name in CHOSEN else load(zoo.path(name))


def chunk_of(op: Op, strategy: str) -> int:
    return max(s.plan.chunk or 4 for s in select(op.program, dim_sizes(op.recurrence), strategy))


OTHERWISE = {
    "factor_elementwise": "associative_scan",
    "factor_product": "sequential",  # factors along both axes
}
ZOO = cases()
CASES = [
    *ZOO,
    *((name, OTHERWISE.get(name, "chunkwise")) for name in CHOSEN),
    *((name, "tiled") for name in CHOSEN if name.startswith("factor_scalar")),
]
BEYOND_FLOAT64 = {  # inputs that cannot be 10,000: exp(exp(w)) overflows, dt times a rounding error is large
    ("rwkv6", "w"),
    ("mamba3", "dt"),
}
def compare_values(
    op: Op,
    strategy: str,
    change: Callable[[Variable, Tensor], Tensor],
    T: int,
    loss: str = "both",
    initial: bool = True,
    tolerance: float = 1e-7,
    dtype: torch.dtype = torch.float64,
    backend: str = "torch",
) -> None:
    """The op in ``dtype`` and its oracle on random inputs as ``change`` leaves them, gradients included."""
    given = random_inputs(op.recurrence, 1, T, 2, seed=T)
    tensors = {v.name: cast(cast(change(v, given[v.name]), dtype), torch.float64) for v in op.recurrence.inputs}
    state = random_entries(op, 1, 2, None, T) if initial else {}
    base = log_scales(op, tensors, state)
    sides = []
    for call, kind, options in (
        (op, dtype, {"strategy": strategy, "backend": backend}),
        (op.reference, torch.float64, {}),
    ):
        x = {name: cast(t, kind).requires_grad_() for name, t in tensors.items()}
        s = {name: cast(t, kind) for name, t in state.items()}
        leaves = x | {name: t.requires_grad_() for name, t in s.items() if not name.endswith(".log_scale")}
        found = run(op, call, x, s, base, **options)
        sides.append(found | differentiate(found, leaves, loss, T))
    assert_close(*sides, tolerance, f"{op.name} {strategy} T={T}")


def is_log_gate(v: Variable) -> bool:
    return v.range is not None and v.range.high == 0 and math.isinf(v.range.low)


def is_factor(v: Variable) -> bool:
    return v.range is not None and v.range.high == 1 and v.range.low in (0, -1) and v.role == "input"


def having(kind: Callable[[Variable], bool]) -> list[tuple[str, str]]:
    return [case for case in CASES if any(kind(v) for v in op_of(case[0]).recurrence.inputs)]


def shifted(x: Tensor, values: tuple[float, ...]) -> Tensor:
    """x plus ``values``, token by token in turn."""
    T = x.shape[1]
    return x + torch.tensor(values, dtype=x.dtype)[torch.arange(T) % len(values)].view(T, *(1 for _ in x.shape[2:]))


def spread(x: Tensor, values: tuple[float, ...], period: int = 3) -> Tensor:
    """``values`` at some tokens of x, in turn, another phase in every channel."""
    x = x.clone()
    flat = x.view(x.shape[0], x.shape[1], -1)
    token = torch.arange(flat.shape[1])[:, None] + 5 * torch.arange(flat.shape[2])
    for i, value in enumerate(values):
        flat[:, token % (period * len(values)) == period * i + 1] = value
    return x


@pytest.mark.parametrize(("name", "strategy"), having(is_log_gate))
@pytest.mark.parametrize("values", [(-math.inf,), (-1e3, 0.0, -1e-9, -30.0)], ids=str)
def test_log_gates(name: str, strategy: str, values: tuple[float, ...]) -> None:
    T = min(chunk_of(op_of(name), strategy), 64) + 6
    compare_values(op_of(name), strategy, lambda v, x: spread(x, values) if is_log_gate(v) else x, T)


WITH_FACTORS = having(is_factor)


@pytest.mark.parametrize(("name", "strategy"), WITH_FACTORS)
def test_factors_of_one(name: str, strategy: str) -> None:
    T = min(chunk_of(op_of(name), strategy), 64) + 6
    compare_values(op_of(name), strategy, lambda v, x: spread(x, (1.0,)) if is_factor(v) else x, T)


@pytest.mark.parametrize(
    ("name", "strategy"),
    WITH_FACTORS,
)
@pytest.mark.parametrize("values", [(0.0,), (0.0, 1.0, 1e-30, 0.5)], ids=str)
def test_factors_of_zero(name: str, strategy: str, values: tuple[float, ...]) -> None:
    """A state that is forgotten altogether."""
    T = min(chunk_of(op_of(name), strategy), 64) + 6
    compare_values(op_of(name), strategy, lambda v, x: spread(x, values) if is_factor(v) else x, T)


@pytest.mark.parametrize(("name", "strategy"), having(lambda v: is_log_gate(v) or is_factor(v)))
def test_long_runs_without_decay(name: str, strategy: str) -> None:
    """Gates that are open for chunks on end, and shut at one token."""
    op = op_of(name)
    T = 2 * min(chunk_of(op, strategy), 64) + 3

    def change(v: Variable, x: Tensor) -> Tensor:
        if is_log_gate(v):
            x = torch.zeros_like(x)
            x[:, T // 2] = -1e3
        elif is_factor(v):
            x = torch.ones_like(x)
        return x

    compare_values(op, strategy, change, T, loss="final")


@pytest.mark.parametrize(("name", "strategy"), [c for c in ZOO if c[1] != "sequential"])
def test_large_inputs(name: str, strategy: str) -> None:
    """One input at a time of size 10,000, except where a product of transitions would explode."""
    op = op_of(name)
    T = 2 if reads_its_state(op.recurrence) else 6
    for large in (v for v in op.recurrence.inputs if v.role == "input" and v.range is None):
        if (name, large.name) not in BEYOND_FLOAT64:
            compare_values(
                op, strategy, lambda v, x, name=large.name: x * 1e4 if v.name == name else x, T, tolerance=1e-6
            )


EXPONENTIAL = {"aaren": "k", "lightnet": "k", "mlstm_exp": "i", "rwkv4": "k", "slstm": "i"}


@pytest.mark.parametrize(("name", "strategy"), [c for c in CASES if c[0] in EXPONENTIAL])
@pytest.mark.parametrize("gates", [(200.0,), (-200.0,), (1000.0,), (-1000.0,), (1000.0, -1000.0)], ids=str)
def test_exponential_gates(name: str, strategy: str, gates: tuple[float, ...]) -> None:
    op = op_of(name)
    T = min(chunk_of(op, strategy), 64) + 3 if len(gates) > 1 else 13

    def change(v: Variable, x: Tensor) -> Tensor:
        return shifted(x, gates) if v.name == EXPONENTIAL[name] else x

    compare_values(op, strategy, change, T, initial=False)
    compare_values(op, strategy, change, T, initial=True)


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_the_future_changes_nothing(name: str, strategy: str) -> None:
    op = op_of(name)
    chunk = min(chunk_of(op, strategy), 64)
    T = 2 * chunk + 3
    taken = {s.strategy for s in select(op.program, dim_sizes(op.recurrence), strategy)}
    x = random_inputs(op.recurrence, 1, T, 1)
    other = random_inputs(op.recurrence, 1, T, 1, seed=1)
    for cut in (chunk - 1, chunk + chunk // 2):
        changed = {
            v.name: torch.cat([x[v.name][:, :cut], other[v.name][:, cut:]], 1) if v.role == "input" else x[v.name]
            for v in op.recurrence.inputs
        }
        first, second = (run(op, op, tensors, {}, strategy=strategy) for tensors in (x, changed))
        for key, y in first.items():
            if key.startswith("output"):
                error = (y - second[key])[:, :cut].abs().max()
                # Long chunks count a decay from the chunk's end: the future rounds what it does not change.
                assert error <= (1e-13 * y.abs().max() if "tiled" in taken else 0), f"{key} before token {cut}"


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_one_token_past_a_chunk(name: str, strategy: str) -> None:
    T = min(chunk_of(op_of(name), strategy), 64) + 1
    compare(op_of(name), strategy, T=T, B=1, H=1, loss="final", seed=T)


DTYPES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.12}


@pytest.mark.parametrize("name", zoo.names())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    compare(op_of(name), T=13, B=1, dtype=dtype, tolerance=DTYPES[dtype])


WIDE = ("gla", "value_gated", "gated_delta_net", "kda", "rwkv7", "delta_product", "gateloop", "mlstm_exp", "simple_gla",
        "linear_attention_normalised", "gated_oja", "decaying_fast_weights", "gated_slot_attention")  # fmt: skip


@pytest.mark.parametrize(("name", "strategy"), [c for c in ZOO if c[0] in WIDE and c[1] != "sequential"])
@pytest.mark.parametrize("sizes", [(256, 20), (17, 256)], ids=str)
def test_head_dims(name: str, strategy: str, sizes: tuple[int, int]) -> None:
    compare(op_of(name), strategy, T=9, B=1, H=1, sizes={"K": sizes[0], "V": sizes[1], "M": 12})


DOUBLE_EXPONENTIALS = {
    "over_keys": ("chunkwise", "w[K]", "exp(-exp(w)) * S"),
    "over_values": ("chunkwise", "w[V]", "S * exp(-exp(w))"),
    "scalar": ("chunkwise", "w", "exp(-exp(w)) * S"),
    "tiled": ("tiled", "w", "exp(-exp(w)) * S"),
    "sequential": ("sequential", "w[K]", "exp(-exp(w)) * S"),
}


@pytest.mark.parametrize("w", (-3.0, 5.0, 20.0, 90.0, 200.0))
@pytest.mark.parametrize("kind", DOUBLE_EXPONENTIALS)
def test_decays_that_underflow_have_no_gradient(kind: str, w: float) -> None:
    """exp(-exp(w)) in float32: its exact gradient is below exp(w - exp(w)), however large exp(w) is."""
    strategy, declared, update = DOUBLE_EXPONENTIALS[kind]
    op = loads(f"recurrence r:\n    dim K, V\n    input q[K], k[K], v[V], {declared}\n    state S[K, V]\n"
               f"    S = {update} + outer(k, v)\n    output o = q @ S\n")  # fmt: skip
    inputs = {n: x.float() for n, x in random_inputs(op.recurrence, 1, 20, 2, seed=1).items()}
    some = torch.rand(inputs["w"].shape, generator=torch.Generator().manual_seed(2)) < 0.5
    inputs["w"] = torch.where(some, w, -3.0).requires_grad_()
    o, _ = op(**inputs, strategy=strategy, backend="torch")
    (found,) = torch.autograd.grad(o.sum(), inputs["w"])
    exact = {n: x.detach().double() for n, x in inputs.items()}
    exact["w"].requires_grad_()
    o, _ = op.reference(**exact)
    (wanted,) = torch.autograd.grad(o.sum(), exact["w"])
    torch.testing.assert_close(found.double(), wanted.nan_to_num(0.0), rtol=1e-3, atol=1e-4)

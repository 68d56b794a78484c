"""What launches do, counted by hand."""

from __future__ import annotations

import pytest
from triton_plans import plan

import recur
from recur import zoo
from recur.codegen.triton_printer.config import Launch, StageConfig
from recur.codegen.triton_printer.work import Extent, Work, count_work
from recur.ir.tile import Axis, Kernel, Let, Value
from recur.passes.plan_dims import clear_dims
from recur.runtime.tuning.space import default_configs
from recur.runtime.tuning.tune import plans_of

B, T, H, K, V = 2, 1000, 3, 32, 64


def work_of(name: str, kernel: str, strategy: str = "chunkwise") -> tuple[Work, int]:
    op = recur.load(zoo.path(name))
    sizes = {"K": K, "V": V}
    (plan,) = plans_of(op.program, sizes, strategy)
    (config,) = default_configs([plan], sizes)
    found = next(k for k in plan.forward + plan.backward if k.name == kernel)
    return count_work(plan, found, config, Extent(B, T, H)), -(-T // config.chunk)


def test_a_walk_over_chunks() -> None:
    """DeltaNet's walk back: B R, P^T dO, Tm^T dU, Q^T dO and A^T Z for every chunk; b, q, dO, Tm, P in, Z and R out."""
    work, chunks = work_of("delta_net", "reverse")
    assert work.steps == chunks and work.programs % (B * H) == 0
    states = 2 * B * chunks * H * K * V
    rows = 2 * B * T * H
    assert states + rows * (2 * K + 2 * V) < work.bytes < states + rows * (2 * K + 2 * V + 3 * 64) + 8 * B * H * K * V
    assert work.products >= 2 * B * H * chunks * 64 * (3 * K * V + 2 * 64 * V)


@pytest.mark.parametrize("name", ("gated_delta_net", "linear_attention"))
def test_one_token_after_another(name: str) -> None:
    work, _ = work_of(name, "S_forward", "sequential")
    assert (work.steps, work.products) == (T, 0.0)
    per_token = 2 * (2 * K + 2 * V) + (4 if name == "gated_delta_net" else 0)
    before = 4 * K * V  # the state before every token, for the backward pass
    assert work.bytes == B * H * (T * (per_token + before) + 2 * 4 * K * V)


def test_levels_of_pairs() -> None:
    """GLA's pairs: a product in blocks and one between them, no level of halves; no step follows another."""
    work, chunks = work_of("gla", "key_side")
    assert work.steps == 1
    assert work.products == B * H * chunks * 2 * 2 * 64 * 64 * K


@pytest.mark.parametrize("name", zoo.names())
def test_every_kernel_is_counted(name: str) -> None:
    op = recur.load(zoo.path(name))
    given = {d.name: d.size or 16 for d in op.recurrence.dims}
    _, sizes = clear_dims(op.program, given)
    plans = plans_of(op.program, given, "auto")
    for stage, config in zip(plans, default_configs(plans, sizes), strict=True):
        for kernel in stage.forward + stage.backward:
            work = count_work(stage, kernel, config, Extent(B, T, H))
            assert work.bytes > 0 and work.programs > 0 and work.steps > 0 and work.products >= 0, kernel.name


def test_complex_operands_multiply_the_work() -> None:
    """Both operands complex: four real products."""
    axes = (Axis("K", "size", "K"), Axis("V", "size", "V"), Axis("J", "size", "K"))

    def products(is_complex: bool) -> float:
        x, y = Value("x", ("K", "V"), is_complex), Value("y", ("V", "J"), is_complex)
        dot = Let((Value("o", ("K", "J"), is_complex),), "contract", (x, y), (("over", ("V",)),))
        kernel = Kernel("dot", ("batch", "head"), axes, (dot,))
        config = StageConfig((("K", K), ("V", V)), 64, (("dot", Launch()),))
        return count_work(plan("dot", (), (kernel,)), kernel, config, Extent(B, T, H)).products

    assert products(False) == B * H * 2 * K * V * K
    assert products(True) == 4 * products(False)

"""The Triton printer and the ahead-of-time build: no GPU needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import triton
from hand_plans import elementwise_scan, linear_attention, nonlinear_steps
from triton_plans import elementwise_kernel, load_stage, print_source
from triton_plans import linear_attention as gated_attention

import recur
from recur import load, zoo
from recur.codegen.triton_printer import print_helpers
from recur.codegen.triton_printer.config import SCAN_REGISTERS
from recur.codegen.triton_printer.launch_library import _avoid_wrong_assembler
from recur.ir.plan import Plan
from recur.runtime.build import (
    LINTS,
    KernelReport,
    build_module,
    count_register_dots,
    kernel_source,
    kernels_of,
    shared_limit,
)
from recur.runtime.load import load_module
from recur.zoo import path

HERE = Path(__file__).parent
COMPILES = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton was imported to interpret")


@pytest.mark.slow
def test_interpreted() -> None:
    """The files that need the interpreter, in a process of its own where it is chosen."""
    names = ("triton_interpreted.py", "relay.py", "segments.py", "interleave.py::test_interpreted")
    files = [str(HERE / f"test_{name}") for name in names]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]


@COMPILES
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_build(target: str) -> None:
    report = build_module(load_stage(gated_attention(), {"K": 32, "V": 32}, chunk=32), target)
    (kernel,) = report.kernels
    assert report.ok or any("register" in finding for finding in kernel.findings)
    assert kernel.name == "linear_attention_walk_kernel"
    assert 0 < kernel.registers <= 255 and kernel.stack == 0 and kernel.cubin_bytes > 0
    assert 0 < kernel.shared <= shared_limit(target)


@COMPILES
@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (linear_attention(), {"K": 12, "V": 40}),
        (elementwise_scan(), {"D": 5}),
        (nonlinear_steps(), {"D": 5}),
    ],
)
def test_builds_odd_sizes(plan: Plan, sizes: dict[str, int]) -> None:
    report = build_module(load_stage(plan, sizes, chunk=16), "sm_90", "fp32")
    # Whether so small a kernel spills is up to Triton's version; that it compiles and fits is not.
    assert all(0 < kernel.registers <= 255 and kernel.shared <= shared_limit("sm_90") for kernel in report.kernels)


@COMPILES
def test_pointers_keep_types_that_are_not_the_inputs() -> None:
    """A scan's kernels count on a pointer to whole numbers, whatever the inputs' type."""
    op = recur.load(zoo.path("hgrn"))
    module = load_module("hgrn", op.source("triton", D=16))
    (kernel, types, options), *_ = kernels_of(module)
    assert "*i32" in types
    signature = kernel_source(kernel, types, options, "bf16").signature
    assert "*i32" in signature.values() and "*bf16" in signature.values() and "*fp32" in signature.values()


def test_table_lists_every_kernel() -> None:
    plan = linear_attention()
    module = load_stage(plan, {"K": 16, "V": 16})
    assert len(list(kernels_of(module))) == len(plan.forward + plan.backward)


def test_masks_only_what_is_padded() -> None:
    odd, even = (print_source(gated_attention(), {"K": K, "V": 64}, 64) for K in (48, 64))
    assert "in_K" in odd and "BK" in odd
    assert "in_K" not in even and "BK" not in even and "in_c" in even


def test_walk_reads_well() -> None:
    """The state is one variable that the loop reassigns, and nothing is defined that is not read."""
    source = print_source(gated_attention(), {"K": 64, "V": 64}, 64)
    assert "        S = kept + write" in source
    for function in (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)):
        names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        assert stored <= {n.id for n in names if isinstance(n.ctx, ast.Load)}


def test_helpers_come_with_what_they_call() -> None:
    assert "def _expm1" in print_helpers("_tanh(x)") and "def _sign" in print_helpers("_tanh(x)")
    assert print_helpers("tl.exp(x)") == ""


def test_output_is_deterministic() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from triton_plans import *; "
        "print(print_source(linear_attention(), {'K': 48, 'V': 64}, 64))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(texts) == 1


def test_lints() -> None:
    clean = KernelReport("k", "sm_90", 4, 2, 128, 0, 1024, 0, 1)
    bad = KernelReport("k", "sm_90", 4, 1, 255, 8, 300 * 1024, 2, 1, assembler="12.8")
    assert not any(lint.holds(clean) for lint in LINTS)
    assert all(lint.holds(bad) and lint.says(bad) for lint in LINTS)
    later = replace(bad, assembler="12.9")
    assert [lint.name for lint in LINTS if lint.holds(later)] == ["spill", "shared"]


def test_the_assembler_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """ptxas 12.8, which Triton 3.4 to 3.7 have for Hopper, gives way to a later one; the user's own choice stays."""
    tools = triton.knobs.nvidia
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    _avoid_wrong_assembler.__wrapped__()
    assert tuple(map(int, tools.ptxas.version.split("."))) >= (12, 9)
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/chosen")
    _avoid_wrong_assembler.__wrapped__()
    assert os.environ["TRITON_PTXAS_PATH"] == "/chosen"


def test_register_dots_are_counted() -> None:
    ttgir = (
        "%1 = ttng.warp_group_dot %a, %b, %c : tensor<64x64xbf16> * !ttg.memdesc<64x64xbf16> -> tensor<64x64xf32>\n"
        "%2 = ttng.warp_group_dot %a, %b, %c : !ttg.memdesc<64x64xbf16> * !ttg.memdesc<64x64xbf16> -> tensor<64x64xf32>"
    )
    assert count_register_dots(ttgir) == 1


def test_functions_print(tmp_path: Path) -> None:
    assert "_softplus(x)" in print_source(elementwise_kernel("softplus"), {"D": 4}, 16)


def test_a_bound_on_registers_is_an_option_of_its_kernel() -> None:
    """The forward scan of one state has it, and the backward pass, which holds more, has none."""
    source = load(str(path("hgrn"))).source("triton", D=128)
    forward, backward = source.split("h_FORWARD = ")[1].split("h_BACKWARD = ")
    assert f"maxnreg={SCAN_REGISTERS})" in forward and "maxnreg" not in backward.split("\ndef ")[0]


def test_a_relay_hands_on_before_it_finishes() -> None:
    """The next chunk waits for one product: outputs are evaluated and stored after the state is handed on."""
    source = load(str(path("hgrn"))).source("triton", D=128)
    forward, backward = source.split("def h_forward_kernel")[1].split("def h_backward_kernel")
    for text, order in ((forward, ("_prescan(", "_take(h,", "_hand_on(h_", "_resume(", "o_ptr +")),
                        (backward, ("_prescan(", "_take(d_h,", "_hand_on(d_h_", "_resume(", "d_f_ptr +"))):
        places = [text.index(part) for part in order]
        assert places == sorted(places), order
    assert "for chunk" not in source and "for step" not in source

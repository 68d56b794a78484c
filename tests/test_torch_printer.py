"""The torch printer: plans written by hand against their definitions in float64, and whole modules as files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hand_plans import elementwise_scan, linear_attention, nonlinear_steps
from torch import Tensor

import recur
from recur import zoo
from recur.codegen.torch_printer import print_helpers, print_stage
from recur.compiler import compile_program
from recur.grammar import parse
from recur.inspection import print_stage as print_program_stage
from recur.ir.plan import Plan

LENGTHS = (1, 16, 37)
B, H, K, V = 2, 3, 4, 5


def run(source: str) -> dict[str, object]:
    module: dict[str, object] = {}
    exec(f"from __future__ import annotations\nimport torch\n{print_helpers(source)}\n\n{source}", module)
    return module


def load(plan: Plan) -> dict[str, object]:
    return run(print_stage(plan))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def check_gradients(plan: Plan, inputs: list[Tensor], results: list[Tensor]) -> None:
    """Results and gradients of the printed functions; ``results`` come from ``inputs`` by the definition."""
    module = load(plan)
    cotangents = [torch.randn_like(x) for x in results]
    wanted = torch.autograd.grad(results, inputs, cotangents)
    with torch.no_grad():
        found, final, saved = module[f"{plan.stage}_forward"](*inputs)  # type: ignore[operator]
        gradients = module[f"{plan.stage}_backward"](*inputs, *saved, *cotangents)  # type: ignore[operator]
    for x, y in zip((*found, *final, *gradients), (*results, *wanted), strict=True):
        close(x, y)


@pytest.mark.parametrize("T", LENGTHS)
def test_chunks(T: int) -> None:
    torch.manual_seed(T)
    q, k, v, start = random(B, T, H, K), random(B, T, H, K), random(B, T, H, V), random(B, H, K, V)
    state, rows = start, []
    for t in range(T):
        state = state + k[:, t, ..., None] * v[:, t, :, None]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    check_gradients(linear_attention(), [q, k, v, start], [torch.stack(rows, 1), state])


@pytest.mark.parametrize("T", LENGTHS)
def test_scan(T: int) -> None:
    torch.manual_seed(T)
    a, x, start = random(B, T, H, K), random(B, T, H, K), random(B, H, K)
    h, rows = start, []
    for t in range(T):
        h = a[:, t] * h + x[:, t]
        rows.append(h)
    check_gradients(elementwise_scan(), [a, x, start], [torch.stack(rows, 1), h])


@pytest.mark.parametrize("T", LENGTHS)
def test_steps(T: int) -> None:
    torch.manual_seed(T)
    x, weight, start = random(B, T, H, K).detach(), random(H, K, K).detach(), random(B, H, K).detach()
    results, final, _ = load(nonlinear_steps())["cell_forward"](x, weight, start)  # type: ignore[operator]
    h = start
    for t in range(T):
        h = torch.tanh(torch.einsum("hed,bhd->bhe", weight, h) + x[:, t])
        close(results[0][:, t], h)
    close(final[0], h)


@pytest.mark.parametrize("T", (1, 4, 11))
def test_steps_of_every_chunk(T: int) -> None:
    torch.manual_seed(T)
    x, weight = random(B, T, H, K).detach(), random(H, K, K).detach()
    results, _, (ends,) = load(nonlinear_steps(in_chunks=True))["cell_forward"](x, weight)  # type: ignore[operator]
    h = zero = torch.zeros(B, H, K, dtype=x.dtype)
    for t in range(T):
        h = zero if t % 4 == 0 else h
        h = torch.tanh(torch.einsum("hed,bhd->bhe", weight, h) + x[:, t])
        close(results[0][:, t], h)
    close(ends[:, :, -1], h)  # rows past the end leave the state as it is


# --- gates along the contracted dim: exponents are differences, in blocks ---------------------------------------------


LIBRARY = SimpleNamespace(**run("# _weighed_scores, _weighed_rows"))


def gates(C: int) -> Tensor:
    """Running sums of log gates, down to -1e5."""
    return -(torch.rand(C, K, dtype=torch.float64) ** 8 * 1e4).cumsum(0)


@pytest.mark.parametrize("C", (5, 16, 40))
def test_weighed_products(C: int) -> None:
    torch.manual_seed(C)
    x, y, g = torch.randn(C, K).double(), torch.randn(C, K).double(), gates(C)
    p = torch.randn(C, C).double().tril()
    scale = torch.exp2((g[:, None] - g[None]).clamp(max=0))
    scores = LIBRARY._weighed_scores(x, y, g, g)
    assert scores.isfinite().all()
    close(scores.tril(), torch.einsum("rk,sk,rsk->rs", x, y, scale).tril())
    close(LIBRARY._weighed_rows(p, y, g, g), torch.einsum("rs,sk,rsk->rk", p, y, scale))
    close(LIBRARY._weighed_rows(p.mT, x, -g, -g, reverse=True), torch.einsum("rs,rk,rsk->sk", p, x, scale))


def test_weighed_scores_do_not_look_ahead() -> None:
    torch.manual_seed(0)
    x, y, g = torch.randn(40, K), torch.randn(40, K), gates(40).float()
    later = torch.cat((g[:30], g[30:] - 50))
    before, after = LIBRARY._weighed_scores(x, y, g, g), LIBRARY._weighed_scores(x, y, later, later)
    assert torch.equal(before[:30].tril(), after[:30].tril())


# --- the text ---------------------------------------------------------------------------------------------------------


def test_loops_hold_the_recurrence_alone() -> None:
    """Products of inputs are taken for all chunks at once, outputs from the stacked states."""
    tree = ast.parse(print_stage(linear_attention()))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert loops
    assert not any(isinstance(node, ast.MatMult) for loop in loops for node in ast.walk(loop))


@pytest.mark.parametrize("plan", (linear_attention, elementwise_scan, nonlinear_steps))
def test_text_is_deterministic_and_fits(plan) -> None:  # type: ignore[no-untyped-def]
    text = print_stage(plan())
    assert text == print_stage(plan())
    assert max(map(len, text.splitlines())) <= 120


# --- whole modules ----------------------------------------------------------------------------------------------------

SPEC = """
recurrence shifted:
    dim    K, V
    input  q[K], k[K], v[V]
    input  g in (-inf, 0]
    param  w[K]
    state  S[K, V]

    S = exp(g) * S + outer(w * (k + prev(k)), v)
    output o = q @ S
"""

RUN = """
import sys
sys.modules["recur"] = None
import torch
from shifted import shifted
torch.manual_seed(0)
T, H = 70, {heads}
lead = (T, H) if H else (T,)
q, k, v = (torch.randn(2, *lead, d, dtype=torch.{dtype}, requires_grad=True) for d in (4, 4, 5))
g = (-torch.rand(2, *lead)).to(q.dtype).requires_grad_()
w = torch.randn(*((H, 4) if H else (4,)), dtype=q.dtype, requires_grad=True)
whole, final = shifted(q, k, v, g, w, output_final_state=True)
first, state = shifted(*(x[:, :33] for x in (q, k, v, g)), w, output_final_state=True)
second, none = shifted(*(x[:, 33:] for x in (q, k, v, g)), w, initial_state=state)
assert none is None and list(final) == ["S", "prev.k"] and whole.dtype == q.dtype
assert final["S"].dtype == (torch.float64 if q.dtype == torch.float64 else torch.float32)
assert final["S"].shape == (2, *lead[1:], 4, 5) and whole.shape == v.shape
gap = (torch.cat((first, second), 1) - whole).abs().max() / whole.abs().max()
assert gap < (1e-12 if q.dtype == torch.float64 else 0.02), gap
gradients = torch.autograd.grad(second.float().sum() + state["S"].sum(), (q, k, v, g, w))
assert all(x.isfinite().all() and x.dtype == q.dtype for x in gradients)
"""


@pytest.mark.parametrize(("heads", "dtype"), ((3, "float64"), (0, "float64"), (2, "bfloat16")))
def test_emitted_file_runs_without_recur(tmp_path: Path, heads: int, dtype: str) -> None:
    from recur.api import loads
    from recur.codegen.emit import emit
    from recur.strategies.select import select

    program = loads(SPEC).program
    sizes = {"K": 4, "V": 5}
    plans = [s.plan for s in select(program, sizes)]
    text = emit(program, plans, sizes, "torch")
    assert text == emit(program, plans, sizes, "torch")
    (tmp_path / "shifted.py").write_text(text)
    (tmp_path / "run.py").write_text(RUN.format(heads=heads, dtype=dtype))
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_that_is_read_again_is_overwritten() -> None:
    """Inputs stay as they are, and a second backward pass through what the forward pass kept gives the same."""
    op = recur.load(zoo.path("gated_delta_net"))
    inputs = [random(2, 70, 2, *dims) for dims in ((5,), (5,), (3,), (), ())]
    inputs[3] = -inputs[3].abs()
    before = [x.clone() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    o, _ = op(*leaves, backend="torch")
    first, second = (torch.autograd.grad(o.square().sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_the_walk_keeps_its_states() -> None:
    """The backward pass starts from the states that the forward pass held, and does not walk the chunks again."""
    program = compile_program(parse(zoo.path("gated_delta_net").read_text(), "gated_delta_net")[0])
    source = print_program_stage(program, "torch", {"K": 64, "V": 64}, "chunkwise")
    assert source.count("for n in") == 2

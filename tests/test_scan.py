"""The associative scan's plans, run as tile programs in float64, against a step loop and autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stage_oracle import check_plan, random_tensors, run_steps
from tile_interpreter import Run, run_forward

import recur
from recur.ir.core import Node, add, apply, const, contract, leaf, leaves, mul, neg, rename, sub, substitute
from recur.ir.normal import ElementwiseForm, GeneralForm, LinearForm, MaxPlusForm, NormalForm, Stage
from recur.ir.plan import Plan, Reject
from recur.strategies import associative_scan
from recur.zoo import path

SIZES = {"D": 3, "N": 2, "E": 4, "b": 3, "c": 3}
CHUNK = 4
RUNS = 2
LENGTHS = (1, 3, 4, 5, 7, 17)


def elementwise(states: dict[str, tuple[Node, Node]], dims: tuple[str, ...], exports: dict[str, Node]) -> NormalForm:
    """States h <- decay h + drive; exports over `state` and `next` leaves."""
    forms, updates = [], []
    for name, (decay, drive) in states.items():
        is_complex = decay.is_complex or drive.is_complex
        forms.append(ElementwiseForm(name, dims, decay, drive, is_complex=is_complex))
        updates.append((name, add(mul(decay, leaf("state", name, dims, is_complex)), drive)))
    table = {leaf("next", name, dims, node.is_complex): node for name, node in updates}
    stepwise = tuple(zip(exports, substitute(exports.values(), table), strict=True))
    stage = Stage("s", tuple(states), tuple(updates), stepwise)
    return NormalForm(stage, "elementwise", tuple(forms), tuple(exports.items()), "h = a h + x")


def hgrn() -> NormalForm:
    c, f, lower = leaf("input", "c", ("D",)), leaf("input", "f", ("D",)), leaf("param", "lower", ("D",))
    forget = add(lower, mul(sub(const(1), lower), apply("sigmoid", f)))
    drive = mul(sub(const(1), forget), apply("silu", c))
    return elementwise({"h": (forget, drive)}, ("D",), {"o": leaf("next", "h", ("D",))})


def mamba() -> NormalForm:
    """Mamba-1: outputs contract the state's N, and B, C are shared by all D."""
    x, dt = leaf("input", "x", ("D",)), leaf("input", "dt", ("D",))
    write, read = leaf("input", "B", ("N",)), leaf("input", "C", ("N",))
    a_log, bias = leaf("param", "A_log", ("D", "N")), leaf("param", "dt_bias", ("D",))
    skip = leaf("param", "skip", ("D",))
    delta = apply("softplus", add(dt, bias))
    decay = apply("exp", neg(mul(delta, apply("exp", a_log))))
    drive = contract(mul(delta, x), write, ())
    output = add(contract(leaf("next", "h", ("D", "N")), read, ("N",)), mul(skip, x))
    return elementwise({"h": (decay, drive)}, ("D", "N"), {"y": output})


def lru() -> NormalForm:
    """A complex diagonal from params alone; the drive contracts an input with a complex param."""
    u, skip = leaf("input", "u", ("D",)), leaf("param", "skip", ("D",))
    nu, theta, gamma = (leaf("param", name, ("N",)) for name in ("nu", "theta", "gamma"))
    into, out = leaf("param", "B", ("N", "D"), is_complex=True), leaf("param", "C", ("D", "N"), is_complex=True)
    decay = apply("polar", apply("exp", neg(apply("exp", nu))), apply("exp", theta))
    drive = mul(apply("exp", gamma), contract(into, u, ("D",)))
    read = contract(out, leaf("next", "x", ("N",), is_complex=True), ("N",))
    return elementwise({"x": (decay, drive)}, ("N",), {"y": add(apply("real", read), mul(skip, u))})


def shared_decay() -> NormalForm:
    """Two states, a negative scalar decay for all of D, outputs of both before and after the step, a complex one."""
    a, x, z = leaf("input", "a"), leaf("input", "x", ("D",)), leaf("input", "z", ("D",), is_complex=True)
    decay = neg(apply("sigmoid", a))
    h, old = leaf("next", "h", ("D",)), leaf("state", "h", ("D",))
    k = leaf("next", "k", ("D",), is_complex=True)
    turned = mul(apply("polar", apply("sigmoid", a), leaf("prev", "x", ("D",))), leaf("param", "w", ("D",)))
    exports = {"y": mul(h, apply("tanh", old)), "r": mul(k, apply("conj", leaf("state", "k", ("D",), is_complex=True))),
               "plain": apply("sin", x), "energy": add(contract(h, h, ("D",)), contract(old, x, ("D",)))}
    return elementwise({"h": (decay, x), "k": (turned, z)}, ("D",), exports)


def blocks() -> NormalForm:
    """h[N, b] <- A[N, b, c] h[N, c] + w x, complex, and the state before the step is read."""
    dims = ("N", "b")
    matrix = mul(const(0.5), leaf("input", "A", ("N", "b", "c"), is_complex=True))
    drive = mul(leaf("param", "w", ("b",)), leaf("input", "x", dims))
    h = leaf("state", "h", dims, is_complex=True)
    update = add(contract(matrix, rename(h, "b", "c"), ("c",)), drive)
    form = LinearForm("h", ("N",), ("b",), ("c",), matrix, drive, is_complex=True)

    def output(after: Node) -> Node:
        return add(apply("tanh", apply("real", after)), apply("imag", h))

    stage = Stage("s", ("h",), (("h", update),), (("y", output(update)),))
    return NormalForm(stage, "linear", (form,), (("y", output(leaf("next", "h", dims, True))),), "h = A h + x")


def dense() -> NormalForm:
    """h[b] <- R[b, c] h[c] + x[b], R a param."""
    matrix, drive, h = leaf("param", "R", ("b", "c")), leaf("input", "x", ("b",)), leaf("state", "h", ("b",))
    update = add(contract(matrix, rename(h, "b", "c"), ("c",)), drive)
    form = LinearForm("h", (), ("b",), ("c",), matrix, drive)
    stage = Stage("s", ("h",), (("h", update),), (("y", update),))
    return NormalForm(stage, "linear", (form,), (("y", leaf("next", "h", ("b",))),), "h = A h + x")


def gated(gate: str) -> NormalForm:
    """h <- f(g) h + x with the decay exp(g), or g itself."""
    g, x = leaf("input", "g", ("D",)), leaf("input", "x", ("D",))
    decay = apply("exp", g) if gate == "exp" else g
    return elementwise({"h": (decay, x)}, ("D",), {"y": leaf("next", "h", ("D",))})


def make_plan(normal: NormalForm) -> Plan:
    """The plan for chunks of CHUNK tokens, in RUNS runs where a scan has runs."""
    plan = associative_scan.plan(normal, SIZES)
    assert isinstance(plan, Plan), plan
    return replace(plan, fixed_sizes=tuple((n, RUNS if n == "runs" else size) for n, size in plan.fixed_sizes))


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("make", [hgrn, mamba, lru, shared_decay, blocks, dense])
def test_every_length(make, tokens: int) -> None:
    normal = make()
    check_plan(make_plan(normal), normal, SIZES, random_tensors(normal, SIZES, 2, tokens, 2), CHUNK)


@pytest.mark.parametrize("make, tiled", [(hgrn, "D"), (mamba, "D"), (blocks, "N")])
def test_tiles_give_partial_sums(make, tiled: str) -> None:
    normal = make()
    plan = make_plan(normal)
    assert all(f"tile:{tiled}" in kernel.grid for kernel in (*plan.forward, *plan.backward))
    blocks = {tiled: SIZES[tiled] - 1}
    check_plan(plan, normal, SIZES, random_tensors(normal, SIZES, 2, 7, 2), CHUNK, blocks)


@pytest.mark.parametrize("gate", ["exp", "raw"])
def test_extreme_gates(gate: str) -> None:
    """Exact zeros, ones, gates of -1e3 and negative decays, with the error of ordinary ones."""
    normal = gated(gate)
    tensors = random_tensors(normal, SIZES, 1, 40, 2)
    values = torch.tensor([0.0, -1e3, -150.0, -1e-8, -0.5] if gate == "exp" else [0.0, 1.0, -1.0, 0.5, -0.3])
    pick = torch.randint(len(values), tensors["g"].shape, generator=torch.Generator().manual_seed(0))
    tensors["g"] = values.double()[pick]
    check_plan(make_plan(normal), normal, SIZES, tensors, 16, tolerance=1e-12)


def test_a_running_log_scale() -> None:
    """m <- max(m + g, i) from minus infinity; exports before and after the step; no gradients."""
    g, i = leaf("input", "g"), leaf("input", "i")
    before = leaf("state", "m")
    after = apply("max", add(before, g), i)
    exports = (("m_now", after), ("m_prev", before))
    stage = Stage("s", ("m",), (("m", after),), exports)
    epilogue = (("m_now", leaf("next", "m")), ("m_prev", before))
    normal = NormalForm(stage, "maxplus", (MaxPlusForm("m", (), g, i),), epilogue, "")
    plan = make_plan(normal)
    assert not plan.backward and not plan.gradients
    tensors = random_tensors(normal, SIZES, 2, 13, 2)
    tensors["g"] = -tensors["g"].abs()
    tensors["g"][:, 5] = -float("inf")
    initial = torch.full((2, 2), -float("inf"), dtype=torch.float64)
    wanted, final = run_steps(normal, SIZES, tensors, {"m": initial})
    run = Run(plan, SIZES, 2, 2, 13, CHUNK)
    run_forward(run, tensors, {"m": initial})
    for name, value in {**wanted, "final_m": final["m"]}.items():
        torch.testing.assert_close(run.tensors[name], value)


def test_states_are_not_written_per_token() -> None:
    plan = make_plan(mamba())
    assert all(not {"D", "N"} <= set(b.layout) or b.layout[1] != "T" for b in (*plan.saved, *plan.workspace))


def test_refusals_name_the_reason() -> None:
    update = apply("tanh", leaf("state", "h", ("D",)))
    stage = Stage("s", ("h",), (("h", update),), (("y", update),))
    form = GeneralForm("h", ("D",), update, "the state is inside tanh: tanh(h)")
    answer = associative_scan.plan(NormalForm(stage, "general", (form,), (), ""), SIZES)
    assert isinstance(answer, Reject) and "tanh" in answer.reason
    wide = associative_scan.plan(dense(), {"b": 64, "c": 64})
    assert isinstance(wide, Reject) and "64 x 64" in wide.reason


def test_every_leaf_is_an_argument() -> None:
    for make in (hgrn, mamba, lru, shared_decay, blocks):
        normal = make()
        wanted = {n.attrs[1] for n in leaves(n for _, n in normal.stage.updates) if n.attrs[0] in ("input", "param")}
        assert wanted <= {b.name for b in make_plan(normal).arguments}


def test_relay_holds_functions() -> None:
    """The backward program of a chunk computes a gate once and loads all before it waits; after it, d_o again."""
    text = recur.load(str(path("hgrn"))).source("triton", D=64)
    body = text[text.index("def h_backward_kernel") : text.index("h_FORWARD")]
    wait = body.index("_take(")
    before, after = body[:wait], body[wait:]
    assert before.count("_sigmoid(f)") == 1 and "_sigmoid(f" not in after
    assert "    c_ptr + " in before and "    c_ptr + " not in after
    assert before.rindex("tl.load(") < before.index("_sigmoid(f)")
    assert "d_o_ptr + " in before and "d_o_ptr + " in after

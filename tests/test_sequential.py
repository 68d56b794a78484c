"""The sequential strategy's plans, run as tile programs in float64, against a step loop and autograd."""

from __future__ import annotations

import pytest
from stage_oracle import check_plan, random_tensors
from test_scan import hgrn, mamba

from recur.ir.core import Node, add, apply, const, contract, expand, leaf, mul, rename, sub
from recur.ir.normal import Decay, GeneralForm, LinearForm, MatrixForm, NormalForm, Read, Readout, Stage, Write
from recur.ir.plan import Plan
from recur.strategies import sequential

SIZES = {"D": 3, "J": 3, "N": 2, "K": 3, "V": 4, "b": 2, "c": 2}


def lstm() -> NormalForm:
    """Two states that depend on each other; the output reads the new h."""
    dims = ("D",)
    c, h = leaf("state", "c", dims), leaf("state", "h", dims)

    def gate(name: str) -> Node:
        recurrent = rename(contract(leaf("param", f"R{name}", ("J", "D")), h, ("D",)), "J", "D")
        return add(leaf("input", name, dims), recurrent)

    cell = add(mul(apply("sigmoid", gate("f")), c), mul(apply("sigmoid", gate("i")), apply("tanh", gate("z"))))
    hidden = mul(apply("sigmoid", gate("o")), apply("tanh", cell))
    updates = (("c", cell), ("h", hidden))
    forms = tuple(GeneralForm(name, dims, node, "it is nonlinear") for name, node in updates)
    stage = Stage("s", ("c", "h"), updates, (("y", hidden),))
    return NormalForm(stage, "general", forms, (("y", leaf("next", "h", dims)),), "h = F(h, x)")


def gated_delta() -> NormalForm:
    """S <- exp(g) S; S <- S + k (beta v - (beta k) @ S); o = q @ S."""
    S = leaf("state", "S", ("K", "V"))
    q, k, v = leaf("input", "q", ("K",)), leaf("input", "k", ("K",)), leaf("input", "v", ("V",))
    g, beta = leaf("input", "g"), leaf("input", "beta")
    decay = apply("exp", apply("neg", apply("softplus", g)))
    decayed = mul(decay, S)
    update = add(decayed, mul(k, mul(beta, sub(v, contract(k, decayed, ("K",))))))
    output = contract(q, update, ("K",))
    events = (
        Decay(decay, apply("neg", apply("softplus", g))),
        Read("r", mul(beta, k)),
        Write(k, mul(beta, v), "r"),
        Readout("o0", q),
    )
    form = MatrixForm("S", (), ("K",), ("V",), events)
    stage = Stage("s", ("S",), (("S", update),), (("o", output),))
    return NormalForm(stage, "matrix", (form,), (("o", leaf("readout", "o0", ("V",))),), "S = a S + b (y - a S)")


def blocks() -> NormalForm:
    """h[N, b] <- A[N, b, c] h[N, c] + x[N, b], read before the step as well."""
    dims = ("N", "b")
    matrix = leaf("input", "A", ("N", "b", "c"))
    drive = mul(leaf("param", "w", ("b",)), leaf("input", "x", dims))
    h = leaf("state", "h", dims)
    update = add(contract(matrix, rename(h, "b", "c"), ("c",)), drive)
    form = LinearForm("h", ("N",), ("b",), ("c",), matrix, drive)
    stage = Stage("s", ("h",), (("h", update),), (("y", add(apply("tanh", update), h)),))
    epilogue = (("y", add(apply("tanh", leaf("next", "h", dims)), h)),)
    return NormalForm(stage, "linear", (form,), epilogue, "h = A h + x")


def rotating() -> NormalForm:
    """A nonlinear complex cell whose export lacks nothing: z <- polar(1, theta) z / (1 + |z|^2) + u."""
    z = leaf("state", "z", ("D",), is_complex=True)
    turned = mul(apply("polar", const(1), leaf("input", "theta", ("D",))), z)
    squared = add(apply("square", apply("real", z)), apply("square", apply("imag", z)))
    update = add(apply("div", turned, add(const(1), squared)), leaf("input", "u", ("D",), is_complex=True))
    form = GeneralForm("z", ("D",), update, "it is nonlinear")
    output = apply("real", mul(leaf("param", "w", ("D",), is_complex=True), update))
    stage = Stage("s", ("z",), (("z", update),), (("y", output),))
    epilogue = (("y", apply("real", mul(leaf("param", "w", ("D",), True), leaf("next", "z", ("D",), True)))),)
    return NormalForm(stage, "general", (form,), epilogue, "z = F(z, x)")


MAKERS = [hgrn, mamba, lstm, gated_delta, blocks, rotating]


def make_plan(normal: NormalForm) -> Plan:
    plan = sequential.plan(normal, SIZES)
    assert isinstance(plan, Plan), plan
    return plan


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("make", MAKERS)
def test_every_family(make, tokens: int) -> None:
    normal = make()
    check_plan(make_plan(normal), normal, SIZES, random_tensors(normal, SIZES, 2, tokens, 2))


@pytest.mark.parametrize("make, tiled", [(mamba, "D"), (gated_delta, "V"), (blocks, "N"), (rotating, "D")])
def test_tiles_give_partial_sums(make, tiled: str) -> None:
    normal = make()
    plan = make_plan(normal)
    assert plan.forward[0].grid == ("batch", "head", f"tile:{tiled}")
    check_plan(plan, normal, SIZES, random_tensors(normal, SIZES, 2, 3, 1), blocks={tiled: SIZES[tiled] // 2})


def test_a_recurrent_matrix_too_large_for_registers_is_a_limit() -> None:
    assert not make_plan(lstm()).limits
    tile, gradients = sequential.plan(lstm(), {"D": 256, "J": 256}).limits  # type: ignore[union-attr]
    assert "256 x 256" in tile and "Rf" in gradients


def test_states_lack_no_dims() -> None:
    """A constant drive still fills the state's dims."""
    decay = leaf("input", "a")
    update = add(mul(decay, leaf("state", "h", ("D",))), expand(const(1), ("D",)))
    form = GeneralForm("h", ("D",), update, "")
    stage = Stage("s", ("h",), (("h", update),), (("y", update),))
    normal = NormalForm(stage, "general", (form,), (("y", leaf("next", "h", ("D",))),), "")
    check_plan(make_plan(normal), normal, SIZES, random_tensors(normal, SIZES, 1, 3, 1))

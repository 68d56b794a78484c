"""Symbolic cotangents against torch.autograd, in float64."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch
from node_evaluator import evaluate
from torch import Tensor

from recur.ir import core
from recur.ir.core import Node, apply, const, contract, leaf, topological
from recur.operators import OPERATORS, power
from recur.passes.autodiff import pull_back

SIZES = {"K": 3, "V": 2, "N": 4, "M": 4, "J": 3}
BATCH = (2,)
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
POSITIVE = (
    "log",
    "log2",
    "log1p",
    "sqrt",
    "rsqrt",
    "pow",
    "div",
    "polar",
)  # torch.polar differentiates right for radii >= 0 alone


def draw(node: Node, generator: torch.Generator, positive: bool = False) -> Tensor:
    dtype = torch.complex128 if node.is_complex else torch.float64
    value = torch.randn(*BATCH, *(SIZES[d] for d in node.dims), dtype=dtype, generator=generator)
    return value.abs() + 0.5 if positive and not node.is_complex else value


def check(outputs: list[Node], sources: list[Node], values: dict[Node, Tensor], tolerance: float = 1e-9) -> list[Node]:
    """Compares the cotangents of the sources with autograd's; returns their nodes."""
    generator = torch.Generator().manual_seed(7)
    cotangents = [leaf("cotangent", f"g{i}", out.dims, out.is_complex) for i, out in enumerate(outputs)]
    given = {g: draw(g, generator) for g in cotangents}
    tracked = {n: v.clone().requires_grad_() for n, v in values.items()}
    results = [r.expand(given[g].shape) for r, g in zip(evaluate(outputs, tracked, SIZES), cotangents, strict=True)]
    wired = [(r, given[g]) for r, g in zip(results, cotangents, strict=True) if r.requires_grad]
    expected: list[Tensor | None] = [None] * len(sources)
    if wired:
        expected = list(
            torch.autograd.grad([r for r, _ in wired], [tracked[s] for s in sources], [g for _, g in wired],
                                allow_unused=True)
        )  # fmt: skip
    gradients = pull_back(outputs, cotangents, sources)
    for source, gradient, value, reference in zip(
        sources, gradients, evaluate(gradients, {**values, **given}, SIZES), expected, strict=True
    ):
        assert gradient.dims == source.dims
        if reference is None:
            reference = torch.zeros_like(values[source])
        torch.testing.assert_close(
            value.expand(reference.shape).to(reference.dtype), reference, rtol=tolerance, atol=tolerance
        )
    return gradients


def draw_leaves(*nodes: Node, seed: int = 0, positive: bool = False) -> dict[Node, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: draw(n, generator, positive) for n in nodes}


# --- every row of the table, with every way of broadcasting -----------------------------------------------------------

LAYOUTS = (
    (("K", "V"), ("K", "V")),
    (("K", "V"), ("V",)),
    (("V",), ("K", "V")),
    (("K",), ("V",)),
    ((), ("V", "K")),
    (("K",), ()),
)


def build_row(name: str, args: list[Node]) -> list[Node]:
    if name in COMPARISONS:
        return [core.where(apply(name, *args), args[0], args[1])]
    if name == "where":
        return [core.where(apply("lt", args[0], args[1]), args[1], args[2])]
    if name == "pow":
        return [power(args[0], p) for p in (2.0, 3.0, 0.5, -1.5, 0.0)]
    return [apply(name, *args)]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_every_operator_agrees_with_autograd(name: str, is_complex: bool) -> None:
    operator = OPERATORS[name]
    if is_complex and not operator.takes_complex:
        return
    for seed, layout in enumerate(LAYOUTS):
        dims = (*layout, ("V",))[: operator.arity]
        args = [leaf("input", f"x{i}", d, is_complex and not (name == "where" and i < 1)) for i, d in enumerate(dims)]
        if name == "where" and is_complex:
            args = [leaf("input", "c", dims[0]), leaf("input", "x", dims[1], True), leaf("input", "y", dims[2], True)]
            c, x, y = args
            outputs = [core.where(apply("lt", c, const(0.2)), x, y)]
        else:
            outputs = build_row(name, args)
        check(outputs, args, draw_leaves(*args, seed=seed, positive=name in POSITIVE))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_a_real_operand_of_a_complex_operation_takes_the_real_part(name: str) -> None:
    x, z = leaf("input", "x", ("K",)), leaf("input", "z", ("V", "K"), True)
    check([apply(name, x, z), apply(name, z, x)], [x, z], draw_leaves(x, z))


@pytest.mark.parametrize("name", ["relu", "elu", "abs", "max", "min", "sign"])
def test_kinks_and_ties_follow_torch(name: str) -> None:
    args = [leaf("input", f"x{i}", ("K",)) for i in range(OPERATORS[name].arity)]
    values = {a: torch.zeros(*BATCH, 3, dtype=torch.float64) for a in args}
    check([apply(name, *args)], args, values)


def test_the_modulus_at_zero_has_no_gradient() -> None:
    z = leaf("input", "z", ("K",), True)
    check([apply("abs", z)], [z], {z: torch.zeros(*BATCH, 3, dtype=torch.complex128)})


# --- structural operations --------------------------------------------------------------------------------------------


def structural(c: bool) -> dict[str, Node]:
    k, v, s = leaf("input", "k", ("K",), c), leaf("input", "v", ("V",), c), leaf("state", "S", ("K", "V"), c)
    n = leaf("input", "n", ("N", "V"), c)
    cases = {
        "dot": contract(k, k, ("K",)),
        "read": contract(s, k, ("K",)),
        "read right": contract(v, s, ("V",)),
        "outer": contract(k, v, ()),
        "aligned": contract(s, s, ("V",)),
        "both": contract(s, core.mul(k, v), ("K", "V")),
        "one lacks it": contract(s, v, ("K", "V")),
        "matrix product": contract(s, core.rename(s, "K", "J"), ("V",)),
        "sum": core.reduce("sum", s, ("K",)),
        "sum all": core.reduce("sum", s, ("V", "K")),
        "sum of squares": core.reduce("sum", core.mul(s, s), ("V", "K")),
        "square sum": apply("square", core.reduce("sum", s, ("V",))),
        "expand": core.expand(k, ("V", "K")),
        "reorder": core.expand(s, ("V", "K")),
        "broadcast sum": core.mul(k, core.reduce("sum", core.add(v, s), ("K", "V"))),
        "rename": core.rename(s, "K", "J"),
        "index": core.index(s, "K", 1),
        "index two": core.add(core.index(s, "K", 0), core.index(s, "K", 2)),
        "place": core.place(v, "K", 2),
        "place lacking": core.reduce("sum", core.place(v, "K", 2), ("K",)),
        "hadamard": core.hadamard(n, "N"),
        "hadamard lacking": core.reduce("sum", core.hadamard(n, "N"), ("N",)),
        "eye": contract(core.eye("K", "J"), s, ("K",)),
        "trace": contract(core.eye("N", "M"), contract(n, core.rename(n, "N", "M"), ("V",)), ("N", "M")),
        "stop": core.mul(core.stop(s), s),
        "version": core.version(core.mul(s, k), "S", 1),
        "size": core.div(core.reduce("sum", s, ("K",)), core.size("K")),
    }
    if not c:
        cases["amax"] = core.reduce("amax", s, ("K",))
        cases["amax all"] = core.mul(core.reduce("amax", s, ("K", "V")), k)
    return cases


@pytest.mark.parametrize("name", structural(False))
def test_structural_operations_agree_with_autograd(name: str) -> None:
    for is_complex in (False, True):
        cases = structural(is_complex)
        if name in cases:
            found = core.leaves([cases[name]])
            check([cases[name]], found, draw_leaves(*found))


def test_ties_of_amax_share_equally() -> None:
    x = leaf("input", "x", ("K", "V"))
    value = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], dtype=torch.float64).expand(*BATCH, 3, 2)
    check([core.reduce("amax", x, ("K",)), core.reduce("amax", x, ("K", "V"))], [x], {x: value})


# --- the branch not taken ---------------------------------------------------------------------------------------------

X, Y, S = leaf("input", "x", ("K",)), leaf("input", "y", ("K",)), leaf("state", "S", ("K", "V"))
ZERO, ONE = const(0), const(1)
IS_ZERO = apply("eq", X, ZERO)
SAFE = core.where(IS_ZERO, ONE, X)  # the operand that the taken branch sees, with nothing to poison
BRANCHES = {
    "log": lambda x: apply("log", x),
    "log chain": lambda x: apply("tanh", apply("log", x)),
    "sqrt": lambda x: apply("sqrt", apply("square", x)),
    "rsqrt": lambda x: apply("rsqrt", apply("square", x)),
    "0/0": lambda x: core.div(x, x),
    "1/0 times y": lambda x: core.mul(core.div(ONE, x), Y),
    "pow": lambda x: power(apply("abs", x), -1.5),
    "pow 1/2": lambda x: power(apply("abs", x), 0.5),
    "inf - inf": lambda x: core.sub(core.div(ONE, apply("abs", x)), apply("rsqrt", apply("square", x))),
    "max of logs": lambda x: apply("max", apply("log", apply("square", x)), core.div(Y, x)),
    "row of a matrix": lambda x: contract(core.div(S, x), core.mul(S, Y), ("V",)),
    "outer product": lambda x: core.reduce(
        "sum", core.mul(contract(apply("log", x), leaf("input", "v", ("V",)), ()), S), ("V",)
    ),
    "modulus": lambda x: apply("abs", apply("polar", core.div(ONE, apply("square", x)), x)),
    "complex": lambda x: apply("imag", core.mul(apply("complex", core.div(ONE, x), x), leaf("input", "z", (), True))),
    "amax": lambda x: core.reduce("amax", core.mul(core.div(ONE, x), S), ("V",)),
    "renamed": lambda x: core.rename(core.rename(apply("log", apply("abs", x)), "K", "J"), "J", "K"),
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_branch_not_taken_does_not_poison(name: str, swapped: bool) -> None:
    """The gradient is that of the same branch on operands without the pole, where torch's own is finite."""
    branch = BRANCHES[name]

    def choose(inner: Node) -> Node:
        taken = apply("ne", X, ZERO) if swapped else IS_ZERO
        return core.where(taken, inner, Y) if swapped else core.where(taken, Y, inner)

    poisoned, safe = choose(branch(X)), choose(branch(SAFE))
    found = list(dict.fromkeys([X, Y, *core.leaves([poisoned])]))
    values = draw_leaves(*found, positive=True)
    values[X] = torch.tensor([[0.0, 0.7, 1.3], [2.0, 0.0, 0.4]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    g = leaf("cotangent", "g", poisoned.dims)
    values_g = draw(g, generator)
    tracked = {n: v.clone().requires_grad_() for n, v in values.items()}
    (result,) = evaluate([safe], tracked, SIZES)
    expected = torch.autograd.grad(result, [tracked[n] for n in found], values_g, allow_unused=True)
    gradients = evaluate(pull_back([poisoned], [g], found), {**values, g: values_g}, SIZES)
    for gradient, reference, node in zip(gradients, expected, found, strict=True):
        wanted = torch.zeros_like(values[node]) if reference is None else reference
        assert torch.isfinite(wanted).all()
        torch.testing.assert_close(gradient.expand(wanted.shape), wanted)


def test_a_contraction_does_not_mix_in_rows_not_taken() -> None:
    """where(c[V], S k, 0): the cotangent of k sums over V, where rows not taken hold NaN."""
    s, k, c = leaf("state", "S", ("K", "V")), leaf("input", "k", ("K",)), leaf("input", "c", ("V",))
    out = core.where(apply("gt", c, ZERO), contract(apply("log", s), k, ("K",)), ZERO)
    values = draw_leaves(s, k, c, positive=True)
    values[c] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    values[s] = torch.where(values[c].unsqueeze(-2) > 0, values[s], -1.0)
    for gradient in evaluate(pull_back([out], [ONE], [s, k]), values, SIZES):
        assert torch.isfinite(gradient).all()


def test_guards_stay_below_where() -> None:
    gradient = pull_back([core.div(apply("log", X), Y)], [leaf("cotangent", "g", ("K",))], [X, Y])
    assert not any(n.op == "where" for n in topological(gradient))
    k = leaf("input", "k", ("K",))
    read = core.where(apply("gt", Y, ZERO), contract(S, leaf("input", "v", ("V",)), ("V",)), k)
    gradient = pull_back([read], [leaf("cotangent", "g", ("K",))], [S])
    assert not any(n.op == "eq" for n in topological(gradient))


# --- the form of the result -------------------------------------------------------------------------------------------


def test_sources_that_do_not_contribute_get_zero_of_their_dims() -> None:
    z = leaf("input", "z", ("K", "V"), True)
    zero, absent, constant = pull_back([X, core.stop(Y)], [ZERO, ONE], [X, z, Y])
    assert (zero, absent, constant) == tuple(core.expand(ZERO, n.dims) for n in (X, z, Y))


def test_products_followed_by_sums_become_contractions() -> None:
    v = leaf("input", "v", ("V",))
    (gradient,) = pull_back([core.mul(S, v)], [leaf("cotangent", "G", ("K", "V"))], [v])
    assert gradient == contract(leaf("cotangent", "G", ("K", "V")), S, ("K",))
    (gradient,) = pull_back([core.reduce("sum", core.mul(S, v), ("K", "V"))], [ONE], [S])
    assert gradient == core.expand(v, ("K", "V"))


def test_constant_factors_and_signs_meet_in_front() -> None:
    g = leaf("cotangent", "g", ("K",))
    assert pull_back([core.neg(core.div(X, Y))], [g], [X]) == [core.neg(core.div(g, Y))]
    assert pull_back([apply("square", X)], [core.mul(const(0.5), g)], [X]) == [core.mul(g, X)]
    scaled = core.mul(const(0.5), Y)  # a value of the forward pass is used as it is
    assert pull_back([core.mul(X, scaled)], [core.neg(g)], [X]) == [core.neg(core.mul(g, scaled))]
    assert pull_back([core.mul(X, X)], [g], [X]) == [core.mul(const(2), core.mul(g, X))]


def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    script = (
        "from recur.ir.core import *; from recur.passes.autodiff import pull_back\n"
        "x, y = leaf('input', 'x', ('K',)), leaf('input', 'y', ('K', 'V'))\n"
        "t = mul(apply('tanh', add(x, y)), contract(x, y, ('K',)))\n"
        "z = where(apply('gt', x, const(0)), mul(apply('log', x), y), t)\n"
        "print(pull_back([z], [leaf('cotangent', 'g', z.dims)], [x, y]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1


def test_an_inner_node_is_a_source_and_is_passed_through() -> None:
    inner = apply("tanh", core.mul(X, Y))
    out, g = core.mul(inner, inner), leaf("cotangent", "g", ("K",))
    at_inner, at_x = pull_back([out, inner], [g, g], [inner, X])
    values = {n: draw(n, torch.Generator().manual_seed(1)) for n in (X, Y, g)}
    tracked = {n: v.requires_grad_() for n, v in values.items()}
    results = evaluate([out, inner, at_inner, at_x], tracked, SIZES)
    expected = torch.autograd.grad(results[:2], [results[1], tracked[X]], [values[g], values[g]])
    torch.testing.assert_close(tuple(results[2:]), expected)


def test_a_deep_chain_needs_no_recursion() -> None:
    node = X
    for _ in range(5000):
        node = apply("tanh", core.add(node, Y))
    (gradient,) = pull_back([node], [leaf("cotangent", "g", ("K",))], [X])
    assert gradient.dims == ("K",)


# --- random DAGs ------------------------------------------------------------------------------------------------------

UNARY = (
    "neg",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "softplus",
    "logsigmoid",
    "sin",
    "cos",
    "square",
    "erf",
    "elu",
    "relu",
    "abs",
)
COMPLEX_UNARY = ("neg", "square", "conj", "real", "imag", "abs", "exp")
BINARY = ("add", "sub", "mul", "div")


def grow(rng: random.Random, count: int) -> tuple[list[Node], list[Node]]:
    """Leaves, and ``count`` nodes grown on them; products take bounded operands, so that nothing overflows."""
    layouts = [(), ("K",), ("V",), ("K", "V"), ("V", "K"), ("N",), ("K", "N")]
    sources = [leaf("input", f"x{i}", rng.choice(layouts), rng.random() < 0.25) for i in range(5)]
    pool = list(sources)
    for _ in range(count):
        pool.append(grow_node(rng, rng.choice(pool[-8:]), rng.choice(pool)))
    return sources, pool[len(sources) :]


def grow_node(rng: random.Random, x: Node, y: Node) -> Node:
    shared = tuple(d for d in x.dims if d in y.dims)
    real = not x.is_complex and not y.is_complex
    kind = rng.choice(
        ["unary", "binary", "binary", "contract", "reduce", "expand", "index", "place", "hadamard", "where", "guarded"]
    )
    match kind:
        case "unary":
            op = rng.choice(COMPLEX_UNARY if x.is_complex else UNARY)
            return apply(op, bound(x) if op in ("exp", "square") else x)
        case "binary":
            op = rng.choice(BINARY + (("max", "min", "complex", "polar") if real else ()))
            if op == "polar":
                return apply(op, apply("sigmoid", x), y)
            return apply(
                op, bound(x), core.add(const(1.5), apply("square", apply("abs", y))) if op == "div" else bound(y)
            )
        case "contract":
            return contract(bound(x), bound(y), tuple(d for d in shared if rng.random() < 0.7))
        case "reduce" if x.dims:
            over = tuple(rng.sample(x.dims, rng.randint(1, len(x.dims))))
            return core.reduce("sum" if x.is_complex or rng.random() < 0.5 else "amax", x, over)
        case "expand":
            wanted = list(dict.fromkeys((*x.dims, *rng.sample(["K", "V", "J"], 2))))
            rng.shuffle(wanted)
            return core.expand(x, tuple(wanted))
        case "index" if x.dims:
            return core.index(x, rng.choice(x.dims), 1)
        case "place" if "J" not in x.dims:
            return core.place(x, "J", 2)
        case "hadamard" if "N" in x.dims:
            return core.hadamard(x, "N")
        case "where" if not x.is_complex:
            return core.where(apply("lt", x, const(0.1)), y, core.version(x, "S", 1))
        case "guarded" if real:
            return core.where(apply("gt", x, const(0.05)), core.mul(apply("log1p", apply("abs", x)), y), core.mul(y, y))
    return core.add(x, y)


def bound(x: Node) -> Node:
    """A smooth value of order one."""
    if not x.is_complex:
        return apply("tanh", x)
    return core.div(x, core.add(const(1), apply("abs", x)))


@pytest.mark.parametrize("seed", range(20))
def test_random_dags_agree_with_autograd(seed: int) -> None:
    for trial in range(15):
        rng = random.Random(seed * 1000 + trial)
        sources, grown = grow(rng, rng.randint(3, 14))
        outputs = [grown[-1], *rng.sample(grown, min(2, len(grown)))]
        check(outputs, sources, draw_leaves(*sources, seed=trial), tolerance=1e-7)

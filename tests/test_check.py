"""The checker: the rules of names, dimensions and types, on the nodes that it makes."""

from __future__ import annotations

import pytest

from recur.diagnostics import RecurError
from recur.grammar import parse
from recur.ir.core import Node, Step, leaves, print_node, topological
from recur.passes.check import check

DECLARED = """recurrence r:
    dim    K, V, N, D, J = K, b = N, c = N, n = 2, L = K
    input  q[K], k[K], v[V], g, x[N], u[D], ks[n, K], vs[V, n], A[N, b, c], R[J, D], d[D], e[N], f[N], xn[N, D]
    input  z[N] complex
    state  S[K, V], h[N], w[N] complex, y[D], T[K, J]
"""


def step_of(*lines: str) -> Step:
    """The step of these statements, every state not among them kept as it is."""
    kept = [f"{s} = {s}" for s in "Shwy" if not any(line.strip().startswith((f"{s} =", f"{s}[")) for line in lines)]
    body = [*lines, *kept] + ([] if any("T = " in line for line in lines) else ["T = T"])
    (recurrence,) = parse(DECLARED + "".join(f"    {line}\n" for line in body) + "    output last = g\n")
    return check(recurrence)


def value(expression: str) -> Node:
    """The node of an expression."""
    return dict(step_of(f"output o = {expression}").outputs)["o"]


@pytest.mark.parametrize(
    "expression, dims",
    [
        # elementwise: the operand's order that has them all, else by first appearance
        ("q * S", "K V"),
        ("v * S", "K V"),
        ("S * v", "K V"),
        ("k * v", "K V"),
        ("v * k", "V K"),
        ("g * v", "V"),
        ("S / v", "K V"),
        ("S + g", "K V"),
        ("g - S", "K V"),
        ("outer(v, k) + S", "V K"),
        ("max(S, outer(v, k))", "K V"),
        ("where(v > 0, S, 0)", "K V"),
        ("where(v > 0, S, outer(v, k))", "K V"),
        ("where(g > 0, 1, v)", "V"),
        ("where(k > 0, 1, 0)", "K"),
        ("K ** -0.5", ""),
        # contractions: x's remaining, then y's new ones
        ("q @ S", "V"),
        ("S @ v", "K"),
        ("x @ A", "b c"),
        ("A @ rename(x, N, c)", "N b"),
        ("R @ d", "J"),
        ("q @ k", ""),
        ("outer(v, k) @ S", "V"),
        ("xn @ (d * e)", "N"),
        # tensor products
        ("outer(k, v)", "K V"),
        ("outer(k, k)", "K J"),
        ("outer(outer(k, k), k)", "K J L"),
        ("outer(g, v)", "V"),
        ("rename(k, K, J)", "J"),
        ("rename(S, K, L)", "L V"),
        ("eye(K, J)", "K J"),
        # reductions
        ("sum(S, K)", "V"),
        ("mean(k)", ""),
        ("amax(S, V)", "K"),
        ("norm(k)", ""),
        ("softmax(S, V)", "K V"),
        ("l2norm(S, K)", "K V"),
        ("l2norm(k, 1e-5)", "K"),
        ("rmsnorm(S, V, 1e-5)", "K V"),
        ("hadamard(ks, n)", "n K"),
        # indices
        ("ks[0]", "K"),
        ("vs[1]", "V"),
        ("prev(ks)[1]", "K"),
        ("prev(k)", "K"),
    ],
)
def test_dims(expression: str, dims: str) -> None:
    assert value(expression).dims == tuple(dims.split())


def test_outer_takes_the_first_declared_name_that_neither_has() -> None:
    assert value("outer(rename(k, K, J), rename(k, K, J))").dims == ("J", "K")
    assert value("outer(outer(k, k), rename(k, K, J))").dims == ("K", "J", "L")


@pytest.mark.parametrize(
    "line, error",
    [
        ("h[N, c] = A @ rename(x, N, c)", "R304"),
        ("h = A @ rename(x, N, c)", "R304"),
        ("h = rename(x, N, b)", None),
        ("h = A @ rename(x, N, c) @ rename(A, N, L)", "R306"),
        ("h = outer(A @ rename(x, N, c), g) @ x", "R302"),
        ("h = sum(A, c) @ x", "R302"),
        ("h = x @ sum(A, c)", None),
        ("S = outer(v, k)", None),
        ("T = outer(k, k)", None),
        ("T = outer(rename(k, K, L), k)", None),
        ("T = outer(rename(k, K, L), rename(k, K, J))", None),
        ("h = g", "R304"),
        ("h = x * d", "R304"),
        ("h = x * rename(x, N, b)", "R304"),
        ("w = x", None),
        ("w = z * w", None),
        ("h = z", "R401"),
        ("h = abs(z) + real(z) + imag(conj(z)) + norm(z)", None),
    ],
)
def test_assignment_to_a_state(line: str, error: str | None) -> None:
    if error:
        with pytest.raises(RecurError, match=error):
            step_of(line)
        return
    step = step_of(line)
    for name, node in step.updates:
        (state,) = [s for s in step.recurrence.states if s.name == name]
        assert node.op == "version"
        assert node.dims == state.dims
        assert node.is_complex == state.is_complex


def test_a_left_over_name_stands_for_the_missing_one() -> None:
    """h[N, c] = A[N, b, c] @ h[N, c] gives [N, b]: b stands for c."""
    (recurrence,) = parse(
        "recurrence r:\n    dim N, c, b = c\n    input A[N, b, c]\n    state h[N, c]\n"
        "    h[N, c] = A @ h\n    output o[c, N] = A @ h\n"
    )
    step = check(recurrence)
    assert dict(step.updates)["h"].dims == ("N", "c")
    assert dict(step.outputs)["o"].dims == ("c", "N")
    assert [n.attrs for n in topological([step.updates[0][1]]) if n.op == "rename"] == [("b", "c")]


def test_stated_dimensions_set_the_order() -> None:
    assert dict(step_of("a[V, K] = S", "output o = a").outputs)["o"].dims == ("V", "K")
    assert dict(step_of("output o[V, K] = S").outputs)["o"].dims == ("V", "K")
    assert dict(step_of("r[K] = R @ d", "output o = r + k").outputs)["o"].dims == ("K",)


def test_a_constant_fills_stated_dimensions_of_a_local() -> None:
    lines = ["total[V] = 0", "for j in range(n):", "    total = total + vs[j]", "output o = total"]
    assert dict(step_of(*lines).outputs)["o"].dims == ("V",)
    for line in ("a[V] = g", "a[V] = k @ q", "h = 0", "output o[V] = 0"):
        with pytest.raises(RecurError, match="R304"):
            step_of(line)


def test_states_mean_the_previous_value_until_assigned() -> None:
    step = step_of("output before = S", "S = S * g", "output between = S", "S = S + outer(k, v)", "output after = S")
    outputs = dict(step.outputs)
    assert (outputs["before"].op, outputs["before"].attrs) == ("leaf", ("state", "S"))
    assert outputs["between"].attrs == ("S", 1)
    assert outputs["after"].attrs == ("S", 2)
    assert dict(step.updates)["S"] == outputs["after"]


def test_order_of_updates_and_outputs() -> None:
    step = step_of("output b1 = g", "T = T", "output a1 = g")
    assert [name for name, _ in step.updates] == ["S", "h", "w", "y", "T"]
    assert [name for name, _ in step.outputs] == ["b1", "a1", "last"]


def test_loops_unroll() -> None:
    step = step_of("for j in range(n):", "    S = S + outer(ks[j], vs[j]) * j")
    node = dict(step.updates)["S"]
    assert node.attrs == ("S", 2)
    assert sorted(n.attrs for n in topological([node]) if n.op == "index") == [
        ("n", 0), ("n", 0), ("n", 1), ("n", 1),
    ]  # fmt: skip


def test_a_condition_of_constants_chooses() -> None:
    step = step_of("a = g", "for j in range(n):", "    a = where(j == 0, a * 2, a + v)", "output o = a")
    node = dict(step.outputs)["o"]
    assert node.dims == ("V",)
    assert not [n for n in topological([node]) if n.op == "where"]


def test_sizes() -> None:
    assert value("K ** -0.5 * n").dims == ()
    assert [n.attrs for n in topological([value("K * n")]) if n.op in ("size", "const")] == [("K",), (2.0,)]


@pytest.mark.parametrize(
    "expression, is_complex",
    [("z * x", True), ("z + 1", True), ("exp(z)", True), ("z @ x", True), ("sum(z)", True), ("mean(z) ** 2", True),
     ("where(x > 0, z, 1)", True), ("outer(z, v)", True), ("prev(z)", True), ("polar(x, x)", True),
     ("complex(x, 1)", True), ("real(z)", False), ("abs(z)", False), ("norm(z)", False), ("square(z)", True),
     ("rename(z, N, b)", True), ("real(x) + imag(x) + conj(x)", False)],
)  # fmt: skip
def test_complex(expression: str, is_complex: bool) -> None:
    assert value(expression).is_complex is is_complex


REAL_ONLY = "expm1 log sigmoid tanh relu sqrt rsqrt sign sin amax softmax l2norm rmsnorm"


@pytest.mark.parametrize("function", REAL_ONLY.split())
def test_functions_of_real_values_only(function: str) -> None:
    with pytest.raises(RecurError, match="R401"):
        value(f"{function}(z)")


def test_an_outer_product_by_two_names_is_explained() -> None:
    with pytest.raises(RecurError) as caught:
        step_of("h = h * rename(x, N, b)")
    text = str(caught.value)
    assert "elementwise work on `N` and `b`, two names of one size, has made an outer product" in text
    assert "`rename(rename(x, N, b), b, N)`" in text


def test_a_deep_step_is_no_danger() -> None:
    step = step_of(*["a = g"] + ["a = a * g + 1"] * 3000, "output o = a")
    assert len(topological([step.outputs[0][1]])) > 5000
    assert print_node(step.outputs[0][1])
    assert leaves([step.outputs[0][1]])


def test_equal_fixed_sizes_rename() -> None:
    (recurrence,) = parse(
        "recurrence r:\n    dim n = 4, m = 4\n    input x[n]\n    state s[m]\n"
        "    s = s + rename(x, n, m)\n    output o = hadamard(s, m)\n"
    )
    assert dict(check(recurrence).outputs)["o"].dims == ("m",)

"""The language's contract, line by line: specs as a newcomer writes them, each beside a loop written from its meaning.

The loop knows nothing of the compiler: `step(s, p)` takes the states and one token's inputs (`p["prev"]` holds the last
token's), [B, H, *dims], and gives the new states and the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import dim_sizes, random_inputs
from torch import Tensor

import recur

Values = dict[str, Any]
Step = Callable[[Values, Values], tuple[Values, Any]]

E = torch.einsum
sg = torch.sigmoid
CASES: dict[str, tuple[str, Step]] = {}


def case(text: str) -> Callable[[Step], Step]:
    def add(step: Step) -> Step:
        CASES[step.__name__] = (text, step)
        return step

    return add


def ex(x: Tensor, n: int = 1) -> Tensor:
    """With n more axes at the end."""
    return x.reshape(*x.shape, *(1,) * n)


def l2(x: Tensor, dim: int = -1, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim, keepdim=True) + eps)


def rms(x: Tensor, dim: int = -1, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt((x * x).mean(dim, keepdim=True) + eps)


def walsh(n: int) -> Tensor:
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h


@case("""
recurrence before_after:
    dim K, V
    input q[K], k[K], v[V]
    input a in (0, 1)
    state S[K, V]
    output old = q @ S
    S = a * S + outer(k, v)
    output new = q @ S
""")
def out_before(s: Values, p: Values) -> tuple[Values, Any]:
    S = ex(p["k"]) * p["v"][..., None, :] + ex(p["a"], 2) * s["S"]
    return ({"S": S}, (E("...k,...kv->...v", p["q"], s["S"]), E("...k,...kv->...v", p["q"], S)))


@case("""
recurrence loop_delta:
    dim K, V
    dim n = 3
    input q[K], k[n, K], v[n, V], b[n] in (0, 1)
    input g in (-inf, 0]
    state S[K, V]
    S = exp(g) * S
    for j in range(n):
        S = S + b[j] * outer(k[j], v[j] - k[j] @ S)
    output o = q @ S
""")
def loop_delta(s: Values, p: Values) -> tuple[Values, Any]:
    S = s["S"] * ex(torch.exp(p["g"]), 2)
    for j in range(3):
        kj = p["k"][..., j, :]
        vj = p["v"][..., j, :]
        S = S + ex(p["b"][..., j], 2) * ex(kj) * (vj - E("...k,...kv->...v", kj, S))[..., None, :]
    return ({"S": S}, E("...k,...kv->...v", p["q"], S))


@case("""
recurrence pick:
    dim D
    dim n = 2
    input x[D, n]
    state h[D]
    for j in range(n):
        h = 0.5 * h + (j + 1) * x[j] + prev(x)[j] * j
    output o = h + x[0]
""")
def pick(s: Values, p: Values) -> tuple[Values, Any]:
    h = s["h"]
    for j in range(2):
        h = 0.5 * h + (j + 1) * p["x"][..., :, j] + p["prev"]["x"][..., :, j] * j
    return ({"h": h}, h + p["x"][..., 0])


@case("""
recurrence outer_shared:
    dim K
    dim J = K
    input k[K], q[K], g in (-inf, 0]
    state A[K, J]
    A = exp(g) * A + outer(k, k)
    output o = A @ rename(q, K, J)
""")
def outer_shared(s: Values, p: Values) -> tuple[Values, Any]:
    kk = E("...i,...j->...ij", p["k"], p["k"])
    A = ex(torch.exp(p["g"]), 2) * s["A"] + kk
    return ({"A": A}, E("...kj,...j->...k", A, p["q"]))


@case("""
recurrence align:
    dim K, V
    input k[K], v[V], a[K] in (0, 1)
    state S[K, V]
    S = S * a + v * k
    output o = S @ v
    output t[V, K] = S
""")
def align(s: Values, p: Values) -> tuple[Values, Any]:
    S = ex(p["a"]) * s["S"] + E("...v,...k->...kv", p["v"], p["k"])
    return ({"S": S}, (E("...kv,...v->...k", S, p["v"]), S.transpose(-1, -2)))


@case("""
recurrence blockdiag:
    dim N
    dim c = 2
    dim b = c
    input A[N, b, c], x[N, c]
    state h[N, c]
    h = A @ h
    h = h + x
    output o = h
""")
def blockdiag(s: Values, p: Values) -> tuple[Values, Any]:
    h = E("...nbc,...nc->...nb", p["A"], s["h"])
    h = h + p["x"]
    return ({"h": h}, h)


@case("""
recurrence elman2:
    dim D
    dim J = D
    input x[D]
    param R[J, D]
    state h[D]
    r[D] = R @ h
    h = tanh(r + x)
    output y = h
""")
def elman2(s: Values, p: Values) -> tuple[Values, Any]:
    h = torch.tanh(E("...jd,...d->...j", p["R"], s["h"]) + p["x"])
    return ({"h": h}, h)


@case("""
recurrence reductions:
    dim K, V
    input q[K], k[K], v[V], f
    state S[K, V]
    S = sigmoid(f) * S + outer(softmax(k), rmsnorm(v, 1e-3))
    output o = l2norm(q) @ S
    output s = sum(v)
    output m = mean(S, K)
    output a = amax(S, V)
    output n = norm(S, V)
    output p = softmax(S, K)
    output l = l2norm(S, K)
    output r = rmsnorm(S, V, 0.5)
""")
def reductions(s: Values, p: Values) -> tuple[Values, Any]:
    k = torch.softmax(p["k"], -1)
    q = l2(p["q"])
    S = ex(sg(p["f"]), 2) * s["S"] + ex(k) * rms(p["v"], eps=0.001)[..., None, :]
    o = E("...k,...kv->...v", q, S)
    return (
        {"S": S},
        (o, p["v"].sum(-1), S.mean(-2), S.amax(-1), S.norm(dim=-1), torch.softmax(S, -2), l2(S, -2), rms(S, -1, 0.5)),
    )


@case("""
recurrence where_nan:
    dim D
    input x[D]
    state h[D]
    a = where(x > 0, sqrt(x), 0)
    h = 0.9 * h + a - (abs(x) + 1) ** -1.5 + sign(x) * x ** 3
    output o = where(h >= 0, h, -2 * h)
""")
def where_nan(s: Values, p: Values) -> tuple[Values, Any]:
    x = p["x"]
    a = torch.where(x > 0, torch.sqrt(torch.where(x > 0, x, torch.ones_like(x))), torch.zeros_like(x))
    h = 0.9 * s["h"] + a - (x.abs() + 1) ** (-1.5) + torch.sign(x) * x**3
    return ({"h": h}, torch.where(h >= 0, h, -2 * h))


@case("""
recurrence had:
    dim N
    input x[N], a in (0, 1)
    state h[N]
    h = 0.5 * a * hadamard(h, N) + x
    output o = hadamard(h, N)
""")
def hadamard(s: Values, p: Values) -> tuple[Values, Any]:
    h = 0.5 * ex(p["a"]) * (s["h"] @ walsh(8)) + p["x"]
    return ({"h": h}, h @ walsh(8))


@case("""
recurrence eye_dense:
    dim K, V
    dim J = K
    input q[K], k[K], v[V], a in (0, 1), b in (0, 1)
    state S[K, V]
    A = a * eye(K, J) - b * outer(k, k)
    S = A @ rename(S, K, J) + outer(k, v)
    output o = q @ S
""")
def eye(s: Values, p: Values) -> tuple[Values, Any]:
    A = torch.eye(5, dtype=torch.float64) * ex(p["a"], 2) - ex(p["b"], 2) * E("...i,...j->...ij", p["k"], p["k"])
    S = E("...kj,...jv->...kv", A, s["S"]) + ex(p["k"]) * p["v"][..., None, :]
    return ({"S": S}, E("...k,...kv->...v", p["q"], S))


@case("""
recurrence lru2:
    dim N, D
    input x[D]
    param nu[N], th[N], Br[N, D], Bi[N, D], C[D, N] complex
    state h[N] complex
    h = polar(exp(-exp(nu)), th) * h + complex(Br, Bi) @ x
    output y = real(C @ h)
    output z = h
    output m = abs(h)
    output re = real(h)
    output im = imag(h)
    output cj = conj(h)
""")
def lru(s: Values, p: Values) -> tuple[Values, Any]:
    lam = torch.polar(torch.exp(-torch.exp(p["nu"])), p["th"])
    h = (
        lam * s["h"] + torch.complex(p["Br"], p["Bi"]) @ p["x"][..., None]
        if False
        else lam * s["h"] + E("...nd,...d->...n", torch.complex(p["Br"], p["Bi"]), p["x"].to(torch.complex128))
    )
    return ({"h": h}, (E("...dn,...n->...d", p["C"], h).real, h, h.abs(), h.real, h.imag, h.conj()))


@case("""
recurrence cm:
    dim K, V
    input q[K] complex, k[K] complex, v[V] complex
    input r in (0, inf), w
    state S[K, V] complex
    S = exp(complex(-r, w)) * S + outer(k, v)
    output o = q @ S
    output n = norm(S, K)
    output s = sum(square(S), V)
    output e = q / k + q ** 2
""")
def cplx_matrix(s: Values, p: Values) -> tuple[Values, Any]:
    a = torch.exp(torch.complex(-p["r"], p["w"]))
    S = ex(a, 2) * s["S"] + E("...k,...v->...kv", p["k"], p["v"])
    o = E("...k,...kv->...v", p["q"], S)
    return ({"S": S}, (o, torch.sqrt((S.abs() ** 2).sum(-2)), (S * S).sum(-1), p["q"] / p["k"] + p["q"] ** 2))


@case("""
recurrence chain:
    dim D
    input x[D], a in (0, 1), b in (0, 1)
    state A[D], B[D], C[D]
    old = A
    A = a * A + x
    B = 0.9 * B + A * old
    C = b * C + tanh(B)
    output o = C + A
""")
def stages(s: Values, p: Values) -> tuple[Values, Any]:
    A = ex(p["a"]) * s["A"] + p["x"]
    Bb = 0.9 * s["B"] + A * s["A"]
    C = ex(p["b"]) * s["C"] + torch.tanh(Bb)
    return ({"A": A, "B": Bb, "C": C}, C + A)


@case("""
recurrence coupled:
    dim D
    input x[D], a in (0, 0.9], b in (0, 0.4)
    state u[D], v[D]
    u = a * u + b * v + x
    v = a * v - b * u
    output o = u * v
""")
def coupled(s: Values, p: Values) -> tuple[Values, Any]:
    u = ex(p["a"]) * s["u"] + ex(p["b"]) * s["v"] + p["x"]
    v = ex(p["a"]) * s["v"] - ex(p["b"]) * u
    return ({"u": u, "v": v}, u * v)


@case("""
recurrence proj:
    dim K, V
    dim U = V
    input k[K], v[V], a in (0, 1)
    param W[U, V]
    state S[K, V]
    S = a * S + outer(k, v)
    y = k @ S
    y[V] = W @ y
    output o = y * V ** -0.5
""")
def proj(s: Values, p: Values) -> tuple[Values, Any]:
    S = ex(p["a"], 2) * s["S"] + ex(p["k"]) * p["v"][..., None, :]
    y = E("...k,...kv->...v", p["k"], S)
    return ({"S": S}, E("...vw,...w->...v", p["W"], y) * p["v"].shape[-1] ** (-0.5))


@case("""
recurrence prec:
    dim D
    input x[D]
    state h[D]
    h = 0.5 * h + -x ** 2 + 2 * x ** 3 ** 1 - x / 2 / 2 - -x  # comment
    output o = -h ** 2
""")
def prec(s: Values, p: Values) -> tuple[Values, Any]:
    h = 0.5 * s["h"] + -(p["x"] ** 2) + 2 * p["x"] ** 3**1 - p["x"] / 2 / 2 - -p["x"]
    return ({"h": h}, -(h**2))


@case("""
recurrence noread:
    dim D
    input x[D]
    param w[D]
    state h[D]
    h = h + x
    output a = w * 2
    output b = x * w
    output c = 3
""")
def noread(s: Values, p: Values) -> tuple[Values, Any]:
    h = s["h"] + p["x"]
    return (
        {"h": h},
        (p["w"] * 2 + 0 * p["x"].sum(-1, keepdim=True), p["x"] * p["w"], torch.full_like(p["x"][..., 0], 3.0)),
    )


@case("""
recurrence swap:
    dim D
    input x[D]
    state u[D], v[D]
    old = u
    output o = 2 * u + v
    u = v
    v = old + x
""")
def swap(s: Values, p: Values) -> tuple[Values, Any]:
    return ({"u": s["v"], "v": s["u"] + p["x"]}, s["u"] * 2 + s["v"])


@case("""
recurrence delay:
    dim D
    input x[D]
    state a[D], b[D], c[D]
    output o = x - a + b * c
    c = b
    b = a
    a = x
""")
def delay(s: Values, p: Values) -> tuple[Values, Any]:
    return ({"a": p["x"], "b": s["a"], "c": s["b"]}, p["x"] - s["a"] + s["b"] * s["c"])


@case("""
recurrence nested:
    dim D
    dim a = 2
    dim b = 3
    input m[a, b, D]
    state h[D]
    for i in range(a):
        for j in range(b):
            h = h * 0.9 + (i - j) * m[i][j] / (i + 1)
    output o = h
""")
def nested(s: Values, p: Values) -> tuple[Values, Any]:
    h = s["h"]
    for i in range(2):
        for j in range(3):
            h = h * 0.9 + (i - j) * p["m"][..., i, j, :] / (i + 1)
    return ({"h": h}, h)


@case("""
recurrence trapezoid:
    dim K, V
    input q[K], k[K], v[V], g in (-inf, 0], a in (0, 1), b[K] in (0, 1)
    state S[K, V]
    S = exp(g) * S * a * 0.99
    S = S - S * b
    S = S + outer(prev(k), v) + 0.5 * outer(k, prev(v))
    output o = q @ S
""")
def trapezoid(s: Values, p: Values) -> tuple[Values, Any]:
    S = torch.exp(p["g"])[..., None, None] * s["S"] * ex(p["a"], 2) * 0.99
    S = S - S * ex(p["b"])
    S = S + E("...k,...v->...kv", p["prev"]["k"], p["v"]) + 0.5 * E("...k,...v->...kv", p["k"], p["prev"]["v"])
    return ({"S": S}, E("...k,...kv->...v", p["q"], S))


@case("""
recurrence cdelta:
    dim K, V
    input q[K] complex, k[K] complex, v[V] complex, b in (0, 1)
    state S[K, V] complex
    S = S + b * outer(k, v - conj(k) @ S)
    output o = q @ S
""")
def cdelta(s: Values, p: Values) -> tuple[Values, Any]:
    S = s["S"]
    k, v = (p["k"], p["v"])
    S = S + ex(p["b"], 2) * E("...k,...v->...kv", k, v - E("...k,...kv->...v", k.conj(), S))
    return ({"S": S}, E("...k,...kv->...v", p["q"], S))


def run_loop(op: Any, step: Step, x: Values, s: Values) -> list[Tensor]:
    """Outputs [B, T, H, ...], then the final states."""
    tokens = [v.name for v in op.recurrence.inputs if v.role == "input"]
    length = x[tokens[0]].shape[1]
    previous = {name: torch.zeros_like(x[name][:, 0]) for name in tokens}
    rows: list[tuple[Tensor, ...]] = []
    for t in range(length):
        p = {name: value[:, t] if name in tokens else value[None] for name, value in x.items()}
        s, outputs = step(s, p | {"prev": previous})
        previous = {name: p[name] for name in tokens}
        rows.append(outputs if isinstance(outputs, tuple) else (outputs,))
    return [torch.stack(column, 1) for column in zip(*rows, strict=True)] + [s[v.name] for v in op.recurrence.states]


def run_op(op: Any, call: Any, x: Values, s: Values, **options: Any) -> list[Tensor]:
    outputs, final = call(**x, initial_state=s, output_final_state=True, **options)
    final = final if isinstance(final, dict) else {op.recurrence.states[0].name: final}
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *(final[v.name] for v in op.recurrence.states)]


def gradients(results: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for y in results:
        w = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        loss = loss + ((y.real * w + y.imag * w.square()) if y.is_complex() else y * w).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def strategies(op: Any) -> list[str]:
    found = ["auto"]
    for name in ("associative_scan", "chunkwise", "tiled", "sequential"):
        try:
            op.explain(strategy=name)
        except recur.RecurError:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_spec_means_what_its_loop_computes(name: str) -> None:
    text, step = CASES[name]
    op = recur.loads(text)
    x = {n: t.mul(0.5).requires_grad_() for n, t in random_inputs(op.recurrence, B=2, T=5, H=2).items()}
    sizes, generator = dim_sizes(op.recurrence), torch.Generator().manual_seed(2)
    s = {}
    for v in op.recurrence.states:
        kind = torch.complex128 if v.is_complex else torch.float64
        shape = (2, 2, *(sizes[d] for d in v.dims))
        s[v.name] = torch.randn(shape, generator=generator, dtype=kind).mul(0.3).requires_grad_()
    leaves = [*x.values(), *s.values()]
    wanted = run_loop(op, step, x, dict(s))
    wanted_gradients = gradients(wanted, leaves)
    for call, options in ((op.reference, {}), *((op, {"strategy": taken}) for taken in strategies(op))):
        found = run_op(op, call, x, s, **options)
        for a, b in zip([*found, *gradients(found, leaves)], [*wanted, *wanted_gradients], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=f"{name} {options}: {a} is not {b}")


def test_a_long_chain_of_locals_is_planned() -> None:
    chain = "".join(f"    x{i + 1} = 0.5 * x{i} + k\n" for i in range(400))
    op = recur.loads(f"""
recurrence chain:
    dim K, V
    input k[K], v[V]
    state S[K, V]
    x0 = k
{chain}
    S = S + outer(x400, v)
    output o = k @ S
""")
    assert op.explain(K=16, V=16).data["stages"][0]["strategy"] in ("chunkwise", "tiled")

"""Every recurrence of the zoo again, in NumPy, from its paper: masked sums, explicit transition matrices, plain loops.

None of this reads a spec. A formula takes inputs [B, T, H, ...] and params [H, ...] by name, starts from zero states,
and returns (outputs by name [B, T, H, ...], final states by name [B, H, ...]).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

Tensors = dict[str, Array]
Formula = Callable[[Tensors], tuple[Tensors, Tensors]]
FORMULAS: dict[str, Formula] = {}


def formula(function: Formula) -> Formula:
    FORMULAS[function.__name__] = function
    return function


# --- building blocks -------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def elu_plus_one(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def unit(x: Array) -> Array:
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def products(a: Array) -> Array:
    """W[:, t, s] = a[s+1] ... a[t] for s <= t, else 0; a is [B, T, ...]."""
    tokens = a.shape[1]
    w = np.zeros((a.shape[0], tokens, *a.shape[1:]), a.dtype)
    for t in range(tokens):
        for s in range(t + 1):
            w[:, t, s] = np.prod(a[:, s + 1 : t + 1], axis=1)
    return w


def weighted_sums(a: Array, x: Array) -> Array:
    """h[t] = sum over s <= t of (a[s+1] ... a[t]) x[s]; a and x are [B, T, H, ...] of one shape."""
    a = np.broadcast_to(a, x.shape)
    return np.einsum("bts...,bs...->bt...", products(a), x)


def outer(x: Array, y: Array) -> Array:
    return x[..., :, None] * y[..., None, :]


def attention(q: Array, k: Array, v: Array, gates: Array | None = None) -> Array:
    """o[t] = sum over s <= t of w[t, s] (q[t] . k[s]) v[s]; gates [B, T, H] give w, else 1."""
    scores = np.einsum("bthk,bshk->btsh", q, k)
    w = np.tril(np.ones(scores.shape[1:3]))[None, :, :, None] if gates is None else products(gates)
    return np.einsum("btsh,bshv->bthv", w * scores, v)


def gated_attention(q: Array, k: Array, v: Array, gates: Array) -> Array:
    """As attention, with a gate for every key dimension: gates [B, T, H, K]."""
    return np.einsum("bthk,btshk,bshk,bshv->bthv", q, products(gates), k, v)


def transitions(a: Array, x: Array) -> Array:
    """S[t] = A[t] S[t-1] + X[t] with explicit matrices A [B, T, H, K, K]; all states [B, T, H, K, V]."""
    states = np.zeros(np.broadcast_shapes(x.shape, (*a.shape[:-1], x.shape[-1])), np.result_type(a, x))
    state = np.zeros_like(states[:, 0])
    for t in range(x.shape[1]):
        state = a[:, t] @ state + x[:, t]
        states[:, t] = state
    return states


def read(states: Array, q: Array) -> Array:
    return np.einsum("bthk,bthkv->bthv", q, states)


def identity(k: Array) -> Array:
    return np.eye(k.shape[-1])


# --- elementwise, real -----------------------------------------------------------------------------------------------


@formula
def hgrn(x: Tensors) -> tuple[Tensors, Tensors]:
    mu = 1 / (1 + np.exp(-x["f"]))
    lam = x["lower"] + (1 - x["lower"]) * mu
    h = weighted_sums(lam, (1 - lam) * silu(x["c"]))
    return {"o": h}, {"h": h[:, -1]}


@formula
def mingru(x: Tensors) -> tuple[Tensors, Tensors]:
    z = sigmoid(x["z"])
    g = np.where(x["x"] >= 0, x["x"] + 0.5, sigmoid(x["x"]))
    h = weighted_sums(1 - z, z * g)
    return {"o": h}, {"h": h[:, -1]}


@formula
def minlstm(x: Tensors) -> tuple[Tensors, Tensors]:
    f, i = sigmoid(x["f"]), sigmoid(x["i"])
    h = weighted_sums(f / (f + i), i / (f + i) * x["x"])
    return {"o": h}, {"h": h[:, -1]}


@formula
def gateloop_real(x: Tensors) -> tuple[Tensors, Tensors]:
    w = products(sigmoid(x["a"]))
    h = np.einsum("btshd,bshd,bshd->bthd", w, x["k"], x["v"])
    return {"o": x["q"] * h}, {"h": h[:, -1]}


def selective_scan(x: Tensors, eigenvalue: Callable[[Array], Array]) -> tuple[Tensors, Tensors]:
    """x' = A x + B u discretised with step dt; A [H, D, N] negative, dt [B, T, H, D]."""
    dt = softplus(x["dt"] + x["dt_bias"])
    a = eigenvalue(np.exp(dt[..., None] * -np.exp(x["A_log"])))
    bu = dt[..., None] * x["B"][..., None, :] * x["x"][..., None]
    h = weighted_sums(a, bu)
    return {"y": np.einsum("bthdn,bthn->bthd", h, x["C"]) + x["skip"] * x["x"]}, {"h": h[:, -1]}


@formula
def mamba1(x: Tensors) -> tuple[Tensors, Tensors]:
    return selective_scan(x, lambda a: a)


@formula
def mamba1_negative(x: Tensors) -> tuple[Tensors, Tensors]:
    return selective_scan(x, lambda a: 2 * a - 1)


@formula
def longhorn(x: Tensors) -> tuple[Tensors, Tensors]:
    beta = sigmoid(x["beta"])
    delta = beta / (1 + beta * (x["k"] ** 2).sum(-1, keepdims=True))
    s = weighted_sums(1 - outer(delta, x["k"] ** 2), outer(delta * x["x"], x["k"]))
    return {"o": np.einsum("bthdn,bthn->bthd", s, x["q"])}, {"S": s[:, -1]}


def convolution(x: Tensors, a: Array) -> tuple[Array, Array]:
    """A time-invariant diagonal system as its convolution kernel: K[t] = C ((e^{A d} - 1) / A) e^{A d t}."""
    step = np.exp(x["log_step"])[..., None]
    b = (np.exp(a * step) - 1) / a
    tokens = np.arange(x["u"].shape[1])
    powers = np.exp(a * step * tokens[:, None, None, None]) * b
    kernel = (powers * x["C"]).sum(-1)
    y = np.zeros(x["u"].shape, kernel.dtype)
    for t in tokens:
        for s in range(t + 1):
            y[:, t] += kernel[t - s] * x["u"][:, s]
    final = sum(powers[tokens[-1] - s] * x["u"][:, s, ..., None] for s in tokens)
    return y, final


@formula
def s4d_real(x: Tensors) -> tuple[Tensors, Tensors]:
    y, final = convolution(x, -np.exp(x["A_log"]))
    return {"y": y + x["skip"] * x["u"]}, {"h": final}


@formula
def s4d(x: Tensors) -> tuple[Tensors, Tensors]:
    y, final = convolution(x, -np.exp(x["A_log"]) + 1j * x["A_imag"])
    return {"y": 2 * y.real + x["skip"] * x["u"]}, {"h": final}


@formula
def rwkv4(x: Tensors) -> tuple[Tensors, Tensors]:
    k, v, w, u = x["k"], x["v"], x["w"], x["u"]
    o = np.zeros_like(v)
    tokens = k.shape[1]
    for t in range(tokens):
        top, bottom = np.exp(u + k[:, t]) * v[:, t], np.exp(u + k[:, t])
        for i in range(t):
            weight = np.exp(-(t - 1 - i) * w + k[:, i])
            top, bottom = top + weight * v[:, i], bottom + weight
        o[:, t] = top / bottom
    age = np.arange(tokens - 1, -1, -1)[:, None, None]
    weight = np.exp(-age * w + k)
    return {"o": o}, {"a": (weight * v).sum(1), "b": weight.sum(1)}


@formula
def aaren(x: Tensors) -> tuple[Tensors, Tensors]:
    scores = np.einsum("hk,bthk->bth", x["q"], x["k"]) / math.sqrt(x["k"].shape[-1])
    o = np.zeros_like(x["v"])
    for t in range(o.shape[1]):
        p = np.exp(scores[:, : t + 1])
        o[:, t] = np.einsum("bsh,bshv->bhv", p / p.sum(1, keepdims=True), x["v"][:, : t + 1])
    p = np.exp(scores)
    return {"o": o}, {"a": np.einsum("bsh,bshv->bhv", p, x["v"]), "c": p.sum(1)}


# --- elementwise, complex --------------------------------------------------------------------------------------------


@formula
def lru(x: Tensors) -> tuple[Tensors, Tensors]:
    lam = np.exp(-np.exp(x["nu_log"]) + 1j * np.exp(x["theta_log"]))
    bu = np.exp(x["gamma_log"]) * np.einsum("hnd,bthd->bthn", x["B"], x["u"])
    tokens = bu.shape[1]
    states = np.stack([sum(lam ** (t - s) * bu[:, s] for s in range(t + 1)) for t in range(tokens)], 1)
    y = np.einsum("hdn,bthn->bthd", x["C"], states).real + x["skip"] * x["u"]
    return {"y": y}, {"x": states[:, -1]}


@formula
def s5(x: Tensors) -> tuple[Tensors, Tensors]:
    lam = -np.exp(x["A_log"]) + 1j * x["A_imag"]
    step = np.exp(x["log_step"])
    b = ((np.exp(lam * step) - 1) / lam)[..., None] * x["B"]
    bu = np.einsum("hnd,bthd->bthn", b, x["u"])
    tokens = bu.shape[1]
    states = np.stack([sum(np.exp(lam * step * (t - s)) * bu[:, s] for s in range(t + 1)) for t in range(tokens)], 1)
    y = np.einsum("hdn,bthn->bthd", x["C"], states).real + x["skip"] * x["u"]
    return {"y": y}, {"x": states[:, -1]}


@formula
def gateloop(x: Tensors) -> tuple[Tensors, Tensors]:
    a = sigmoid(x["alpha"]) * np.exp(1j * x["theta"])
    s = weighted_sums(a[..., None], outer(x["k"], x["v"]) + 0j)
    return {"o": gated_attention(x["q"], x["k"], x["v"], a).real}, {"S": s[:, -1]}


# --- small dense transitions of a vector -----------------------------------------------------------------------------


def vector_transitions(a: Array, x: Array) -> Array:
    return transitions(a, x[..., None])[..., 0]


@formula
def block_diagonal(x: Tensors) -> tuple[Tensors, Tensors]:
    columns = np.sqrt((x["A"] ** 2).sum(-2, keepdims=True))
    h = vector_transitions(x["A"] / np.maximum(columns, 1), x["x"])
    return {"o": h}, {"h": h[:, -1]}


@formula
def slice_block_diagonal(x: Tensors) -> tuple[Tensors, Tensors]:
    a = np.einsum("hnbcd,zthd->zthnbc", x["A"], x["x"])
    h = vector_transitions(np.eye(a.shape[-1]) + a, np.einsum("hncd,zthd->zthnc", x["B"], x["x"]))
    return {"o": h}, {"h": h[:, -1]}


@formula
def dense_linear(x: Tensors) -> tuple[Tensors, Tensors]:
    h = vector_transitions(x["A"], x["x"])
    return {"o": h}, {"h": h[:, -1]}


@formula
def slice_low_rank(x: Tensors) -> tuple[Tensors, Tensors]:
    h = vector_transitions(x["d"][..., None] * identity(x["d"]) + x["P"] @ x["Q"], x["x"])
    return {"o": h}, {"h": h[:, -1]}


@formula
def slice_hadamard(x: Tensors) -> tuple[Tensors, Tensors]:
    n = x["a"].shape[-1]
    signs = [[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    h = vector_transitions(np.array(signs) * x["a"][..., None, :] / math.sqrt(n), x["x"])
    return {"o": h}, {"h": h[:, -1]}


@formula
def slice_sparse(x: Tensors) -> tuple[Tensors, Tensors]:
    h = vector_transitions(x["mask"] * x["A"], x["x"])
    return {"o": h}, {"h": h[:, -1]}


# --- matrix states without reads -------------------------------------------------------------------------------------


@formula
def linear_attention(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["q"], x["k"], x["v"]
    return {"o": attention(q, k, v) / math.sqrt(q.shape[-1])}, {"S": np.einsum("bthk,bthv->bhkv", k, v)}


@formula
def linear_attention_normalised(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = elu_plus_one(x["q"]), elu_plus_one(x["k"]), x["v"]
    o = attention(q, k, v) / attention(q, k, np.ones_like(v[..., :1]))
    return {"o": o}, {"S": np.einsum("bthk,bthv->bhkv", k, v), "z": k.sum(1)}


@formula
def based(x: Tensors) -> tuple[Tensors, Tensors]:
    scale = x["q"].shape[-1] ** 0.25
    q, k, v = x["q"] / scale, x["k"] / scale, x["v"]
    scores = np.einsum("bthk,bshk->btsh", q, k)
    taylor = (1 + scores + scores**2 / 2) * np.tril(np.ones(scores.shape[1:3]))[None, :, :, None]
    o = np.einsum("btsh,bshv->bthv", taylor / taylor.sum(2, keepdims=True), v)
    states = {
        "S0": v.sum(1), "S1": np.einsum("bthk,bthv->bhkv", k, v), "S2": np.einsum("bthk,bthj,bthv->bhkjv", k, k, v),
        "z0": np.full(k[:, 0, :, 0].shape, float(k.shape[1])), "z1": k.sum(1), "z2": np.einsum("bthk,bthj->bhkj", k, k),
    }  # fmt: skip
    return {"o": o}, states


@formula
def rebased(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["gamma_q"] * x["q"] + x["beta_q"], x["gamma_k"] * x["k"] + x["beta_k"], x["v"]
    scores = np.einsum("bthk,bshk->btsh", q, k) ** 2 * np.tril(np.ones((k.shape[1],) * 2))[None, :, :, None]
    o = np.einsum("btsh,bshv->bthv", scores, v) / (scores.sum(2)[..., None] + 1e-6)
    return {"o": o}, {"S": np.einsum("bthk,bthj,bthv->bhkjv", k, k, v), "z": np.einsum("bthk,bthj->bhkj", k, k)}


def constant_gates(gate: Array, like: Array) -> Array:
    return np.broadcast_to(gate, like.shape[:3])


@formula
def retnet(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v, gamma = x["q"], x["k"], x["v"], x["gamma"]
    t = np.arange(q.shape[1])
    decay = np.tril(np.ones((len(t),) * 2))[..., None] * gamma ** np.maximum(t[:, None] - t, 0)[..., None]
    o = np.einsum("tsh,bthk,bshk,bshv->bthv", decay, q, k, v) / math.sqrt(q.shape[-1])
    return {"o": o}, {"S": np.einsum("sh,bshk,bshv->bhkv", decay[-1], k, v)}


@formula
def lightning(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = silu(x["q"]), silu(x["k"]), x["v"]
    gates = constant_gates(np.exp(-x["slope"]), q)
    o = attention(q, k, v, gates)
    states = weighted_sums(gates[..., None, None], outer(k, v))
    return {"o": o / np.sqrt((o**2).mean(-1, keepdims=True) + 1e-6)}, {"S": states[:, -1]}


@formula
def simple_gla(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v, gates = x["q"], x["k"], x["v"], np.exp(x["g"])
    states = weighted_sums(gates[..., None, None], outer(k, v))
    return {"o": attention(q, k, v, gates) / math.sqrt(q.shape[-1])}, {"S": states[:, -1]}


@formula
def mamba2(x: Tensors) -> tuple[Tensors, Tensors]:
    dt = softplus(x["dt"] + x["dt_bias"])
    a = np.exp(-dt * np.exp(x["A_log"]))
    values = dt[..., None] * x["x"]
    y = attention(x["C"], x["B"], values, a) + x["skip"][:, None] * x["x"]
    states = weighted_sums(a[..., None, None], outer(values, x["B"]))
    return {"y": y}, {"h": states[:, -1]}


def key_gated(q: Array, k: Array, v: Array, gates: Array) -> tuple[Array, Array]:
    return gated_attention(q, k, v, gates), weighted_sums(gates[..., None], outer(k, v))[:, -1]


@formula
def gla(x: Tensors) -> tuple[Tensors, Tensors]:
    o, final = key_gated(x["q"], x["k"], x["v"], np.exp(x["g"]))
    return {"o": o / math.sqrt(x["q"].shape[-1])}, {"S": final}


@formula
def hgrn2(x: Tensors) -> tuple[Tensors, Tensors]:
    f = np.exp(x["g"])
    o, final = key_gated(x["q"], 1 - f, x["v"], f)
    return {"o": o}, {"S": final}


@formula
def rwkv6(x: Tensors) -> tuple[Tensors, Tensors]:
    r, k, v, u = x["r"], x["k"], x["v"], x["u"]
    w = np.exp(-np.exp(x["w"]))
    o = np.zeros_like(v)
    for t in range(k.shape[1]):
        wkv = np.einsum("hk,bhk,bhv->bhkv", u, k[:, t], v[:, t])
        for i in range(t):
            wkv = wkv + (np.prod(w[:, i + 1 : t], axis=1) * k[:, i])[..., None] * v[:, i][..., None, :]
        o[:, t] = np.einsum("bhk,bhkv->bhv", r[:, t], wkv)
    return {"o": o}, {"S": weighted_sums(w[..., None], outer(k, v))[:, -1]}


@formula
def lightnet(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = silu(x["q"]), x["k"], x["v"]
    o = np.zeros_like(v)
    for t in range(k.shape[1]):
        p = np.exp(k[:, : t + 1])
        o[:, t] = np.einsum("bhk,bshk,bshv->bhv", q[:, t], p / p.sum(1, keepdims=True), v[:, : t + 1])
    return {"o": o}, {"S": np.einsum("bshk,bshv->bhkv", np.exp(k), v), "z": np.exp(k).sum(1)}


@formula
def value_gated(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v, w = x["q"], x["k"], x["v"], products(np.exp(x["g"]))
    o = np.einsum("bthk,bshk,btshv,bshv->bthv", q, k, w, v) / math.sqrt(q.shape[-1])
    return {"o": o}, {"S": np.einsum("bshk,bshv,bshv->bhkv", k, w[:, -1], v)}


@formula
def decaying_fast_weights(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["q"], x["k"], x["v"]
    wk, wv = products(sigmoid(x["f"])), products(sigmoid(x["z"]))
    o = np.einsum("bthk,btshk,bshk,btshv,bshv->bthv", q, wk, k, wv, v)
    return {"o": o}, {"S": np.einsum("bshk,bshk,bshv,bshv->bhkv", wk[:, -1], k, wv[:, -1], v)}


def mlstm_gates(x: Tensors, input_gate: Array) -> Array:
    """D[t, s] = f[s+1] ... f[t] i[s]."""
    return products(sigmoid(x["f"])) * input_gate[:, None]


@formula
def mlstm_exp(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["q"], x["k"] / math.sqrt(x["k"].shape[-1]), x["v"]
    d = mlstm_gates(x, np.exp(x["i"]))
    c = np.einsum("bthk,bshk->btsh", q, k) * d
    h = np.einsum("btsh,bshv->bthv", c, v) / np.maximum(np.abs(c.sum(2)), 1)[..., None]
    return {"h": h}, {
        "C": np.einsum("bsh,bshk,bshv->bhkv", d[:, -1], k, v), "n": np.einsum("bsh,bshk->bhk", d[:, -1], k)
    }  # fmt: skip


@formula
def mlstm_sig(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["q"], x["k"], x["v"]
    d = mlstm_gates(x, sigmoid(x["i"]))
    h = np.einsum("btsh,bthk,bshk,bshv->bthv", d, q, k, v) / math.sqrt(q.shape[-1])
    return {"h": h}, {"C": np.einsum("bsh,bshk,bshv->bhkv", d[:, -1], k, v)}


@formula
def gated_slot_attention(x: Tensors) -> tuple[Tensors, Tensors]:
    alpha = np.exp(x["g"])
    keys = weighted_sums(alpha[..., None], outer(1 - alpha, x["k"]))
    values = weighted_sums(alpha[..., None], outer(1 - alpha, x["v"]))
    scores = np.einsum("bthmk,bthk->bthm", keys, x["q"]) / math.sqrt(x["q"].shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    o = np.einsum("bthm,bthmv->bthv", p / p.sum(-1, keepdims=True), values)
    return {"o": o}, {"R": keys[:, -1], "S": values[:, -1]}


@formula
def higher_order_linear_attention(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k, v = x["q"], x["k"], x["v"]
    mask = np.tril(np.ones((q.shape[1],) * 2))[None, :, :, None]
    first = np.einsum("bthk,bshk->btsh", q, k) * mask
    second = np.einsum("btih,bjih->btjh", first, first) * mask
    qv = np.einsum("bshk,bshv->bshkv", q, v)
    before = np.cumsum(qv, 1) - qv
    return {"o": np.einsum("btsh,bshv->bthv", second, v)}, {
        "S": np.einsum("bthk,bthj->bhkj", k, k), "C": qv.sum(1), "G": np.einsum("bthk,bthj,bthjv->bhkv", k, k, before)
    }  # fmt: skip


# --- matrix states with reads ----------------------------------------------------------------------------------------


def householder(k: Array, beta: Array) -> Array:
    """I - beta k k^T."""
    return identity(k) - beta[..., None, None] * outer(k, k)


def delta_rule(k: Array, v: Array, beta: Array, decay: Array | None = None) -> Array:
    """S[t] = (I - beta k k^T) diag(decay) S[t-1] + beta k v^T."""
    a = householder(k, beta)
    return transitions(a if decay is None else a * decay[..., None, :], beta[..., None, None] * outer(k, v))


@formula
def delta_net(x: Tensors) -> tuple[Tensors, Tensors]:
    states = delta_rule(unit(x["k"]), x["v"], x["beta"])
    return {"o": read(states, unit(x["q"])) / math.sqrt(x["q"].shape[-1])}, {"S": states[:, -1]}


@formula
def delta_net_negative(x: Tensors) -> tuple[Tensors, Tensors]:
    states = delta_rule(unit(silu(x["k"])), x["v"], 2 * sigmoid(x["b"]))
    return {"o": read(states, unit(silu(x["q"])))}, {"S": states[:, -1]}


@formula
def gated_delta_net(x: Tensors) -> tuple[Tensors, Tensors]:
    states = delta_rule(x["k"], x["v"], x["beta"], np.exp(x["g"])[..., None])
    return {"o": read(states, x["q"]) / math.sqrt(x["q"].shape[-1])}, {"S": states[:, -1]}


@formula
def kda(x: Tensors) -> tuple[Tensors, Tensors]:
    states = delta_rule(unit(x["k"]), x["v"], x["beta"], np.exp(x["g"]))
    return {"o": read(states, unit(x["q"])) / math.sqrt(x["q"].shape[-1])}, {"S": states[:, -1]}


@formula
def comba(x: Tensors) -> tuple[Tensors, Tensors]:
    q, k = unit(x["q"]), unit(x["k"])
    feedback = sigmoid(x["b"]) * x["beta"]
    a = np.exp(x["g"])[..., None, None] * identity(k) - feedback[..., None, None] * outer(k, k)
    states = transitions(a, x["beta"][..., None, None] * outer(k, x["v"]))
    o = read(states, q - x["d"][:, None] * k) / math.sqrt(q.shape[-1])
    return {"o": o}, {"S": states[:, -1]}


@formula
def gated_oja(x: Tensors) -> tuple[Tensors, Tensors]:
    """The delta rule on the transposed state, keys and values exchanged."""
    v = unit(x["v"])
    states = delta_rule(v, x["k"], x["beta"], np.exp(x["g"]))
    return {"o": np.einsum("bthvk,bthk->bthv", states, x["q"])}, {"S": states[:, -1].swapaxes(-1, -2)}


@formula
def dplr(x: Tensors) -> tuple[Tensors, Tensors]:
    a = np.exp(x["g"])[..., None] * identity(x["k"]) + outer(x["b"], x["a"])
    states = transitions(a, outer(x["k"], x["v"]))
    return {"o": read(states, x["q"]) / math.sqrt(x["q"].shape[-1])}, {"S": states[:, -1]}


@formula
def rwkv7(x: Tensors) -> tuple[Tensors, Tensors]:
    """The paper's S [V, K] multiplies its transition from the right."""
    w = np.exp(-math.exp(-0.5) * sigmoid(x["w"]))
    kappa = unit(x["kappa"])
    g = w[..., None] * identity(w) - outer(kappa, x["a"] * kappa)
    states = transitions(g.swapaxes(-1, -2), outer(x["k"], x["v"]))
    return {"o": read(states, x["r"])}, {"S": states[:, -1].swapaxes(-1, -2)}


def householder_products(x: Tensors, decay: Array | None) -> tuple[Tensors, Tensors]:
    """A[t] = (I - b_n k_n k_n^T) ... (I - b_1 k_1 k_1^T) decay, and each write carried through the factors after it."""
    k, v, beta = x["k"], x["v"], x["beta"]
    a = np.broadcast_to(identity(k), (*k.shape[:3], k.shape[-1], k.shape[-1]))
    if decay is not None:
        a = a * decay[..., None, None]
    written = np.zeros((*k.shape[:3], k.shape[-1], v.shape[-1]))
    for j in range(k.shape[3]):
        factor = householder(k[:, :, :, j], beta[..., j])
        a = factor @ a
        written = factor @ written + beta[..., j, None, None] * outer(k[:, :, :, j], v[:, :, :, j])
    states = transitions(a, written)
    return {"o": read(states, x["q"]) / math.sqrt(x["q"].shape[-1])}, {"S": states[:, -1]}


@formula
def delta_product(x: Tensors) -> tuple[Tensors, Tensors]:
    return householder_products(x, None)


@formula
def gated_delta_product(x: Tensors) -> tuple[Tensors, Tensors]:
    return householder_products(x, np.exp(x["g"]))


@formula
def efla(x: Tensors) -> tuple[Tensors, Tensors]:
    """The exact flow of S' = k (v - k^T S): exp(-beta k k^T) from its eigenvectors."""
    k, v, beta = x["k"], x["v"], x["beta"]
    eigenvalues, vectors = np.linalg.eigh(outer(k, k))
    flow = np.exp(-beta[..., None] * eigenvalues)
    small = eigenvalues < 1e-9
    gain = np.where(small, beta[..., None], (1 - flow) / np.where(small, 1, eigenvalues))
    a = np.einsum("...ij,...j,...kj->...ik", vectors, flow, vectors)
    b = np.einsum("...ij,...j,...kj->...ik", vectors, gain, vectors)
    states = transitions(a, b @ outer(k, v))
    return {"o": read(states, x["q"])}, {"S": states[:, -1]}


@formula
def mamba3(x: Tensors) -> tuple[Tensors, Tensors]:
    """h[t] = alpha h[t-1] + (1 - lambda) dt alpha B[t-1] x[t-1] + lambda dt B[t] x[t]."""
    dt, lam = softplus(x["dt"]), sigmoid(x["trapezoid"])
    alpha = np.exp(dt[..., None] * (-np.exp(x["A_log"])[:, None] + 1j * x["theta"]))
    bx = outer(x["x"], x["B"])
    shifted = np.concatenate([np.zeros_like(bx[:, :1]), bx[:, :-1]], 1)
    alpha = alpha[..., None, :]
    writes = ((1 - lam) * dt)[..., None, None] * alpha * shifted + (lam * dt)[..., None, None] * bx
    states = weighted_sums(alpha, writes)
    y = np.einsum("bthpn,bthn->bthp", states, x["C"]).real
    return {"y": y}, {"h": states[:, -1], "prev.x": x["x"][:, -1], "prev.B": x["B"][:, -1]}


@formula
def ttt_linear(x: Tensors) -> tuple[Tensors, Tensors]:
    """Gradient descent with step eta on |k W - v|^2 / 2."""
    states = delta_rule(x["k"], x["v"], x["eta"])
    return {"o": read(states, x["q"])}, {"W": states[:, -1]}


# --- nonlinear cells -------------------------------------------------------------------------------------------------


def recurrent(matrix: Array, h: Array) -> Array:
    return np.einsum("h...ij,bh...j->bh...i", matrix, h)


@formula
def elman(x: Tensors) -> tuple[Tensors, Tensors]:
    h, hs = np.zeros_like(x["x"][:, 0]), []
    for t in range(x["x"].shape[1]):
        h = np.tanh(x["x"][:, t] + recurrent(x["R"], h))
        hs.append(h)
    return {"o": np.stack(hs, 1)}, {"h": h}


@formula
def gru(x: Tensors) -> tuple[Tensors, Tensors]:
    h, hs = np.zeros_like(x["r"][:, 0]), []
    for t in range(x["r"].shape[1]):
        r = sigmoid(x["r"][:, t] + recurrent(x["Rr"], h))
        z = sigmoid(x["z"][:, t] + recurrent(x["Rz"], h))
        h = z * h + (1 - z) * np.tanh(x["n"][:, t] + recurrent(x["Rn"], r * h))
        hs.append(h)
    return {"o": np.stack(hs, 1)}, {"h": h}


@formula
def gru_block_diagonal(x: Tensors) -> tuple[Tensors, Tensors]:
    return gru(x)


@formula
def lstm(x: Tensors) -> tuple[Tensors, Tensors]:
    h = c = np.zeros_like(x["i"][:, 0])
    hs = []
    for t in range(x["i"].shape[1]):
        i, f, z, o = (x[gate][:, t] + recurrent(x[f"R{gate}"], h) for gate in "ifzo")
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return {"y": np.stack(hs, 1)}, {"c": c, "h": h}


@formula
def slstm(x: Tensors) -> tuple[Tensors, Tensors]:
    """The paper's stabilised form: m = max(log f + m, i), and c, n carried over exp(m)."""
    h = c = n = np.zeros_like(x["i"][:, 0])
    m = np.full_like(h, -np.inf)
    hs = []
    for t in range(x["i"].shape[1]):
        i, f, z, o = (x[gate][:, t] + recurrent(x[f"R{gate}"], h) for gate in "ifzo")
        log_f = -softplus(-f)
        new = np.maximum(log_f + m, i)
        c = np.exp(log_f + m - new) * c + np.exp(i - new) * np.tanh(z)
        n = np.exp(log_f + m - new) * n + np.exp(i - new)
        m = new
        h = sigmoid(o) * c / n
        hs.append(h)
    return {"y": np.stack(hs, 1)}, {"c": c * np.exp(m), "n": n * np.exp(m), "h": h}

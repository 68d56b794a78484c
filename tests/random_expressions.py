"""Random steps, most of them invalid: every operator on operands of every shape. Checker and reference must agree."""

from __future__ import annotations

import random

HEAD = """recurrence r:
    dim K, V
    dim J = K
    dim L = K
    dim n = 2
    input k[K], v[V], j[J], s, m[K, V], w[V, K], A[K, J], B[J, K], x[n, K], y[n], c[n, V, J], z[K] complex
    state h[K], t, S[K, J]

"""
LEAVES = ["k", "v", "j", "s", "m", "w", "A", "B", "x", "y", "c", "z", "h", "t", "S", "2", "K", "0.5"]
ALONG = ["sum", "amax", "norm", "l2norm", "softmax", "mean", "rmsnorm"]
UNARY = ["tanh", "exp", "square", "abs", "real", "conj", "imag", "sign", "-"]
SHAPES = ["K", "V", "J, K", "K, V", "L", "V, L", "V, K"]


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(LEAVES)
    a, b = (random_expression(rng, depth - 1) for _ in range(2))
    weights = {"arithmetic": 25, "contract": 20, "outer": 15, "along": 8, "rename": 8, "unary": 6, "only": 4}
    weights |= {"where": 4, "two": 3, "index": 3, "prev": 2, "power": 2}
    form = rng.choices(list(weights), list(weights.values()))[0]
    indexed = rng.choice(["c", "x", "y", "prev(x)", "prev(c)"])
    return {
        "arithmetic": f"({a} {rng.choice('+-*/')} {b})",
        "contract": f"({a} @ {b})",
        "outer": f"outer({a}, {b})",
        "along": f"{rng.choice(ALONG)}({a}, {rng.choice('KVJn')})",
        "only": f"{rng.choice(ALONG)}({a})",
        "rename": f"rename({a}, {rng.choice('KVJ')}, {rng.choice('KVJL')})",
        "unary": f"{rng.choice(UNARY)}({a})",
        "where": f"where({a} > {b}, {b}, {a})",
        "two": f"{rng.choice(['max', 'min'])}({a}, {b})",
        "index": f"{indexed}[{rng.choice('01')}]",
        "prev": f"prev({rng.choice('kvjsmwAB')})",
        "power": f"({a} ** 2)",
    }[form]


def random_step(seed: int) -> str:
    """A recurrence's text with one random expression: as an output, an update, a local, in a loop."""
    rng = random.Random(seed)
    value = random_expression(rng, rng.choice([1, 2, 2, 3]))
    h, t, S = "h = h + k", "t = t + 1", "S = S + A"
    place = rng.choice(["output", "output", "output", "vector", "matrix", "local", "loop", "ordered"])
    indexed = rng.choice(["c", "x", "prev(x)", "(x * y)", "outer(x, v)", "outer(k, y)"])
    lines = {
        "output": [h, t, S, f"output o = {value}"],
        "vector": [f"h = {value}", t, S, "output o = h"],
        "matrix": [h, t, f"S = {value}", "output o = S"],
        "local": [h, t, S, f"a[{rng.choice(SHAPES)}] = {value}", "output o = a"],
        "loop": [h, S, "for i in range(n):", f"    t = t + sum({indexed}[i] * (i + 1) * {value})", "output o = t"],
        "ordered": [h, t, S, f"output o[{rng.choice(SHAPES)}] = {value}"],
    }[place]
    return HEAD + "".join(f"    {line}\n" for line in lines)

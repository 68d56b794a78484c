"""Plans written by hand, for tests of the printers alone."""

from __future__ import annotations

from recur.ir.plan import Contribution, Cost, Gradient, Plan
from recur.ir.tile import Access, Axis, Buffer, Builder, Carry, Kernel

TOKENS = ("batch", "time", "head")
C, S = Axis("c", "rows", "C"), Axis("s", "rows", "C")
K, V = Axis("K", "size", "K"), Axis("V", "size", "V", "grid")
NO_COST = Cost(0.0, 0.0, 1)


def tokens(name: str, dim: str, dtype: str | None = None) -> Buffer:
    return Buffer(name, ("B", "T", "H", dim), f"input:{name}" if dtype is None else dtype)


def rows(name: str, dim: str, axis: str = "c", shift: int = 0) -> Access:
    return Access(name, (*TOKENS, dim), rows=axis, shift=shift)


def linear_attention() -> Plan:
    """o = q S, S <- S + k (x) v, in chunks: forward, and its adjoint."""
    state = ("batch", "head", "K", "V")

    b = Builder()
    s0 = b.load("S_start", Access("S", state), ("K", "V"))
    inner = b.nested()
    phi = b.phi("S_", s0)
    q = inner.load("q", rows("q", "K"), ("c", "K"))
    k = inner.load("k", rows("k", "K", "s"), ("s", "K"))
    v = inner.load("v", rows("v", "V", "s"), ("s", "V"))
    scores = inner.contract(q, k, ("K",), name="P")
    seen = inner.after("c", "s", 0)
    masked = inner.where(seen, scores, b.const(0.0), name="P")
    within = inner.contract(masked, v, ("s",), name="within")
    before = inner.contract(q, phi, ("K",), name="before")
    inner.store(rows("o", "V"), inner.add(before, within, name="o"))
    after = inner.add(phi, inner.contract(k, v, ("s",), name="kv"), name="S_next", comment="S + k (x) v")
    b.loop("chunks", inner, (Carry(phi, s0, after),))
    b.store(Access("S_final", state), phi)
    forward = Kernel("walk", ("batch", "head", "tile:V"), (C, S, K, V), tuple(b.statements),
                     ("O = Q S + tril(Q K^T) V", "S <- S + K^T V"), "the walk over chunks")

    b = Builder()
    s0 = b.load("S_start", Access("S", state), ("K", "V"))
    inner = b.nested()
    phi = b.phi("S_", s0)
    k = inner.load("k", rows("k", "K", "s"), ("s", "K"))
    v = inner.load("v", rows("v", "V", "s"), ("s", "V"))
    do = inner.load("do", rows("d_o", "V"), ("c", "V"))
    pairs = inner.contract(do, v, ("V",), name="dP")
    masked = inner.where(inner.after("c", "s", 0), pairs, b.const(0.0), name="dP")
    dq = inner.add(inner.contract(do, phi, ("V",), name="dq"), inner.contract(masked, k, ("s",), name="dq"), name="dq")
    inner.store(rows("d_q", "K"), dq)
    after = inner.add(phi, inner.contract(k, v, ("s",), name="kv"), name="S_next")
    b.loop("chunks", inner, (Carry(phi, s0, after),))
    d_query = Kernel("d_query", ("batch", "head"), (C, S, K, V), tuple(b.statements), (), "dq, forwards")

    b = Builder()
    end = b.load("dS_end", Access("d_S_final", state), ("K", "V"))
    inner = b.nested()
    phi = b.phi("dS_", end)
    q = inner.load("q", rows("q", "K"), ("c", "K"))
    k = inner.load("k", rows("k", "K", "s"), ("s", "K"))
    v = inner.load("v", rows("v", "V", "s"), ("s", "V"))
    do = inner.load("do", rows("d_o", "V"), ("c", "V"))
    seen = inner.after("c", "s", 0)
    scores = inner.where(seen, inner.contract(q, k, ("K",), name="P"), b.const(0.0), name="P")
    pairs = inner.where(seen, inner.contract(do, v, ("V",), name="dP"), b.const(0.0), name="dP")
    dv = inner.add(inner.contract(k, phi, ("K",), name="dv"), inner.contract(scores, do, ("c",), name="dv"), name="dv")
    dk = inner.add(inner.contract(v, phi, ("V",), name="dk"), inner.contract(pairs, q, ("c",), name="dk"), name="dk")
    inner.store(rows("d_v", "V", "s"), dv)
    inner.store(rows("d_k", "K", "s"), dk)
    after = inner.add(phi, inner.contract(q, do, ("c",), name="qdo"), name="dS_next")
    b.loop("chunks", inner, (Carry(phi, end, after),), reverse=True)
    b.store(Access("d_S", state), phi)
    d_keys = Kernel("d_keys", ("batch", "head"), (C, S, K, V), tuple(b.statements), (), "dk, dv and dS, backwards")

    return Plan(
        stage="linear_attention",
        strategy="chunkwise",
        arguments=(tokens("q", "K"), tokens("k", "K"), tokens("v", "V")),
        initial=(Buffer("S", ("B", "H", "K", "V")),),
        results=(tokens("o", "V", "operand"),),
        final=(Buffer("S_final", ("B", "H", "K", "V")),),
        saved=(),
        workspace=(tokens("d_q", "K"), tokens("d_k", "K"), tokens("d_v", "V"), Buffer("d_S", ("B", "H", "K", "V"))),
        forward=(forward,),
        backward=(d_query, d_keys),
        gradients=tuple(Gradient(n, (Contribution("d_" + n),)) for n in ("q", "k", "v", "S")),
        cost=NO_COST,
        chunk=16,
    )

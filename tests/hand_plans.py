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


def elementwise_scan() -> Plan:
    """h <- a h + x in chunks of 16, by scans, with the adjoint's scan in reverse."""
    state, start_of = ("batch", "head", "D"), Access("starts", ("batch", "chunk", "head", "D"))
    axes = (C, Axis("D", "size", "D", "grid"))

    b = Builder()
    start = b.load("h_start", Access("h", state), ("D",))
    inner = b.nested()
    phi = b.phi("h_", start)
    inner.store(start_of, phi)
    a = inner.valid(inner.load("a", rows("a", "D"), ("c", "D")), "c", 1.0)
    x = inner.load("x", rows("x", "D"), ("c", "D"))
    decay, own = inner.scan(a, x, "c")
    h = inner.add(own, inner.mul(decay, phi), name="y")
    inner.store(rows("y", "D"), h)
    inner.store(rows("kept", "D"), h)
    b.loop("chunks", inner, (Carry(phi, start, inner.last(h, "c")),))
    b.store(Access("h_final", state), phi)
    forward = Kernel("scan", ("batch", "head", "tile:D"), axes, tuple(b.statements))

    b = Builder()
    end = b.load("dh_end", Access("d_h_final", state), ("D",))
    inner = b.nested()
    phi = b.phi("mu_", end)
    a = inner.valid(inner.load("a", rows("a", "D"), ("c", "D")), "c", 1.0)
    g = inner.load("g", rows("d_y", "D"), ("c", "D"))
    decay, own = inner.scan(a, inner.mul(a, g), "c", reverse=True)
    mu = inner.add(own, inner.mul(decay, phi), name="mu")
    dx = inner.add(g, inner.previous(mu, phi, "c", reverse=True), name="dx")
    kept = inner.load("kept", rows("kept", "D"), ("c", "D"))
    before = inner.previous(kept, inner.load("first", start_of, ("D",)), "c")
    inner.store(rows("d_x", "D"), dx)
    inner.store(rows("d_a", "D"), inner.mul(dx, before, name="da"))
    b.loop("chunks", inner, (Carry(phi, end, inner.last(mu, "c", reverse=True)),), reverse=True)
    b.store(Access("d_h", state), phi)
    backward = Kernel("back", ("batch", "head", "tile:D"), axes, tuple(b.statements))

    return Plan(
        stage="scan",
        strategy="associative_scan",
        arguments=(tokens("a", "D"), tokens("x", "D")),
        initial=(Buffer("h", ("B", "H", "D")),),
        results=(tokens("y", "D", "operand"),),
        final=(Buffer("h_final", ("B", "H", "D")),),
        saved=(tokens("kept", "D", "accumulate"), Buffer("starts", ("B", "N", "H", "D"))),
        workspace=(tokens("d_a", "D"), tokens("d_x", "D"), Buffer("d_h", ("B", "H", "D"))),
        forward=(forward,),
        backward=(backward,),
        gradients=tuple(Gradient(n, (Contribution("d_" + n),)) for n in ("a", "x", "h")),
        cost=NO_COST,
        chunk=16,
    )


def nonlinear_steps(in_chunks: bool = False) -> Plan:
    """h <- tanh(R h + x), one token at a time; or from zero at the start of every chunk of 4 (then no final state)."""
    step = ("batch", "time", "head", "D")
    b = Builder()
    weight = b.load("R", Access("R", ("head", "E", "D")), ("E", "D"))
    zero = b.zeros(("D",)) if in_chunks else b.load("h_start", Access("h", ("batch", "head", "D")), ("D",))
    inner = b.nested()
    phi = b.phi("h_", zero)
    x = inner.load("x", Access("x", step), ("D",))
    recurrent = inner.rename(inner.contract(weight, phi, ("D",), name="Rh"), "E", "D")
    after = inner.map("tanh", inner.add(recurrent, x), name="h_next")
    inner.store(Access("y", step), after)
    b.loop("steps", inner, (Carry(phi, zero, after),))
    if in_chunks:
        b.store(Access("h_ends", ("batch", "chunk", "head", "D")), phi)
    else:
        b.store(Access("h_final", ("batch", "head", "D")), phi)
    sizes = (Axis("D", "size", "D"), Axis("E", "size", "D"))
    grid = ("batch", "head", *(("chunk",) if in_chunks else ()))
    state = Buffer("h", ("B", "H", "D"))
    return Plan(
        stage="cell",
        strategy="sequential",
        arguments=(tokens("x", "D"), Buffer("R", ("H", "D", "D"), "input:R")),
        initial=() if in_chunks else (state,),
        results=(tokens("y", "D", "operand"),),
        final=() if in_chunks else (Buffer("h_final", state.layout),),
        saved=(Buffer("h_ends", ("B", "N", "H", "D")),) if in_chunks else (),
        workspace=(),
        forward=(Kernel("walk", grid, sizes, tuple(b.statements)),),
        backward=(),
        gradients=(),
        cost=NO_COST,
        chunk=4 if in_chunks else None,
    )

"""Hand-built plans: one kernel of each kind that the strategies emit, small enough to check by eye."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from recur.codegen.triton_printer import HEADER, default_config, print_helpers, print_stage
from recur.ir.plan import Cost, Plan
from recur.ir.tile import Access, Axis, Buffer, Builder, Carry, Kernel
from recur.runtime.load import load_module

ROWS = Axis("c", "rows", "T")
KEYS = Axis("K", "size", "K")
COST = Cost(0.0, 0.0, 1)


def token(name: str, *dims: str) -> Buffer:
    return Buffer(name, ("B", "T", "H", *dims), f"input:{name}")


def state(name: str, *dims: str) -> Buffer:
    return Buffer(name, ("B", "H", *dims), "accumulate")


def at_rows(name: str, *dims: str, shift: int = 0) -> Access:
    return Access(name, ("batch", "time", "head", *dims), rows="c", shift=shift)


def at_state(name: str, *dims: str) -> Access:
    return Access(name, ("batch", "head", *dims))


def plan(stage: str, arguments: tuple[Buffer, ...], forward: tuple[Kernel, ...], **rest: Any) -> Plan:
    empty: dict[str, Any] = dict.fromkeys(
        ("initial", "results", "final", "saved", "workspace", "backward", "gradients"), ()
    )
    return Plan(stage=stage, strategy="chunkwise", arguments=arguments, forward=forward, cost=COST, **(empty | rest))


def linear_attention() -> Plan:
    """o_t = q_t^T S_t with S_t = 2^{g_t} S_{t-1} + k_t v_t^T: one walk over chunks, V cut into tiles."""
    b = Builder()
    start = b.load("S_0", at_state("S_0", "K", "V"), ("K", "V"))
    S = b.phi("S", start)
    body = b.nested()
    q = body.load("q", at_rows("q", "K"), ("c", "K"))
    k = body.load("k", at_rows("k", "K"), ("c", "K"))
    v = body.load("v", at_rows("v", "V"), ("c", "V"))
    g = body.load("g", at_rows("g"), ("c",))
    G = body.cumsum(g, "c", name="G", comment="running log2 decay inside the chunk")
    G_end = body.last(G, "c", name="G_end")
    scores = body.weigh(q, body.rename(k, "c", "s"), G, body.rename(G, "c", "s"), ("K",), name="P")
    seen = body.where(body.after("c", "s", 0), scores, body.const(0.0), name="P")
    inner = body.contract(seen, body.rename(v, "c", "s"), ("s",), name="inner")
    outer = body.contract(body.mul(q, body.exp2(G), name="q_tilde"), S, ("K",), name="outer")
    body.store(at_rows("o", "V"), body.add(inner, outer, name="o"))
    weight = body.exp2(body.sub(G_end, G), name="weight")
    write = body.contract(body.mul(k, weight, name="k_hat"), v, ("c",), name="write")
    kept = body.mul(S, body.exp2(G_end), name="kept")
    following = body.add(kept, write, name="S", comment="S_end = 2^{G_C} S + K^T V")
    b.loop("chunks", body, (Carry(S, start, following),))
    b.store(at_state("S_T", "K", "V"), S)
    kernel = Kernel(
        "walk",
        ("batch", "head", "tile:V"),
        (ROWS, KEYS, Axis("V", "size", "V", "grid")),
        tuple(b.statements),
        ("S <- 2^{G_C} S + (2^{G_C - G} K)^T V", "O = (2^G Q) S + tril(Q K^T 2^{G_r - G_s}) V"),
        "forward walk",
    )
    return plan(
        "linear_attention",
        (token("q", "K"), token("k", "K"), token("v", "V"), token("g")),
        (kernel,),
        initial=(state("S_0", "K", "V"),),
        results=(Buffer("o", ("B", "T", "H", "V"), "operand"),),
        final=(state("S_T", "K", "V"),),
    )


def elementwise_kernel(op: str) -> Plan:
    """y = op(x), rows of tokens, a program for every chunk."""
    b = Builder()
    x = b.load("x", at_rows("x", "D"), ("c", "D"))
    b.store(at_rows("y", "D"), b.map(op, x, name="y"))
    kernel = Kernel("map", ("batch", "head", "chunk"), (ROWS, Axis("D", "size", "D")), tuple(b.statements))
    return plan("elementwise", (token("x", "D"),), (kernel,), results=(Buffer("y", ("B", "T", "H", "D"), "operand"),))


def blocks_kernel(rows: int, in_memory: bool) -> Plan:
    """Of blocks of so many rows: x before the block, x at its end, and sums over the rows before, beside and across."""
    b = Builder()
    x = b.load("x", at_rows("x", "D"), ("c", "D"))
    if in_memory:
        b.store(Access("kept", ("batch", "chunk", "head", "c", "D")), x)
        held = b.load("held", Access("kept", ("batch", "chunk", "head", "c", "D")), ("c", "D"))
    else:
        held = b.add(x, b.const(0.0), name="held")
    b.store(at_rows("start", "D"), b.start(held, "c", rows))
    b.store(at_rows("end", "D"), b.end(held, "c", rows))
    for name, pairs in (("beside", b.beside("c", "s", rows)), ("across", b.across("c", "s", rows))):
        weights = b.where(pairs, b.const(1.0), b.zeros(("c", "s")), name="weights")
        b.store(at_rows(name, "D"), b.contract(weights, b.rename(x, "c", "s"), ("s",), precision="full"))
    kernel = Kernel("map", ("batch", "head", "chunk"), (ROWS, Axis("D", "size", "D")), tuple(b.statements))
    names = ("start", "end", "beside", "across")
    results = tuple(Buffer(name, ("B", "T", "H", "D"), "operand") for name in names)
    kept = Buffer("kept", ("B", "N", "H", "C", "D"))
    return plan("blocks", (token("x", "D"),), (kernel,), results=results, workspace=(kept,) if in_memory else ())


def print_source(plan: Plan, sizes: dict[str, int], chunk: int | None = None) -> str:
    code = print_stage(plan, default_config(plan, sizes, chunk))
    return f"from __future__ import annotations\n\n{HEADER}\n\n{print_helpers(code)}\n\n{code}"


def load_stage(plan: Plan, sizes: dict[str, int], chunk: int | None = None) -> ModuleType:
    """The printed stage as a module; for the interpreter under TRITON_INTERPRET=1."""
    return load_module(plan.stage, print_source(plan, sizes, chunk))

"""Scans resumed from a carried state, spelled as arithmetic: torch code has what comes before every row at hand.

    h_{r-1} = own_r + decay_r h            h_r = a_r h_{r-1} + x_r             (max-plus: max and + for + and *)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recur.ir.plan import Plan
from recur.ir.tile import Let, Loop, Statement

ARITHMETIC = {"resume": ("mul", "add"), "maxresume": ("add", "max")}


def spell_resumed(plan: Plan) -> Plan:
    forward, backward = (
        tuple(replace(kernel, body=tuple(_spelled(kernel.body))) for kernel in kernels)
        for kernels in (plan.forward, plan.backward)
    )
    return replace(plan, forward=forward, backward=backward)


def _spelled(body: tuple[Statement, ...]) -> Iterator[Statement]:
    for statement in body:
        if isinstance(statement, Loop):
            yield replace(statement, body=tuple(_spelled(statement.body)))
        elif isinstance(statement, Let) and statement.op in ARITHMETIC:
            yield from _steps(statement)
        else:
            yield statement


def _steps(let: Let) -> Iterator[Let]:
    """The statements for one `resume`; the last one has its name."""
    a, x, decay, own, h = let.args
    times, plus = ARITHMETIC[let.op]
    carried, before, kept = (replace(let.out, name=f"{let.out.name}_{what}") for what in ("carried", "before", "kept"))
    yield Let((carried,), times, (decay, h))
    if not dict(let.attrs).get("inclusive"):
        yield Let(let.outs, plus, (own, carried), comment=let.comment)
        return
    yield Let((before,), plus, (own, carried))
    yield Let((kept,), times, (a, before))
    yield Let(let.outs, plus, (kept, x), comment=let.comment)

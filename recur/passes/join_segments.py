"""A plan for a backend that walks every sequence in one segment: no kernels to join segments, no buffers of them."""

from __future__ import annotations

from dataclasses import replace

from recur.ir.plan import Plan
from recur.ir.tile import Access, Buffer, Kernel, Let, Loop, Statement, Store


def join_segments(plan: Plan) -> Plan:
    """The plan with what a segment's buffers are in a sequence of one segment in their place.

    Parts of gradients, one a segment, are one a sequence.
    """
    parts = {part.buffer for line in plan.gradients for part in line.contributions if "G" in part.sum_over}
    whole = {b.name: b.of or b.name for b in plan.saved + plan.workspace if b.of or b.name in parts}
    kept = {b.of for b in plan.saved if b.of}
    if not whole:
        return plan

    def kernels(group: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        return tuple(
            replace(k, grid=tuple(g for g in k.grid if g != "segment"), body=_renamed(k.body, whole))
            for k in group
            if not k.joins_segments
        )

    def buffers(group: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        joined = (replace(b, layout=("B", *b.layout[2:])) if b.name in parts else b for b in group)
        return tuple(b for b in joined if "G" not in b.layout[:3])

    return replace(
        plan,
        forward=kernels(plan.forward),
        backward=kernels(plan.backward),
        saved=buffers(plan.saved) + tuple(b for b in plan.final if b.name in kept),
        workspace=buffers(plan.workspace),
        gradients=tuple(
            replace(line, contributions=tuple(
                replace(part, sum_over=tuple(d for d in part.sum_over if d != "G")) if part.buffer in parts else part
                for part in line.contributions))
            for line in plan.gradients
        ),
    )


def _renamed(body: tuple[Statement, ...], whole: dict[str, str]) -> tuple[Statement, ...]:
    def of(access: Access) -> Access:
        if access.buffer not in whole:
            return access
        return replace(access, buffer=whole[access.buffer], index=tuple(i for i in access.index if i != "segment"))

    result: list[Statement] = []
    for s in body:
        if isinstance(s, Loop):
            result.append(replace(s, body=_renamed(s.body, whole)))
        elif isinstance(s, Store):
            result.append(replace(s, access=of(s.access)))
        else:
            assert isinstance(s, Let)
            result.append(replace(s, access=of(s.access)) if s.access is not None else s)
    return tuple(result)

"""Puts every operation right before what first needs it, so that few tiles are alive at once.

Stores and loops keep their order; a loop's next values come last in its body. Two kinds go ahead: loads of what is
small come first, so that nothing waits for them, and a sum that makes a tile small is taken as soon as the last
product that it needs is there, while its other operands are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from recur.ir.tile import Kernel, Let, Loop, Statement, Store

PRODUCTS = ("contract", "weigh", "inverse")


IN_ORDER = "gradients, in order"  # the role of a kernel whose emitter has put its operations in order


def order_kernel(kernel: Kernel) -> Kernel:
    return kernel if kernel.role == IN_ORDER else replace(kernel, body=order_statements(kernel.body, ()))


def order_statements(body: tuple[Statement, ...], results: tuple[str, ...]) -> tuple[Statement, ...]:
    """``results``: names that are read after the body."""
    definitions = {out.name: s for s in body if isinstance(s, Let) for out in s.outs}
    place_of = {id(s): i for i, s in enumerate(body)}
    loads = [s for s in body if isinstance(s, Let) and s.access is not None]
    sums = [s for s in body if isinstance(s, Let) and s.op == "sum" and len(s.out.axes) < 2 <= len(s.args[0].axes)]
    ahead = {c.phi.name for s in body if isinstance(s, Loop) for c in s.carries}  # what loops not yet placed give
    ordered: list[Statement] = []
    done: set[int] = set()

    def place(let: Let) -> None:
        """The operation after what it needs, depth first and without recursion: chains may be long."""
        stack: list[tuple[Let, bool]] = [(let, False)]
        while stack:
            current, is_ready = stack.pop()
            if id(current) in done:
                continue
            if is_ready:
                done.add(id(current))
                ordered.append(current)
                if current.op in PRODUCTS:
                    stack.extend((s, False) for s in sums if id(s) not in done and is_near(s))
                continue
            stack.append((current, True))
            needed = [definitions[a.name] for a in current.args if a.name in definitions]
            stack.extend((n, False) for n in reversed(needed))

    def is_near(let: Let) -> bool:
        """Whether no product stands between what is placed and the operation."""
        pending, seen = [let], set(done)
        while pending:
            current = pending.pop()
            if id(current) in seen:
                continue
            seen.add(id(current))
            if current.op in PRODUCTS or any(a.name in ahead for a in current.args):
                return False
            pending += [definitions[a.name] for a in current.args if a.name in definitions]
        return True

    def place_names(names: Iterable[str]) -> None:
        for name in names:
            if name in definitions:
                place(definitions[name])

    for load in loads:
        if len(load.out.axes) < 2:
            place(load)
    for statement in body:
        if isinstance(statement, Let):
            continue
        if isinstance(statement, Store):
            place_names((statement.value.name,))
            for load in loads:  # what is read from the block before it is written
                assert load.access is not None
                if load.access.buffer == statement.access.buffer and place_of[id(load)] < place_of[id(statement)]:
                    place(load)
        else:
            place_names(_read_by(statement))
            nexts = tuple(c.next.name for c in statement.carries)
            ahead -= {c.phi.name for c in statement.carries}
            statement = replace(statement, body=order_statements(statement.body, nexts))
        ordered.append(statement)
    place_names(results)
    for statement in body:
        if isinstance(statement, Let):
            place(statement)
    return tuple(ordered)


def _read_by(loop: Loop) -> Iterator[str]:
    """Every name that the loop reads; those of its own body are not defined outside."""
    if loop.needed is not None:
        yield loop.needed.name
    for carry in loop.carries:
        yield carry.init.name
        yield carry.next.name
    for statement in loop.body:
        if isinstance(statement, Let):
            yield from (a.name for a in statement.args)
        elif isinstance(statement, Store):
            yield statement.value.name
        else:
            yield from _read_by(statement)

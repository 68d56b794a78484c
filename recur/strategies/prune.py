"""Removes operations whose results nothing reads: emitters may then load whole families and use what they need."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from recur.ir.tile import Kernel, Let, Loop, Statement, Store


def prune_kernel(kernel: Kernel) -> Kernel:
    return replace(kernel, body=prune_statements(kernel.body))


def prune_statements(statements: tuple[Statement, ...], used: Set[str] = frozenset()) -> tuple[Statement, ...]:
    """``used``: values that are read after the statements."""
    return _prune(statements, used)[0]


def _prune(statements: tuple[Statement, ...], used: Set[str]) -> tuple[tuple[Statement, ...], set[str]]:
    """The statements that stores, or the names in ``used``, depend on; and all names read by them."""
    used = set(used)
    kept: list[Statement] = []
    for statement in reversed(statements):
        if isinstance(statement, Store):
            used.add(statement.value.name)
        elif isinstance(statement, Loop):
            # Every carried value stays: one that nothing reads was not worth a carry.
            used |= {c.next.name for c in statement.carries} | {c.init.name for c in statement.carries}
            used |= {statement.needed.name} if statement.needed is not None else set()
            body, used = _prune(statement.body, used)
            statement = replace(statement, body=body)
        else:
            assert isinstance(statement, Let)
            if not used & {out.name for out in statement.outs}:
                continue
            used |= {a.name for a in statement.args}
        kept.append(statement)
    return tuple(reversed(kept)), used

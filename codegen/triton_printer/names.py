"""Which variable holds which value: single-assignment values get readable names, loop-carried ones are reassigned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from recur.codegen.triton_printer.config import statements_of
from recur.codegen.triton_printer.layout import Layout, safe_name
from recur.ir.tile import Kernel, Let, Loop, Statement, Store, Value

UNPRINTED = frozenset({"const", "size", "rename", "real", "imag", "expand"})  # may be another name of their argument


def name_values(kernel: Kernel, layout: Layout, nameless: frozenset[str] = frozenset()) -> dict[str, str]:
    """The variable of every value, by the value's name; those that are ``nameless`` get none.

    A carried value, its start and its next share one variable where no use of the older is overtaken; so a walk reads
    ``S = tl.zeros(...)``, ``S = decay * S + ...``.
    """
    shared = dict(_shared(kernel))
    owners: dict[str, str] = {}
    shortest: dict[str, str] = {}
    for value in values_of(kernel.body):
        if value.name in nameless:
            continue
        owner = value.name
        while owner in shared:
            owner = shared[owner]
        owners[value.name] = owner
        shortest[owner] = min(shortest.get(owner, value.name), value.name, key=len)
    taken = _reserved(layout)
    names: dict[str, str] = {}
    for value in values_of(kernel.body):
        if value.name not in owners:
            continue
        owner = owners[value.name]
        if owner not in names:
            names[owner] = _numbered(re.sub(r"_\d+$", "", shortest[owner]), taken)
            taken |= {f"{names[owner]}_re", f"{names[owner]}_im"} if value.is_complex else set()
    return {name: names[owner] for name, owner in owners.items()}


def _numbered(stem: str, taken: set[str]) -> str:
    """The stem, or the stem with the first number that is free."""
    number = 1
    while (name := stem if number == 1 else f"{stem}_{number}") in taken or safe_name(name, set()) in taken:
        number += 1
    return safe_name(name, taken)


def values_of(body: tuple[Statement, ...]) -> Iterator[Value]:
    for statement in statements_of(body):
        if isinstance(statement, Let):
            yield from statement.outs
        elif isinstance(statement, Loop):
            for carry in statement.carries:
                yield carry.phi


def _reserved(layout: Layout) -> set[str]:
    taken = {"tl", "triton", "torch", "os", "program", "batch", "head", "segment", "first", "end", "chunk", "token"}
    taken |= {"level", "step", "B", "DOT"}
    taken |= {"walk", "walks", "place", "slot", "relay_ptr"}
    taken |= set(layout.words.values()) | set(layout.sizes)
    for axis in layout.axes.values():
        taken |= {axis.index, axis.mask, axis.block_name, axis.extent_name, layout.tile_index(axis.name)}
    return taken


def _shared(kernel: Kernel) -> Iterator[tuple[str, str]]:
    """(value, the carried value whose variable it takes)."""
    alias = _aliases(kernel.body)
    uses: dict[str, int] = {}
    for used in _uses(kernel.body, alias):
        uses[used] = uses.get(used, 0) + 1
    for body in _blocks(kernel.body):
        for position, loop in enumerate(body):
            if not isinstance(loop, Loop):
                continue
            starts = [c.init.name for c in loop.carries]
            for carry in loop.carries:
                start = _definition(carry.init, body[:position])
                if start is not None and uses[carry.init.name] == 1 and starts.count(carry.init.name) == 1:
                    yield carry.init.name, carry.phi.name
                if _may_overwrite(carry.phi, carry.next, loop, alias):
                    yield carry.next.name, carry.phi.name


def _may_overwrite(phi: Value, following: Value, loop: Loop, alias: dict[str, str]) -> bool:
    """Whether the body does not look at ``phi`` once ``following`` is known."""
    index = _definition(following, loop.body)
    nexts = [c.next.name for c in loop.carries]
    if index is None or nexts.count(following.name) > 1 or phi.name in {alias.get(n, n) for n in nexts}:
        return False
    # Complex results come as two lines, the second of which would read what the first has overwritten.
    later = index if phi.is_complex else index + 1
    return phi.name not in set(_uses(loop.body[later:], alias))


def _definition(value: Value, body: tuple[Statement, ...]) -> int | None:
    """Where ``body`` computes the value into a variable of its own."""
    for index, statement in enumerate(body):
        if isinstance(statement, Let) and value in statement.outs:
            return None if statement.op in UNPRINTED else index
    return None


def _blocks(body: tuple[Statement, ...]) -> Iterator[tuple[Statement, ...]]:
    yield body
    for statement in body:
        if isinstance(statement, Loop):
            yield from _blocks(statement.body)


def _aliases(body: tuple[Statement, ...]) -> dict[str, str]:
    alias: dict[str, str] = {}
    for statement in statements_of(body):
        if isinstance(statement, Let) and statement.op in UNPRINTED and statement.args:
            source = statement.args[0].name
            alias[statement.out.name] = alias.get(source, source)
    return alias


def _uses(body: Iterable[Statement], alias: dict[str, str]) -> Iterator[str]:
    for statement in statements_of(tuple(body)):
        if isinstance(statement, Let):
            values = list(statement.args)
        elif isinstance(statement, Store):
            values = [statement.value]
        else:
            values = [v for c in statement.carries for v in (c.init, c.next)]
            values += [] if statement.needed is None else [statement.needed]
        yield from (alias.get(v.name, v.name) for v in values)

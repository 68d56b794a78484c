"""Loops taken apart: what a loop over chunks or steps needs to do one iteration at a time, and what is done at once.

A loop over tiles disappears: torch code holds an axis whole, so its body runs once. A loop over levels is unrolled. Any
other loop is split by the values it carries:

    before   what depends on no carried value: for all iterations at once, before the loop
    core     what the carried values' next ones are made of: in the loop
    after    what depends on carried values but feeds nothing back: at once, after the loop, from the stacked values
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from recur.ir.tile import Carry, Let, Loop, Statement, Store, Value

BY_LEVEL = ("middle", "right", "apart", "together")  # operations that depend on the level of the loop around them


@dataclass(frozen=True)
class Split:
    before: tuple[Statement, ...]
    core: tuple[Statement, ...]
    after: tuple[Statement, ...]


def uses(statement: Statement) -> Iterator[Value]:
    """Every value that a statement reads, in order; a loop's own values included."""
    if isinstance(statement, Let):
        yield from statement.args
    elif isinstance(statement, Store):
        yield statement.value
    else:
        if statement.needed is not None:
            yield statement.needed
        for carry in statement.carries:
            yield carry.init
        for inner in statement.body:
            yield from uses(inner)
        for carry in statement.carries:
            yield carry.next


def defines(statement: Statement) -> tuple[str, ...]:
    if isinstance(statement, Let):
        return tuple(v.name for v in statement.outs)
    return () if isinstance(statement, Store) else tuple(c.phi.name for c in statement.carries)


def inline_loops(
    body: Iterable[Statement], chunk: int, known: dict[str, Value] | None = None, level: int | None = None
) -> tuple[Statement, ...]:
    """The statements with loops over tiles and levels replaced by their bodies, one for each iteration."""
    known = {} if known is None else known
    result: list[Statement] = []
    for statement in body:
        if isinstance(statement, Let):
            args = tuple(known.get(a.name, a) for a in statement.args)
            result.append(replace(statement, args=args) if level is None else _at_level(statement, args, level, known))
        elif isinstance(statement, Store):
            result.append(replace(statement, value=known.get(statement.value.name, statement.value)))
        elif statement.over in ("tiles", "levels", "once"):
            known.update({c.phi.name: known.get(c.init.name, c.init) for c in statement.carries})
            for i in range(statement.count_levels(chunk)) if statement.over == "levels" else (level,):
                result.extend(inline_loops(statement.body, chunk, known, i))
                known.update({c.phi.name: known.get(c.next.name, c.next) for c in statement.carries})
        else:
            inner = inline_loops(statement.body, chunk, known)
            carries = tuple(
                Carry(c.phi, known.get(c.init.name, c.init), known.get(c.next.name, c.next)) for c in statement.carries
            )
            result.append(replace(statement, carries=carries, body=inner))
    return tuple(result)


def _at_level(let: Let, args: tuple[Value, ...], level: int, known: dict[str, Value]) -> Let:
    """The operation at one level, its results under names of their own (numbers with a zero in front are free)."""
    outs = tuple(replace(v, name=f"{v.name}_0{level}") for v in let.outs)
    known.update(zip((v.name for v in let.outs), outs, strict=True))
    attrs = (*let.attrs, ("level", level)) if let.op in BY_LEVEL else let.attrs
    return replace(let, outs=outs, args=args, attrs=attrs)


def share(
    body: Iterable[Statement], known: dict[object, Let] | None = None, names: dict[str, Value] | None = None
) -> tuple[Statement, ...]:
    """The statements with repeated operations left out: their results are those of the first."""
    known = {} if known is None else dict(known)
    names = {} if names is None else names
    result: list[Statement] = []
    for statement in body:
        if isinstance(statement, Let):
            statement = replace(statement, args=tuple(names.get(a.name, a) for a in statement.args))
            axes = tuple(v.axes for v in statement.outs)
            key = (statement.op, statement.args, statement.attrs, statement.access, axes)
            if key in known:
                names.update({v.name: w for v, w in zip(statement.outs, known[key].outs, strict=True)})
                continue
            known[key] = statement
            result.append(statement)
        elif isinstance(statement, Store):
            result.append(replace(statement, value=names.get(statement.value.name, statement.value)))
        else:
            inits = [names.get(c.init.name, c.init) for c in statement.carries]
            outside = {key: let for key, let in known.items() if let.access is None}
            inner = share(statement.body, outside, names)
            nexts = [names.get(c.next.name, c.next) for c in statement.carries]
            phis = [c.phi for c in statement.carries]
            result.append(replace(statement, carries=tuple(map(Carry, phis, inits, nexts)), body=inner))
    return tuple(result)


def split(loop: Loop) -> Split:
    carried = {c.phi.name for c in loop.carries}
    dependent: list[Statement] = []
    before: list[Statement] = []
    for statement in loop.body:
        if any(v.name in carried for v in uses(statement)):
            carried.update(defines(statement))
            dependent.append(statement)
        else:
            before.append(statement)

    needed = {c.next.name for c in loop.carries}
    core: list[Statement] = []
    for statement in reversed(dependent):
        if any(name in needed for name in defines(statement)):
            needed.update(v.name for v in uses(statement))
            core.insert(0, statement)
    after = tuple(s for s in dependent if s not in core)
    return Split(tuple(before), tuple(core), after)

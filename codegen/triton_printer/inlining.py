"""Which values need no name: an elementwise operation that one operation of the same block reads is written there."""

from __future__ import annotations

from collections import Counter

from recur.codegen.triton_printer.config import statements_of
from recur.codegen.triton_printer.names import UNPRINTED
from recur.ir.tile import Kernel, Let, Loop, Statement, Store, Value
from recur.operators import OPERATORS

LONGEST = 56  # characters of an expression that is written inside another one


def inlinable_values(kernel: Kernel) -> frozenset[str]:
    """Names of the values that may be written where they are used, if their text is short.

    Carried values are reassigned at the end of a loop's body, so nothing that reads one moves.
    """
    uses = Counter(v.name for s in statements_of(kernel.body) for v in _reads(s))
    carries = [c for s in statements_of(kernel.body) if isinstance(s, Loop) for c in s.carries]
    carried = {v.name for c in carries for v in (c.phi, c.init, c.next)}
    return frozenset(_inlinable(kernel.body, uses, carried))


def _inlinable(body: tuple[Statement, ...], uses: Counter[str], carried: set[str]) -> set[str]:
    found: set[str] = set()
    read_once = {v.name for s in body for v in _reads_once(s)}
    aliases = set(carried)  # carried values, and other names of them
    for statement in body:
        if isinstance(statement, Loop):
            found |= _inlinable(statement.body, uses, carried)
        if not isinstance(statement, Let):
            continue
        name = statement.out.name
        if any(a.name in aliases for a in statement.args):
            aliases |= {name} if statement.op in UNPRINTED else set()
            continue
        plain = statement.op in OPERATORS and not statement.out.is_complex and not statement.comment
        if plain and uses[name] == 1 and name in read_once and name not in carried:
            found.add(name)
    return found


def _reads(statement: Statement) -> tuple[Value, ...]:
    if isinstance(statement, Let):
        return statement.args
    if isinstance(statement, Store):
        return (statement.value,)
    needed = () if statement.needed is None else (statement.needed,)
    return (*needed, *(v for c in statement.carries for v in (c.init, c.next)))


def _reads_once(statement: Statement) -> tuple[Value, ...]:
    """The values that the statement's text mentions once."""
    if isinstance(statement, Store):
        return (statement.value,)
    if not isinstance(statement, Let):
        return ()
    if statement.op in ("contract", "sum"):
        return statement.args
    if statement.op in OPERATORS and statement.op != "pow" and not statement.out.is_complex:
        text = OPERATORS[statement.op].triton
        return tuple(a for i, a in enumerate(statement.args) if text.count(f"{{{i}}}") == 1)
    return ()

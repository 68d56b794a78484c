"""Values put together from entries along an axis and then stored: each entry is stored where it belongs.

Tiles in registers cannot be indexed: put together, they would be as large as all entries together, mostly zeros.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from recur.codegen.triton_printer.config import statements_of
from recur.ir.tile import Kernel, Let, Loop, Statement, Store, Value


@dataclass(frozen=True)
class Placed:
    """The entries along an axis by their index; all others are zero.

    ``rows``: axes of rows whose rows past the sequence's end are zero too, which the entries do not say.
    """

    axis: str
    entries: dict[int, Value]
    rows: frozenset[str] = frozenset()


def placed_values(kernel: Kernel) -> dict[str, Placed]:
    """The values made of entries along an axis that only stores along that axis read, or others of these values."""
    found: dict[str, Placed] = {}
    readers: defaultdict[str, list[Statement]] = defaultdict(list)
    for statement in statements_of(kernel.body):
        for name in _read(statement):
            readers[name].append(statement)
        if isinstance(statement, Let):
            placed = _placed(statement, found)
            if placed is not None:
                found[statement.out.name] = placed
    for name in reversed(list(found)):  # readers come after what they read
        if not all(_splits(r, found[name], found) for r in readers[name]):
            del found[name]
    return found


def _placed(let: Let, found: dict[str, Placed]) -> Placed | None:
    """The entries that the operation puts together, or joins, or passes on as they are."""
    if let.op == "place":
        return Placed(str(let.attr("axis")), {int(let.attr("i")): let.args[0]})  # type: ignore[arg-type]
    parts = [found[a.name] for a in let.args if a.name in found]
    if len(parts) < len(let.args) or not parts or len({p.axis for p in parts}) > 1:
        return None
    if let.op == "valid" and let.attr("fill") == 0.0:  # a store of tokens leaves rows past the end out as well
        return replace(parts[0], rows=parts[0].rows | {str(let.attr("axis"))})
    if let.op == "expand" and set(let.out.axes) == set(let.args[0].axes):  # the same tile
        return parts[0]
    if let.op == "add" and not set(parts[0].entries) & set(parts[1].entries):
        return Placed(parts[0].axis, parts[0].entries | parts[1].entries, parts[0].rows | parts[1].rows)
    return None


def _splits(reader: Statement, placed: Placed, found: dict[str, Placed]) -> bool:
    """Whether a reader takes the value entry by entry. A buffer of all rows of chunks holds those past the end too."""
    if isinstance(reader, Store):
        return placed.axis in reader.access.index and not placed.rows & set(reader.access.index)
    return isinstance(reader, Let) and reader.out.name in found


def _read(statement: Statement) -> list[str]:
    if isinstance(statement, Let):
        return [a.name for a in statement.args]
    if isinstance(statement, Loop):
        return [v.name for c in statement.carries for v in (c.phi, c.init, c.next)]
    return [statement.value.name]

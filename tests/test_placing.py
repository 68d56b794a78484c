"""Values made of entries along an axis: which are stored entry by entry."""

from __future__ import annotations

from recur.codegen.triton_printer.placing import Placed, placed_values
from recur.ir.tile import Access, Axis, Builder, Kernel, Value

AXES = (Axis("c", "rows", "T"), Axis("n", "size", "2"))
WHOLE = Access("y", ("batch", "time", "head", "n"), rows="c")


def place(b: Builder, x: Value, i: int) -> Value:
    return b.let("placed", "place", (x,), (*x.axes, "n"), (("axis", "n"), ("i", i)))


def load(b: Builder, name: str) -> Value:
    return b.load(name, Access(name, ("batch", "time", "head"), rows="c"), ("c",))


def placed(b: Builder) -> dict[str, Placed]:
    return placed_values(Kernel("kernel", ("batch", "head"), AXES, tuple(b.statements)))


def test_entries_are_joined_up_to_the_store() -> None:
    b = Builder()
    x, y = load(b, "x"), load(b, "z")
    both = b.valid(b.add(place(b, x, 0), place(b, y, 1)), "c")
    b.store(WHOLE, both)
    found = placed(b)
    assert found[both.name] == Placed("n", {0: x, 1: y}, frozenset({"c"})) and len(found) == 4


def test_a_buffer_of_whole_chunks_holds_zeros_past_the_end() -> None:
    """Such a store is not masked, so `valid` is not the store's to do."""
    b = Builder()
    first = place(b, load(b, "x"), 0)
    b.store(Access("y", ("batch", "chunk", "head", "c", "n")), b.valid(first, "c"))
    assert placed(b) == {}


def test_entries_that_overlap_are_added() -> None:
    b = Builder()
    x, y = load(b, "x"), load(b, "z")
    total = b.add(place(b, x, 0), place(b, y, 0))
    b.store(WHOLE, total)
    assert placed(b) == {}


def test_what_an_operation_reads_whole_is_a_tile() -> None:
    b = Builder()
    x, y = load(b, "x"), load(b, "z")
    first = place(b, x, 0)
    both = b.add(first, place(b, y, 1))
    b.store(WHOLE, both)
    b.store(Access("s", ("batch", "time", "head"), rows="c"), b.sum(first, ("n",)))
    found = placed(b)
    assert first.name not in found and found[both.name].entries == {0: x, 1: y}

"""Torch expressions with named dimensions: how a tile is spelled and laid out in the printed code.

A tile is one tensor for all programs of the grid. Its dimensions are the leading ones of `LEADS`, in that order and
as far as the tile depends on them, then tile axes by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BATCH, HEAD, CHUNK, STEP = "<batch>", "<head>", "<chunk>", "<step>"
LEADS = (BATCH, HEAD, CHUNK, STEP)
TOKENS = "<tokens>"  # the sequence's length, as a size


@dataclass(frozen=True)
class Tensor:
    """An expression and its dimensions in order.

    ``is_number``: a Python number, without dimensions or device; ``after``: it is the mask row - column >= offset.
    ``is_spare``: its memory is its own and nothing reads it later, so that what is computed from it may overwrite it.
    ``factors``: of a product, what is multiplied.
    """

    text: str
    dims: tuple[str, ...] = ()
    is_complex: bool = False
    is_bool: bool = False
    is_number: bool = False
    after: tuple[str, str, int] | None = None
    is_spare: bool = False
    factors: tuple[str, str] | None = None

    def renamed(self, old: str, new: str) -> Tensor:
        dims = tuple(new if d == old else d for d in self.dims)
        after = None if self.after is None else (dims[0], dims[1], self.after[2])
        return replace(self, dims=dims, after=after)


def union_dims(axes: tuple[str, ...], *tensors: Tensor) -> tuple[str, ...]:
    """The leads that occur, then ``axes`` as far as they occur; in the order of an operand that has them all."""
    present = {d for t in tensors for d in t.dims}
    dims = tuple(d for d in dict.fromkeys((*LEADS, *axes)) if d in present)
    widest = next((t.dims for t in tensors if len(t.dims) == len(dims) and set(t.dims) == set(dims)), dims)
    return widest


def is_atom(text: str) -> bool:
    """Whether ``text`` can be followed by an index or an attribute without parentheses."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0 and char in " +-*/@%<>=" and not (i == 0 and char == "-"):
            return False
    return not text.startswith("-")


def atom(text: str) -> str:
    return text if is_atom(text) else f"({text})"


def bare(text: str) -> str:
    """``text`` without a pair of parentheses that encloses all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for char in text[:-1]:
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text
    return bare(text[1:-1])


def permuted(text: str, dims: tuple[str, ...], order: tuple[str, ...]) -> str:
    """``text`` with its dimensions in another order."""
    if dims == order:
        return text
    moved = [i for i in range(len(dims)) if dims[i] != order[i]]
    if moved == [len(dims) - 2, len(dims) - 1]:
        return f"{atom(text)}.mT"
    if len(moved) == 2:
        first, second = (i if i < len(dims) - 2 else i - len(dims) for i in moved)
        return f"{atom(text)}.transpose({first}, {second})"
    return f"{atom(text)}.permute({', '.join(str(dims.index(d)) for d in order)})"


def aligned(x: Tensor, dims: tuple[str, ...], keep_leading: bool = False) -> str:
    """x laid out as ``dims``, with size 1 where x lacks one; leading ones are left to broadcasting unless kept."""
    if x.is_number:
        return x.text
    order = tuple(d for d in dims if d in x.dims)
    text = permuted(x.text, x.dims, order)
    marks = [":" if d in order else "None" for d in dims]
    while marks and marks[0] == "None" and not keep_leading:
        marks.pop(0)
    if "None" not in marks:
        return text
    first, last = marks.index("None"), len(marks) - 1 - marks[::-1].index("None")
    leading = ["...", *marks[first:]] if first > 0 else marks
    index = min((leading, marks[: last + 1]), key=len)
    return f"{atom(text)}[{', '.join(index)}]"

"""A walk over chunks as a relay: a program for every chunk, and carried values handed from one to the next in memory.

A program that walks the whole sequence keeps one multiprocessor busy; a long sequence of few channels has too few of
them. In a relay every chunk has its own program, which does most of its work before it needs anything from the chunk
before: it loads, evaluates the coefficients and scans its own tokens. Then it waits for the carried values, hands on
the next ones at once, and finishes. The order of every operation is that of the walk, so results repeat bit for bit.

* A handed value is a 32-bit word in a buffer that starts as EMPTY, whose bits no value has: it tells by itself that it
  is there, and nothing else needs to be ordered with it.
* Programs take their place from a counter when they begin, and wait only for the place before theirs: for a program
  that has begun. So the first one that has not finished can always go on, however many fit on the device at a time.
"""

from __future__ import annotations

import math
from dataclasses import replace

from recur.codegen.torch_printer.loops import defines, split, uses
from recur.codegen.triton_printer.layout import Layout, align
from recur.ir.tile import Kernel, Loop, Statement, Value

EMPTY = -1  # as an integer; as a float a NaN that arithmetic does not give, and that is not handed on


def as_relay(kernel: Kernel) -> Kernel:
    """The walk with its body in the order of a relay."""
    return replace(kernel, body=tuple(_ordered(s) if isinstance(s, Loop) else s for s in kernel.body))


def _ordered(loop: Loop) -> Loop:
    """First what needs no carried value, then the next values that need their own only, then the rest."""
    early = split(loop).before
    soon: list[Statement] = []
    for carry in loop.carries:
        needed = _needed(carry.next, loop.body)
        read = {v.name for s in needed for v in uses(s)} | {carry.next.name}
        if read & {c.phi.name for c in loop.carries} <= {carry.phi.name}:
            soon += [s for s in needed if s not in early and s not in soon]
    rest = [s for s in loop.body if s not in early and s not in soon]
    return replace(loop, body=(*early, *soon, *rest))


def _needed(value: Value, body: tuple[Statement, ...]) -> list[Statement]:
    """The statements that a value is made of, in order."""
    names, found = {value.name}, []
    for statement in reversed(body):
        if names & set(defines(statement)):
            names |= {v.name for v in uses(statement)}
            found.append(statement)
    return found[::-1]


def handed_words(loop: Loop, layout: Layout) -> int:
    """How many words a program hands on."""
    return sum(_words(carry.phi, layout) for carry in loop.carries)


def _words(value: Value, layout: Layout) -> int:
    return (2 if value.is_complex else 1) * math.prod(layout.axes[a].block for a in value.axes)


def handed_at(loop: Loop, layout: Layout) -> list[list[str]]:
    """For each carried value, where its parts lie beyond a program's slot: an expression of offsets."""
    found: list[list[str]] = []
    start = 0
    for carry in loop.carries:
        lanes = _lanes(layout.order(carry.phi.axes), layout)
        size = _words(carry.phi, layout) // (2 if carry.phi.is_complex else 1)
        parts = []
        for _ in range(2 if carry.phi.is_complex else 1):
            parts.append(" + ".join([*([str(start)] if start or not lanes else []), *lanes]))
            start += size
        found.append(parts)
    return found


def _lanes(axes: tuple[str, ...], layout: Layout) -> list[str]:
    """Row-major offsets of a tile's entries, a term for each axis."""
    terms = []
    for i, axis in enumerate(axes):
        lanes = align(f"tl.arange(0, {layout.axes[axis].block_name})", (axis,), axes)
        stride = " * ".join(layout.axes[a].block_name for a in axes[i + 1 :])
        terms.append(f"{lanes} * {stride}" if stride.isidentifier() or stride.isdigit() else
                     f"{lanes} * ({stride})" if stride else lanes)
    return terms

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
from collections.abc import Mapping, Sequence
from dataclasses import replace

from recur.codegen.torch_printer.loops import defines, split, uses
from recur.codegen.triton_printer.config import PRESCANS, is_function
from recur.codegen.triton_printer.layout import Layout, align
from recur.ir.tile import Kernel, Let, Loop, Statement, Store, Value
from recur.strategies.prune import prune_statements

EMPTY = -1  # as an integer; as a float a NaN that arithmetic does not give, and that is not handed on


def as_relay(kernel: Kernel, anew: bool = False) -> Kernel:
    """The walk with its body in the order of a relay.

    ``anew``: tiles of tokens are computed once before the wait and once after it, so that registers hold few of them
    meanwhile. Functions are held, and what is only read after the wait is loaded before it, since memory is far; what
    both read is loaded twice, since then it is near.
    """
    rows = {a.name for a in kernel.axes if a.kind == "rows"} if anew else set()
    body = tuple(_ordered(s, rows) if isinstance(s, Loop) else s for s in kernel.body)
    return replace(kernel, body=body)


def _ordered(loop: Loop, rows: set[str]) -> Loop:
    """First what needs no carried value, loads in front; then the next values that need their own only; the rest."""
    early = sorted(split(loop).before, key=lambda s: not (isinstance(s, Let) and s.op == "load"))
    soon: list[Statement] = []
    for carry in loop.carries:
        needed = _needed({carry.next.name}, loop.body)
        read = {v.name for s in needed for v in uses(s)} | {carry.next.name}
        if read & {c.phi.name for c in loop.carries} <= {carry.phi.name}:
            soon += [s for s in needed if s not in early and s not in soon]
    rest = [s for s in loop.body if s not in early and s not in soon]
    body = (*early, *soon, *_with_copies(early, rest, rows))
    return replace(loop, body=prune_statements(body, {c.next.name for c in loop.carries}))


def _with_copies(early: Sequence[Statement], rest: Sequence[Statement], rows: set[str]) -> list[Statement]:
    """The rest with its own copies of what comes early, of tiles along ``rows``; scans give values of runs of rows."""
    scans = {v.name for s in early if isinstance(s, Let) and s.op in PRESCANS for v in s.args}
    needed = _needed(scans, early)
    held = [s for s in early if isinstance(s, Let) and (is_function(s) if s in needed else s.op == "load")]
    copied = [s for s in early
              if isinstance(s, Let) and rows & set(s.out.axes) and s.op not in PRESCANS and s not in held]
    copies = {s.out.name: replace(s.out, name=f"{s.out.name}.again") for s in copied}
    return [_with_names(s, copies) for s in (*copied, *rest)]


def _with_names(statement: Statement, named: Mapping[str, Value]) -> Statement:
    if isinstance(statement, Store):
        return replace(statement, value=named.get(statement.value.name, statement.value))
    if isinstance(statement, Let):
        outs, args = (tuple(named.get(v.name, v) for v in values) for values in (statement.outs, statement.args))
        return replace(statement, outs=outs, args=args)
    raise ValueError("a relay has no loop inside its walk")


def _needed(names: set[str], body: Sequence[Statement]) -> list[Statement]:
    """The statements that values are made of, in order."""
    names, found = set(names), []
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


def handed_at(loop: Loop, layout: Layout) -> list[list[int]]:
    """For each carried value, where its parts begin beyond a program's slot."""
    found: list[list[int]] = []
    start = 0
    for carry in loop.carries:
        parts = 2 if carry.phi.is_complex else 1
        size = _words(carry.phi, layout) // parts
        found.append([start + part * size for part in range(parts)])
        start += parts * size
    return found


def handed_lanes(value: Value, layout: Layout) -> list[str]:
    """Row-major offsets of a carried tile's entries, a term for each axis."""
    axes = layout.order(value.axes)
    terms = []
    for i, axis in enumerate(axes):
        lanes = align(f"tl.arange(0, {layout.axes[axis].block_name})", (axis,), axes)
        stride = " * ".join(layout.axes[a].block_name for a in axes[i + 1 :])
        terms.append(f"{lanes} * {stride}" if stride.isidentifier() or stride.isdigit() else
                     f"{lanes} * ({stride})" if stride else lanes)
    return terms

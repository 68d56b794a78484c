"""Every recurrence of the zoo under every strategy that applies, against the oracle; and which strategies must."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from compare import compare
from inputs import dim_sizes

from recur import zoo
from recur.api import load, loads
from recur.ir.plan import STRATEGIES
from recur.runtime.op import Op
from recur.strategies.select import select

TABLE = Path(__file__).with_name("strategy_table.txt")


@cache
def zoo_op(name: str) -> Op:
    return load(zoo.path(name))


def required() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """name -> for each stage its states and the strategies that must apply."""
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            name, states, *strategies = line.split()
            found.setdefault(name, []).append((states, tuple(strategies)))
    return found


def test_the_table_lists_the_whole_zoo() -> None:
    assert sorted(required()) == zoo.names()


@pytest.mark.parametrize("name", zoo.names())
def test_the_required_strategies_apply(name: str) -> None:
    op = zoo_op(name)
    selections = select(op.program, dim_sizes(op.recurrence))
    found = [(",".join(s.normal.stage.states), s.applicable) for s in selections]
    rows = required()[name]
    assert [states for states, _ in rows] == [states for states, _ in found]
    for (states, strategies), (_, applicable), selection in zip(rows, found, selections, strict=True):
        missing = {s: selection.rejected[s] for s in strategies if s not in applicable}
        assert not missing, f"{states}: {missing}"
        surplus = [s for s in applicable if s not in strategies]
        assert not surplus, f"{states}: {surplus} apply too; add them to {TABLE.name}"


def cases() -> list[tuple[str, str]]:
    """Each recurrence with each strategy that some stage of it takes."""
    rows = required()
    return [(n, s) for n in zoo.names() for s in STRATEGIES if any(s in taken for _, taken in rows.get(n, []))]


@pytest.mark.parametrize(("name", "strategy"), cases())
def test_strategy_against_oracle(name: str, strategy: str) -> None:
    op = zoo_op(name)
    selections = select(op.program, dim_sizes(op.recurrence), strategy)
    chunk = max(s.plan.chunk or 1 for s in selections)
    compare(op, strategy, T=1)
    compare(op, strategy, T=min(chunk, 64) + 3, seed=1)
    compare(op, strategy, T=5, seed=2, initial=False, loss="outputs", B=1, H=3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), cases())
def test_strategy_around_the_chunk(name: str, strategy: str) -> None:
    op = zoo_op(name)
    selections = select(op.program, dim_sizes(op.recurrence), strategy)
    chunk = max(s.plan.chunk or 8 for s in selections)
    for T in (chunk - 1, chunk, 2 * chunk + 5):
        compare(op, strategy, T=T, B=1, seed=T)
    compare(op, strategy, T=chunk + 1, loss="final", seed=3)
    compare(op, strategy, T=chunk + 9, extreme=True, seed=4)


GROWING = """
recurrence growing:
    dim    K, V
    input  q[K], k[K], v[V], {declared}
    state  S[K, V]

    S = {decay} * S + outer(k, v)
    output o = q @ S
"""


@pytest.mark.parametrize(("declared", "decay"), [("a", "a"), ("a[K]", "exp(a)"), ("a[V] in (0, 3)", "(1 - a)")])
def test_decays_that_may_grow_do_not_go_by_chunks(declared: str, decay: str) -> None:
    """Chunks take 2^(G_t - G_s) to be at most one."""
    text = GROWING.format(declared=declared, decay=decay)
    (selection,) = select(loads(text).program, {"K": 8, "V": 8})
    assert "more than one" in selection.rejected["chunkwise"] and "more than one" in selection.rejected["tiled"]
    compare(text, selection.plan.strategy, "torch", T=9, sizes={"K": 8, "V": 5}, dtype=torch.float64, tolerance=1e-9)


BOUNDED = [("a in (-1, 1)", "a"), ("a", "min(1, max(a, -1))"), ("a", "exp(-exp(a))")]


@pytest.mark.parametrize(("declared", "decay"), BOUNDED)
def test_bounded_decays_go_by_chunks(declared: str, decay: str) -> None:
    (selection,) = select(loads(GROWING.format(declared=declared, decay=decay)).program, {"K": 8, "V": 8})
    assert selection.plan.strategy == "chunkwise"

"""Random recurrences against the oracle: what no one thought of. `random_comparison.py` runs tens of thousands."""

from __future__ import annotations

import pytest
from random_comparison import compare_specs
from random_specs import generate

from recur.ir.plan import STRATEGIES

FEW, MANY = 40, 300
UNIVERSE = 3000  # seeds that are looked through for features: what none of them has, the generator does not make
NOT_BUILT = {"newton"}


def covering_seeds(count: int) -> list[int]:
    """The first ``count`` seeds, and for each feature that they miss the first seed that has it."""
    seeds = list(range(count))
    seen = {feature for seed in seeds for feature in generate(seed)[1]}
    for seed in range(count, UNIVERSE):
        features = generate(seed)[1]
        if features - seen:
            seeds.append(seed)
            seen |= features
    return seeds


def test_a_few() -> None:
    assert compare_specs(range(FEW)).failures == []


@pytest.mark.slow
def test_many_with_every_feature() -> None:
    seeds = covering_seeds(MANY)
    report = compare_specs(seeds)
    print("\n".join(report.lines()))
    assert report.failures == []
    wanted = {feature for seed in range(UNIVERSE) for feature in generate(seed)[1]}
    wanted |= {f"strategy {s}" for s in STRATEGIES if s not in NOT_BUILT}
    found = report.features + report.strategies
    assert not (empty := sorted(cell for cell in wanted if found[cell] == 0)), f"nothing exercised {empty}"

"""Random recurrences against the oracle: what no one thought of. `random_comparison.py` runs tens of thousands."""

from __future__ import annotations

import pytest
from random_comparison import compare_specs
from random_specs import FAMILIES, generate

COUNT = 14 * len(FAMILIES)
UNIVERSE = 3000  # seeds that are looked through for features: what none of them has, the generator does not make


def covering_seeds() -> list[int]:
    """The first seeds, and for each of the generator's features that they miss the first seed that has it."""
    seeds = list(range(COUNT))
    seen = {feature for seed in seeds for feature in generate(seed)[1]}
    for seed in range(COUNT, UNIVERSE):
        features = generate(seed)[1]
        if features - seen:
            seeds.append(seed)
            seen |= features
    return seeds


@pytest.mark.slow
def test_every_strategy_and_feature() -> None:
    report = compare_specs(covering_seeds())
    print("\n".join(report.lines()))
    assert report.failures == []
    assert report.empty_cells == []
    assert {f"family:{f.__name__}" for f in FAMILIES} <= report.features.keys()

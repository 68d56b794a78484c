"""Random recurrences under every strategy that applies, on the torch backend, against the oracle: gradients included.

    python tests/random_comparison.py --count 20000 --start 1000     many; prints what fails and what was exercised
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from compare import compare
from inputs import dim_sizes
from random_specs import generate

from recur.api import loads
from recur.ir.plan import STRATEGIES
from recur.strategies.select import select

TOLERANCE = 1e-7


@dataclass
class Report:
    """How many specs exercised each feature and each strategy, and what failed."""

    features: Counter[str] = field(default_factory=Counter)
    strategies: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        counts = [*sorted(self.strategies.items()), *sorted(self.features.items())]
        return [f"{count:6} {name}" for name, count in counts]


def compare_spec(seed: int) -> tuple[frozenset[str], list[str]]:
    """Compares the spec of a seed under each strategy; gives its features and the strategies. Raises AssertionError."""
    text, features = generate(seed)
    rng = random.Random(seed)
    op = loads(text)
    selections = select(op.program, dim_sizes(op.recurrence))
    strategies = [s for s in STRATEGIES if any(s in stage.applicable for stage in selections)]
    for strategy in strategies:
        chunk = max(s.plan.chunk or 1 for s in select(op.program, dim_sizes(op.recurrence), strategy))
        T = rng.randint(1, 9) if rng.random() < 0.5 else min(chunk, 64) + rng.randint(-1, 3)
        compare(
            op, strategy, B=rng.randint(1, 2), T=max(T, 1), H=rng.randint(1, 2), seed=seed, tolerance=TOLERANCE,
            initial=rng.random() < 0.7, loss=rng.choice(("both", "outputs", "final")), extreme=rng.random() < 0.3,
        )  # fmt: skip
    return features, strategies


def compare_specs(seeds: Iterable[int], verbose: bool = False) -> Report:
    """Compares many; a failure is collected with its seed and spec, whatever its kind."""
    report = Report()
    for seed in seeds:
        try:
            features, strategies = compare_spec(seed)
        except BaseException as error:  # a crash of any kind is what is looked for
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"seed {seed}: {type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
            report.failures.append(f"{failure}\n{generate(seed)[0]}")
            if verbose:
                print(report.failures[-1], file=sys.stderr, flush=True)
            continue
        report.features.update(features)
        report.strategies.update(f"strategy {s}" for s in strategies)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    report = compare_specs(range(options.start, options.start + options.count), verbose=True)
    print("\n".join(report.lines()))
    print(f"{options.count} specs, {len(report.failures)} failures, {time.monotonic() - began:.0f} s")
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()

"""Random recurrences under every strategy that applies, on the torch backend, against the oracle: gradients included.

    python tests/random_comparison.py --count 20000 --seed 1000 --jobs 2

prints what fails, with its spec, and how many specs exercised each feature; ends with 1 where anything failed or a
feature of `structure_features.CELLS` was not reached.
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
from multiprocessing import get_context

import torch
from compare import assert_close, compare, differentiate, name_results, random_entries, run
from inputs import dim_sizes, random_inputs
from random_specs import generate
from structure_features import CELLS, program_features, selection_features
from torch import Tensor

from recur.api import loads
from recur.ir.plan import STRATEGIES
from recur.runtime.op import Op
from recur.strategies.select import Selection, select

TOLERANCE = 1e-7


@dataclass
class Report:
    """How many specs exercised each feature and each strategy, and what failed."""

    features: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [f"{count:6} {name}" for name, count in sorted(self.features.items())]

    @property
    def empty_cells(self) -> list[str]:
        return [cell for cell in CELLS if not self.features[cell]]


def compare_spec(seed: int) -> frozenset[str]:
    """Compares the spec of a seed under each strategy; gives its features: what it was written to exercise, what the
    compiler proved of it, and which strategy ran what. Raises AssertionError.

    Under one of the strategies also: two calls with the state handed over against one, and the gradients again.
    """
    rng = random.Random(seed)
    text, features = generate(seed)
    op = loads(text)
    features |= program_features(op.program)
    strategies = applicable(op)
    twice = rng.choice(list(strategies))
    for strategy, selections in strategies.items():
        chunk = max(s.plan.chunk or 1 for s in selections)
        T = rng.randint(1, 9) if rng.random() < 0.5 else min(chunk, 64) + rng.randint(-1, 3)
        compare(
            op, strategy, B=rng.randint(1, 2), T=max(T, 1), H=rng.randint(1, 2), seed=seed, tolerance=TOLERANCE,
            initial=rng.random() < 0.7, loss=rng.choice(("both", "outputs", "final")), extreme=rng.random() < 0.3,
        )  # fmt: skip
        if strategy == twice:
            compare_calls(op, strategy, T=rng.randint(2, 12), seed=seed)
        features |= selection_features(selections)
    return features


def applicable(op: Op) -> dict[str, tuple[Selection, ...]]:
    """Every strategy that some stage can take, with what is selected where it is asked for."""
    sizes = dim_sizes(op.recurrence)
    stages = select(op.program, sizes)
    return {s: select(op.program, sizes, s) for s in STRATEGIES if any(s in stage.applicable for stage in stages)}


def compare_calls(op: Op, strategy: str, T: int, seed: int) -> None:
    """One call again, bit for bit, gradients included; and two calls of T tokens together, the state handed over."""
    cut = 1 + seed % (T - 1)
    x = random_inputs(op.recurrence, 1, T, 2, seed=seed, requires_grad=True)
    s = random_entries(op, 1, 2, None, seed)
    leaves = x | {name: t.requires_grad_() for name, t in s.items() if not name.endswith(".log_scale")}
    where = f"{op.name} {strategy} T={T} seed={seed}"
    sides = []
    for _ in range(2):
        found = run(op, op, x, s, strategy=strategy)
        sides.append(found | differentiate(found, leaves, "both", seed))
    for name, y in sides[0].items():
        assert torch.equal(y, sides[1][name]), f"{where}: {name} is not the same in a second run"
    parts: list[dict[str, Tensor]] = []
    state: dict[str, Tensor] | Tensor = s
    for span in (slice(0, cut), slice(cut, T)):
        part = {v.name: x[v.name][:, span] if v.role == "input" else x[v.name] for v in op.recurrence.inputs}
        outputs, state = op(**part, initial_state=state, output_final_state=True, strategy=strategy)
        parts.append(name_results(op, outputs, state))
    first, second = parts
    joined = {n: torch.cat([first[n], y], 1) if n.startswith("output") else y for n, y in second.items()}
    assert_close(joined | differentiate(joined, leaves, "both", seed), sides[0], TOLERANCE, f"{where} cut={cut}")


def try_spec(seed: int) -> tuple[frozenset[str], str | None]:
    """The features of a spec, and how it fails if it does, whatever the kind of failure."""
    try:
        return compare_spec(seed), None
    except Exception as error:  # a crash of any kind is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"seed {seed}: {type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        return frozenset(), f"{failure}\n{generate(seed)[0]}"


def compare_specs(seeds: Iterable[int], jobs: int = 1, verbose: bool = False) -> Report:
    """Compares many; every failure is collected with its seed and spec."""
    report = Report()
    with get_context("spawn").Pool(jobs) if jobs > 1 else _InProcess() as pool:
        for done, (features, failure) in enumerate(pool.imap(try_spec, seeds), 1):
            report.features.update(features)
            report.failures += [failure] if failure else []
            if verbose and (failure or done % 1000 == 0):
                print(failure or f"{done} specs, {len(report.failures)} failures", file=sys.stderr, flush=True)
    return report


class _InProcess:
    """A pool of no processes."""

    imap = staticmethod(map)

    def __enter__(self) -> _InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first spec's seed; the others follow")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    report = compare_specs(range(options.seed, options.seed + options.count), options.jobs, verbose=True)
    print("\n".join(report.lines()))
    for cell in report.empty_cells:
        print(f"nothing exercised: {cell}")
    print(f"{options.count} specs, {len(report.failures)} failures, {time.monotonic() - began:.0f} s")
    sys.exit(bool(report.failures or report.empty_cells))


if __name__ == "__main__":
    main()

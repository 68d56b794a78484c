"""The search: one change at a time, kept where it makes the whole faster. It knows no GPU; a `Bench` does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from recur.ir.plan import Plan
from recur.runtime.tuning.space import Change, Configs, Effort, chunk_changes, default_configs, launch_changes

MARGIN = 0.99  # a change counts from one percent on: less is noise


class TuningError(RuntimeError):
    """Nothing can be tuned: no GPU, or the default configuration itself fails."""


@dataclass(frozen=True)
class Outcome:
    """A measured configuration: seconds of a forward and of a forward and backward pass; or why there are none."""

    forward: float = 0.0
    both: float = 0.0
    failure: str = ""

    @property
    def seconds(self) -> float:
        return self.both or self.forward


class Bench(Protocol):
    """What a search needs of a GPU."""

    def compile(self, changes: Sequence[Change]) -> list[str]:
        """Compiles all of them, and says for each why it is not worth a run; empty where it is."""

    def measure(self, change: Change) -> Outcome:
        """Checks a configuration against the reference and times it."""


@dataclass(frozen=True)
class Tried:
    """One configuration of the search and what came of it: its time, or why it was thrown out."""

    change: Change
    outcome: Outcome


@dataclass(frozen=True)
class Result:
    """The best configurations, their time and that of the default ones, and all that was tried."""

    configs: Configs
    best: Outcome
    default: Outcome
    tried: tuple[Tried, ...]


def search(
    plans: Sequence[Plan],
    sizes: Mapping[str, int],
    effort: Effort,
    bench: Bench,
    report: Callable[[Tried], None] = lambda tried: None,
) -> Result:
    """Chunk lengths first, then each kernel's launches in turn. Raises TuningError where the default itself fails."""
    kernels = tuple(k.name for k in plans[0].forward + plans[0].backward)
    start = Change("default", 0, kernels, default_configs(plans, sizes))
    default = bench.measure(start)
    tried = [Tried(start, default)]
    report(tried[0])
    if default.failure:
        raise TuningError(f"the default configuration fails: {default.failure}")
    best, configs = default, start.configs

    def try_all(changes: Sequence[Change]) -> None:
        nonlocal best, configs
        for change, refusal in zip(changes, bench.compile(changes), strict=True):
            outcome = Outcome(failure=refusal) if refusal else bench.measure(change)
            tried.append(Tried(change, outcome))
            report(tried[-1])
            if not outcome.failure and outcome.seconds < MARGIN * best.seconds:
                best, configs = outcome, change.configs

    for changes in chunk_changes(plans, configs, effort):
        try_all(changes)
    for _ in range(effort.rounds):
        for stage, plan in enumerate(plans):
            for kernel in plan.forward + plan.backward:
                try_all(launch_changes(plans, stage, kernel.name, configs, effort))
    return Result(configs, best, default, tuple(tried))

"""Every strategy is asked for its plan of every stage; the one of the least modelled time is taken.

The model is a roofline at a nominal size of work on a GPU of today: the slower of arithmetic and memory traffic, the
launches, and the steps that must follow one another. It ranks strategies; it does not predict milliseconds.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from recur.diagnostics import Diagnostic, RecurError, did_you_mean, listing
from recur.ir.normal import NormalForm, Program
from recur.ir.plan import STRATEGIES, Choice, Plan, Reject
from recur.ir.spec import Recurrence
from recur.passes.plan_dims import clear_dims

Request = Union[str, Sequence[str]]  # noqa: UP007 (an alias, evaluated on 3.10)

# The nominal work, and what a GPU of today does in a second.
TOKENS, SEQUENCES = 4096, 64
FLOPS, BYTES, LAUNCH, SERIAL_STEP = 2e14, 3e12, 5e-6, 1e-6

# Between equals, the first.
PREFERENCE = ("chunkwise", "tiled", "associative_scan", "sequential", "newton")


@dataclass(frozen=True)
class Selection:
    """One stage with every strategy's answer, and the one taken."""

    normal: NormalForm
    choices: tuple[tuple[str, Choice], ...]
    strategy: str
    requested: bool = False

    @property
    def plan(self) -> Plan:
        choice = dict(self.choices)[self.strategy]
        assert isinstance(choice, Plan)
        return choice

    @property
    def applicable(self) -> tuple[str, ...]:
        return tuple(name for name, choice in self.choices if isinstance(choice, Plan))

    @property
    def rejected(self) -> dict[str, str]:
        """Why each other strategy was not taken."""
        taken = modelled_time(self.plan)
        return {name: self._reason(choice, taken) for name, choice in self.choices if name != self.strategy}

    def _reason(self, choice: Choice, taken: float) -> str:
        if isinstance(choice, Reject):
            return choice.reason
        if self.requested:
            return f"applies, but {self.strategy} was asked for"
        return f"applies; modelled at {modelled_time(choice) / taken:.1f} times the time of {self.strategy}"


def select(program: Program, sizes: dict[str, int], strategy: Request = "auto") -> tuple[Selection, ...]:
    """The strategy of each stage, in the program's order.

    strategy: "auto"; one name, which every stage takes that can (at least one must); or a list with a name or "auto"
    for each stage, which must all apply. Raises RecurError, with the reasons, where a request cannot be met.
    """
    program, sizes = clear_dims(program, sizes)
    rec = program.step.recurrence
    outputs = frozenset(output.name for output in rec.outputs)
    answers = [_ask_strategies(normal, sizes, outputs) for normal in program.stages]
    requests = _requests(rec, strategy, answers)
    return tuple(
        _select_stage(rec, normal, choices, request)
        for normal, choices, request in zip(program.stages, answers, requests, strict=True)
    )


def modelled_time(plan: Plan) -> float:
    """Seconds for the nominal work."""
    cost = plan.cost
    work = TOKENS * SEQUENCES
    return max(cost.flops * work / FLOPS, cost.bytes * work / BYTES) + cost.launches * LAUNCH + _serial_time(plan)


def _serial_time(plan: Plan) -> float:
    """Of the steps that follow one another: "T ..." (tokens), "T / 64 ..." or "T / C ..." (chunks), else none."""
    found = re.match(r"T\b(?: */ *(\d+|C))?", plan.cost.serial_steps)
    if found is None:
        return 0.0
    divisor = plan.chunk if found[1] == "C" else int(found[1] or 1)
    return TOKENS / (divisor or 1) * SERIAL_STEP


Answers = tuple[tuple[str, Choice], ...]


def _ask_strategies(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str]) -> Answers:
    """Every strategy's plan of a stage, or its reason. ``outputs``: the exports that the user gets."""
    modules = {name: importlib.import_module(f"recur.strategies.{name}") for name in STRATEGIES}
    return tuple((name, module.plan(normal, sizes, outputs)) for name, module in modules.items())


def _requests(rec: Recurrence, strategy: Request, answers: Sequence[Answers]) -> list[str]:
    """What is asked of each stage."""
    names = [strategy] if isinstance(strategy, str) else list(strategy)
    for name in names:
        if name not in (*STRATEGIES, "auto"):
            known = did_you_mean(str(name), STRATEGIES, f"strategies are {listing(STRATEGIES, 'and')}")
            raise RecurError.of(rec, Diagnostic("R802", f"unknown strategy `{name}`", rec.span, help=known))
    if not isinstance(strategy, str):
        if len(names) != len(answers):
            message = f"{len(names)} strategies for {len(answers)} stages"
            raise RecurError.of(rec, Diagnostic("R801", message, rec.span, help="name one for each stage, or `auto`"))
        return names
    if strategy == "auto" or not any(_applies(choices, strategy) for choices in answers):
        return [strategy] * len(answers)
    return [strategy if _applies(choices, strategy) else "auto" for choices in answers]


def _applies(choices: Answers, strategy: str) -> bool:
    return isinstance(dict(choices)[strategy], Plan)


def _select_stage(rec: Recurrence, normal: NormalForm, choices: Answers, request: str) -> Selection:
    plans = [(name, choice) for name, choice in choices if isinstance(choice, Plan)]
    if request == "auto":
        if not plans:
            reasons = "; ".join(f"{name}: {choice.reason}" for name, choice in choices if isinstance(choice, Reject))
            states = listing(normal.stage.states, "and")
            raise RecurError.of(rec, Diagnostic("R801", f"no strategy applies to {states}: {reasons}", rec.span))
        best = min(plans, key=lambda item: (modelled_time(item[1]), PREFERENCE.index(item[0])))
        return Selection(normal, choices, best[0])
    answer = dict(choices)[request]
    if isinstance(answer, Reject):
        states = listing(normal.stage.states, "and")
        message = f"strategy `{request}` does not apply to {states}: {answer.reason}"
        applicable = listing([name for name, _ in plans])
        fix = f"{applicable} applies here" if applicable else None
        raise RecurError.of(rec, Diagnostic("R801", message, rec.span, help=fix))
    return Selection(normal, choices, request, requested=True)

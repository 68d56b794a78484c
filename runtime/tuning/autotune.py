"""Tuning at a call, for those who ask for it: RECUR_AUTOTUNE=quick or full. Off, nothing is ever tuned unasked."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from recur.runtime.arguments import Call
from recur.runtime.tuning import records
from recur.runtime.tuning.records import Case

if TYPE_CHECKING:
    from recur.runtime.op import Op
    from recur.strategies.select import Request

VARIABLE = "RECUR_AUTOTUNE"
CHOICES = ("off", "quick", "full")


@functools.cache
def effort() -> str:
    """What RECUR_AUTOTUNE says when it is first asked for. Raises ValueError for what it cannot say."""
    chosen = os.environ.get(VARIABLE, "off")
    if chosen not in CHOICES:
        raise ValueError(f"{VARIABLE} is {chosen!r}; it can be {', '.join(CHOICES)}")
    return chosen


def ensure_tuned(op: Op, call: Call, strategy: Request) -> None:
    """Tunes for the call where that is asked for and was not done; of several processes one, and the others wait."""
    if effort() == "off":
        return
    from recur.runtime.tuning.tune import plans_of, task_of, tune

    plans = plans_of(op.program, call.sizes, strategy)
    path = records.entry_path(records.make_key(op.program, plans, case_of(call)))
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            tune(op.program, task_of(op.recurrence, call), strategy, effort())
    records.fingerprint.cache_clear()


def what_matters(call: Call) -> tuple[object, ...]:
    """What of a call, beside its dims' sizes, its configuration may depend on: quick to find and to compare."""
    sequences, tokens = records.bucket(call.batch * call.heads), records.bucket(call.tokens)
    return (sequences, tokens, call.device, *[x.dtype for x in call.tensors.values()])


def case_of(call: Call) -> Case:
    """What a configuration for the call is looked up for."""
    dtypes = (x.dtype for x in call.tensors.values())
    return records.case_of(call.sizes, dtypes, call.batch * call.heads, call.tokens, call.device)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

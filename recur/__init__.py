"""recur: a compiler for recurrences.

    op = recur.load("gated_delta_net.rec")
    o, final = op(q, k, v, g, beta)

Everything is loaded on first use: importing recur imports neither torch nor the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recur.annotations import Input as Input
    from recur.annotations import Param as Param
    from recur.annotations import State as State
    from recur.annotations import dims as dims
    from recur.api import load as load
    from recur.api import loads as loads
    from recur.api import recurrence as recurrence
    from recur.diagnostics import RecurError as RecurError

__version__ = "0.1.0"

_HOME = {
    "load": "recur.api",
    "loads": "recur.api",
    "recurrence": "recur.api",
    "dims": "recur.annotations",
    "State": "recur.annotations",
    "Input": "recur.annotations",
    "Param": "recur.annotations",
    "RecurError": "recur.diagnostics",
}

__all__ = ["Input", "Param", "RecurError", "State", "__version__", "dims", "load", "loads", "recurrence"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'recur' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

"""Values of one body that several equations need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from recur.ir.tile import Value


@dataclass
class Once:
    """Called with what a value is and how it is emitted: it is emitted at the first call."""

    known: dict[tuple[object, ...], Value] = field(default_factory=dict)

    def __call__(self, key: tuple[object, ...], emit: Callable[[], Value]) -> Value:
        if key not in self.known:
            self.known[key] = emit()
        return self.known[key]

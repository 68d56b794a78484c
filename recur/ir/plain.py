"""Syntax trees as plain values that JSON holds, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from recur.ir import spec

CLASSES = (
    spec.Span, spec.Range, spec.Number, spec.Name, spec.Unary, spec.Binary, spec.Call, spec.Index, spec.Assign,
    spec.Output, spec.For, spec.Dim, spec.Variable, spec.Recurrence,
)  # fmt: skip
BY_NAME = {kind.__name__: kind for kind in CLASSES}


def to_plain(x: Any) -> Any:
    """A node as a list of its class's name and its fields, a tuple as a list with an empty name before its entries."""
    if isinstance(x, CLASSES):
        return [type(x).__name__, *(to_plain(getattr(x, f.name)) for f in fields(x))]
    return ["", *map(to_plain, x)] if isinstance(x, tuple) else x


def from_plain(x: Any) -> Any:
    """What ``to_plain`` was given. Raises KeyError and TypeError for what it has not made."""
    if not isinstance(x, list):
        return x
    kind, *parts = x
    values = tuple(map(from_plain, parts))
    return BY_NAME[kind](*values) if kind else values

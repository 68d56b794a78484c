"""The grammar of the recurrence language and its parser."""

from __future__ import annotations

from recur.grammar.parser import parse, parse_partial

__all__ = ["parse", "parse_partial"]

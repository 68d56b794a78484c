"""What a decorated function is annotated with: named dimensions and ``State[K, V]``, ``Input[K]``, ``Param[D, N]``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from recur.diagnostics import Diagnostic, RecurError
from recur.ir.spec import Dim, Span

Role = Literal["state", "input", "param"]

_counter = itertools.count()
_DIM = re.compile(r"([A-Za-z_]\w*)(?:=(?:([A-Za-z_]\w*)|([0-9]{1,18})))?", re.ASCII)


@dataclass(frozen=True)
class DimName:
    """A named dimension. ``call`` says which ``dims`` call made it, ``order`` its place among all of them."""

    name: str
    size: int | None
    alias: str | None
    call: int
    order: int

    def __iter__(self) -> Iterator[DimName]:
        """So that ``(K,) = dims("K")`` unpacks as well."""
        return iter((self,))

    def declaration(self, span: Span | None) -> Dim:
        return Dim(self.name, self.size, self.alias, span)


def dims(text: str) -> Any:
    """Named dimensions: ``K, V = dims("K V")``; "J=K" is another name of K's size, "n=3" has a fixed size.

    Returns a tuple, or the dimension itself where there is one. Raises RecurError where a word is none of these.
    """
    words = re.sub(r"\s*=\s*", "=", text).replace(",", " ").split()
    call = next(_counter)
    made = tuple(_read_dim(text, word, call) for word in words)
    if not made:
        raise _bad_dims(text, "it names no dimension")
    return made[0] if len(made) == 1 else made


def _read_dim(text: str, word: str, call: int) -> DimName:
    match = _DIM.fullmatch(word)
    if match is None:
        raise _bad_dims(text, f"`{word:.40}` is no dimension")
    name, alias, size = match.groups()
    return DimName(name, int(size) if size else None, alias, call, next(_counter))


def _bad_dims(text: str, reason: str) -> RecurError:
    help = 'write names, as in `dims("K V")`, `dims("J=K")` or `dims("n=3")`'
    message = f"the argument of `dims` does not declare dimensions: {reason}"
    return RecurError([Diagnostic("R208", message, Span(1, 1, 1, max(len(text), 1) + 1), help=help)], "<dims>", text)


@dataclass(frozen=True)
class Annotation:
    """The role and the type of an argument. ``interval`` is the text of its range, read with the function."""

    role: Role
    dims: tuple[Any, ...]
    is_complex: bool = False
    interval: str | None = None

    @property
    def complex(self) -> Annotation:
        """The same with complex values."""
        return replace(self, is_complex=True)

    def range(self, interval: str) -> Annotation:
        """The same with values in a range, written as in the text: ``"(-inf, 0]"``."""
        return replace(self, interval=interval)


@dataclass(frozen=True)
class RoleName:
    """``State``, ``Input`` or ``Param``: brackets with dimensions make an annotation, ``[()]`` that of a number."""

    role: Role

    def __getitem__(self, dims: Any) -> Annotation:
        return Annotation(self.role, dims if isinstance(dims, tuple) else (dims,))


State: Any = RoleName("state")
Input: Any = RoleName("input")
Param: Any = RoleName("param")

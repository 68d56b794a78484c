"""Whatever the bytes, only RecurError comes out of the front end."""

from __future__ import annotations

import random
import re
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.api import read_all
from recur.diagnostics import RecurError
from recur.grammar import parse
from recur.ir.printer import print_recurrence

ZOO = sorted(
    (f.name, f.read_text(encoding="utf-8")) for f in files("recur.zoo").iterdir() if f.name.endswith(".rec")
)
VOCABULARY = r"""
    recurrence dim input param state output for in range complex inf if lambda reset K V n S q x o
    exp outer sum where prev rename eye hadamard softmax l2norm polar real norm amax
    ( ) [ ] , : = == < <= + - * / @ ** 0 1 2.5 1e-6 # " ' . $ ; \
"""
TOKENS = [*VOCABULARY.split(), "\t", "\n"]
LINES = ("\n    ", "\n        ", "\n", " ")


def survive(text: str | bytes) -> None:
    """The text is accepted, and then prints to a fixed point, or is refused with diagnostics that render."""
    try:
        recurrences = read_all(text, "fuzz.rec")
    except RecurError as error:
        assert re.match(r"fuzz\.rec:\d+:\d+: error\[R\d{3}\]: ", str(error))
        return
    for recurrence in recurrences:
        printed = print_recurrence(recurrence)
        (again,) = parse(printed)
        assert again == recurrence
        assert print_recurrence(again) == printed


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_bytes(content: bytes) -> None:
    survive(content)


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_characters(text: str) -> None:
    survive("recurrence r:\n    input x\n    " + text)


@given(st.lists(st.sampled_from([*TOKENS, *LINES]), max_size=60))
@settings(max_examples=400, deadline=None)
def test_tokens(tokens: list[str]) -> None:
    survive("recurrence r:\n    dim K, V, n = 2, J = K\n    input q[K], x\n    state S[K, V]\n    " + " ".join(tokens))


@pytest.mark.parametrize("seed", range(150))
def test_mutations(seed: int) -> None:
    """Tokens of the zoo's recurrences deleted, doubled, exchanged or taken from elsewhere."""
    rng = random.Random(seed)
    text = rng.choice(ZOO)[1]
    pieces = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(rng.randint(1, 4)):
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.randrange(4)
        if kind == 0:
            pieces[i] = ""
        elif kind == 1:
            pieces[i] = pieces[j]
        elif kind == 2:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        else:
            pieces[i] = rng.choice(TOKENS)
    survive("".join(pieces))


@pytest.mark.parametrize("name, text", ZOO, ids=[name for name, _ in ZOO])
def test_zoo_round_trip(name: str, text: str) -> None:
    survive(text)
    assert len(read_all(text)) == 1

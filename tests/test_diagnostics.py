"""Every mistake that the language knows, and the words it is reported in."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable

import pytest
from diagnostic_cases import GROUPS, frame

import recur
from recur.api import read, read_all, read_file
from recur.diagnostics import CODES, Diagnostic, RecurError
from recur.ir.spec import Span

CASES = [(group, name) for group, cases in GROUPS.items() for name in cases]
FIRST_LINE = re.compile(r"case\.rec:(\d+):(\d+): error\[(R\d{3})\]: .+")


def report(content: str | bytes) -> RecurError:
    with pytest.raises(RecurError) as caught:
        read_all(content, "case.rec")
    return caught.value


@pytest.mark.parametrize("group", GROUPS)
def test_messages(group: str, golden: Callable[[str, str], None]) -> None:
    shown = [f"=== {name}\n{report(content)}\n" for name, content in GROUPS[group].items()]
    golden(f"diagnostics_{group}.txt", "\n".join(shown))


@pytest.mark.parametrize("group, name", CASES, ids=[f"{g}: {n}" for g, n in CASES])
def test_every_error_is_located_and_helps(group: str, name: str) -> None:
    error = report(GROUPS[group][name])
    lines = str(error).split("\n")
    assert FIRST_LINE.fullmatch(lines[0])
    assert len(error.diagnostics) <= 8, "one mistake gives few errors"
    for diagnostic in error.diagnostics:
        assert diagnostic.span is not None
        assert diagnostic.help


def test_the_frame_is_right() -> None:
    assert read(frame()).name == "r"


def test_codes_in_use() -> None:
    """Every code of the text's errors has a case."""
    seen = {d.code for g, n in CASES for d in report(GROUPS[g][n]).diagnostics}
    assert sorted(seen) == [code for code in CODES if code < "R700"]


def test_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="R999"):
        Diagnostic("R999", "a message", None)


def test_position_points_at_the_word() -> None:
    error = report(frame("a = q * betta"))
    (diagnostic,) = error.diagnostics
    assert diagnostic.span == Span(6, 13, 6, 18)
    assert str(error).split("\n")[:3] == [
        "case.rec:6:13: error[R201]: unknown name `betta`",
        " 6 |     a = q * betta",
        "   |             ^^^^^",
    ]


def test_errors_come_in_the_order_of_the_source() -> None:
    error = report(GROUPS["whole"]["several errors"])
    places = [(d.span.line, d.span.column) for d in error.diagnostics if d.span]
    assert places == sorted(places)
    assert len(places) >= 6


def test_a_loop_reports_an_error_once() -> None:
    assert len(report(frame("for j in range(m):", "    h = h + nothing")).diagnostics) == 1


def test_many_errors_are_counted() -> None:
    error = report(frame(*(f"a{i} = nothing{i}" for i in range(30))))
    assert len(error.diagnostics) == 30
    assert str(error).endswith("case.rec: 10 more errors")


def test_unreadable_files(tmp_path: object) -> None:
    for path in (f"{tmp_path}/missing.rec", str(tmp_path), "a\0b"):
        with pytest.raises(RecurError, match="R001"):
            read_file(path)


def test_selection_by_name() -> None:
    text = frame() + frame().replace("recurrence r", "recurrence second")
    assert read(text, name="second").name == "second"
    with pytest.raises(RecurError, match="did you mean `second`"):
        read(text, name="secnd")
    with pytest.raises(RecurError, match="holds 2 recurrences"):
        read(text)


def test_errors_survive_pickling() -> None:
    error = report(frame("a = nothing"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_public_name() -> None:
    assert recur.RecurError is RecurError


@pytest.mark.parametrize(
    "text",
    [
        frame(*(f"a{i} = nothing{i}" for i in range(6000))),
        "recurrence r:\n    dim K0\n" + "".join(f"    dim K{i + 1} = K{i}\n" for i in range(8000)),
        "recurrence r:\n" + "".join(f"    input a{i}[K{i}]\n" for i in range(8000)),
        "".join(f"recurence r{i}:\n" for i in range(8000)),
        "foo bar\n" * 20_000,
        frame(*["a = $"] * 10_000),
        frame("a = g", *["a = a * a + a"] * 9000),
    ],
    ids=["unknown names", "dims", "inputs", "headers", "words", "characters", "operations"],
)
def test_a_hostile_file_is_refused_soon(text: str) -> None:
    start = time.perf_counter()
    assert str(report(text))
    assert time.perf_counter() - start < 10

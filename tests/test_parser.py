"""The grammar: what parses, to which tree, and that printing is its inverse."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recur.api import read, read_all
from recur.diagnostics import RecurError
from recur.grammar import parse
from recur.ir.printer import print_expression, print_recurrence
from recur.ir.spec import (
    Assign,
    Binary,
    Call,
    Dim,
    Expr,
    For,
    Index,
    Name,
    Number,
    Output,
    Range,
    Recurrence,
    Unary,
    Variable,
)

GATED_DELTA_NET = '''recurrence gated_delta_net:
    "Gated DeltaNet: a scalar decay, then one delta-rule correction. arXiv 2412.06464"
    dim    K, V
    input  q[K], k[K], v[V]
    input  g in (-inf, 0], beta in (0, 2)
    state  S[K, V]

    S = exp(g) * S
    S = S + beta * outer(k, v - k @ S)
    output o = K ** -0.5 * (q @ S)
'''


def expression(text: str) -> Expr:
    """The tree of an expression."""
    (recurrence,) = parse(f"recurrence r:\n    a = {text}\n")
    statement = recurrence.body[0]
    assert isinstance(statement, Assign)
    return statement.value


def test_the_contract_example() -> None:
    (recurrence,) = parse(GATED_DELTA_NET, "x.rec")
    assert recurrence.name == "gated_delta_net"
    assert recurrence.dims == (Dim("K"), Dim("V"))
    assert [v.name for v in recurrence.inputs] == ["q", "k", "v", "g", "beta"]
    assert recurrence.inputs[3].range == Range(-math.inf, 0, True, False)
    assert recurrence.states == (Variable("state", "S", ("K", "V")),)
    assert recurrence.outputs[0].value == Binary(
        "*", Binary("**", Name("K"), Unary("-", Number(0.5))), Binary("@", Name("q"), Name("S"))
    )
    assert print_recurrence(recurrence) == GATED_DELTA_NET


@pytest.mark.parametrize(
    "text, tree",
    [
        ("-x ** 2", Unary("-", Binary("**", Name("x"), Number(2)))),
        ("x ** -y ** 2", Binary("**", Name("x"), Unary("-", Binary("**", Name("y"), Number(2))))),
        ("a - b - c", Binary("-", Binary("-", Name("a"), Name("b")), Name("c"))),
        ("a * b @ c", Binary("@", Binary("*", Name("a"), Name("b")), Name("c"))),
        ("a + b * c", Binary("+", Name("a"), Binary("*", Name("b"), Name("c")))),
        ("a < b + c", Binary("<", Name("a"), Binary("+", Name("b"), Name("c")))),
        ("-x[0]", Unary("-", Index(Name("x"), Number(0)))),
        ("prev(k)[j]", Index(Call("prev", (Name("k"),)), Name("j"))),
        ("complex(a, b)", Call("complex", (Name("a"), Name("b")))),
        ("f()", Call("f", ())),
        ("1e-6", Number(1e-6)),
        (".5", Number(0.5)),
        ("1_000", Number(1000)),
        ("--x", Unary("-", Unary("-", Name("x")))),
        ("(a\n  + b)  # over two lines", Binary("+", Name("a"), Name("b"))),
    ],
)
def test_precedence_is_pythons(text: str, tree: Expr) -> None:
    assert expression(text) == tree


def test_declarations() -> None:
    (recurrence,) = parse(
        "recurrence r:  # a comment\n"
        "  dim n = 2, K, J = K\n"
        "  state h[n] complex\n"
        "\n"
        "  param w[K, n] in [0, 1)\n"
        "  input x complex, y in (-1.5, inf)\n"
        "  for j in range(n):\n"
        "     for i in range(n):\n"
        "        h = h\n"
        "     h = h\n"
        "  output o[n, K] = h\n"
    )
    assert recurrence.dims == (Dim("n", size=2), Dim("K"), Dim("J", alias="K"))
    assert [v.name for v in recurrence.variables] == ["w", "x", "y", "h"], "the states come last"
    assert recurrence.variables[0].range == Range(0, 1, False, True)
    loop = recurrence.body[0]
    assert isinstance(loop, For)
    assert (loop.variable, loop.dim, len(loop.body)) == ("j", "n", 2)
    assert recurrence.outputs == (Output("o", ("n", "K"), Name("h")),)


@pytest.mark.parametrize(
    "literal, text",
    [
        ('"plain"', "plain"),
        ("'single'", "single"),
        (r'"a \"quoted\" \\ word"', 'a "quoted" \\ word'),
        ('"""Two\n    lines.\n\n      Indented.\n    """', "Two\nlines.\n\n  Indented."),
        ('"# no comment"', "# no comment"),
        ('"caf\u00e9"', "caf\u00e9"),
    ],
)
def test_docstrings(literal: str, text: str) -> None:
    (recurrence,) = parse(f"recurrence r:\n    {literal}\n    input x\n    output o = x\n")
    assert recurrence.doc == text
    assert parse(print_recurrence(recurrence)) == [recurrence]


def test_several_recurrences() -> None:
    text = GATED_DELTA_NET + "\n" + GATED_DELTA_NET.replace("gated_delta_net:", "second:")
    assert [r.name for r in read_all(text)] == ["gated_delta_net", "second"]
    assert read(text, name="second").name == "second"


def test_line_ends_and_byte_order_mark() -> None:
    assert parse(b"\xef\xbb\xbf" + GATED_DELTA_NET.replace("\n", "\r\n").encode()) == parse(GATED_DELTA_NET)


def test_spans_do_not_matter_to_equality() -> None:
    assert parse(GATED_DELTA_NET.replace(" * ", "  *  ")) == parse(GATED_DELTA_NET)


def test_long_sums_parse() -> None:
    assert print_expression(expression(" + ".join(["x"] * 100))) == " + ".join(["x"] * 100)


def test_loading_runs_nothing(tmp_path: object) -> None:
    marker = f"{tmp_path}/marker"
    for line in (f"__import__('os').mkdir('{marker}')", f"open('{marker}', 'w')", "exec(1)", "S = eval(1)"):
        with pytest.raises(RecurError):
            read(f"recurrence r:\n    state S\n    {line}\n")
    assert not Path(marker).exists()


def test_reading_is_fast() -> None:
    read(GATED_DELTA_NET)
    start = time.perf_counter()
    for _ in range(10):
        read(GATED_DELTA_NET)
    assert time.perf_counter() - start < 0.3


# --- printing, on random trees ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["x", "y", "K", "beta", "_a1"])
FINITE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
LEAVES = st.one_of(NAMES.map(Name), st.integers(0, 10**20).map(Number), FINITE.map(Number))
OPERATORS = st.sampled_from(["+", "-", "*", "/", "@", "**"])


def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(Binary, OPERATORS, inner, inner),
        st.builds(Unary, st.sampled_from(["-", "+"]), inner),
        st.builds(Index, inner, inner),
        st.builds(Call, st.sampled_from(["exp", "complex", "f"]), st.lists(inner, max_size=3).map(tuple)),
        st.builds(lambda a, b: Call("where", (Binary("<", a, b), a, b)), inner, inner),
    )


EXPRESSIONS = st.recursive(LEAVES, grow, max_leaves=25)
AXES = st.none() | st.lists(NAMES, min_size=1, max_size=3).map(tuple)
BOUNDS = st.floats(allow_nan=False)
SIMPLE = st.builds(Assign, NAMES, AXES, EXPRESSIONS) | st.builds(Output, NAMES, AXES, EXPRESSIONS)
STATEMENTS = st.recursive(
    SIMPLE, lambda s: st.builds(For, NAMES, NAMES, st.lists(s, min_size=1, max_size=3).map(tuple)), max_leaves=6
)
RECURRENCES = st.builds(
    Recurrence,
    NAMES,
    st.none() | st.text(max_size=40),
    st.lists(st.builds(Dim, NAMES) | st.builds(Dim, NAMES, st.integers(1, 99)), max_size=3).map(tuple),
    st.lists(
        st.builds(
            Variable,
            st.sampled_from(["input", "param"]),
            NAMES,
            st.lists(NAMES, max_size=2).map(tuple),
            st.booleans(),
            st.none() | st.builds(Range, BOUNDS, BOUNDS, st.booleans(), st.booleans()),
        ),
        max_size=5,
    ).map(tuple),
    st.lists(STATEMENTS, min_size=1, max_size=5).map(tuple),
)


@given(EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_an_expression_reads_back(tree: Expr) -> None:
    assert expression(print_expression(tree)) == tree


@given(RECURRENCES)
@settings(max_examples=200, deadline=None)
def test_a_recurrence_reads_back(recurrence: Recurrence) -> None:
    printed = print_recurrence(recurrence)
    assert parse(printed) == [recurrence]
    assert print_recurrence(parse(printed)[0]) == printed


def test_import_is_light() -> None:
    heavy = "print(*sorted({'torch', 'triton', 'sympy', 'lark'} & set(sys.modules)))"
    code = f"import sys, recur; recur.RecurError, recur.dims; {heavy}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""

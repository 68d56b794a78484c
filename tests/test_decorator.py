"""The Python decorator: the same recurrence as the text, from a function's source."""

from __future__ import annotations

import linecache
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recur
from recur import Input, Param, State
from recur.annotations import DimName
from recur.decorator import read_function
from recur.diagnostics import CODES, RecurError
from recur.grammar import parse
from recur.ir.printer import print_recurrence

# ruff: noqa: F722, F821, UP037
# mypy: ignore-errors

K, V, N, J, b, n = recur.dims("K V N J=K b=N n=2")
SCALE = -0.5


def same(function: Callable[..., Any], text: str) -> None:
    """The function and the text under its header are one recurrence, and print alike."""
    body = textwrap.indent(textwrap.dedent(text).strip("\n"), "    ")
    (expected,) = parse(f"recurrence {function.__name__}:\n{body}\n")
    read = read_function(function)
    assert print_recurrence(read) == print_recurrence(expected)
    assert read == expected


def gated_delta_net(S: State[K, V], q: Input[K], k: Input[K], v: Input[V],
                    g: Input[()].range("(-inf, 0]"), beta: Input[()].range("(0, 2)")):
    "Gated DeltaNet: a scalar decay, then one delta-rule correction. arXiv 2412.06464"
    S = exp(g) * S
    S = S + beta * outer(k, v - k @ S)
    o = K ** -0.5 * (q @ S)
    return S, o                        # the states in the order declared, then the outputs


def test_the_contract_example() -> None:
    same(
        gated_delta_net,
        '''
        "Gated DeltaNet: a scalar decay, then one delta-rule correction. arXiv 2412.06464"
        dim    K, V
        input  q[K], k[K], v[V]
        input  g in (-inf, 0], beta in (0, 2)
        state  S[K, V]
        S = exp(g) * S
        S = S + beta * outer(k, v - k @ S)
        output o = K ** -0.5 * (q @ S)
        ''',
    )


def everything(h: State[N].complex, S: State[K, J], z: Input[N].complex, ks: Input[n, K], x: Input[N], w: Param[N]):
    """Several lines,

    and a second paragraph.
    """
    first = real(h)
    for j in range(n):
        S = S + outer(ks[j], ks[j]) * (j + 1)
    a = where(x > 0, -x, SCALE)
    h[N] = h * exp(z) + x * math.pi
    r[N] = a * w
    return h, S, first, r, prev(x)


def test_every_construct() -> None:
    same(
        everything,
        '''
        """Several lines,

        and a second paragraph.
        """
        dim    K, N, J = K, n = 2
        input  z[N] complex, ks[n, K], x[N]
        param  w[N]
        state  h[N] complex, S[K, J]
        output first = real(h)
        for j in range(n):
            S = S + outer(ks[j], ks[j]) * (j + 1)
        a = where(x > 0, -x, -0.5)
        h[N] = h * exp(z) + x * 3.141592653589793
        output r[N] = a * w
        output o = prev(x)
        ''',
    )


def test_local_dims_and_numbers() -> None:
    A, B = recur.dims("A, B = A")
    scale = 3

    def local(s: State[A], x: Input[A], m: Input[A, B]):
        s[A] = m @ rename(s, A, B) * scale + x
        return s, s

    (expected,) = parse(
        "recurrence local:\n    dim A, B = A\n    input x[A], m[A, B]\n    state s[A]\n"
        "    s[A] = m @ rename(s, A, B) * 3 + x\n    output o = s\n"
    )
    assert read_function(local, locals()) == expected


def test_quoted_annotations() -> None:
    def quoted(s: "State[K]", x: "recur.Input[K].range('(0, 1)')", y: "Input[(K, V)]", z: "Input[()].complex"):
        s = s + x
        return s, y * abs(z)

    same(
        quoted,
        """
        dim K, V
        input x[K] in (0, 1), y[K, V], z complex
        state s[K]
        s = s + x
        output o = y * abs(z)
        """,
    )

    def broken(s: State[K], x: "Input["):
        s = s + x
        return s, s

    with pytest.raises(RecurError, match="R703"):
        read_function(broken)


def test_outer_finds_a_name_that_is_not_mentioned() -> None:
    def unmentioned(s: State[K], x: Input[K], y: Input[K]):
        s = x @ outer(x, y)
        return s, s

    assert [d.name for d in read_function(unmentioned).dims] == ["K", "J"]


@pytest.mark.parametrize("kind", ["read again", "assigned twice", "other order", "in a loop", "expressions"])
def test_outputs(kind: str) -> None:
    def read_again(s: State[K], x: Input[K]):
        o = x * 2
        s = s + o
        return s, o

    def assigned_twice(s: State[K], x: Input[K]):
        s = s + x
        o = x
        o = o * 2
        return s, o

    def other_order(s: State[K], x: Input[K]):
        s = s + x
        c = x * 2
        d = x * 3
        return s, d, c

    def in_a_loop(s: State[K], x: Input[n, K]):
        for j in range(n):
            s = s + x[j]
            o = s * j
        return s, o

    def expressions(s: State[K], x: Input[K]):
        s = s + x
        return s, s, x * 2

    functions = {
        "read again": read_again,
        "assigned twice": assigned_twice,
        "other order": other_order,
        "in a loop": in_a_loop,
        "expressions": expressions,
    }
    bodies = {
        "read again": "o_value = x * 2\ns = s + o_value\noutput o = o_value",
        "assigned twice": "s = s + x\no_value = x\no_value = o_value * 2\noutput o = o_value",
        "other order": "s = s + x\nc_value = x * 2\noutput d = x * 3\noutput c = c_value",
        "in a loop": "for j in range(n):\n    s = s + x[j]\n    o_value = s * j\noutput o = o_value",
        "expressions": "s = s + x\noutput o0 = s\noutput o1 = x * 2",
    }
    x = "x[n, K]" if kind == "in a loop" else "x[K]"
    dims = "dim K, n = 2" if kind == "in a loop" else "dim K"
    same(functions[kind], f"{dims}\ninput {x}\nstate s[K]\n{bodies[kind]}")


def test_dims() -> None:
    assert (K.name, J.alias, n.size) == ("K", "K", 2)
    (only,) = recur.dims("L")
    single = recur.dims("L")
    assert isinstance(only, DimName) and isinstance(single, DimName)
    for text in ("", "1", "K=", "K-V", "n=2.5", "n=-1"):
        with pytest.raises(RecurError, match="R208"):
            recur.dims(text)


def test_annotations_kept_by_python_are_read_too() -> None:
    def kept(s, x, g):
        s = g * s + x
        return s, s

    kept.__annotations__ = {"s": State[K], "x": Input[K], "g": Input[()].range("(0, 1)")}
    # the source has no annotations, so that the objects alone cannot serve
    with pytest.raises(RecurError, match="R703"):
        read_function(kept)


# --- mistakes --------------------------------------------------------------------------------------------------------


def step(*lines: str, arguments: str = "s: State[K], x: Input[K]", returns: str = "s, s") -> str:
    """A function of these lines."""
    return "\n    ".join([f"def f({arguments}):", *lines, f"return {returns}" if returns else ""]).rstrip()


MISTAKES: dict[str, str] = {
    "no annotation": step("s = s + x", arguments="s: State[K], x"),
    "no brackets": step("s = s + x", arguments="s: State[K], x: Input"),
    "foreign annotation": step("s = s + x", arguments="s: State[K], x: float"),
    "number as a dimension": step("s = s + 1", arguments="s: State[K], x: Input[3]"),
    "default": step("s = s + x", arguments="s: State[K], x: Input[K] = None"),
    "bad range": step("s = s * x", arguments='s: State[K], x: Input[()].range("0..1")'),
    "range the wrong way round": step("s = s * x", arguments='s: State[K], x: Input[()].range("(1, 0)")'),
    "no return": step("s = s + x", returns=""),
    "state not returned": step("s = s + x", returns="s * 2"),
    "no output": step("s = s + x", returns="s"),
    "output returned twice": step("s = s + x", "o = s", returns="s, o, o"),
    "name of the output taken": step("o = x", "s = s + o"),
    "augmented assignment": step("s += x"),
    "several targets": step("a = s = s + x"),
    "tuple": step("s, a = x, x"),
    "condition": step("s = s if x > 0 else x"),
    "if": step("if x > 0:", "    s = x"),
    "while": step("while True:", "    s = x"),
    "two conditions": step("s = where(x > 0 and x < 1, s, x)"),
    "chained comparison": step("s = where(0 < x < 1, s, x)"),
    "named argument": step("s = s + sum(x, axis=K)"),
    "method": step("s = s + x.exp()"),
    "function of a module": step("s = s + math.exp(x)"),
    "string": step("s = s + 'x'"),
    "no number": step("s = s + math"),
    "operator": step("s = s // x"),
    "loop over a number": step("for j in range(3):", "    s = s + x"),
    "loop over a value": step("for j in x:", "    s = s + x"),
    "loop without a size": step("for j in range(K):", "    s = s + x"),
    "unknown name": step("s = decoy * s", arguments="s: State[K], decay: Input[K]"),
    "unknown function": step("s = s + soft_max(x)"),
    "dimensions": step("s = s + x", arguments="s: State[K], x: Input[V]"),
    "reserved": step("s = s + reset", arguments="s: State[K], reset: Input[K]"),
    "slice": step("s = s + x[0:1]"),
    "entry": step("s[0] = x"),
    "deep": step("s = s" + " + x" * 300),
    "several errors": step("s += x", "a = nothing", "s = s @ a @ x", arguments="s: State[K], x: Input[V], y"),
}
HEADER = "import math\nimport recur\nfrom recur import Input, Param, State\nK, V = recur.dims('K V')\n\n\n"


def report(tmp_path: Path, name: str, first_line: str = "") -> str:
    """The error of a function in a file of its own."""
    path = tmp_path / "user.py"
    path.write_text(first_line + HEADER + MISTAKES[name] + "\n", encoding="utf-8")
    space: dict[str, Any] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), space)
    with pytest.raises(RecurError) as caught:
        read_function(space["f"])
    return str(caught.value).replace(str(path), "user.py")


def test_messages(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    reports = []
    for i, name in enumerate(MISTAKES):
        folder = tmp_path / str(i)
        folder.mkdir()
        text = report(folder, name)
        assert re.match(r"user\.py:\d+:\d+: error\[R\d{3}\]", text)
        assert "help: " in text
        reports.append(f"=== {name}\n{text}\n")
    golden("diagnostics_python.txt", "\n".join(reports))


@pytest.mark.parametrize("name", ["foreign annotation", "number as a dimension", "bad range", "no brackets"])
def test_annotations_kept_as_text_report_alike(tmp_path: Path, name: str) -> None:
    as_objects = report(tmp_path, name).split(": ", 1)[1]
    (tmp_path / "user.py").unlink()
    linecache.clearcache()
    assert report(tmp_path, name, "from __future__ import annotations;").split(": ", 1)[1] == as_objects


def test_codes_in_use(tmp_path: Path) -> None:
    seen = set()
    for i, name in enumerate(MISTAKES):
        folder = tmp_path / str(i)
        folder.mkdir()
        seen |= set(re.findall(r"error\[(R7\d\d)\]", report(folder, name)))
    assert sorted(seen | {"R701"}) == [code for code in CODES if "R700" < code < "R800"]


def test_no_source() -> None:
    space: dict[str, Any] = {"State": State, "Input": Input, "K": K}
    exec("def f(s: State[K], x: Input[K]):\n    s = s + x\n    return s, s", space)
    for function in (space["f"], lambda s: s, len, int):
        with pytest.raises(RecurError, match="R701"):
            read_function(function)


def test_the_function_never_runs() -> None:
    def never(s: State[K], x: Input[K]):
        s = s + boom(x)
        return s, s

    with pytest.raises(RecurError, match="unknown function `boom`"):
        read_function(never)


def test_the_decorator_gives_an_op() -> None:
    P = recur.dims("P")  # named in annotations alone: the function does not capture it

    @recur.recurrence
    def sums(s: State[P], x: Input[P], w: Param[P]):
        s = s + w * x
        return s, s

    assert type(sums).__name__ == "Op"

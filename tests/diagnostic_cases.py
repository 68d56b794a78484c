"""Recurrences with one mistake (or several) each, by the kind of the mistake.

A case is a file: most are ``FRAME``, a recurrence that is right, with a few lines of their own after the declarations.
"""

from __future__ import annotations

FRAME = """recurrence r:
    dim    K, V, N, J = K, n = 2, m = 3
    input  q[K], k[K], v[V], b[N], ks[n, K], kj[J], g, z[K] complex
    param  w[K]
    state  S[K, V], h[K]
{lines}
    S = S + outer(k, v)
    h = h + k
    output o = q @ S
"""


def frame(*lines: str) -> str:
    """A recurrence that is right but for ``lines``."""
    return FRAME.format(lines="\n".join("    " + line for line in lines))


FILE: dict[str, str | bytes] = {
    "empty file": "",
    "only a comment": "# nothing yet\n",
    "binary junk": bytes(range(128, 256)),
    "a NUL character": b"recurrence r:\n    dim \0K\n",
    "too large": "# " + "x" * 300_000,
    "tab in the indentation": "recurrence r:\n\tdim K\n    input x[K]\n    output o = x\n",
    "tab between words": frame("a =\tq"),
    "stray character": frame("a = q $ k"),
    "typographic minus": frame("a = q \u2212 k"),
    "semicolon": frame("a = q; b2 = k"),
    "attribute": frame("a = S.T @ q"),
    "name that is not ASCII": frame("\u03b2 = q"),
    "string not closed": 'recurrence r:\n    "a doc\n    input x\n    output o = x\n',
    "block string not closed": 'recurrence r:\n    """a doc\n    input x\n    output o = x\n',
    "number too large": frame("a = q * 1e999"),
    "malformed number": frame("a = q * 1__0"),
    "two recurrences of one name": frame() + frame(),
}

SYNTAX: dict[str, str | bytes] = {
    "missing colon of the header": "recurrence r\n    input x\n    output o = x\n",
    "missing colon of a loop": frame("for j in range(n)", "    h = h + ks[j]"),
    "bracket not closed": frame("a = outer(k, v"),
    "names of a broken line": "recurrence r:\n    dim K $\n    input x[K]\n    output o = x\n",
    "bracket closes nothing": frame("a = outer(k, v))"),
    "wrong bracket": frame("a = sum(q]"),
    "unknown declaration word": frame("inptu x2[K]"),
    "unknown first word": "recurence r:\n    input x\n    output o = x\n",
    "a line outside": "dim K\nrecurrence r:\n    input x\n    output o = x\n",
    "no body": "recurrence r:\n",
    "body not indented": "recurrence r:\ninput x\noutput o = x\n",
    "indentation fits no block": frame("a = q", "  c = k"),
    "loop without a body": frame("for j in range(n):", "a = q"),
    "body on the loop's line": frame("for j in range(n): h = h + ks[j]"),
    "chained comparison": frame("a = where(0 < g < 1, q, k)"),
    "keyword": frame("a = q if g else k"),
    "keyword as a name": frame("lambda = q"),
    "reserved word as a name": frame("state = q"),
    "augmented assignment": frame("h += k"),
    "floor division": frame("a = q // 2"),
    "power by a caret": frame("a = q ^ 2"),
    "missing operator": frame("a = 2 q"),
    "operator without a right side": frame("a = q +"),
    "two operators": frame("a = q + * k"),
    "no statement": frame("outer(k, v)"),
    "double equals": frame("a == q"),
    "two assignments": frame("a = c = q"),
    "named argument": frame("a = sum(q, axis=0)"),
    "slice": frame("a = ks[0:1]"),
    "two indices": frame("a = ks[0, 1]"),
    "assignment to an entry": frame("h[0] = g"),
    "empty brackets": frame("input x2[]"),
    "number as a dimension": frame("input x2[3]"),
    "missing comma": frame("input x2[K] x3[K]"),
    "declaration with a value": frame("state T[K] = 0"),
    "string among the statements": frame('"a remark"'),
    "output in a loop": frame("for j in range(n):", "    output p = q"),
    "declaration in a loop": frame("for j in range(n):", "    input x2[K]", "    h = h + ks[j]"),
    "loop over a number": frame("for j in range(3):", "    h = h + k"),
    "10,000 brackets": frame("a = " + "(" * 10_000 + "q" + ")" * 10_000),
    "10,000 signs": frame("a = " + "-" * 10_000 + "q"),
    "10,000 powers": frame("a = q" + " ** 1" * 10_000),
    "500 loops": frame(*(" " * i + f"for j{i} in range(n):" for i in range(500)), " " * 500 + "h = h + k"),
}

NAMES: dict[str, str | bytes] = {
    "unknown name": frame("a = betta + 1"),
    "near miss": frame("gate = exp(g)", "a = gaet * q"),
    "near miss by the case": frame("a = q @ s"),
    "unknown function": frame("a = sofmax(q)"),
    "function of other libraries": frame("a = einsum(q, k)"),
    "call of an input": frame("a = q(k)"),
    "function as a value": frame("a = exp + 1"),
    "declared twice": frame("input k[K]"),
    "output named like a state": frame("output h = q"),
    "assignment to an input": frame("k = 2 * k"),
    "assignment to a param": frame("w = 2 * w"),
    "assignment to a dim": frame("K = 3"),
    "assignment to an output": frame("o = q @ S"),
    "assignment to a loop's variable": frame("for j in range(n):", "    j = 2"),
    "reserved name": frame("input exp[K]"),
    "name of a call's keyword": frame("input reset"),
    "local before its assignment": frame("a = c + 1", "c = 2"),
    "output read": frame("output p = q", "a = p * 2"),
    "loop's variable outside": frame("for j in range(n):", "    a = ks[j]", "c = j"),
    "unknown dimension": frame("input x2[Kk]"),
    "input as a dimension": frame("a = sum(S, k)"),
    "dim as a value in brackets": frame("a[q] = k"),
    "alias of nothing": frame("dim L = M"),
    "alias of itself": frame("dim A = B, B = A"),
}

DIMENSIONS: dict[str, str | bytes] = {
    "sum of two": frame("a = k + v"),
    "sum with fewer": frame("a = S + k"),
    "sum of two names of one size": frame("a = k + kj"),
    "comparison of two": frame("a = where(k > v, 1, 0)"),
    "values of where": frame("a = where(g > 0, k, v)"),
    "maximum": frame("a = max(k, v)"),
    "complex parts": frame("a = complex(k, v)"),
    "nothing to contract": frame("a = k @ v"),
    "contraction with a number": frame("a = g @ v"),
    "contraction from the other side": frame("a = S @ k"),
    "contraction of two names of one size": frame("a = k @ kj"),
    "outer without another name": frame("a = outer(v, v)"),
    "state of other dimensions": frame("h = v"),
    "broadcast into a state": frame("h = 0"),
    "stated dimensions": frame("a[V] = k"),
    "elementwise outer product": frame("c = 2 * kj", "h = h * c"),
    "elementwise outer product in a sum": frame("c = kj * k + h"),
    "two names could stand for one": "recurrence r:\n    dim K, J = K, L = K\n    input a[J, L], x[K]\n    state h[K]\n"
    "    h = a\n    output o = h\n",
    "output of other dimensions": frame("output p[V] = k"),
    "missing dimension of a reduction": frame("a = sum(S)"),
    "reduction of a number": frame("a = sum(g)"),
    "reduction over a dimension that is not there": frame("a = norm(k, V)"),
    "reduction over another name": frame("a = softmax(k, J)"),
    "number for a dimension": frame("a = sum(S, 0)"),
    "rename to another size": frame("a = rename(k, K, V)"),
    "rename to a dimension that is there": frame("a = rename(outer(k, k), K, J)"),
    "index of no fixed dimension": frame("a = k[0]"),
    "index out of range": frame("a = ks[2]"),
    "index by another loop": frame("for j in range(m):", "    h = h + ks[j]"),
    "index by an expression": frame("for j in range(n):", "    h = h + ks[j + 1]"),
    "nothing binds a dim": frame("dim L"),
    "dimension listed twice": frame("input x2[K, K]"),
    "identity of two sizes": frame("a = eye(K, V)"),
    "hadamard of three": frame("input x2[m]", "a = hadamard(x2, m)"),
}

VALUES: dict[str, str | bytes] = {
    "complex argument": frame("a = tanh(z)"),
    "complex comparison": frame("a = where(z > 0, 1, 0)"),
    "complex into a real state": frame("h = z * h"),
    "complex reduction": frame("a = softmax(z)"),
    "range the wrong way round": frame("input x2 in (1, 0)"),
    "range that holds nothing": frame("input x2 in (1, 1]"),
    "closed infinity": frame("input x2 in [-inf, 0]"),
    "range of a complex name": frame("input x2 complex in (0, 1)"),
    "malformed range": frame("input x2 in 0, 1"),
    "range of names": frame("input x2 in (0, g)"),
    "exponent that varies": frame("a = k ** g"),
    "comparison as a value": frame("a = g > 0"),
    "condition that is no comparison": frame("a = where(g, 1, 0)"),
    "too many arguments": frame("a = max(1, 2, 3)"),
    "too few arguments": frame("a = outer(k)"),
    "division by zero": frame("a = 1 / 0"),
    "overflow of a constant": frame("a = 10 ** 400"),
    "root of a negative constant": frame("a = (0 - 2) ** 0.5"),
    "epsilon that varies": frame("a = l2norm(k, K, g)"),
    "prev of a state": frame("a = prev(h)"),
    "prev of an entry": frame("a = prev(ks[0])"),
    "prev of a local": frame("a = k", "c = prev(a)"),
}

WHOLE: dict[str, str | bytes] = {
    "state never updated": frame("state T[K]"),
    "no output": "recurrence r:\n    input x\n    state s\n    s = s + x\n",
    "no input": "recurrence r:\n    param w\n    state s\n    s = s + w\n    output o = s\n",
    "loop without a size": frame("for j in range(K):", "    h = h + k"),
    "loop over no dim": frame("for j in range(g):", "    h = h + k"),
    "size of zero": frame("dim L = 0"),
    "negative size": frame("dim L = -2"),
    "size with a fraction": frame("dim L = 2.5"),
    "huge size": frame("dim L = 1000000000"),
    "huge loop": frame("dim L = 60000", "for j in range(L):", "    h = h + k"),
    "several errors": "recurrence r:\n    dim K, V\n    inptu q[K]\n    input k[K], v[V] in (1, 0)\n"
    "    state S[K, V], T[K]\n"
    "    S = S + outr(k, v)\n    S = S + k @ v\n    k = 2 * k $\n    v = qq * 2\n    output o = q @ S\n",
    "two recurrences with errors": frame("a = k + v") + frame("a = x2").replace("recurrence r", "recurrence s"),
}

GROUPS = {
    "file": FILE,
    "syntax": SYNTAX,
    "names": NAMES,
    "dimensions": DIMENSIONS,
    "values": VALUES,
    "whole": WHOLE,
}

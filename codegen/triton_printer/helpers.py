"""The functions that printed kernels may call; a generated file defines those that it uses, in this order.

Plain Triton throughout (no libdevice), so that they run in the interpreter as well; none overflows or gives NaN where
the function itself is finite.
"""

from __future__ import annotations

import re
from pathlib import Path

from recur.codegen.helpers import needed_functions

SEGMENTS = Path(__file__).parent.parent / "segments.py"


def _prescan_helpers(
    suffix: str, compose: str, equation: str, step: tuple[str, ...], nothing: tuple[str, ...]
) -> dict[str, str]:
    """Scans of rows for one kind of state: the parts of a ``step``, and ``nothing``, the one that changes no state."""
    filled = ", ".join("tl.zeros(shape, tl.float32) * -1.0" if x == "0.0" else f"tl.full(shape, {x}, tl.float32)"
                       for x in nothing)  # fmt: skip
    first, earlier, second, before = (", ".join(f"{moment}{part}{block}" for part in step)
                                      for block in (1, 2) for moment in ("", "before_"))  # fmt: skip
    return {
        f"_nothing{suffix}": f'''
@triton.jit
def _nothing{suffix}(shape: tl.constexpr):
    """The step that leaves a state as it is (-0.0, because x + -0.0 is x and compiles away)."""
    return {filled}
''',
        f"_compose_rows{suffix}": f'''
@triton.jit
def _compose_rows{suffix}({first}, {earlier}, {second}, {before}):
    """Two blocks of rows, of each all its rows and those before its last one."""
    return {compose}({first}, {second}) + {compose}({first}, {before})
''',
        f"_scan_rows{suffix}": f'''
@triton.jit
def _scan_rows{suffix}(steps):
    """For every row along the first axis, all rows up to it, and all before it."""
    scanned = tl.associative_scan(steps + _nothing{suffix}(steps[0].shape), 0, _compose_rows{suffix})
    return scanned[: len(steps)], scanned[len(steps) :]
''',
        f"_prescan{suffix}": f'''
@triton.jit
def _prescan{suffix}(steps, RUNS: tl.constexpr, gathered: tl.constexpr = False):
    """{equation} for rows in front: what comes before every run of rows, then all rows together.

    Row r S + s of a tile is row r of run s (`_in_runs`), so that a thread holds runs of rows in its registers: rows
    [C / S, S, W], W the other axes together. There a scan takes no exchange between threads. ``gathered``: Triton is to
    have all runs of a channel in one warp, whose threads need not wait for other warps.
    """
    RUN: tl.constexpr = steps[0].shape[0] // RUNS
    W: tl.constexpr = steps[0].numel // steps[0].shape[0]
    after, _ = _scan_rows{suffix}(_reshaped(steps, (RUN, RUNS, W)))
    runs = _picked(after, tl.arange(0, RUN)[:, None, None] == RUN - 1, 0)
    before = _nothing{suffix}((RUNS, W))
    if gathered:
        runs, before = _scan_rows{suffix}(_gathered(runs, tl.arange(0, RUNS), (RUNS, W)))
        return before + _reshaped(_gathered(runs, tl.full((1,), RUNS - 1, tl.int32), (1, W)), (W,))
    if RUNS > 1:
        runs, before = _scan_rows{suffix}(runs)
    return before + _picked(runs, tl.arange(0, RUNS)[:, None] == RUNS - 1, 0)
''',
        f"_resume{suffix}": f'''
@triton.jit
def _resume{suffix}(steps, first, turned: tl.constexpr = False, inclusive: tl.constexpr = False):
    """{equation} for rows in front, before every row or after it, from ``first`` before every run (_prescan).

    ``turned``: the other way, from the last row of a run to its first; in registers, turning them compiles away.
    """
    RUNS: tl.constexpr = first[0].shape[0]
    RUN: tl.constexpr = steps[0].shape[0] // RUNS
    W: tl.constexpr = steps[0].numel // steps[0].shape[0]
    PARTS: tl.constexpr = len(first)
    nothing = _nothing{suffix}((RUN, RUNS, W))
    start = _in_front(_reshaped(first, (RUNS, W)))
    rows = _in_order(_reshaped(steps, (RUN, RUNS, W)), turned)
    at_first = tl.arange(0, RUN)[:, None, None] == 0
    rows = rows[:PARTS] + _chosen(at_first, {compose}(*nothing[:PARTS], *start, *rows)[PARTS:], rows[PARTS:])
    before = nothing[:PARTS] + _chosen(at_first, start, nothing[PARTS:])
    scanned = tl.associative_scan(rows + before, 0, _compose_rows{suffix})
    states = scanned[PARTS : 2 * PARTS] if inclusive else scanned[3 * PARTS :]
    return _reshaped(_in_order(states, turned), steps[0].shape)
''',
    }


HELPERS: dict[str, str] = {
    "_exp": '''
@triton.jit
def _exp(x):
    """exp(x) by the hardware's 2 ** x, which takes denormal results for zero."""
    return tl.exp2(1.4426950408889634 * x)
''',
    "_sigmoid": '''
@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) as the square of a reciprocal root: a division for floats of any size takes eight steps."""
    root = tl.rsqrt(1.0 + tl.exp2(-1.4426950408889634 * x))
    return root * root
''',
    "_expm1": '''
@triton.jit
def _expm1(x):
    """exp(x) - 1: its series near 0, where the difference would cancel."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(tl.abs(x) < 0.35, series, _exp(x) - 1.0)
''',
    "_log1p": '''
@triton.jit
def _log1p(x):
    """log(1 + x): near 0 by 2 artanh(x / (2 + x)), which does not round 1 + x."""
    near = tl.abs(x) < 0.3
    s = tl.where(near, x, 0.0) / (2.0 + tl.where(near, x, 0.0))
    series = 2.0 * s * (1 + s * s * (1 / 3 + s * s * (1 / 5 + s * s * (1 / 7 + s * s / 9))))
    return tl.where(near, series, tl.log(1.0 + x))
''',
    "_softplus": '''
@triton.jit
def _softplus(x):
    """log(1 + exp(x)), with the exponential of -|x| only."""
    return tl.maximum(x, 0.0) + _log1p(_exp(-tl.abs(x)))
''',
    "_logsigmoid": '''
@triton.jit
def _logsigmoid(x):
    """-log(1 + exp(-x)), with the exponential of -|x| only."""
    return tl.minimum(x, 0.0) - _log1p(_exp(-tl.abs(x)))
''',
    "_sign": """
@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
""",
    "_tanh": '''
@triton.jit
def _tanh(x):
    """sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|), through e - 1 so that small x keep their digits."""
    e_minus_1 = _expm1(-2.0 * tl.abs(x))
    return -_sign(x) * e_minus_1 / (2.0 + e_minus_1)
''',
    "_quarter_turns": '''
@triton.jit
def _quarter_turns(x):
    """(n, r) with x = n pi / 2 + r and r about pi / 4 at most, exact to rounding for |x| up to 1e5.

    pi / 2 in four terms, the first three so short that their products with n are exact. Triton's own sine keeps a
    table on the stack for the angles beyond; here they get some number from -1 to 1.
    """
    n = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - n * 1.5703125) - n * 0.0004825592041015625) - n * 1.2665987014770508e-06
    return n, tl.minimum(tl.maximum(r - n * 9.920935184482005e-10, -1.0), 1.0)
''',
    "_sine_of_turns": '''
@triton.jit
def _sine_of_turns(n, r):
    """sin(n pi / 2 + r) for |r| <= 1, from the Taylor series of sine and cosine."""
    s = r * r
    sine = r * (1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72))))
    cosine = 1 - s / 2 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90))))
    half = tl.floor(n * 0.5)
    value = tl.where(n - 2.0 * half == 0.0, sine, cosine)
    return tl.where(half - 2.0 * tl.floor(half * 0.5) == 0.0, value, -value)
''',
    "_sin": """
@triton.jit
def _sin(x):
    n, r = _quarter_turns(x)
    return _sine_of_turns(n, r)
""",
    "_cos": """
@triton.jit
def _cos(x):
    n, r = _quarter_turns(x)
    return _sine_of_turns(n + 1.0, r)
""",
    "_pow": '''
@triton.jit
def _pow(x, n: tl.constexpr):
    """x ** n for a whole n >= 1."""
    y = x
    for _ in tl.static_range(n - 1):
        y = y * x
    return y
''',
    "_compose": '''
@triton.jit
def _compose(a1, h1, a2, h2):
    """First h -> a1 h + h1, then h -> a2 h + h2."""
    return a1 * a2, a2 * h1 + h2
''',
    "_compose_complex": '''
@triton.jit
def _compose_complex(a1_re, a1_im, h1_re, h1_im, a2_re, a2_im, h2_re, h2_im):
    """First h -> a1 h + h1, then h -> a2 h + h2, over the complex numbers."""
    return (
        a1_re * a2_re - a1_im * a2_im,
        a1_re * a2_im + a1_im * a2_re,
        a2_re * h1_re - a2_im * h1_im + h2_re,
        a2_re * h1_im + a2_im * h1_re + h2_im,
    )
''',
    "_compose_max": '''
@triton.jit
def _compose_max(g1, m1, g2, m2):
    """First m -> max(m + g1, m1), then m -> max(m + g2, m2)."""
    return g1 + g2, tl.maximum(m1 + g2, m2)
''',
    "_held": '''
@triton.jit
def _held(x):
    """x itself: where threads share it, Triton would hand round what was loaded, and each thread widen its copy."""
    return tl.sum(x[None], 0)
''',
    "_rest": '''
@triton.jit
def _rest(x, DOT: tl.constexpr):
    """What is left of x where it is rounded to the operand type."""
    return x - x.to(DOT).to(tl.float32)
''',
    "_in_runs": '''
@triton.jit
def _in_runs(C: tl.constexpr, RUNS: tl.constexpr):
    """The token of every row of a tile of C, where row r RUNS + s is row r of run s."""
    row = tl.arange(0, C)
    return row % RUNS * (C // RUNS) + row // RUNS
''',
    "_reshaped": """
@triton.jit
def _reshaped(parts, shape: tl.constexpr):
    shaped = ()
    for i in tl.static_range(len(parts)):
        shaped = shaped + (tl.reshape(parts[i], shape),)
    return shaped
""",
    "_in_front": '''
@triton.jit
def _in_front(parts):
    """The tiles of runs as those of their first rows: a new axis leaves entries in their threads, a reshape may not."""
    rows = ()
    for i in tl.static_range(len(parts)):
        rows = rows + (parts[i][None, :, :],)
    return rows
''',
    "_in_order": '''
@triton.jit
def _in_order(parts, turned: tl.constexpr):
    """The tiles, ``turned``: with their first axis the other way round."""
    if turned:
        flipped = ()
        for i in tl.static_range(len(parts)):
            flipped = flipped + (tl.flip(parts[i], 0),)
        return flipped
    else:
        return parts
''',
    "_chosen": """
@triton.jit
def _chosen(condition, yes, no):
    chosen = ()
    for i in tl.static_range(len(yes)):
        chosen = chosen + (tl.where(condition, yes[i], no[i]),)
    return chosen
""",
    "_picked": '''
@triton.jit
def _picked(parts, at, axis: tl.constexpr):
    """The one entry along an axis that ``at`` marks; the sum compiles away where a thread holds the axis (x + -0.0)."""
    picked = ()
    for i in tl.static_range(len(parts)):
        picked = picked + (tl.sum(tl.where(at, parts[i], tl.zeros_like(parts[i]) * -1.0), axis),)
    return picked
''',
    "_gathered": '''
@triton.jit
def _gathered(parts, source, shape: tl.constexpr):
    """The tiles [S, W] whose row s is row source[s]."""
    moved = ()
    for i in tl.static_range(len(parts)):
        moved = moved + (tl.gather(parts[i], tl.broadcast_to(source[:, None], shape), 0),)
    return moved
''',
    **_prescan_helpers("", "_compose", "h_r = a_r h_{r-1} + x_r", ("a", "h"), ("1.0", "0.0")),
    **_prescan_helpers("_complex", "_compose_complex", "h_r = a_r h_{r-1} + x_r over the complex numbers",
                       ("a_re", "a_im", "h_re", "h_im"), ("1.0", "0.0", "0.0", "0.0")),
    **_prescan_helpers("_max", "_compose_max", "m_r = max(m_{r-1} + g_r, x_r)", ("g", "m"), ("0.0", 'float("-inf")')),
    "_take": '''
@triton.jit
def _take(first, slot, step, THREADS: tl.constexpr):
    """A carried value: ``first`` at the first step, then what the program of the step before leaves in the slot.

    An empty word is -1, a NaN's bits; words are read past the caches until none is empty. Threads that read the same
    word may find it at different times: so every thread reads a copy of its own, and all copies are waited for.
    """
    W: tl.constexpr = first.numel
    COPIES: tl.constexpr = THREADS // W if THREADS > W else 1
    place = slot + tl.arange(0, W * COPIES) // COPIES
    words = tl.load(place, volatile=True)
    while (tl.min((words != -1).to(tl.int32)) == 0) & (step > 0):
        words = tl.load(place, volatile=True)
    taken = tl.reshape(tl.max(tl.reshape(words, (W, COPIES)), 1), first.shape)
    return tl.where(step > 0, taken.to(tl.float32, bitcast=True), first)
''',
    "_take_number": '''
@triton.jit
def _take_number(first, slot, step):
    """`_take` of a single number."""
    word = tl.load(slot, volatile=True)
    while (word == -1) & (step > 0):
        word = tl.load(slot, volatile=True)
    return tl.where(step > 0, word.to(tl.float32, bitcast=True), first)
''',
    "_hand_on": '''
@triton.jit
def _hand_on(value, slot):
    """Leaves a carried value for the program of the next step; the NaN that stands for empty becomes another one."""
    words = value.to(tl.int32, bitcast=True)
    tl.atomic_xchg(slot, tl.where(words == -1, 0x7FC00000, words), sem="relaxed")
''',
    "_quarters": '''
@triton.jit
def _quarters(L, n: tl.constexpr, m: tl.constexpr):
    """Of n blocks [A 0; F D] of 2 m rows: A and D, as 2 n blocks of m rows, and F."""
    left, right = tl.split(tl.permute(tl.reshape(L, (n, 2, m, 2, m)), (0, 2, 4, 1, 3)))
    A, F = tl.split(left)
    _, D = tl.split(right)
    return tl.reshape(tl.permute(tl.join(A, D), (0, 3, 1, 2)), (2 * n, m, m)), F
''',
    "_block_product": '''
@triton.jit
def _block_product(x, y, PRECISION: tl.constexpr):
    """The products of n blocks with n others, [n, m, m]."""
    n: tl.constexpr = x.shape[0]
    m: tl.constexpr = x.shape[1]
    if n == 1:
        return tl.reshape(tl.dot(tl.reshape(x, (m, m)), tl.reshape(y, (m, m)), input_precision=PRECISION), (1, m, m))
    return tl.dot(x, y, input_precision=PRECISION)
''',
    "_joined_inverses": '''
@triton.jit
def _joined_inverses(X, F, PRECISION: tl.constexpr):
    """The inverses of n blocks [A 0; F D] from those of A and D, 2 n blocks X: [A^-1 0; -D^-1 F A^-1  D^-1]."""
    n: tl.constexpr = F.shape[0]
    m: tl.constexpr = F.shape[1]
    A, D = tl.split(tl.permute(tl.reshape(X, (n, 2, m, m)), (0, 2, 3, 1)))
    lower = -_block_product(D, _block_product(F, A, PRECISION), PRECISION)
    halves = tl.join(tl.join(A, lower), tl.join(tl.zeros((n, m, m), tl.float32), D))
    return tl.reshape(tl.permute(halves, (0, 3, 1, 4, 2)), (n, 2 * m, 2 * m))
''',
    "_unit_lower_inverse": '''
@triton.jit
def _unit_lower_inverse(L, C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + L)^{-1} for L strictly lower triangular, [C, C] with C = 2 ** LEVELS.

    Blocks of width m = 1, 2, 4, ... are joined two at a time, X holding the inverses so far. Up to a width of W = 16
    that is X <- X - X F X, F the blocks between the two of a pair; beyond, products of quarters.
    """
    W: tl.constexpr = 16 if C > 16 else C
    below = ()
    L = tl.reshape(L, (1, C, C))
    for i in tl.static_range(LEVELS - 4):
        L, F = _quarters(L, 2**i, C // 2 ** (i + 1))
        below = below + (F,)
    row = tl.arange(0, W)[None, :, None]
    column = tl.arange(0, W)[None, None, :]
    pairs = (row // 2 == column // 2) & (row > column)
    X = tl.where(row == column, 1.0, 0.0) - tl.where(pairs, L, 0.0)
    for level in tl.static_range(1, LEVELS if LEVELS < 4 else 4):
        m = 2**level
        F = tl.where((row // (2 * m) == column // (2 * m)) & (row // m > column // m), L, 0.0)
        X = X - tl.dot(X, tl.dot(F, X, input_precision=PRECISION), input_precision=PRECISION)
    for i in tl.static_range(LEVELS - 4):
        X = _joined_inverses(X, below[LEVELS - 5 - i], PRECISION)
    return tl.reshape(X, (C, C))
''',
    "_hadamard_matrix": '''
@triton.jit
def _hadamard_matrix(N: tl.constexpr):
    """Sylvester's Hadamard matrix [N, N]: entry (i, j) is -1 to the number of ones that i and j share in binary."""
    shared = tl.arange(0, N)[:, None] & tl.arange(0, N)[None, :]
    shared = shared ^ (shared >> 8)
    shared = shared ^ (shared >> 4)
    shared = shared ^ (shared >> 2)
    shared = shared ^ (shared >> 1)
    return (1 - 2 * (shared & 1)).to(tl.float32)
''',
    "_to_middle": '''
@triton.jit
def _to_middle(gx, gy, level, C: tl.constexpr, K: tl.constexpr):
    """(which rows [C, 1] are in the right half of their block of 2 M rows, 2 ** the decay from there to its middle).

    M = 2 ** level. The middle is the left half's last write: nothing later than a row to its right, and no exponent is
    above 0.
    """
    half = tl.arange(0, C) >> level
    right = (half & 1)[:, None] == 1
    middle = tl.gather(gy, tl.broadcast_to((((half | 1) << level) - 1)[:, None], (C, K)), 0)
    return right, tl.exp2(tl.minimum(tl.where(right, gx - middle, middle - gy), 0.0))
''',
    "_to_first": '''
@triton.jit
def _to_first(gx, gy, C: tl.constexpr, K: tl.constexpr, DOT: tl.constexpr):
    """Blocks of 16 rows, anchored at their first: (which rows [C, 1] are near it, 2 ** (gx - g), 2 ** (g - gy)).

    A row is near where the decays on the way there leave the operand type room: then its pairs need no other anchor.
    """
    ROOM: tl.constexpr = 0.0 if DOT == tl.float16 else 80.0
    first = tl.gather(gy, tl.broadcast_to((tl.arange(0, C) // 16 * 16)[:, None], (C, K)), 0)
    near = (tl.max(first - gy, 1) <= ROOM)[:, None]
    return near, tl.exp2(tl.minimum(gx - first, 0.0)), tl.exp2(tl.minimum(first - gy, ROOM))
''',
    "_halving": '''
@triton.jit
def _halving(near, C: tl.constexpr):
    """[C, C]: by which anchors each pair is counted, (whether by the first of 16 rows, row ^ column where by middles).

    Row c and column s < c are in the two halves of one block of 2 M rows where M is the highest bit of c ^ s.
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    apart = tl.where(row > column, row ^ column, 0)
    beside = near & (apart > 0) & (apart < 16)
    return beside, tl.where(beside, 0, apart)
''',
    "_weigh_sizes": '''
@triton.jit
def _weigh_sizes(
    x, y, gx, gy, C: tl.constexpr, K: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr
):
    """[C, C] from [C, K] twice: sum over K of x * y * 2 ** (gx - gy), for rows that are not before the column.

    The gates differ along K, so no one product of matrices can hold the exponent of every pair without overflow. Row c
    and column s, c > s, are in the two halves of one block of 2 M rows for just one power of two M: so one product for
    each M = C / 2, C / 4, ..., with exponents counted from the middle of a row's block, where none is above 0. Below 16
    rows one product anchored at the first of 16 rows replaces them for the rows whose decays are ordinary.
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    out = tl.where(row == column, tl.sum(x * y * tl.exp2(tl.minimum(gx - gy, 0.0)), 1)[:, None], 0.0)
    near, down, up = _to_first(gx, gy, C, K, DOT)
    beside, apart = _halving(near, C)
    pairs = tl.dot((x * down).to(DOT), tl.trans((y * up).to(DOT)), input_precision=PRECISION)
    out = tl.where(beside, pairs, out)
    for level in range(tl.where(tl.min(near.to(tl.int32)) == 0, 0, 4), LEVELS):
        right, decay = _to_middle(gx, gy, level, C, K)
        z = (tl.where(right, x, y) * decay).to(DOT)
        pairs = tl.dot(z, tl.trans(z), input_precision=PRECISION)
        out = tl.where(apart >> level == 1, pairs, out)
    return out
''',
    "_weigh_columns": '''
@triton.jit
def _weigh_columns(
    p, y, gx, gy, C: tl.constexpr, K: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr
):
    """[C, K] from [C, C] and [C, K]: sum over columns s of p * y * 2 ** (gx - gy), s not after the row.

    By the same blocks as the pairs themselves (_weigh_sizes).
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    out = tl.sum(tl.where(row == column, p, 0.0), 1)[:, None] * y * tl.exp2(tl.minimum(gx - gy, 0.0))
    near, down, up = _to_first(gx, gy, C, K, DOT)
    beside, apart = _halving(near, C)
    out += down * tl.dot(tl.where(beside, p, 0.0).to(DOT), (y * up).to(DOT), input_precision=PRECISION)
    for level in range(tl.where(tl.min(near.to(tl.int32)) == 0, 0, 4), LEVELS):
        right, decay = _to_middle(gx, gy, level, C, K)
        weights = tl.where(apart >> level == 1, p, 0.0).to(DOT)
        out += decay * tl.dot(weights, (y * decay).to(DOT), input_precision=PRECISION)
    return out
''',
    "_weigh_rows": '''
@triton.jit
def _weigh_rows(
    p, x, gx, gy, C: tl.constexpr, K: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr
):
    """[C, K] from [C, C] and [C, K]: for each column s, the sum over rows c of p * x * 2 ** (gx - gy), c not before s.

    By the same blocks as the pairs themselves (_weigh_sizes).
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    out = tl.sum(tl.where(row == column, p, 0.0), 1)[:, None] * x * tl.exp2(tl.minimum(gx - gy, 0.0))
    near, down, up = _to_first(gx, gy, C, K, DOT)
    beside, apart = _halving(near, C)
    out += up * tl.dot(tl.trans(tl.where(beside, p, 0.0).to(DOT)), (x * down).to(DOT), input_precision=PRECISION)
    for level in range(tl.where(tl.min(near.to(tl.int32)) == 0, 0, 4), LEVELS):
        right, decay = _to_middle(gx, gy, level, C, K)
        weights = tl.trans(tl.where(apart >> level == 1, p, 0.0).to(DOT))
        out += decay * tl.dot(weights, (x * decay).to(DOT), input_precision=PRECISION)
    return out
''',
}


def print_helpers(source: str) -> str:
    """The definitions of all helpers that ``source`` names, and of those that they name."""
    cutting = needed_functions(source, SEGMENTS)
    launching = needed_functions(source, Path(__file__).parent / "launch_library.py")
    used: set[str] = set()
    pending = source + launching
    while pending:
        words = set(re.findall(r"\w+", pending))
        called = {name for name in HELPERS if name in words and name not in used}
        used |= called
        pending = "".join(HELPERS[name] for name in sorted(called))
    helpers = "\n".join(text for name, text in HELPERS.items() if name in used)
    return "\n\n\n".join(text.strip() for text in (helpers, cutting, launching) if text)

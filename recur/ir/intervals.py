"""Interval arithmetic: the values that a node can take, from declared ranges. The table's ``range`` rules are these."""

from __future__ import annotations

import math
from collections.abc import Callable

Interval = tuple[float, float]
Rule = Callable[..., Interval]

EVERYTHING: Interval = (-math.inf, math.inf)


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def add(x: Interval, y: Interval) -> Interval:
    return (x[0] + y[0], x[1] + y[1])


def negative(x: Interval) -> Interval:
    return (-x[1], -x[0])


def sub(x: Interval, y: Interval) -> Interval:
    return add(x, negative(y))


def mul(x: Interval, y: Interval) -> Interval:
    corners = [_times(a, b) for a in x for b in y]
    return (min(corners), max(corners))


def inverse(x: Interval) -> Interval:
    if x[0] < 0 < x[1]:
        return EVERYTHING
    if x[0] >= 0:
        return (1 / x[1] if x[1] else math.inf, 1 / x[0] if x[0] else math.inf)
    return negative(inverse(negative(x)))


def div(x: Interval, y: Interval) -> Interval:
    return mul(x, inverse(y))


def magnitude(x: Interval) -> Interval:
    if x[0] <= 0 <= x[1]:
        return (0.0, max(-x[0], x[1]))
    return (min(abs(x[0]), abs(x[1])), max(abs(x[0]), abs(x[1])))


def square(x: Interval) -> Interval:
    low, high = magnitude(x)
    return (_times(low, low), _times(high, high))


def power(x: Interval, exponent: float) -> Interval:
    if exponent < 0:
        return inverse(power(x, -exponent))
    if exponent.is_integer() and exponent % 2:
        return (_power(x[0], exponent), _power(x[1], exponent))
    low, high = magnitude(x) if exponent.is_integer() else (max(x[0], 0.0), max(x[1], 0.0))
    return (_power(low, exponent), _power(high, exponent))


def _power(x: float, exponent: float) -> float:
    try:
        return math.copysign(abs(x) ** exponent, x)
    except OverflowError:
        return math.copysign(math.inf, x)


def union(x: Interval, y: Interval) -> Interval:
    return (min(x[0], y[0]), max(x[1], y[1]))


def where(condition: Interval, x: Interval, y: Interval) -> Interval:
    return union(x, y)


def maximum(x: Interval, y: Interval) -> Interval:
    return (max(x[0], y[0]), max(x[1], y[1]))


def minimum(x: Interval, y: Interval) -> Interval:
    return (min(x[0], y[0]), min(x[1], y[1]))


def increasing(function: Callable[[float], float]) -> Rule:
    """The rule of a function that nowhere falls."""
    return lambda x: (function(x[0]), function(x[1]))


def bounded(low: float, high: float) -> Rule:
    return lambda *args: (low, high)


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def expm1(x: float) -> float:
    return math.expm1(x) if x < 700 else math.inf


def log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def log1p(x: float) -> float:
    return math.log1p(x) if x > -1 else -math.inf


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(exp(-abs(x)))


def logsigmoid(x: float) -> float:
    return -softplus(-x)


def relu(x: float) -> float:
    return max(x, 0.0)


def elu(x: float) -> float:
    return x if x > 0 else expm1(x)


def sqrt(x: float) -> float:
    return math.sqrt(max(x, 0.0))


def sign(x: float) -> float:
    return float((x > 0) - (x < 0))


def rsqrt(x: Interval) -> Interval:
    return inverse((sqrt(x[0]), sqrt(x[1])))

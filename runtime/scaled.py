"""Numbers too large or too small for floating point: a mantissa times the exponential of a scale.

The language means exact arithmetic, so exp(1000) / exp(999) is e. A ``Scaled`` tensor stands for
mantissa * exp(log_scale), elementwise. The scale is a constant to autograd, which is exact: every rule below is an
identity in the scale, so gradients flow through mantissas alone. Scales start as whole numbers, so their sums are
exact however large. Functions here take tensors as well, with their usual meaning; layout (permute, expand, select)
goes through ``remap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaled:
    """mantissa * exp(log_scale); both of one shape, log_scale real, -inf for a zero that has no scale of its own.

    ``given`` marks a state passed by the caller, until something is added to it: its zeros have no say in a sum's
    common scale (an all-zero state counts as minus infinity), yet its gradient is that of scale ``log_scale``.
    """

    mantissa: Tensor
    log_scale: Tensor
    given: bool = False


Value = Tensor | Scaled


def lift(x: Value) -> Scaled:
    """x with scale 1, where it has none."""
    return x if isinstance(x, Scaled) else Scaled(x, torch.zeros_like(_modulus(x)))


def materialise(x: Value) -> Tensor:
    """The plain tensor: infinite or zero where floating point ends."""
    if not isinstance(x, Scaled):
        return x
    scale = torch.where(x.mantissa == 0, x.log_scale.clamp(max=_limit(x.log_scale)), x.log_scale)
    return x.mantissa * torch.exp(scale)


def remap(function: Callable[[Tensor], Tensor], x: Value) -> Value:
    """A change of layout, applied to mantissa and scale alike."""
    if isinstance(x, Scaled):
        return Scaled(function(x.mantissa), function(x.log_scale), x.given)
    return function(x)


def normalise(x: Value, threshold: float = 100.0) -> Value:
    """Moves what has drifted into the mantissa (a factor beyond exp(threshold) or below its inverse) to the scale."""
    if not isinstance(x, Scaled):
        return x
    drift = torch.log(_modulus(x.mantissa)).round()
    drift = torch.where(drift.isfinite() & (drift.abs() > threshold), drift, 0.0)
    return Scaled(x.mantissa * torch.exp(-drift), x.log_scale + drift, x.given)


def zeroed(x: Value, where: Tensor) -> Value:
    """x with exact zeros, of no scale, where the condition holds."""
    if isinstance(x, Scaled):
        mantissa = torch.where(where, torch.zeros_like(x.mantissa), x.mantissa)
        return Scaled(mantissa, x.log_scale.masked_fill(where, -math.inf), x.given)
    return torch.where(where, torch.zeros_like(x), x)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def add(a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return a + b
    a, b = lift(a), lift(b)
    common = torch.maximum(_voice(a), _voice(b))
    return Scaled(_at(a, common) + _at(b, common), common, a.given and b.given)


def negative(a: Value) -> Value:
    return Scaled(-a.mantissa, a.log_scale, a.given) if isinstance(a, Scaled) else -a


def subtract(a: Value, b: Value) -> Value:
    return add(a, negative(b)) if isinstance(a, Scaled) or isinstance(b, Scaled) else a - b


def multiply(a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return a * b
    a, b = lift(a), lift(b)
    return Scaled(a.mantissa * b.mantissa, a.log_scale + b.log_scale, a.given or b.given)


def divide(a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return a / b
    a, b = lift(a), lift(b)
    return Scaled(a.mantissa / b.mantissa, a.log_scale - _finite(b.log_scale), a.given or b.given)


def power(a: Value, exponent: float) -> Value:
    if isinstance(a, Scaled):
        scale = _finite(a.log_scale) if exponent <= 0 else a.log_scale
        return Scaled(a.mantissa**exponent, scale * exponent, a.given)
    return a**exponent


def compare(operator: Callable[[Tensor, Tensor], Tensor], a: Value, b: Value) -> Tensor:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return operator(a, b)
    a, b = lift(a), lift(b)
    common = torch.maximum(_size(a), _size(b))
    return operator(_at(a, common), _at(b, common))


def select(condition: Tensor, a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return torch.where(condition, a, b)
    a, b = lift(a), lift(b)
    mantissa = torch.where(condition, a.mantissa, b.mantissa)
    return Scaled(mantissa, torch.where(condition, a.log_scale, b.log_scale), a.given or b.given)


def maximum(a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return torch.maximum(a, b)
    return select(compare(torch.ge, a, b), a, b)


def minimum(a: Value, b: Value) -> Value:
    if not (isinstance(a, Scaled) or isinstance(b, Scaled)):
        return torch.minimum(a, b)
    return select(compare(torch.le, a, b), a, b)


def total(a: Value, axis: int) -> Value:
    """The sum along an axis."""
    if not isinstance(a, Scaled):
        return a.sum(axis)
    common = _voice(a).amax(axis, keepdim=True)
    return Scaled(_at(a, common).sum(axis), common.squeeze(axis), a.given)


def largest(a: Value, axis: int) -> Value:
    """The maximum along an axis."""
    if not isinstance(a, Scaled):
        return a.amax(axis)
    common = _size(a).amax(axis, keepdim=True)
    return Scaled(_at(a, common).amax(axis), common.squeeze(axis))


# --- functions that keep or make a scale -----------------------------------------------------------------------------


def exp(a: Value) -> Scaled:
    a = materialise(a)
    scale = _finite(_real(a).detach()).round()
    return Scaled(torch.exp(a - scale), scale)


def sigmoid(a: Value) -> Scaled:
    a = torch.nn.functional.logsigmoid(materialise(a))
    scale = _finite(a.detach()).round()
    return Scaled(torch.exp(a - scale), scale)


def log(a: Value) -> Tensor:
    return torch.log(a.mantissa) + a.log_scale if isinstance(a, Scaled) else torch.log(a)


def sqrt(a: Value) -> Value:
    return Scaled(torch.sqrt(a.mantissa), a.log_scale / 2, a.given) if isinstance(a, Scaled) else torch.sqrt(a)


def rsqrt(a: Value) -> Value:
    if isinstance(a, Scaled):
        return Scaled(torch.rsqrt(a.mantissa), _finite(a.log_scale) / -2, a.given)
    return torch.rsqrt(a)


def square(a: Value) -> Value:
    return multiply(a, a)


def mantissawise(function: Callable[[Tensor], Tensor]) -> Callable[[Value], Value]:
    """A function with f(exp(s) x) = exp(s) f(x): abs, real, imag, conj, relu."""

    def apply(a: Value) -> Value:
        return Scaled(function(a.mantissa), a.log_scale, a.given) if isinstance(a, Scaled) else function(a)

    return apply


# --- scales ----------------------------------------------------------------------------------------------------------


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _modulus(x: Tensor) -> Tensor:
    return x.detach().abs()


def _limit(scale: Tensor) -> float:
    return 0.9 * math.log(torch.finfo(scale.dtype).max)


def _finite(scale: Tensor) -> Tensor:
    return torch.where(scale.isfinite(), scale, torch.zeros_like(scale))


def _voice(x: Scaled) -> Tensor:
    """The scale x proposes for a sum. A zero mantissa keeps its own (a gradient may want it) unless it was given."""
    return x.log_scale.masked_fill(x.mantissa == 0, -math.inf) if x.given else x.log_scale


def _size(x: Scaled) -> Tensor:
    """log |x|."""
    return x.log_scale + torch.log(_modulus(x.mantissa))


def _at(x: Scaled, common: Tensor) -> Tensor:
    """x's mantissa at another scale."""
    return x.mantissa * torch.exp((x.log_scale - _finite(common)).clamp(max=_limit(common)))

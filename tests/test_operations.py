"""Counts of a step's operations against counts by hand."""

from __future__ import annotations

import pytest

from recur import zoo
from recur.api import load, loads
from recur.operations import count_operations

K, V, N, D = 8, 16, 4, 32

BY_HAND = {
    "linear_attention": K * V + K * V + 2 * K * V + V,  # k v^T, + S, q @ S, the scale
    "gated_delta_net": 1 + K * V + 2 * K * V + V + 2 * K * V + K * V + 2 * K * V + V,
    "slice_hadamard": N + N * 2 + N + N,  # a h, two levels, the scale, + x
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts(name: str) -> None:
    sizes = {"K": K, "V": V, "N": N}
    assert count_operations(load(zoo.path(name)).program.step, sizes) == BY_HAND[name]


def test_complex_numbers_count_as_real_operations_and_params_as_nothing() -> None:
    text = """
recurrence r:
    dim D
    input x[D]
    param w[D], a[D] complex
    state h[D] complex
    h = exp(a) * h + sqrt(w) * x
    output o = real(h)
"""
    # a complex product, a real one, and a sum of a complex and a real number
    assert count_operations(loads(text).program.step, {"D": D}) == 6 * D + D + 2 * D

"""Options of the test run, and golden files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the files of tests/goldens anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name in tests/goldens; ``--update-goldens`` writes the file instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-goldens"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text

    return compare


def scan_slices(scan: Any, tiles: tuple[Any, ...]) -> list[Any]:
    """Instead of the interpreter's scan, one entry at a time: what combines entries combines slices as well."""
    import numpy as np

    data = [np.moveaxis(t.handle.data, scan.axis, 0) for t in tiles]
    rows = [[x[r] for x in data] for r in range(len(data[0]))]
    for r in range(1, len(rows)):
        earlier, later = (
            [scan.to_tensor(x, t.dtype) for x, t in zip(row, tiles, strict=True)] for row in rows[r - 1 : r + 1]
        )
        combined = scan.combine_fn.fn(*earlier, *later)
        parts = combined if isinstance(combined, tuple) else (combined,)
        rows[r] = [x.handle.data.reshape(first.shape) for x, first in zip(parts, rows[0], strict=True)]
    joined = [np.moveaxis(np.stack(parts), 0, scan.axis) for parts in zip(*rows, strict=True)]
    return [scan.to_tensor(x, t.dtype) for x, t in zip(joined, tiles, strict=True)]


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime.interpreter import ScanOps

    ScanOps.generic_scan = scan_slices

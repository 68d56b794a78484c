"""What the documentation shows is what the compiler prints, and its specs are recurrences."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import recur

ROOT = Path(__file__).parent.parent
STALE = "run python docs/generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_current(generate: ModuleType) -> None:
    text = generate.README.read_text(encoding="utf-8")
    assert text == generate.write_readme(text), STALE


def test_zoo_page_is_current(generate: ModuleType) -> None:
    assert generate.ZOO.read_text(encoding="utf-8") == generate.zoo_page(), STALE


def test_readme_specs_are_recurrences() -> None:
    blocks = re.findall(r"```recur\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        recur.loads(block)

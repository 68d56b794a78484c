"""Runs in an environment that has the wheel: every module imports from it, and the data files came along."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import recur


def main() -> None:
    home = Path(recur.__file__).parent
    assert "site-packages" in home.parts, f"recur is imported from {home}, not from the wheel"
    modules = [m.name for m in pkgutil.walk_packages(recur.__path__, "recur.")]
    for name in modules:
        importlib.import_module(name)
    folders = {"grammar", "ir", "passes", "strategies", "cli", "codegen", "runtime", "examples", "zoo"}
    missing = {f"recur.{folder}" for folder in folders} - set(modules)
    assert not missing, f"not in the wheel: {sorted(missing)}"

    from recur import zoo

    op = recur.load(zoo.path("gated_delta_net"))  # needs the grammar and the .rec files
    assert len(zoo.names()) > 40
    assert "@triton.jit" in op.source("triton") and "torch" in op.source("torch")  # need the templates
    print(f"the wheel has {len(modules)} modules and {len(zoo.names())} recurrences")


if __name__ == "__main__":
    main()

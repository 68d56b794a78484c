"""Tunes operators on the GPU that is here, and writes the configurations that come with the package.

    python bench/ship_tuned.py [--effort quick|full] [OPERATOR ...]

Every configuration has been checked against the reference by the search: outputs and gradients, two seeds, ragged
lengths. Results are added to runtime/tuning/shipped.json; those of the same key are replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import recur
from recur import zoo
from recur.runtime import cache
from recur.runtime.tuning import records
from recur.runtime.tuning.search import TuningError

SHAPES = ((4, 2048, 16, 128), (2, 16384, 16, 128), (1, 65536, 16, 128), (8, 4096, 16, 64))  # B, T, H, head dim
OPERATORS = ("linear_attention", "simple_gla", "retnet", "mamba2", "gla", "delta_net", "gated_delta_net", "kda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", choices=("quick", "full"), default="quick")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    options = parser.parse_args()
    for name in options.operators:
        op = recur.load(zoo.path(name))
        for B, T, H, D in SHAPES:
            sizes = {d.name: D for d in op.recurrence.dims if d.size is None and d.alias is None}
            try:
                result = op.tune(B=B, T=T, H=H, effort=options.effort, **sizes)
            except TuningError as error:
                print(f"{name} B{B} T{T} H{H} D{D}: {error}", flush=True)
                continue
            best, default = 1e6 * result.best.seconds, 1e6 * result.default.seconds
            print(f"{name} B{B} T{T} H{H} D{D}: {best:.0f} us, {default:.0f} us by default", flush=True)
        ship()


def ship() -> None:
    """Adds the cache's entries to the package's."""
    known = json.loads(records.SHIPPED.read_text())["entries"] if records.SHIPPED.exists() else []
    found = {json.dumps(entry["key"], sort_keys=True): entry for entry in (*known, *records.entries())}
    text = json.dumps({"entries": [found[key] for key in sorted(found)]}, indent=1) + "\n"
    cache.write_text(Path(records.SHIPPED), text)


if __name__ == "__main__":
    main()

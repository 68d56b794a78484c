"""How long `import recur` takes, and a spec's way from text to generated source once everything is imported.

    python bench/compile_time.py

Writes bench/results/compile_time.json and .md. Milliseconds, each the shortest of several runs.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import click

RESULTS = Path(__file__).parent / "results"
NAMES = ("gated_delta_net", "gla", "mamba1", "lru", "hgrn", "mlstm_exp", "lstm", "rwkv7", "dplr", "delta_product")
IMPORT = "import time; s = time.perf_counter(); import recur; recur.load; print(1e3 * (time.perf_counter() - s))"


def import_time(runs: int) -> float:
    """`import recur` in a new interpreter."""
    command = [sys.executable, "-c", IMPORT]
    return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(runs))


def compile_time(name: str, runs: int) -> dict[str, float]:
    """Text -> generated source, per backend: parse, check, classify, plan and print, with nothing kept from before."""
    import recur
    from recur import zoo

    text = zoo.path(name).read_text(encoding="utf-8")
    found = {}
    for backend in ("torch", "triton"):
        best = math.inf
        for _ in range(runs):
            start = time.perf_counter()
            recur.loads(text).source(backend)
            best = min(best, 1e3 * (time.perf_counter() - start))
        found[backend] = round(best)
    return found


def as_markdown(result: dict[str, object]) -> str:
    rows: dict[str, dict[str, float]] = result["text to source"]  # type: ignore[assignment]
    table = "\n".join(f"| {name} | {times['torch']} | {times['triton']} |" for name, times in rows.items())
    return (
        f"# Compile time\n\n`{result['command']}`\n\nPython {result['python']}.\n"
        f"`import recur`: {result['import recur']} ms.\n"
        "From text to generated source after imports, in milliseconds:\n\n"
        f"| recurrence | torch | triton |\n| --- | ---: | ---: |\n{table}\n"
    )


@click.command()
@click.option("--runs", default=5)
@click.option("--save/--no-save", default=True, help="Write bench/results.")
def main(runs: int, save: bool) -> None:
    """Time the import and the compilation of some of the zoo."""
    result: dict[str, object] = {
        "command": "python bench/compile_time.py",
        "python": platform.python_version(),
        "import recur": round(import_time(runs)),
        "text to source": {name: compile_time(name, runs) for name in NAMES},
    }
    click.echo(as_markdown(result))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "compile_time.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "compile_time.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()

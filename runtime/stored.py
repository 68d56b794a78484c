"""What earlier processes have parsed and printed, found by what it was made from: a warm start loads no compiler.

An entry is a JSON file. That of a printed module names the generated file, and is believed where the module's text
still has the digest in its file's name. Anything that cannot be read counts as a miss.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from recur.api import read
from recur.codegen.setting import USUAL, Setting
from recur.ir.plain import from_plain, to_plain
from recur.ir.printer import print_recurrence
from recur.ir.spec import Recurrence
from recur.runtime import cache
from recur.runtime.tuning import records
from recur.runtime.tuning.records import Case

if TYPE_CHECKING:
    from recur.strategies.select import Request


@dataclass(frozen=True)
class Printed:
    """A generated module's text, and the function in it that runs the recurrence."""

    text: str
    function: str


def read_once(text: str | bytes, filename: str, name: str | None) -> Recurrence:
    """As `recur.api.read`; a text that an earlier process has read and found to be right is not parsed again."""
    content = text if isinstance(text, str) else text.decode("latin-1")
    parts = [content, isinstance(text, str), filename, name, compiler_digest()]
    path = cache.version_dir() / "parsed" / f"{cache.digest(json.dumps(parts))}.json"
    try:
        found = from_plain(json.loads(path.read_bytes()))
        if isinstance(found, Recurrence):
            return found
    except (OSError, ValueError, TypeError, KeyError):
        pass
    recurrence = read(text, filename, name)
    with contextlib.suppress(cache.CacheError):
        cache.store_text(path, json.dumps(to_plain(recurrence)))
    return recurrence


def make_key(
    rec: Recurrence,
    sizes: Mapping[str, int],
    strategy: Request,
    backend: str,
    case: Case | None = None,
    setting: Setting = USUAL,
) -> str:
    """Everything that a module's text is a function of, the compiler's own files included, as a short name.

    ``case``: what a tuned configuration would be looked up for; ``setting``: of default launches.
    """
    request = strategy if isinstance(strategy, str) else list(strategy)
    tuned = [asdict(case), records.fingerprint()] if case is not None else []
    call = [dict(sizes), request, backend, tuned, list(setting)]
    parts = [print_recurrence(rec), rec.filename, compiler_digest(), *call]
    return cache.digest(json.dumps(parts))


def find(rec: Recurrence, key: str) -> Printed | None:
    """The module of an earlier process, None where there is none or its files are not what they were."""
    try:
        entry = json.loads(entry_path(key).read_bytes())
        digest, function = str(entry["module"]), str(entry["function"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    text = cache.read_text(cache.module_dir() / cache.module_name(rec.name, digest))
    return Printed(text, function) if text is not None and cache.digest(text) == digest else None


def keep(key: str, printed: Printed) -> None:
    """Remembers a module for later processes. Raises CacheError where the cache cannot be written."""
    entry = {"module": cache.digest(printed.text), "function": printed.function}
    cache.store_text(entry_path(key), json.dumps(entry))


def entry_path(key: str) -> Path:
    return cache.version_dir() / "printed" / f"{key}.json"


@functools.cache
def compiler_digest() -> str:
    """Changes with every file of the compiler, and with the versions that a printed module names."""
    packages = ("recur", "recur.grammar", "recur.codegen", "recur.runtime")
    specs = [spec for spec in map(find_spec, packages) if spec is not None]  # found, and not loaded
    folders = [Path(folder) for spec in specs for folder in spec.submodule_search_locations or ()]
    files = sorted({f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".jinja", ".lark")})
    states = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return cache.digest(json.dumps([states, [_version(name) for name in ("recur", "torch", "triton")]]))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

"""What tuning has found, on disk: configurations by what they were tuned for, and configurations that failed.

Every entry is a JSON file of its own, written whole and under a name that is a digest of its key, so processes and
machines can share the folder, and every rank that asks gets the same answer. An entry that cannot be read counts as
missing, with a warning. Configurations that come with the package are read after the user's own.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recur.runtime import cache

if TYPE_CHECKING:
    from recur.ir.normal import Program
    from recur.ir.plan import Plan
    from recur.runtime.tuning.space import Configs

SHIPPED = Path(__file__).parent / "shipped.json"
VERSION = 1


@dataclass(frozen=True)
class Case:
    """What a configuration is tuned for, beside the recurrence's normal form and its strategies.

    ``sizes``: of the dims, in the text's order; ``sequences``, ``tokens``: floor(log2) of B * H and of T.
    """

    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    sequences: int
    tokens: int
    device: str
    triton: str


@dataclass(frozen=True)
class Failure:
    """A configuration that must not be used: for which kernel, where, and why."""

    device: str
    triton: str
    kernel: str
    kernel_hash: str
    launch: str
    reason: str


def case_of(
    sizes: Mapping[str, int], dtypes: Iterable[torch.dtype], sequences: int, tokens: int, device: torch.device
) -> Case:
    """The case of B * H = ``sequences`` and T = ``tokens``, inputs in the types ``dtypes``, on a GPU."""
    types = tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return Case(tuple(sizes.values()), types, bucket(sequences), bucket(tokens), _name_of(device), triton_version())


@functools.cache
def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def triton_version() -> str:
    return version("triton")


def bucket(n: int) -> int:
    """Sizes of one bucket share their configuration: floor(log2(n))."""
    return n.bit_length() - 1


def make_key(program: Program, plans: Sequence[Plan], case: Case) -> dict[str, Any]:
    return {"form": cache.digest(canonical_form(program)), "strategies": [p.strategy for p in plans], **asdict(case)}


def canonical_form(program: Program) -> str:
    """The normal form with its variables numbered as they appear: names do not matter, unless they are words of it."""
    from recur.ir.printing import format_normal

    rec = program.step.recurrence
    variables = {d.name for d in rec.dims} | {v.name for v in rec.variables} | {o.name for o in rec.outputs}
    states = "|".join(re.escape(v.name) for v in rec.states)
    numbers: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        word = found.group()
        if word in variables or re.match(rf"(?:{states})(?:_|$)", word):
            return numbers.setdefault(word, f"v{len(numbers)}")
        return word

    lines = [line for line in format_normal(program).splitlines()[1:] if not line.strip().startswith("#")]
    return re.sub(r"[A-Za-z_]\w*", rename, "\n".join(lines))


# --- configurations --------------------------------------------------------------------------------------------------


def find(program: Program, plans: Sequence[Plan], sizes: dict[str, int], case: Case) -> Configs | None:
    """The tuned configurations for a case: the user's, else the package's, else None."""
    from recur.passes.plan_dims import clear_dims
    from recur.runtime.tuning.space import from_plain

    _, sizes = clear_dims(program, sizes)
    key = make_key(program, plans, case)
    for origin, entry in ((entry_path(key), _read(entry_path(key))), (SHIPPED, _shipped().get(_name(key)))):
        if entry is None:
            continue
        try:
            return from_plain(entry["stages"], plans, sizes)
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{origin} holds a configuration that does not fit and is not used: {error}", stacklevel=2)
    return None


def keep(key: dict[str, Any], stages: list[dict[str, Any]], measured: dict[str, Any]) -> Path:
    """Stores tuned configurations. Raises CacheError where the cache cannot be written."""
    path = entry_path(key)
    cache.store_text(path, json.dumps({"version": VERSION, "key": key, "stages": stages, **measured}, indent=1) + "\n")
    fingerprint.cache_clear()
    return path


def entries() -> list[dict[str, Any]]:
    """Every tuned entry of the cache's folder."""
    return list(_read_all(_folder("tuned")))


@functools.cache
def fingerprint() -> str:
    """Changes with what is stored when the process first asks; empty where nothing is, as is usual."""
    files = [*_files("tuned"), *([SHIPPED] if SHIPPED.exists() else [])]
    states = [(file.name, state.st_size, state.st_mtime_ns) for file in files if (state := _stat(file)) is not None]
    return cache.digest(json.dumps(states)) if states else ""


def entry_path(key: dict[str, Any]) -> Path:
    return _folder("tuned") / f"{_name(key)}.json"


# --- failures --------------------------------------------------------------------------------------------------------


def quarantine(failure: Failure) -> None:
    """Remembers a failure, so that the configuration is not tried again."""
    cache.store_text(_failure_path(failure), json.dumps({"version": VERSION, **asdict(failure)}, indent=1) + "\n")


def find_failure(device: str, triton: str, kernel_hash: str, launch: str) -> Failure | None:
    entry = _read(_failure_path(Failure(device, triton, "", kernel_hash, launch, "")))
    return None if entry is None else _failure(entry)


def failures() -> list[Failure]:
    found = (_failure(entry) for entry in _read_all(_folder("quarantine")))
    return [failure for failure in found if failure is not None]


def _failure(entry: dict[str, Any]) -> Failure | None:
    names = Failure.__dataclass_fields__
    return Failure(**{name: str(entry[name]) for name in names}) if names.keys() <= entry.keys() else None


def _failure_path(failure: Failure) -> Path:
    key = [failure.device, failure.triton, failure.kernel_hash, failure.launch]
    return _folder("quarantine") / f"{cache.digest(json.dumps(key))}.json"


# --- files -----------------------------------------------------------------------------------------------------------


def _folder(name: str) -> Path:
    return cache.version_dir() / name


def _name(key: dict[str, Any]) -> str:
    return cache.digest(json.dumps(key, sort_keys=True))


def _files(name: str) -> list[Path]:
    try:
        return sorted(_folder(name).glob("*.json"))
    except OSError:
        return []


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:
        return None


def _read_all(folder: Path) -> Iterator[dict[str, Any]]:
    for file in _files(folder.name):
        entry = _read(file)
        if entry is not None:
            yield entry


def _read(path: Path) -> dict[str, Any] | None:
    """The entry; None where there is none, and with a warning where it is damaged or of another version."""
    try:
        entry = json.loads(path.read_bytes())
        if entry["version"] == VERSION:
            return entry
        reason = f"it has version {entry['version']}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error)
    warnings.warn(f"{path} is not used: {reason}", stacklevel=3)
    return None


def _shipped() -> dict[str, dict[str, Any]]:
    """The package's configurations, by the name of their key."""
    if not SHIPPED.exists():
        return {}
    return {_name(entry["key"]): entry for entry in json.loads(SHIPPED.read_text())["entries"]}

"""The disk cache: generated modules as files that a person can read, and that tracebacks point into.

A file's name is the recurrence's name and a digest of its content, so a file is either exactly what the compiler would
write again or it is replaced; a file whose text differs (cut short, edited, from elsewhere) counts as a miss. Writes go
to a temporary file in the same folder and are renamed into place, so readers and concurrent writers never see half a
file. All files lie under one versioned folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

VERSION = 1
VARIABLE = "RECUR_CACHE_DIR"
MAX_STEM = 80


class CacheError(OSError):
    """The cache folder cannot be written."""


def cache_dir() -> Path:
    """The cache's folder: ``RECUR_CACHE_DIR``, else ``recur`` in the user's cache folder. Not created here."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "recur"


def version_dir() -> Path:
    """Where everything lies that this version of the cache's layout holds."""
    return cache_dir() / f"v{VERSION}"


def module_dir() -> Path:
    """Where generated modules lie."""
    return version_dir() / "modules"


def safe_stem(name: str) -> str:
    """The name as a file's stem and a module's name: letters, digits and underscores of ASCII, never empty."""
    stem = re.sub(r"[^A-Za-z0-9_]", "_", name)[:MAX_STEM]
    return stem if stem and not stem[0].isdigit() else f"_{stem}"


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def module_path(name: str, text: str) -> Path:
    """The file that holds the generated module ``text`` of the recurrence ``name``."""
    return module_dir() / module_name(name, digest(text))


def module_name(name: str, text_digest: str) -> str:
    """The file name of a generated module of the recurrence ``name``."""
    return f"{safe_stem(name)}_{text_digest}.py"


def store_module(name: str, text: str) -> Path:
    """Makes sure that the module's file holds exactly ``text``, and gives its path.

    Raises CacheError where the folder cannot be written; it names the variable that moves it.
    """
    path = module_path(name, text)
    store_text(path, text)
    return path


def store_text(path: Path, text: str) -> None:
    """Makes sure that the file holds exactly ``text``. Raises CacheError where the folder cannot be written."""
    if read_text(path) == text:
        return
    try:
        write_text(path, text)
    except OSError as error:
        raise CacheError(
            f"cannot write to the cache's folder {path.parent}: {error.strerror or error}; "
            f"set {VARIABLE} to a folder that can be written"
        ) from error


def read_text(path: Path) -> str | None:
    """The file's text; None where it is missing or is not text."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def write_text(path: Path, text: str) -> None:
    """Writes the whole file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

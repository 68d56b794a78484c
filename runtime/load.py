"""Generated text -> a running module, imported from its file in the cache."""

from __future__ import annotations

import functools
import linecache
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

from recur.runtime import cache

PREFIX = "recur_generated"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # tells of a GPU without starting CUDA

_loaded: dict[tuple[str, bool], ModuleType] = {}


def load_module(name: str, text: str) -> ModuleType:
    """The module that ``text`` defines, executed once a process.

    Its file in the cache is what tracebacks, debuggers and Triton's source lookup read. Kernels are decorated for the
    GPU or for the interpreter when the module runs, so a change of ``TRITON_INTERPRET`` gives a fresh copy.
    """
    key = (text, triton_interprets())
    if key not in _loaded:
        _loaded[key] = _execute(cache.store_module(name, text), text, interpreted=key[1])
    return _loaded[key]


@functools.cache
def hash_triton_early() -> None:
    """Where there is a GPU, starts in a thread what Triton does before it looks into its cache for the first time.

    Triton hashes its own files, which takes half a second without holding the interpreter.
    """
    if NVIDIA_DRIVER.exists():
        threading.Thread(target=_hash_triton, daemon=True).start()


def _hash_triton() -> None:
    from triton.runtime.cache import triton_key

    triton_key()


def triton_interprets() -> bool:
    """Whether ``TRITON_INTERPRET`` asks for Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def interpreter_is_whole() -> bool:
    """Whether Triton's own library is interpreted too: it is as it was when Triton was first imported."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)


def _execute(path: Path, text: str, interpreted: bool) -> ModuleType:
    module = ModuleType(f"{PREFIX}.{path.stem}{'_interpreted' if interpreted else ''}")
    module.__file__ = str(path)
    # The text is compiled, not the file: what runs is what the compiler printed, whatever happens to the file.
    code = compile(text, str(path), "exec", dont_inherit=True)
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module

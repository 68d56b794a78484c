"""A child process that does what may crash: a call that kills it, or poisons its GPU, costs that call alone."""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

FATAL = "fatal"


class Poisoned(RuntimeError):
    """Raised in the child where nothing more can be computed there: it ends, and another takes its place."""


class Worker:
    """Calls an object that lives in a child process, which is started when it is needed and again after it has ended.

    ``factory``: "module:name" of what makes the object, which is called with ``arguments`` in the child. A call gives
    (value, "") or (None, why there is none).
    """

    def __init__(self, factory: str, arguments: tuple[Any, ...], patience: float = 300.0) -> None:
        self.factory, self.arguments, self.patience = factory, arguments, patience
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection | None = None

    def __call__(self, *arguments: Any) -> tuple[Any, str]:
        pipe = self._start() if self.pipe is None else self.pipe
        assert self.process is not None
        try:
            pipe.send(arguments)
            if not pipe.poll(self.patience):
                self.stop()
                return None, f"no answer in {self.patience:.0f} seconds"
            kind, value = pipe.recv()
        except (EOFError, OSError):
            code = self._exit_code()
            self.stop()
            return None, f"the process ended with {code}"
        if kind == FATAL:
            self.stop()
        return (value, "") if kind == "value" else (None, str(value))

    def _start(self) -> Connection:
        self.pipe, child = multiprocessing.Pipe()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({child.fileno()})"
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(child.fileno(),))
        child.close()
        self.pipe.send((self.factory, self.arguments))
        return self.pipe

    def _exit_code(self) -> str:
        assert self.process is not None
        try:
            return str(self.process.wait(10))
        except subprocess.TimeoutExpired:
            return "no answer"

    def stop(self) -> None:
        """Ends the child, if there is one."""
        if self.pipe is not None and self.process is not None:
            self.pipe.close()
            self.process.kill()
            self.process.wait()
        self.pipe = self.process = None


def serve(descriptor: int) -> None:
    """The child: an answer for every request, until the pipe closes or nothing more can be computed."""
    pipe: Connection = Connection(descriptor)
    factory, arguments = pipe.recv()
    called: Callable[..., Any] | None = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            if called is None:
                module, _, name = factory.partition(":")
                called = getattr(importlib.import_module(module), name)(*arguments)
            answer = ("value", called(*request))
        except Poisoned as error:
            answer = (FATAL, str(error))
        except Exception as error:  # whatever a candidate raises is told, not raised here
            answer = ("error", f"{type(error).__name__}: {str(error).strip()[-300:]}")
        pipe.send(answer)
        if answer[0] == FATAL:
            return

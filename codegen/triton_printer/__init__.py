"""Plans as Triton source: `print_stage` prints a stage, `print_helpers` what it calls, `HEADER` what it imports."""

from __future__ import annotations

from recur.codegen.triton_printer.config import Launch, StageConfig, default_config
from recur.codegen.triton_printer.helpers import print_helpers
from recur.codegen.triton_printer.stage import print_stage

HEADER = """\
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import triton_key
"""

__all__ = ["HEADER", "Launch", "StageConfig", "default_config", "print_helpers", "print_stage"]

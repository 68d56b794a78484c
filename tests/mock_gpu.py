"""A GPU that is not there: kernels are compiled for sm_90 and launched, but nothing runs. Tensors are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget


class MockDriver:
    """What Triton asks of a GPU's driver. ``launches``: the name and arguments of every kernel launched."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[Any, ...]]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            load_binary=lambda name, *rest: (name, name, 128, 0, 1024),
            unload_module=lambda module: None,
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: str, packed: Any, *rest: Any) -> None:
            self.launches.append((function, rest[3:]))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def mock_gpu() -> Iterator[MockDriver]:
    """Printed modules and ops run on CPU tensors as they would on a GPU's, up to the kernels themselves."""
    from recur.runtime import op
    from recur.runtime.compiled import Backend

    driver, found = MockDriver(), triton.runtime.driver._active
    triton.runtime.driver.set_active(driver)
    with (
        patch.object(torch.cuda, "device", nullcontext),
        patch.object(torch.cuda, "get_device_capability", lambda device: (9, 0)),
        patch.object(op, "choose_backend", lambda *_: Backend("triton", "a mock")),
    ):
        yield driver
    if found is not None:  # else it stays, for the kernels that it has loaded
        triton.runtime.driver.set_active(found)

"""In the child process: a printed module is checked against the reference, and only then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recur.ir.spec import Recurrence
from recur.runtime.load import load_module
from recur.runtime.op import Op
from recur.runtime.tuning.worker import Poisoned

# RMS(found - reference) / RMS(reference) that passes for outputs, gradients, and gradients of numbers such as gates.
LIMITS = {torch.bfloat16: (0.005, 0.008, 0.02), torch.float16: (0.002, 0.004, 0.01), torch.float32: (1e-4, 1e-3, 1e-2)}
CHECKED = ((2, 150, 2), (1, 257, 3))  # B, T, H of the checks: several chunks, the last one ragged
AGREEMENT = 0.02  # between a configuration and the default one at the shape that is timed


@dataclass(frozen=True)
class Task:
    """What is tuned: the recurrence, its dims' sizes, and the tensors' shapes and types, in the text's order."""

    recurrence: Recurrence
    sizes: Mapping[str, int]
    batch: int
    tokens: int
    heads: int
    dtypes: tuple[torch.dtype, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type of real inputs: the least precise one, by which results are judged."""
        real = [dtype for dtype in self.dtypes if not dtype.is_complex] or [torch.float32]
        return min(real, key=lambda dtype: -torch.finfo(dtype).eps)


class Trial:
    """Checks and times modules for one task, given as text: their ``function``, beside that of the ``default`` one."""

    def __init__(self, task: Task, default: str, function: str) -> None:
        self.task, self.function = task, function
        op = Op(task.recurrence)
        self.small = [Sample.draw(task, *shape, seed) for seed, shape in enumerate(CHECKED)]
        self.expected = [case.reference(op) for case in self.small]
        self.large = Sample.draw(task, task.batch, task.tokens, task.heads)
        self.default = self.large.run(self._load(default))

    def __call__(self, text: str) -> tuple[float, float]:
        """Seconds of a forward, and of a forward and backward pass. Raises ArithmeticError where the values differ."""
        try:
            return self._measure(self._load(text))
        except RuntimeError as error:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                raise Poisoned(f"{type(error).__name__}: {str(error).strip()[-300:]}") from error
            raise

    def _load(self, text: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(load_module(self.task.recurrence.name, text), self.function)
        return call

    def _measure(self, call: Callable[..., Any]) -> tuple[float, float]:
        for case, expected in zip(self.small, self.expected, strict=True):
            for name, limit, x, y in zip(case.names, case.limits, case.run(call), expected, strict=True):
                if not relative(x, y) <= limit:
                    raise ArithmeticError(f"{name} is off by {relative(x, y):.1e}")
        for name, x, y in zip(self.large.names, self.large.run(call), self.default, strict=True):
            if not relative(x, y) <= AGREEMENT:
                raise ArithmeticError(f"{name} differs from the default configuration's by {relative(x, y):.1e}")
        return self.large.time(call)


@dataclass(frozen=True)
class Sample:
    """Inputs of one shape on the GPU, with a cotangent for each output and for the final state."""

    task: Task
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    limits: tuple[float, ...]
    seed: int = 0

    @classmethod
    def draw(cls, task: Task, batch: int, tokens: int, heads: int, seed: int = 0) -> Sample:
        from recur.runtime.tuning.inputs import draw_inputs

        drawn = draw_inputs(task.recurrence, task.sizes, batch, tokens, heads, task.dtypes, seed)
        inputs = tuple(x.cuda().requires_grad_() for x in drawn)
        of_output, of_gradient, of_number = LIMITS[task.dtype]
        outputs = [f"output {o.name}" for o in task.recurrence.outputs]
        variables = task.recurrence.inputs
        names = (*outputs, *(f"the gradient of {v.name}" for v in variables))
        limits = [of_output] * len(outputs) + [of_gradient if v.dims else of_number for v in variables]
        return cls(task, inputs, names, tuple(limits), seed)

    def run(self, call: Callable[..., Any]) -> list[Tensor]:
        """Outputs, and the inputs' gradients."""
        outputs, _ = call(*self.inputs)
        found = list(outputs) if isinstance(outputs, tuple) else [outputs]
        gradients = torch.autograd.grad(found, self.inputs, self.weights(found), materialize_grads=True)
        return [x.detach() for x in (*found, *gradients)]

    def reference(self, op: Op) -> list[Tensor]:
        inputs = [x.detach().to(torch.complex128 if x.is_complex() else torch.float64) for x in self.inputs]
        exact = Sample(self.task, tuple(x.requires_grad_() for x in inputs), self.names, self.limits, self.seed)
        return exact.run(op.reference)

    def weights(self, outputs: list[Tensor]) -> list[Tensor]:
        """Cotangents of the outputs, the same numbers in every precision."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randn(x.shape, generator=generator, dtype=torch.float32) for x in outputs]
        rounded = [w.to(self.task.dtype) for w in drawn]
        return [w.to(device=x.device, dtype=x.dtype) for w, x in zip(rounded, outputs, strict=True)]

    def time(self, call: Callable[..., Any]) -> tuple[float, float]:
        from triton.testing import do_bench

        outputs, _ = call(*self.inputs)
        found = list(outputs) if isinstance(outputs, tuple) else [outputs]
        weights = self.weights(found)

        def forward() -> None:
            with torch.no_grad():
                call(*self.inputs)

        def both() -> None:
            outputs, _ = call(*self.inputs)
            torch.autograd.grad(outputs, self.inputs, weights, materialize_grads=True)

        forward_ms, both_ms = (do_bench(f, warmup=10, rep=50, return_mode="median") for f in (forward, both))
        return 1e-3 * forward_ms, 1e-3 * both_ms


def relative(x: Tensor, y: Tensor) -> float:
    """RMS(x - y) / RMS(y); not a number where x is not finite."""
    x, y = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (x, y))
    return float((x - y).abs().square().mean().sqrt() / y.abs().square().mean().sqrt().clamp(min=1e-6))

"""How a printed module compiles and launches its kernels; a module gets the source of the classes that it uses."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import triton_key


def _dot_type(x: torch.Tensor) -> Any:
    """The type in which the matrix units take their operands: the inputs' own (float32 in the interpreter)."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(x.dtype, tl.float32)


def _type_of(x: torch.Tensor | None) -> str:
    """Triton's name for a tensor's type; complex numbers are pairs of float32."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.complex64: "fp32"}
    if x is not None and x.dtype not in names:
        raise TypeError(f"the kernels take bfloat16, float16, float32 and complex64; found {x.dtype}")
    return "absent" if x is None else names[x.dtype]


def _sum_of_two(parts: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """The sum of both entries along a dim, by one kernel that rounds what it writes."""
    first, second = parts.unbind(dim)
    return torch.add(first, second, out=torch.empty(first.shape, dtype=dtype, device=parts.device))


def _pointer_type(name: str, found: dict[str, str]) -> str:
    """The type that "*fp32", "*x" or "*fp32 x" stands for, where the given tensors have the types ``found``."""
    if not name.startswith("*"):
        return name
    kind, *absent_with = name[1:].split(" ")
    if any(found[tensor] == "absent" for tensor in absent_with):
        return "*absent"
    return f"*{found.get(kind, kind)}"


@functools.cache
def _avoid_wrong_assembler() -> None:
    """Has Triton 3.4 to 3.7 assemble by the ptxas that it brings for Blackwell (12.9 or later), unless the user chose.

    The one for Hopper, 12.8, makes wrong code of some products of warp groups: NaN, wrong numbers, faulting addresses.
    """
    tools = triton.knobs.nvidia
    versions = [tuple(map(int, tool.version.split("."))) for tool in (tools.ptxas, tools.ptxas_blackwell)]
    if "TRITON_PTXAS_PATH" not in os.environ and versions[0] < (12, 9) <= versions[1]:
        os.environ["TRITON_PTXAS_PATH"] = tools.ptxas_blackwell.path


def _source(kernel: Any, types: list[str], options: dict[str, Any], variant: tuple[bool | None, ...]) -> _Source:
    """What Triton compiles. ``variant``: for each pointer, whether it is a multiple of 16; None where it is absent."""
    _avoid_wrong_assembler()
    names = kernel.arg_names
    absent = {name: None for name, state in zip(names, variant, strict=False) if state is None}
    constants = {name: value for name, value in options.items() if name in names} | absent
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, is_aligned in enumerate(variant) if is_aligned}
    return _Source(kernel, signature, constexprs=constants, attrs=aligned)


class _Source(ASTSource):
    """A kernel to be compiled in one of several threads.

    Python cannot build syntax trees in two threads at once: these wait for one another, and who has started them until
    all are ``lowered`` and need no more trees.
    """

    parsing = vars(triton).setdefault("_parsing_for_recur", threading.RLock())  # one for all modules of the process

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lowered = threading.Event()

    def hash(self) -> str:
        with self.parsing:
            return super().hash()

    def make_ir(self, *arguments: Any, **options: Any) -> Any:
        with self.parsing:
            module = super().make_ir(*arguments, **options)
        self.lowered.set()
        return module


def _load_in_turn() -> None:
    """Lets threads have Triton's launchers made at the same time, by a C compiler, and loaded one after another.

    All are modules of one name, and Python gives one module for all that it has loaded before: what it holds is kept.
    """
    build = triton.runtime.build
    if not hasattr(build, "_turn_for_recur"):
        load, build._turn_for_recur = build._load_module_from_path, threading.Lock()

        def load_in_turn(*arguments: Any) -> Any:
            with build._turn_for_recur:
                return SimpleNamespace(**vars(load(*arguments)))

        build._load_module_from_path = load_in_turn


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    """The threads that compile; Triton leaves the interpreter to others while it does."""
    return ThreadPoolExecutor()


class _Kernel:
    """A kernel for given types of its arguments, compiled ahead and launched directly.

    ``kernel[grid](...)`` finds the types of all arguments anew at every launch, which takes longer than many a kernel.
    """

    ready = vars(triton).setdefault("_ready_for_recur", threading.Lock())  # one for all modules of the process

    def __init__(self, kernel: Any, types: list[str], options: dict[str, Any], device: torch.device) -> None:
        self.kernel, self.types, self.options, self.device = kernel, types, options, device
        self.pointers = sum(name.startswith("*") for name in types)
        self.constants = [options[name] for name in kernel.arg_names[len(types) :]]
        self.started: dict[tuple[bool | None, ...], Future] = {}
        self.compiled: dict[tuple[bool | None, ...], Any] = {}
        self.start(tuple(None if name == "*absent" else True for name in types[: self.pointers]))

    def start(self, variant: tuple[bool | None, ...]) -> Future:
        """Compiles in the background."""
        self.source = _source(self.kernel, self.types, self.options, variant)
        self.started[variant] = _compilers().submit(self.compile, self.source)
        return self.started[variant]

    def compile(self, source: _Source) -> Any:
        try:
            return self.load(source)
        finally:
            source.lowered.set()

    def load(self, source: _Source) -> Any:
        """The kernel from Triton's cache or compiled, on its GPU."""
        settings = {k: v for k, v in self.options.items() if k in ("num_warps", "num_stages", "maxnreg")}
        major, minor = torch.cuda.get_device_capability(self.device)
        target = GPUTarget("cuda", 10 * major + minor, 32)
        with self.ready:  # once, and not in every thread
            triton_key()
        compiled = triton.compile(source, target=target, options=settings)
        with self.ready:
            _load_in_turn()
            utilities = triton.runtime.driver.active.utils
        limit = utilities.get_device_properties(self.device.index or 0)["max_shared_mem"]
        while compiled.metadata.shared > limit and settings["num_stages"] > 1:  # wider types, or a smaller GPU
            settings["num_stages"] -= 1
            compiled = triton.compile(source, target=target, options=settings)
        with torch.cuda.device(self.device):
            compiled.run  # noqa: B018 (loads it)
        return compiled

    def __call__(self, grid: int, *arguments: Any) -> None:
        """Launches ``grid`` programs on the current stream: pointers first, then whole numbers."""
        addresses = [None if x is None else x.data_ptr() for x in arguments[: self.pointers]]
        variant = tuple([None if address is None else address % 16 == 0 for address in addresses])
        kernel = self.compiled.get(variant) or self.finish(variant)
        stream = triton.runtime.driver.active.get_current_stream(self.device.index or 0)
        # As ``kernel[grid](...)`` launches, without the objects that it makes for profilers' hooks.
        kernel.run(
            grid, 1, 1, stream, kernel.function, kernel.packed_metadata, None, None, None,
            *addresses, *arguments[self.pointers :], *self.constants,
        )  # fmt: skip

    def finish(self, variant: tuple[bool | None, ...]) -> Any:
        """Waits for a kernel that is launched for the first time."""
        self.compiled[variant] = (self.started.get(variant) or self.start(variant)).result()
        return self.compiled[variant]


class _InterpretedKernel:
    """A kernel under TRITON_INTERPRET=1."""

    def __init__(self, kernel: Any, options: dict[str, Any]) -> None:
        self.kernel, self.options = kernel, options

    def __call__(self, grid: int, *arguments: Any) -> None:
        is_complex = [isinstance(x, torch.Tensor) and x.is_complex() for x in arguments]
        real = [torch.view_as_real(x) if pairs else x for x, pairs in zip(arguments, is_complex, strict=True)]
        self.kernel[(grid,)](*real, **self.options)


class _Kernels:
    """The kernels of one pass, compiled together for every set of types that its tensors come in.

    ``given``: the names of the tensors whose types decide; ``rows``: each kernel, its arguments' types and its options.
    A pointer's type is "*fp32", "*x" (as the tensor x has) or "*fp32 x" (x itself, which may be absent).
    """

    def __init__(self, given: tuple[str, ...], *rows: tuple[Any, tuple[str, ...], dict[str, Any]]) -> None:
        self.given, self.rows = given, rows
        self.known: dict[tuple[Any, ...], list[Any]] = {}

    def __call__(self, first: torch.Tensor, *others: torch.Tensor | None) -> list[Any]:
        """The rows' launchers for the given tensors; kernels that are new are compiled in the background."""
        key = (first.device, first.dtype, *[None if x is None else x.dtype for x in others])
        if key not in self.known:
            longest_first = sorted(enumerate(self.rows), key=lambda row: -len(getattr(row[1][0], "src", "")))
            bound = {place: self.bind(row, first, others) for place, row in longest_first}
            self.known[key] = [bound[place] for place in range(len(self.rows))]
            for kernel in self.known[key]:
                if isinstance(kernel, _Kernel):
                    kernel.source.lowered.wait()
        return self.known[key]

    def bind(
        self,
        row: tuple[Any, tuple[str, ...], dict[str, Any]],
        first: torch.Tensor,
        others: tuple[torch.Tensor | None, ...],
    ) -> Any:
        kernel, types, options = row
        if "DOT" in kernel.arg_names:
            options = {**options, "DOT": _dot_type(first)}
        if not isinstance(kernel, triton.JITFunction):
            return _InterpretedKernel(kernel, options)
        found = {name: _type_of(x) for name, x in zip(self.given, (first, *others), strict=True)}
        return _Kernel(kernel, [_pointer_type(name, found) for name in types], options, first.device)

"""Compiles a generated module's Triton kernels ahead of time, without a GPU, and reports what each one takes.

A generated module lists its kernels in tables ``<stage>_FORWARD`` and ``<stage>_BACKWARD``, and in ``..._JOINS`` those
for several segments; rows are (kernel, types of its arguments, constants and options). Nothing here runs a kernel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a program, by compute capability
FIXED = ("fp32", "i32")  # types of pointers that do not depend on the inputs'
OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel.

    ``registers`` per thread; ``stack`` bytes per thread, above 0 where registers spilled; ``shared`` bytes per
    program; ``register_dots``: products on Hopper's matrix units whose left operand comes from registers;
    ``findings``: what the lints have to say; ``assembler``: the version of ptxas.
    """

    name: str
    target: str
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    shared: int
    register_dots: int
    cubin_bytes: int
    findings: tuple[str, ...] = ()
    assembler: str = ""


@dataclass(frozen=True)
class BuildReport:
    """All kernels of a module for one target and one type of the inputs."""

    target: str
    dtype: str
    kernels: tuple[KernelReport, ...]

    @property
    def ok(self) -> bool:
        return not any(kernel.findings for kernel in self.kernels)


@dataclass(frozen=True)
class Lint:
    """A condition that a compiled kernel should not meet, and how it is told."""

    name: str
    holds: Callable[[KernelReport], bool]
    says: Callable[[KernelReport], str]


def assembled_wrongly(report: KernelReport) -> bool:
    """Whether ptxas 12.8 made code for Hopper's matrix units (bench/results/assembler.md)."""
    return capability(report.target) == 90 and report.assembler == "12.8"


LINTS = (
    Lint("spill", lambda k: k.stack > 0, lambda k: f"spills {k.stack} bytes a thread to memory"),
    Lint(
        "shared",
        lambda k: k.shared > shared_limit(k.target),
        lambda k: f"needs {k.shared / 1024:.0f} KiB of shared memory, {k.target} has {shared_limit(k.target) // 1024}",
    ),
    Lint(
        "assembler",
        lambda k: assembled_wrongly(k) and (k.register_dots > 0 or (k.num_stages == 1 and k.num_warps >= 4)),
        lambda k: (
            f"ptxas {k.assembler} makes wrong code of products like its {k.register_dots} with a left operand in "
            f"registers and its {k.num_stages} pipeline stages: set TRITON_PTXAS_PATH to ptxas 12.9 or later"
        ),
    ),
)


def build_module(module: ModuleType, target: str = "sm_90", dtype: str = "bf16") -> BuildReport:
    """Compiles every kernel of a generated module for ``target`` (sm_80, sm_90, sm_100, ...).

    ``dtype``: the inputs' type as Triton spells it, "bf16", "fp16" or "fp32". Raises ValueError for a module without
    kernels or one that was loaded for the interpreter.
    """
    kernels = tuple(
        build_kernel(kernel, types, constants, target, dtype) for kernel, types, constants in kernels_of(module)
    )
    if not kernels:
        raise ValueError(f"module {module.__name__} lists no kernels")
    return BuildReport(target, dtype, kernels)


def kernels_of(module: ModuleType) -> Iterator[tuple[Any, tuple[str, ...], Mapping[str, int]]]:
    """The rows of the module's kernel tables, in the order of the file."""
    for name, table in vars(module).items():
        if name.endswith(("_FORWARD", "_BACKWARD", "_JOINS")):
            yield from table.rows


def build_kernel(
    kernel: Any,
    types: tuple[str, ...],
    constants: Mapping[str, int],
    target: str,
    dtype: str,
    absent: Collection[str] = (),
) -> KernelReport:
    """Compiles one kernel and reads its resources; a kernel that does not compile is a finding too.

    ``absent``: the tensors, of those that may be None, that are.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as compile_source
    from triton.errors import TritonError

    options = {name: constants[name] for name in OPTIONS if name in constants}
    source, gpu = kernel_source(kernel, types, constants, dtype, absent), GPUTarget("cuda", capability(target), 32)
    try:
        compiled = compile_source(source, target=gpu, options=options)
    except (TritonError, RuntimeError) as error:
        said = f"does not compile: {str(error).strip().splitlines()[-1]}"
        warps, stages = options["num_warps"], options["num_stages"]
        return KernelReport(kernel.__name__, target, warps, stages, 0, 0, 0, 0, 0, findings=(said,))
    registers, stack = resource_usage(compiled.asm["cubin"])
    report = KernelReport(
        kernel.__name__,
        target,
        options["num_warps"],
        options["num_stages"],
        registers,
        stack,
        compiled.metadata.shared,
        count_register_dots(compiled.asm["ttgir"]),
        len(compiled.asm["cubin"]),
        assembler=triton.knobs.nvidia.ptxas.version,
    )
    findings = tuple(lint.says(report) for lint in LINTS if lint.holds(report))
    return KernelReport(**{**vars(report), "findings": findings})


def kernel_source(
    kernel: Any, types: tuple[str, ...], constants: Mapping[str, int], dtype: str, absent: Collection[str] = ()
) -> Any:
    """The compiler's input where all inputs are of one type and all tensors aligned."""
    import triton.language as tl

    from recur.codegen.triton_printer.launch_library import _source

    # Of the class: a kernel's own cache_key is worked out from its syntax tree, which no two threads may build at once.
    if not hasattr(kernel, "arg_names") or not hasattr(type(kernel), "cache_key"):
        raise ValueError("the module was loaded for the interpreter: load it without TRITON_INTERPRET")
    dot_type = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype]
    pointers = [t for t in types if t.startswith("*")]
    kinds = [t[1:].split(" ")[0] for t in pointers]
    given = [f"*{kind if kind in FIXED else dtype}" for kind in kinds]
    variant = tuple(None if t.partition(" ")[2] in absent else True for t in pointers)
    return _source(kernel, [*given, *types[len(pointers) :]], {**constants, "DOT": dot_type}, variant)


def capability(target: str) -> int:
    """90 for "sm_90" and "sm_90a"."""
    found = re.fullmatch(r"sm_(\d+)a?", target)
    if found is None:
        raise ValueError(f"{target} is no target: write sm_80, sm_90 or sm_100")
    return int(found.group(1))


def shared_limit(target: str) -> int:
    """Bytes of shared memory that one program can have."""
    return SHARED_LIMIT.get(capability(target), 99) * 1024


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, stack bytes per thread) of a compiled kernel, from the bundled cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"])


def count_register_dots(ttgir: str) -> int:
    """Asynchronous matrix products whose first operand is a register tile and not shared memory."""
    return len(re.findall(r"warp_group_dot\b[^\n]*:\s*tensor<", ttgir))

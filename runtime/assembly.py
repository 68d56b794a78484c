"""The kernels of a generated module as PTX, compiled without a GPU."""

from __future__ import annotations

from types import ModuleType

from recur.runtime.build import OPTIONS, capability, kernel_source, kernels_of


def print_ptx(module: ModuleType, target: str = "sm_90", dtype: str = "bf16") -> str:
    """Every kernel's PTX in the order of the file, each under its name. Raises as `build.build_module` does."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as compile_source

    parts = []
    for kernel, types, constants in kernels_of(module):
        options = {name: constants[name] for name in OPTIONS}
        gpu = GPUTarget("cuda", capability(target), 32)
        compiled = compile_source(kernel_source(kernel, types, constants, dtype), target=gpu, options=options)
        parts.append(f"// {kernel.__name__}, {target}, {dtype}\n{compiled.asm['ptx'].strip()}\n")
    return "\n".join(parts)

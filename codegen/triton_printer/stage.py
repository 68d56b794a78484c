"""A stage as source text: its kernels, what they are launched with, and the host functions that allocate and launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recur.codegen.triton_printer.config import StageConfig
from recur.codegen.triton_printer.kernel import PrintedKernel, print_kernel
from recur.codegen.triton_printer.layout import BufferDim, Layout, all_buffers, resolve_dims, safe_name
from recur.codegen.triton_printer.templates import render
from recur.ir.plan import Gradient, Plan
from recur.ir.tile import Buffer, Kernel

COUNT_KINDS = {"batch": "B", "time": "T", "head": "H", "chunks": "N"}


def print_stage(plan: Plan, config: StageConfig) -> str:
    """The kernels of ``plan`` and its host functions ``<stage>_forward`` and ``<stage>_backward``.

    The text needs ``os``, ``torch``, ``triton`` and ``triton.language as tl``, and the definitions that
    ``print_helpers`` gives for it. Tensors handed to the host functions are contiguous. Besides, the text defines
    ``<stage>_KERNELS``: every kernel with its arguments' types and constants, for compiling it ahead of time.
    """
    return StagePrinter(plan, config).print()


class StagePrinter:
    """Names and layouts shared by the kernels and the host functions of one stage."""

    def __init__(self, plan: Plan, config: StageConfig) -> None:
        self.plan, self.config = plan, config
        self.sizes = dict(config.sizes)
        self.buffers = all_buffers(plan)
        self.dims = resolve_dims(plan, self.sizes)
        self.names = _identifiers(self.buffers)
        complex_buffers = frozenset(b.name for b in self.buffers.values() if b.is_complex)
        self.printed = {
            kernel.name: print_kernel(function_name(plan.stage, kernel), kernel, self.dims, config, complex_buffers)
            for kernel in plan.forward + plan.backward
        }
        taken = set(self.names.values()) | {"torch", "triton", "tl", "os"}
        self.counts = {letter: safe_name(letter, taken) for letter in "BTHN"}

    def print(self) -> str:
        return render(
            "stage.jinja",
            stage=self.plan.stage,
            kernels=[self.printed[k.name] for k in self.plan.forward + self.plan.backward],
            launches={self.printed[name].name: launch for name, launch in self.config.launches},
            argument_types={
                p.name: [self._pointer_type(b) for b in p.buffers] + ["*i32"] * bool(p.relay) + ["i32"] * len(p.counts)
                for p in self.printed.values()
            },
            forward=self._host(
                self.plan.forward, self._given_forward(), self.plan.results + self.plan.final + self.plan.saved
            ),
            backward=self._host(self.plan.backward, self._given_backward(), ()),
            results=print_tuple([self.names[b.name] for b in self.plan.results]),
            final=print_tuple([self.names[b.name] for b in self.plan.final]),
            saved=print_tuple([self.names[b.name] for b in self.plan.saved]),
            gradients=print_tuple([self._gradient(line) for line in self.plan.gradients]),
        )

    def _given_forward(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.plan.arguments + self.plan.initial)

    def _given_backward(self) -> tuple[str, ...]:
        cotangents = tuple(f"d_{b.name}" for b in self.plan.results + self.plan.final)
        return self._given_forward() + tuple(b.name for b in self.plan.saved) + cotangents

    def _host(
        self, kernels: tuple[Kernel, ...], given: tuple[str, ...], always: tuple[Buffer, ...]
    ) -> dict[str, object]:
        """One host function: its parameters, counts, allocations and launches."""
        used = dict.fromkeys(b for k in kernels for b in self.printed[k.name].buffers)
        allocated = [name for name in dict.fromkeys([*(b.name for b in always), *used]) if name not in given]
        allocations = [(self.names[name], self._shape(name), self._dtype(name)) for name in allocated]
        launches = [self._launch(self.printed[k.name]) for k in kernels]
        relays = [(relay_name(k), self._relay_words(k)) for k in (self.printed[k.name] for k in kernels) if k.relay]
        text = " ".join(shape for _, shape, _ in allocations) + " " + " ".join(str(launch) for launch in launches)
        return {
            "parameters": [self.names[name] for name in given],
            "device": self.names[given[0]],
            "counts": self._count_lines(given, text),
            "allocations": allocations,
            "relays": relays,
            "launches": launches,
        }

    def _count_lines(self, given: Iterable[str], text: str) -> list[str]:
        """Where B, T and H come from: the first tensor that has them."""
        lines = []
        words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").replace("'", " ").split())
        needs_chunks = self.counts["N"] in words
        for letter, kind in (("B", "batch"), ("T", "time"), ("H", "head")):
            if self.counts[letter] in words or (letter == "T" and needs_chunks):
                name, position = next(
                    (name, i) for name in given for i, dim in enumerate(self.dims[name]) if dim.kind == kind
                )
                lines.append(f"{self.counts[letter]} = {self.names[name]}.shape[{position}]")
        if needs_chunks:
            chunks = f"triton.cdiv({self.counts['T']}, {self.config.chunk})"
            is_relay = any(kernel.relay for kernel in self.printed.values())
            lines.append(f"{self.counts['N']} = {f'max({chunks}, 1)' if is_relay else chunks}")
        return lines

    def _launch(self, kernel: PrintedKernel) -> dict[str, object]:
        grid = " * ".join(self.counts.get(size, size) for _, size in kernel.grid if size != "1") or "1"
        arguments = [self._pointer(name) for name in kernel.buffers] + [relay_name(kernel)] * bool(kernel.relay)
        arguments += [self.counts[letter] for letter, _ in kernel.counts]
        dot_type = f"DOT=_dot_type({self.names[self._operand()]})" if kernel.has_dot_type else ""
        return {"kernel": kernel.name, "grid": grid, "arguments": arguments, "dot_type": dot_type}

    def _relay_words(self, kernel: PrintedKernel) -> str:
        """A slot for every step of every walk, and one more for what the last steps hand on."""
        walks = " * ".join(self.counts.get(size, size) for entry, size in kernel.grid[1:] if size != "1") or "1"
        return f"({self.counts['N']} + 1) * {walks} * {kernel.relay}"

    def _pointer(self, buffer: str) -> str:
        name = self.names[buffer]
        return f"torch.view_as_real({name})" if self.buffers[buffer].is_complex else name

    def _shape(self, buffer: str) -> str:
        entries = [self._entry(dim, buffer) for dim in self.dims[buffer]]
        return print_tuple(entries)

    def _entry(self, dim: BufferDim, buffer: str) -> str:
        if dim.kind == "boundaries":
            return f"{self.counts['N']} + 1"
        if dim.kind in COUNT_KINDS:
            return self.counts[COUNT_KINDS[dim.kind]]
        if dim.kind == "rows":
            return str(self.config.chunk)
        if dim.kind == "tiles":
            return str(self._tiles(dim.name, buffer))
        return dim.name if dim.name.isdigit() else str(self.sizes[dim.name])

    def _tiles(self, axis: str, buffer: str) -> int:
        """How many tiles of the axis the kernel that writes the buffer runs over."""
        kernels = [k for k in self.plan.forward + self.plan.backward if buffer in self.printed[k.name].buffers]
        counts = {Layout(k, self.config).axes[axis].tiles for k in kernels if any(a.name == axis for a in k.axes)}
        if len(counts) != 1:
            raise ValueError(
                f"kernels that share the buffer {buffer} cut axis {axis} differently: {sorted(counts)} tiles"
            )
        return counts.pop()

    def _operand(self) -> str:
        """The argument whose type is the operand type."""
        return self.plan.arguments[0].name

    def _dtype(self, buffer: str) -> str:
        """A type named after what is no argument is the type of sums."""
        declared = self.buffers[buffer]
        source = self._operand() if declared.dtype == "operand" else declared.dtype.removeprefix("input:")
        given = next((b for b in self.plan.arguments if b.name == source), None)
        if given is not None and declared.is_complex == given.is_complex:
            return f"{self.names[source]}.dtype"
        return "torch.complex64" if declared.is_complex else "torch.float32"

    def _pointer_type(self, buffer: str) -> str:
        """ "*input" stands for the operand type, which the caller chooses."""
        dtype = self._dtype(buffer)
        return "*input" if dtype.endswith(".dtype") and not self.buffers[buffer].is_complex else "*fp32"

    def _gradient(self, line: Gradient) -> str:
        """The sum of the line's contributions in their order, in the argument's own type."""
        terms = []
        for part in line.contributions:
            letters = self.buffers[part.buffer].layout
            positions = ", ".join(str(letters.index(letter)) for letter in part.sum_over)
            terms.append(self.names[part.buffer] + (f".sum(dim=({positions},))" if positions else ""))
        of = self.names[line.of]
        if not terms:
            return f"torch.zeros_like({of})"
        if len(terms) == 1 and self._dtype(line.contributions[0].buffer) == f"{of}.dtype":
            return terms[0]
        return f"{terms[0] if len(terms) == 1 else '(' + ' + '.join(terms) + ')'}.to({of}.dtype)"


def print_tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def relay_name(kernel: PrintedKernel) -> str:
    return f"relay_of_{kernel.name.removesuffix('_kernel')}"


def function_name(stage: str, kernel: Kernel) -> str:
    return f"{stage}_{kernel.name.removeprefix(f'{stage}_')}_kernel"


def _identifiers(buffers: Iterable[str]) -> dict[str, str]:
    """A Python name for every buffer; plain names first, so that only dotted ones give way."""
    taken: set[str] = {"torch", "triton", "tl", "os"}
    ordered = sorted(buffers, key=lambda name: not name.isidentifier())
    return {name: safe_name(name, taken) for name in ordered}

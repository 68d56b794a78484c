"""A stage as source text: its kernels, what they are launched with, and the host functions that allocate and launch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from recur.codegen.triton_printer.config import StageConfig
from recur.codegen.triton_printer.kernel import PrintedKernel, print_kernel
from recur.codegen.triton_printer.layout import BufferDim, Layout, all_buffers, print_tuple, resolve_dims, safe_name
from recur.codegen.triton_printer.templates import render
from recur.codegen.triton_printer.work import SCAN_WALKS, count_walks, filling, gradients_walk, is_scan
from recur.ir.plan import Contribution, Gradient, Plan
from recur.ir.tile import Buffer, Kernel, Let, Loop, Statement

COUNT_KINDS = {"batch": "B", "time": "T", "head": "H", "segments": "G", "chunks": "N"}


def print_stage(plan: Plan, config: StageConfig, absent: Mapping[str, float] | None = None) -> str:
    """The kernels of ``plan`` and its host functions ``<stage>_forward`` and ``<stage>_backward``.

    The text needs what ``HEADER`` imports and the definitions that ``print_helpers`` gives for it. Tensors handed to
    the host functions are contiguous. Besides, the text defines ``<stage>_FORWARD`` and ``<stage>_BACKWARD``: every
    kernel with its arguments' types and constants. ``absent``: initial states that may be None, and the value that
    their entries then have; the cotangents of their final states may be None too, for zeros.
    """
    return StagePrinter(plan, config, absent or {}).print()


class StagePrinter:
    """Names and layouts shared by the kernels and the host functions of one stage."""

    def __init__(self, plan: Plan, config: StageConfig, absent: Mapping[str, float]) -> None:
        self.plan, self.config = plan, config
        self.buffers = all_buffers(plan)
        states = zip(plan.initial, plan.final, strict=True)
        self.absent = {**absent, **{f"d_{final.name}": 0.0 for initial, final in states if initial.name in absent}}
        aliases = (b for b in self.buffers.values() if b.of in self.absent)
        self.absent |= {b.name: self.absent[b.of] for b in aliases}
        self.forward_options = forward_options(plan)
        self.backward_options = backward_options(plan, self.absent)
        self.sizes = dict(config.sizes)
        self.dims = resolve_dims(plan, self.sizes)
        self.names = _identifiers(self.buffers)
        complex_buffers = frozenset(b.name for b in self.buffers.values() if b.is_complex)
        self.printed = {
            kernel.name: print_kernel(
                function_name(plan.stage, kernel), kernel, self.dims, config, complex_buffers, self.absent,
                frozenset(self.forward_options if kernel in plan.forward else self.backward_options),
            )
            for kernel in plan.forward + plan.backward
        }  # fmt: skip
        taken = set(self.names.values()) | {"torch", "triton", "tl", "os", "with_backward", "with_final"}
        self.counts = {letter: safe_name(letter, taken) for letter in "BTHNGL"}
        self.launchers = {
            name: safe_name(f"launch_{kernel.name.removesuffix('_kernel').removeprefix(f'{plan.stage}_')}", taken)
            for name, kernel in self.printed.items()
        }

    def print(self) -> str:
        given_out = self.plan.results + self.plan.final + self.plan.saved
        return render(
            "stage.jinja",
            stage=self.plan.stage,
            kernels=[self.printed[k.name] for k in self.plan.forward + self.plan.backward],
            launches={self.printed[name].name: launch for name, launch in self.config.launches},
            argument_types={p.name: self._argument_types(p) for p in self.printed.values()},
            expected=self._expected(),
            forward=self._host("FORWARD", self.plan.forward, self._given_forward(), given_out),
            backward=self._host("BACKWARD", self.plan.backward, self._given_backward(), ()),
            results=print_tuple([self.names[b.name] for b in self.plan.results]),
            final=print_tuple([self.names[b.name] for b in self.plan.final]),
            saved=print_tuple([self.names[b.name] for b in self.plan.saved]),
            gradients=print_tuple([self._gradient(line) for line in self.plan.gradients]),
        )

    def _argument_types(self, kernel: PrintedKernel) -> list[str]:
        options = {**self.forward_options, **self.backward_options}
        told_by = {b: f" {self.names[options[b].told_by]}" for b in kernel.optional}
        pointers = [self._pointer_type(b) + told_by.get(b, "") for b in kernel.buffers]
        return pointers + ["*i32"] * bool(kernel.relay) + ["i32"] * len(kernel.counts)

    def _typed(self, kernels: tuple[Kernel, ...], given: tuple[str, ...]) -> tuple[str, ...]:
        """The tensors of a pass whose types decide those of all others: the arguments, and what may be absent.

        What is kept for the backward pass is there or absent together, and so are final states: one stands for all.
        """
        used = dict.fromkeys([*given, *(b for k in kernels for b in self.printed[k.name].buffers)])
        arguments = self._given_forward()
        absent = tuple(name for name in used if name in self.absent and name not in arguments)
        options = self.forward_options if kernels == self.plan.forward else self.backward_options
        return tuple(dict.fromkeys([*arguments, *absent, *(option.told_by for option in options.values())]))

    def _expected(self) -> list[str]:
        """What the backward pass's typed tensors are expected to be, in terms of the forward pass's."""
        here = self._typed(self.plan.forward, self._given_forward())
        several = next((self.names[name] for name in here if self.buffers[name].of), "None")
        return [
            self.names[name] if name in here
            else f"None if {self.counts['G']} == 1 else {several}" if self.buffers[name].of
            else "None"
            for name in self._typed(self.plan.backward, self._given_backward())
        ]  # fmt: skip

    def _given_forward(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.plan.arguments + self.plan.initial)

    def _given_backward(self) -> tuple[str, ...]:
        cotangents = tuple(f"d_{b.name}" for b in self.plan.results + self.plan.final)
        return self._given_forward() + tuple(b.name for b in self.plan.saved) + cotangents

    def _host(
        self, name: str, kernels: tuple[Kernel, ...], given: tuple[str, ...], always: tuple[Buffer, ...]
    ) -> dict[str, object]:
        """One host function: its parameters, counts, allocations and launches, with the tables of its kernels."""
        used = dict.fromkeys(b for k in kernels for b in self.printed[k.name].buffers)
        views = {self.buffers[b].of: self.buffers[b] for b in used if self.buffers[b].of not in ("", *given)}
        wanted = dict.fromkeys([*(b.name for b in always), *used])
        allocated = [name for name in wanted if name not in given and name not in views]
        needed = {b for k in kernels if not k.joins_segments for b in self.printed[k.name].buffers}
        needed |= {b.name for b in always}
        options = self.forward_options if kernels == self.plan.forward else self.backward_options
        allocations = [
            (
                self.names[name],
                self._new("empty", name, given),
                self._alias(name, given, needed),
                options[name].condition(self.names) if name in options else "",
            )
            for name in allocated
        ]
        launches = [self._launch(k) for k in kernels]
        relays = [(relay_name(k), self._relay_words(k)) for k in (self.printed[k.name] for k in kernels) if k.relay]
        text = " ".join(empty for _, empty, *_ in allocations) + " " + " ".join(str(launch) for launch in launches)
        return {
            "parameters": [self.names[name] for name in given],
            "tables": self._table(name, kernels, False) + self._table(f"{name}_JOINS", kernels, True),
            "typed": [self.names[name] for name in self._typed(kernels, given)],
            "zeros": [
                (self.names[f"d_{b.name}"], self._new("zeros", b.name, given))
                for b in self.plan.results
                if f"d_{b.name}" in given
            ],
            "device": f"{self.names[given[0]]}.device",
            "counts": self._count_lines(given, text, name == "FORWARD" and bool(self.plan.backward)),
            "allocations": allocations,
            "relays": relays,
            "launches": launches,
            "segments": self.counts["G"],
            "views": [(self.names[of], self.names[b.name], b.entry, b.name in options) for of, b in views.items()],
        }

    def _new(self, how: str, name: str, given: tuple[str, ...]) -> str:
        """A new tensor for the buffer, empty or zeros: like an argument of its shape and type, if there is one."""
        dtype = self._dtype(name)
        shaped = [b.name for b in self.plan.arguments if b.name in given and self.dims[b.name] == self.dims[name]]
        for like in (self.names[b] for b in shaped):
            if dtype == f"{like}.dtype":
                return f"torch.{how}_like({like})"
        if shaped:
            return f"torch.{how}_like({self.names[shaped[0]]}, dtype={dtype})"
        return f"torch.{how}({self._shape(name)}, dtype={dtype}, device={self.names[given[0]]}.device)"

    def _alias(self, name: str, given: tuple[str, ...], needed: set[str]) -> str:
        """What stands for the buffer where the sequence is one segment, if it is not the buffer itself."""
        if name not in needed:
            return "None"
        of = self.buffers[name].of
        return self.names[of] if of in given else ""

    def _count_lines(self, given: Iterable[str], text: str, may_lack_backward: bool) -> list[str]:
        """Where B, T and H come from: the first tensor that has them."""
        places: list[tuple[str, str, int]] = []
        words = set(re.findall(r"\w+", text))
        needs_segments = self.counts["G"] in words
        needs_chunks = self.counts["N"] in words or needs_segments
        for letter, kind in (("B", "batch"), ("T", "time"), ("H", "head")):
            if self.counts[letter] in words or (letter == "T" and needs_chunks) or needs_segments:
                name, position = next(
                    (name, i) for name in given for i, dim in enumerate(self.dims[name]) if dim.kind == kind
                )
                places.append((self.counts[letter], self.names[name], position))
        lines = [f"{letter} = {name}.shape[{position}]" for letter, name, position in places]
        if [position for *_, position in places] == [0, 1, 2] and len({name for _, name, _ in places}) == 1:
            lines = [f"{', '.join(letter for letter, *_ in places)} = {places[0][1]}.shape[:3]"]
        if needs_chunks:
            chunks = f"({self.counts['T']} + {self.config.chunk - 1}) // {self.config.chunk}"
            is_relay = any(kernel.relay for kernel in self.printed.values())
            lines.append(f"{self.counts['N']} = {f'max({chunks}, 1)' if is_relay else chunks}")
        if needs_segments:
            B, H, N, G, L = (self.counts[letter] for letter in "BHNGL")
            lines.append(f"{G}, {L} = {self._segments(f'{B} * {H}', N, may_lack_backward)}")
        return lines

    def _segments(self, sequences: str, chunks: str, may_lack_backward: bool) -> str:
        """The call that says how many segments there are, given the number of walks."""
        tiles = count_walks(self.plan, self.config)
        walks = f"{sequences} * {tiles}" if tiles > 1 else sequences
        if is_scan(self.plan):
            return f"_scan_segments({walks}, {chunks}, {SCAN_WALKS})"
        two_pay = gradients_walk(self.plan)
        return f"_segments({walks}, {chunks}, {filling(self.plan, self.config)}, " + (
            "with_backward)" if two_pay and may_lack_backward else f"{two_pay})"
        )

    def _table(self, name: str, kernels: tuple[Kernel, ...], joins_segments: bool) -> list[dict[str, object]]:
        """The table of the kernels of a pass that are launched under one condition, where there are some."""
        found = [k for k in kernels if k.joins_segments == joins_segments]
        table: dict[str, object] = {
            "name": f"{self.plan.stage}_{name}",
            "kernels": [self.printed[k.name] for k in found],
            "launchers": [self.launchers[k.name] for k in found],
            "condition": f"{self.counts['G']} > 1" if joins_segments else "",
        }
        return [table] if found else []

    def _launch(self, kernel: Kernel) -> dict[str, object]:
        printed = self.printed[kernel.name]
        grid = " * ".join(self.counts.get(size, size) for _, size in printed.grid if size != "1") or "1"
        arguments = [self.names[name] for name in printed.buffers]
        arguments += [relay_name(printed)] * bool(printed.relay)
        arguments += [self.counts[letter] for letter, _ in printed.counts]
        condition = f"{self.counts['G']} > 1" if kernel.joins_segments else ""
        return {
            "launcher": self.launchers[kernel.name],
            "grid": grid,
            "arguments": arguments,
            "condition": condition,
        }

    def _relay_words(self, kernel: PrintedKernel) -> str:
        """A slot for every step of every walk, and one more for what the last steps hand on."""
        walks = " * ".join(self.counts.get(size, size) for entry, size in kernel.grid[1:] if size != "1") or "1"
        return f"({self.counts['N']} + 1) * {walks} * {kernel.relay}"

    def _shape(self, buffer: str) -> str:
        entries = [self._entry(dim, buffer) for dim in self.dims[buffer]]
        return print_tuple(entries)

    def _entry(self, dim: BufferDim, buffer: str) -> str:
        if dim.kind == "boundaries":
            return f"{self.counts['N']} + 1"
        if dim.kind in COUNT_KINDS:
            return self.counts[COUNT_KINDS[dim.kind]]
        if dim.kind == "rows":
            return str(self.config.rows)
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
        """ "*x": as the tensor x has, which the caller chooses; "*fp32 x": x itself, float32 or absent."""
        if buffer in self.absent:
            return f"*fp32 {self.names[buffer]}"
        dtype = self._dtype(buffer)
        is_chosen = dtype.endswith(".dtype") and not self.buffers[buffer].is_complex
        return f"*{dtype.removesuffix('.dtype')}" if is_chosen else "*fp32"

    def _gradient(self, line: Gradient) -> str:
        """The sum of the line's contributions in their order, in the argument's own type."""
        terms = []
        for part in line.contributions:
            positions = ", ".join(map(str, self._summed_dims(part)))
            terms.append(self.names[part.buffer] + (f".sum(dim=({positions},))" if positions else ""))
        of = self.names[line.of]
        if not terms:
            gradient = f"torch.zeros_like({of})"
        elif len(terms) == 1 and self._has_two_parts(line.contributions[0]):
            (part,) = line.contributions
            gradient = f"_sum_of_two({self.names[part.buffer]}, {self._summed_dims(part)[0]}, {of}.dtype)"
        elif len(terms) == 1 and self._dtype(line.contributions[0].buffer) == f"{of}.dtype":
            gradient = terms[0]
        else:
            gradient = f"{terms[0] if len(terms) == 1 else '(' + ' + '.join(terms) + ')'}.to({of}.dtype)"
        return f"None if {of} is None else {gradient}" if line.of in self.absent else gradient

    def _summed_dims(self, part: Contribution) -> list[int]:
        letters = self.buffers[part.buffer].layout
        return [letters.index(letter) for letter in part.sum_over]

    def _has_two_parts(self, part: Contribution) -> bool:
        """Whether all that is to be summed are a buffer's two tiles of an axis."""
        dims = [self.dims[part.buffer][i] for i in self._summed_dims(part)]
        return [self._tiles(d.name, part.buffer) if d.kind == "tiles" else 0 for d in dims] == [2]


@dataclass(frozen=True)
class Option:
    """When a buffer that is written only where it is wanted is there, and the tensor that is there with it."""

    wanted: str
    told_by: str

    def condition(self, names: Mapping[str, str]) -> str:
        return self.wanted or f"{names[self.told_by]} is not None"


def forward_options(plan: Plan) -> dict[str, Option]:
    """What the forward pass leaves out where no backward pass follows, and where the final states are not wanted."""
    stored = [storage(plan, b.name) for b in plan.final]
    read = buffers_read(plan.forward)
    kept = kept_for_backward(plan, read)
    needed = read | {b.name for b in plan.saved} | {b.of for b in plan.saved}
    final = [name for name in stored if name not in needed]
    options = {name: Option("with_backward", kept[0]) for name in kept}
    return options | {name: Option("with_final", final[0]) for name in final if name not in options}


def backward_options(plan: Plan, absent: Collection[str]) -> dict[str, Option]:
    """The gradients of initial states, which nobody wants where these are absent."""
    needed = buffers_read(plan.backward)
    needed |= {part.buffer for line in plan.gradients if line.of not in absent for part in line.contributions}
    parts = [(part.buffer, line.of) for line in plan.gradients if line.of in absent for part in line.contributions]
    return {
        storage(plan, name): Option("", of)
        for name, of in parts
        if name not in needed and storage(plan, name) not in needed
    }


def storage(plan: Plan, name: str) -> str:
    """The buffer that kernels write for ``name``: itself, or the one that it is an entry of."""
    return next((b.name for b in all_buffers(plan).values() if b.of == name), name)


def buffers_read(kernels: Iterable[Kernel]) -> set[str]:
    def read(body: tuple[Statement, ...]) -> Iterable[str]:
        for statement in body:
            if isinstance(statement, Loop):
                yield from read(statement.body)
            elif isinstance(statement, Let) and statement.access is not None:
                yield statement.access.buffer

    return {name for kernel in kernels for name in read(kernel.body)}


def kept_for_backward(plan: Plan, read: set[str]) -> tuple[str, ...]:
    """What the forward pass leaves for the backward pass and does not ``read`` itself; None where none will follow."""
    aliased = {b.of for b in all_buffers(plan).values()} | {b.name for b in plan.saved if b.of}
    return tuple(b.name for b in plan.saved if b.name not in read | aliased) if plan.backward else ()


def relay_name(kernel: PrintedKernel) -> str:
    return f"relay_of_{kernel.name.removesuffix('_kernel')}"


def function_name(stage: str, kernel: Kernel) -> str:
    return f"{stage}_{kernel.name.removeprefix(f'{stage}_')}_kernel"


def _identifiers(buffers: Iterable[str]) -> dict[str, str]:
    """A Python name for every buffer; plain names first, so that only dotted ones give way."""
    taken: set[str] = {"torch", "triton", "tl", "os"}
    ordered = sorted(buffers, key=lambda name: not name.isidentifier())
    return {name: safe_name(name, taken) for name in ordered}

"""One printed function: its names, its sizes, and which tensors are at hand in which form.

A buffer is at hand as declared (an argument), and in the forms in which kernels have loaded or stored it: a second
load in the same form is the same variable.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from recur.codegen.torch_printer.memory import (
    Form,
    Place,
    declared_to_rows,
    layout_of,
    lead_first,
    loaded_buffers,
    parts_of,
    tile_to_declared,
    time_part,
    token_first,
)
from recur.codegen.torch_printer.tensors import BATCH, CHUNK, HEAD, STEP, Tensor, atom, bare, permuted
from recur.ir.plan import Plan
from recur.ir.tile import Access, Buffer

STRUCTURAL = {
    "B": ("B", "batch", "batch_size"),
    "T": ("T", "tokens", "token_count"),
    "H": ("H", "heads", "head_count"),
    "N": ("N", "chunks", "chunk_count"),
    "C": ("C", "chunk", "chunk_size"),
}


RESERVED = ("torch", "triton", "tl", "os", "range", "reversed", "float", "tuple")  # what printed code refers to


def identifier(name: str) -> str:
    """The Python name that a buffer or value would have where nothing else has it."""
    name = re.sub(r"\W", "_", name)
    return f"{name}_" if name in RESERVED or keyword.iskeyword(name) else name


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """A Python name for each; plain names first, so that only dotted ones give way."""
    found: dict[str, str] = {}
    for name in sorted(dict.fromkeys(names), key=lambda n: n != identifier(n)):
        wanted = identifier(name)
        while wanted in found.values():
            wanted += "_"
        found[name] = wanted
    return found


Owner = tuple[str, str]  # a kernel and a value of it


@dataclass
class Function:
    """Collects the lines of one function.

    ``parameters``: the buffers that it takes, in order; those in ``tiled`` come as tiles of that form, the others as
    declared. ``forms``: those in which the function's kernels use each buffer. ``dims``: those that
    arguments have; ``same``: other names of their sizes. ``kept``: the values, with their kernels, that are computed
    again and so not overwritten; None where nothing is overwritten, to find them in ``reused``.
    """

    plan: Plan
    parameters: tuple[Buffer, ...]
    tiled: dict[str, Form]
    forms: dict[str, list[Form]]
    dims: tuple[str, ...]
    same: dict[str, list[str]]
    kept: frozenset[Owner] | None = None
    lines: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    spelled: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    captured: dict[str, str] = field(default_factory=dict)
    tiles: dict[tuple[str, Form], str] = field(default_factory=dict)
    memo: dict[str, str] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)
    reused: set[Owner] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.loaded = loaded_buffers((*self.plan.forward, *self.plan.backward))
        self.arguments = identifiers(b.name for b in self.parameters)
        arguments = set(self.arguments.values())
        for letter, names in STRUCTURAL.items():
            self.spelled[letter] = next(n for n in names if n not in arguments and n not in self.dims)
        for dim in self.dims:
            self.spelled["dim " + dim] = f"size_{dim}" if dim in arguments else dim
        self.taken.update((*arguments, *self.spelled.values()))
        self.spelled |= {name: self.unique(name) for name in ("dtype", "device")}
        for dim, names in ((CHUNK, ("n", "j", "chunk_index")), (STEP, ("t", "j", "step_index"))):
            self.spelled[dim] = self.unique(next(n for n in names if n not in self.taken))
        for name, form in self.tiled.items():
            self.tiles[name, form] = self.arguments[name]

    # names and sizes

    def unique(self, wanted: str) -> str:
        """A name that is free; ``wanted`` comes without the numbers that made it unique where it was."""
        base = identifier(re.sub(r"(_\d+)+$", "", wanted))
        base = f"{base}_" if hasattr(builtins, base) else base
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def structural(self, letter: str) -> str:
        """B, T, H, N (chunks) or C (tokens of a chunk), as this function calls it."""
        if letter == "N":
            self.structural("T")
            self.structural("C")
        self.sizes[letter] = self.spelled[letter]
        return self.spelled[letter]

    def lead(self, dim: str) -> str:
        return self.structural({BATCH: "B", HEAD: "H", CHUNK: "N", STEP: "T"}[dim])

    def dimension(self, dim: str) -> str:
        """A dimension of the recurrence: its number where fixed, else the variable that holds its size."""
        fixed = dict(self.plan.fixed_sizes)
        seen, pending = {dim}, [dim]
        while pending:
            name = pending.pop(0)
            if name.isdigit() or name in fixed:
                return str(fixed.get(name, name))
            if name in self.dims:
                self.sizes["dim " + name] = self.spelled["dim " + name]
                return self.spelled["dim " + name]
            new = [other for other in self.same.get(name, ()) if other not in seen]
            seen.update(new)
            pending += new
        raise ValueError(f"{self.plan.stage}: no argument has the dimension {dim}")

    @property
    def first(self) -> str:
        return self.arguments[self.parameters[0].name]

    @property
    def dtype(self) -> str:
        return self.capture("dtype", f"_accumulate_dtype({self.first})")

    @property
    def device(self) -> str:
        return self.capture("device", f"{self.first}.device")

    def capture(self, wanted: str, text: str) -> str:
        """A variable that the function sets at its start, before an argument's name is assigned anew."""
        name = self.spelled.get(wanted) or self.unique(wanted)
        self.spelled[wanted] = name
        self.captured[name] = text
        return name

    def prologue(self) -> list[str]:
        """The lines that define the sizes and types in use, from the parameters' shapes."""
        words = set(re.findall(r"\w+", "\n".join(self.lines)))
        used = {key: name for key, name in self.sizes.items() if name in words}
        if "N" in used:
            used |= {key: self.sizes[key] for key in ("T", "C")}
        missing = {key: name for key, name in used.items() if key not in ("N", "C")}
        lines = []
        for buffer in self.parameters:
            keys = [d if d in ("B", "T", "H") and i < 3 else "dim " + d for i, d in enumerate(layout_of(buffer))]
            if buffer.name not in self.tiled and any(k in missing for k in keys):
                names = [missing.pop(k, "_") for k in keys]
                lines.append(f"{', '.join(names)}{',' * (len(names) == 1)} = {self.arguments[buffer.name]}.shape")
        if missing:
            raise ValueError(f"{self.plan.stage}: no argument has the dimensions {', '.join(sorted(missing))}")
        if "T" in used and self.plan.steps > 1:
            lines.append(f"{self.sizes['T']} *= {self.plan.steps}  # a token's rows")
        if "C" in used:
            lines.append(f"{self.sizes['C']} = {(self.plan.chunk or 1) * self.plan.steps}")
        if "N" in used:
            lines.append(f"{self.sizes['N']} = -(-{self.sizes['T']} // {self.sizes['C']})")
        lines += [f"{name} = {text}" for name, text in self.captured.items() if name in words]
        return ["    " + line for line in lines]

    # lines

    def line(self, text: str, note: str = "", indent: int = 1) -> None:
        space = "    " * indent
        if note and len(space) + len(text) + len(note) + 4 > 120:
            self.lines.append(f"{space}# {note}")
            note = ""
        self.lines.append(f"{space}{text}" + (f"  # {note}" if note else ""))

    def assign(self, wanted: str, text: str, note: str = "", indent: int = 1, is_new: bool = False) -> str:
        """A line ``name = text``, and the name; a text computed before is that variable again, unless ``is_new``."""
        text = bare(text)
        if not is_new and text.isidentifier():
            return text
        if not is_new and text in self.memo:
            return self.memo[text]
        name = self.unique(wanted)
        if not is_new:
            self.memo[text] = name
        self.line(f"{name} = {text}", note, indent)
        return name

    def own(self, name: str, owner: Owner) -> bool:
        """Whether the value may have the variable for itself: it is the first one in it, and no other follows."""
        first = self.owners.setdefault(name, owner)
        if first != owner:
            self.reused.add(first)
        return first == owner and self.kept is not None and owner not in self.kept

    def forget(self, name: str) -> None:
        """``name`` is assigned anew: nothing computed from it is at hand any more."""
        word = re.compile(rf"\b{re.escape(name)}\b")
        self.memo = {text: kept for text, kept in self.memo.items() if kept != name and not word.search(text)}

    # memory

    def is_parameter(self, name: str) -> bool:
        return any(b.name == name for b in self.parameters)

    def buffer(self, name: str) -> Buffer:
        """A buffer of the plan, or a cotangent that the function takes."""
        found = next((b for b in self.parameters if b.name == name), None)
        return self.plan.buffer(name) if found is None else found

    def load(self, access: Access, place: Place, wanted: str) -> Tensor:
        """The buffer's blocks of all programs, as one tensor."""
        buffer, form = self.buffer(access.buffer), place.form(access)
        if (buffer.name, form) not in self.tiles:
            self.tiles[buffer.name, form] = self.convert(buffer, access, form, wanted)
        return Tensor(self.tiles[buffer.name, form], place.dims(access), buffer.is_complex)

    def convert(self, buffer: Buffer, access: Access, form: Form, wanted: str) -> str:
        """Prints the conversion of a declared buffer to a form, and gives the variable."""
        text, layout = bare(self.declared(buffer)), layout_of(buffer)
        dtype = f"{self.dtype}.to_complex()" if buffer.is_complex else self.dtype
        cast = "" if buffer.dtype == "accumulate" else f".to({dtype})"
        time = time_part(form)
        if access.shift:
            text = f"_shifted({text}, {access.shift}, {layout.index('T')})"
        if time is None:
            order = lead_first(layout, form)
            text = boundaries(permuted(text, layout, order), order, form)
            text = atom(text) + cast if cast else text
        else:
            text = permuted(text, layout, token_first(layout))
            if time == "step":
                text = f"{atom(text)}.transpose(1, 2){cast}"
            else:
                text = declared_to_rows(text, form, token_first(layout), self.plan.steps)
                text = f"_chunked({text}, {self.structural('C')}, {dtype})"
        own = self.arguments.get(buffer.name, "")
        if identifier(wanted) == own and text != own and len(self.forms[buffer.name]) == 1:
            self.line(f"{own} = {text}")
            self.forget(own)
            return own
        return self.assign(wanted, text)

    def store(self, access: Access, place: Place, text: str) -> None:
        self.tiles[access.buffer, place.form(access)] = text

    def declared(self, buffer: Buffer) -> str:
        """The buffer in its declared layout."""
        if self.is_parameter(buffer.name) and buffer.name not in self.tiled:
            return self.arguments[buffer.name]
        form, tile = next(
            ((form, text) for (name, form), text in self.tiles.items() if name == buffer.name), ((), "")
        )
        if not tile:
            raise ValueError(f"{self.plan.stage}: {buffer.name} is read before any kernel writes it")
        tokens = self.structural("T") if time_part(form) in ("rows", "chunk_step") else ""
        return tile_to_declared(tile, form, layout_of(buffer), tokens, self.plan.steps)


def boundaries(text: str, order: tuple[str, ...], form: Form) -> str:
    """Of one entry a chunk boundary (a layout with N + 1), those at the start or at the end of each chunk."""
    offset = next((p.removeprefix("chunk") for p in parts_of(form) if p.startswith("chunk+")), None)
    if offset is None or "N+1" not in order:
        return text
    index = [":"] * order.index("N+1") + [":-1" if offset == "+0" else "1:"]
    return f"{atom(text)}[{', '.join(index)}]"

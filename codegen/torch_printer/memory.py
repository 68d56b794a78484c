"""Buffers and the tiles that kernels make of them: layouts, and the forms in which torch code holds a block.

The form of an access says, for each dimension of the buffer's layout, how all programs' blocks lie in one tensor:

    batch, head    a lead
    rows           tokens as [chunk, row]            step         tokens one by one
    chunk_step     tokens of a chunk one by one      chunk+1      one entry a chunk, that of the next one
    axis           a tile axis, whole                tile         results of an axis' tiles: one, since it is whole
    own            the rows' steps, one of each row  rows@j       of tokens with several rows, those of step j
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from recur.codegen.torch_printer.tensors import BATCH, CHUNK, HEAD, LEADS, STEP, bare, permuted
from recur.ir.tile import Access, Buffer, Kernel, Let, Loop, Statement, Store

Form = tuple[str, ...]
TIME = ("rows", "step", "chunk_step")


@dataclass(frozen=True)
class Place:
    """Where a statement stands: whether its kernel has a chunk on the grid, and the loop around it."""

    on_grid: bool = False
    loop: str | None = None

    def time(self, access: Access) -> str:
        if access.rows is not None:
            return "rows"
        return "chunk_step" if self.on_grid else "step"

    def form(self, access: Access) -> Form:
        return tuple(self.part(access, entry) for entry in access.index)

    def part(self, access: Access, entry: str) -> str:
        if entry in ("batch", "head"):
            return entry
        if entry == "time":
            only = "" if access.step is None else f"@{access.step}"
            return self.time(access) + (f"{access.shift:+d}" if access.shift else "") + only
        if entry == "step":
            return "own"
        if entry == "chunk":
            inside = self.on_grid or self.loop == "chunks"
            return ("chunk" if inside else "boundary") + f"{access.chunk_offset:+d}"
        return "tile" if entry.startswith("tile:") else "axis"

    def dims(self, access: Access) -> tuple[str, ...]:
        """The tensor's dimensions: leads first, rows next, then the axes as the access names them."""
        leads: set[str] = set()
        axes: list[str] = []
        for entry, part in zip(access.index, self.form(access), strict=True):
            kind = kind_of(part)
            leads.update({"batch": (BATCH,), "head": (HEAD,), "rows": (CHUNK,), "step": (STEP,), "chunk": (CHUNK,),
                          "chunk_step": (CHUNK, STEP)}.get(kind, ()))  # fmt: skip
            if kind == "rows" and access.rows is not None:
                axes.insert(0, access.rows)
            elif kind == "axis":
                axes.append(entry)
        return tuple(d for d in LEADS if d in leads) + tuple(axes)


def layout_of(buffer: Buffer) -> tuple[str, ...]:
    """The dimensions that a torch tensor has: an axis is held whole, so there is no dimension of its tiles."""
    return tuple(d for d in buffer.layout if not d.startswith("tiles:"))


def parts_of(form: Form) -> tuple[str, ...]:
    return tuple(p for p in form if p != "tile")


def time_part(form: Form) -> str | None:
    return next((kind_of(p) for p in form if p.startswith(TIME)), None)


def kind_of(part: str) -> str:
    """A part without its shift and step."""
    return part.partition("@")[0].rstrip("+-0123456789")


def step_of(form: Form) -> str | None:
    """The one step of tokens that the form has rows of."""
    return next((p.partition("@")[2] for p in form if "@" in p), None)


def own_dim(form: Form, layout: tuple[str, ...]) -> str | None:
    """The dimension of the layout along which a token's steps lie."""
    parts = parts_of(form)
    return layout[parts.index("own")] if "own" in parts else None


def lead_first(layout: tuple[str, ...], form: Form) -> tuple[str, ...]:
    """The layout's dimensions as a tile without tokens has them: batch, head, chunk, then axes."""
    rank = {"batch": 0, "head": 1, "chunk": 2}
    ranked = [(rank.get(kind_of(p), 3), i) for i, p in enumerate(parts_of(form))]
    return tuple(layout[i] for _, i in sorted(ranked))


def token_first(layout: tuple[str, ...]) -> tuple[str, ...]:
    return ("B", "T", "H", *(d for d in layout if d not in ("B", "T", "H")))


def tile_to_declared(text: str, form: Form, layout: tuple[str, ...], tokens: str, steps: int = 1) -> str:
    """A tile of ``form`` in the buffer's layout. ``tokens``: how many rows; ``steps``: of a token."""
    time = time_part(form)
    if time is None:
        return permuted(text, lead_first(layout, form), layout)
    text = f"{text}.transpose(1, 2)" if time == "step" else f"_tokens({text}, {tokens})"
    own, step = own_dim(form, layout), step_of(form)
    if own is not None:
        text = f"_split_steps({text}, {steps}, {token_first(layout).index(own)})"
    elif step is not None:
        text = f"{text}[:, {step}::{steps}]"
    return permuted(text, token_first(layout), layout)


def declared_to_rows(text: str, form: Form, layout: tuple[str, ...], steps: int) -> str:
    """What lies in the layout B, T, H, ... with a token for each row."""
    own, step = own_dim(form, layout), step_of(form)
    if own is not None:
        return f"_joined_steps({bare(text)}, {layout.index(own)})"
    return text if step is None else f"_at_step({bare(text)}, {step}, {steps})"


def accesses(kernels: Iterable[Kernel]) -> Iterator[tuple[Access, Place]]:
    """Every load and store with its place, in order."""
    for kernel in kernels:
        yield from _accesses(kernel.body, Place("chunk" in kernel.grid))


def _accesses(body: Iterable[Statement], place: Place) -> Iterator[tuple[Access, Place]]:
    for statement in body:
        if isinstance(statement, Loop):
            loop = place.loop if statement.over in ("tiles", "levels", "once") else statement.over
            yield from _accesses(statement.body, Place(place.on_grid, loop))
        elif isinstance(statement, (Let, Store)) and statement.access is not None:
            yield statement.access, place


def loaded_buffers(kernels: Iterable[Kernel]) -> set[str]:
    """The buffers that some kernel reads."""
    found: set[str] = set()

    def visit(body: Iterable[Statement]) -> None:
        for statement in body:
            if isinstance(statement, Loop):
                visit(statement.body)
            elif isinstance(statement, Let) and statement.access is not None:
                found.add(statement.access.buffer)

    for kernel in kernels:
        visit(kernel.body)
    return found


def forms_of(kernels: Iterable[Kernel]) -> dict[str, list[Form]]:
    """The distinct forms in which each buffer is loaded or stored."""
    forms: dict[str, list[Form]] = {}
    for access, place in accesses(kernels):
        known = forms.setdefault(access.buffer, [])
        if place.form(access) not in known:
            known.append(place.form(access))
    return forms


def same_sizes(kernels: Iterable[Kernel]) -> dict[str, list[str]]:
    """Which dimensions have one size, each with the others: renamed axes, and axes beside what they index."""
    found: dict[str, list[str]] = {}

    def join(a: str, b: str) -> None:
        if a != b:
            found.setdefault(a, []).append(b)
            found.setdefault(b, []).append(a)

    def visit(body: Iterable[Statement]) -> None:
        for statement in body:
            if isinstance(statement, Loop):
                visit(statement.body)
            elif isinstance(statement, Let) and statement.op == "rename":
                join(str(statement.attr("old")), str(statement.attr("new")))

    for kernel in kernels:
        for axis in kernel.axes:
            if axis.kind == "size":
                join(axis.name, axis.extent)
        visit(kernel.body)
    return found

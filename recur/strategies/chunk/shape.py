"""What a matrix stage looks like to the chunk kernels: its axes, its arguments, and what must be whole or stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from recur.ir.core import Node, leaves, topological
from recur.ir.normal import Decay, Event, MatrixForm, NormalForm, Read, Readout, Write
from recur.ir.plan import Reject
from recur.ir.tile import Access, Axis, Builder, Place, Value, next_power_of_two
from recur.strategies.chunk.epilogue import Epilogue, absorb_scales, added_readouts, added_rests
from recur.strategies.chunk.fold import Folding, NotFoldable
from recur.strategies.chunk.fuse import NotFusable, fuse_dims
from recur.strategies.chunk.gates import decay_class, is_plain_factor
from recur.strategies.operands import argument_leaves, tensor_name

LEAST_WIDTH = 16  # of a tile of value dims: the least side of a matrix product
LARGEST_KEY = 512  # entries of the fused key dims: beside the least width still eight warps' registers


@dataclass(frozen=True)
class Shape:
    """A matrix stage prepared for chunking: constant factors of its readouts absorbed into their vectors."""

    forms: tuple[MatrixForm, ...]
    epilogue: Epilogue
    key: tuple[str, ...]
    value: tuple[str, ...]
    whole_values: bool
    layouts: tuple[tuple[str, tuple[str, ...]], ...]
    sizes: tuple[tuple[str, int], ...]
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    views: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folded: tuple[str, ...] = ()
    pass_forms: tuple[MatrixForm, ...] = ()  # of a stage that takes passes (families.py): all, if these are a part

    @property
    def axes(self) -> tuple[Axis, ...]:
        rows = tuple(Axis(name, "rows", "T") for name in ("c", "s", "u"))
        keys = tuple(Axis(d, "size", d) for d in self.key)
        values = tuple(Axis(d, "size", d, "whole" if self.whole_values else "grid") for d in self.value)
        return rows + keys + values + self.other_axes

    @property
    def other_axes(self) -> tuple[Axis, ...]:
        names = dict.fromkeys(d for n in topological(self.nodes) for d in n.dims)
        return tuple(Axis(d, "size", d) for d in names if d not in self.key + self.value)

    @property
    def nodes(self) -> list[Node]:
        return [n for f in self.forms for e in f.events for n in event_nodes(e)] + [n for _, n in self.epilogue]

    @property
    def rests(self) -> Epilogue:
        """What results are beside readouts that they add as they are."""
        return added_rests(self.epilogue)

    @property
    def readouts(self) -> list[Node]:
        return leaves([n for _, n in self.epilogue], "readout")

    @property
    def inner_readouts(self) -> list[Node]:
        """Those that results take some other way: they and their cotangents go to memory."""
        added = added_readouts(self.epilogue)
        return [x for x in self.readouts if x.attrs[1] not in added]

    @property
    def splits(self) -> bool:
        """Whether segments of a sequence may be walked at the same time: no write depends on the state."""
        return not any(f.reads for f in self.forms)

    @property
    def grid(self) -> tuple[str, ...]:
        """Of a walk over all chunks."""
        return ("batch", "head") + (() if self.whole_values else tuple(f"tile:{d}" for d in self.value))

    @property
    def segment_grid(self) -> tuple[str, ...]:
        """Of a walk over the chunks of a segment, where the stage has segments."""
        return (*self.grid[:2], *(("segment",) if self.splits else ()), *self.grid[2:])

    @property
    def complex_buffers(self) -> frozenset[str]:
        """Every buffer of these kernels that holds complex numbers."""
        names = [n for n, node in self.epilogue if node.is_complex]
        names += [str(x.attrs[1]) for _, node in self.epilogue for x in leaves([node], "readout") if x.is_complex]
        states = [f.state for f in self.forms if f.is_complex]
        names += [p + s for s in states for p in ("", "final_", "chunk_", "chunk_R_")]
        names += [p + r + s for s in states for p in ("start_", "end_", "local_") for r in ("", "R_")]
        turning = [(f, d) for f in self.forms for d in f.decays if d.angle is not None]
        names += [f"over_{r}{f.state}_{decay_class(f, d)}" for f, d in turning for r in ("", "R_")]
        names += [tensor_name(x) for x in argument_leaves(self.nodes) if x.is_complex]
        return frozenset([*names, *(f"d_{n}" for n in names)])

    @property
    def fixed_sizes(self) -> tuple[tuple[str, int], ...]:
        """Of the fused dims, and of their parts that no tensor has as they are."""
        sizes = dict(self.sizes)
        present = {d for x in argument_leaves(self.nodes) for d in x.dims}
        names = [d for name, group in self.fused for d in (name, *(d for d in group if d not in present))]
        return tuple((d, sizes[d]) for d in names)

    @property
    def limits(self) -> tuple[str, ...]:
        """Why one program's part of a state with fused key dims is beyond its registers."""
        sizes = dict(self.sizes)
        return tuple(
            f"a program would hold {sizes[name]} x {LEAST_WIDTH} values of a state ({' x '.join(group)} key dimensions)"
            for name, group in self.fused
            if name in self.key and sizes[name] > LARGEST_KEY
        )

    def cotangent_of(self, readout: str) -> str:
        """The buffer of a readout's cotangent: the result's own where the result adds the readout as it is."""
        return f"d_{added_readouts(self.epilogue).get(readout, readout)}"

    def state_axes(self, form: MatrixForm) -> tuple[str, ...]:
        """The state's dims in the order declared."""
        return dict(self.layouts)[form.state]


def tiled_values(shape: Shape) -> Shape:
    """The stage for kernels without its epilogue, whose value dims may be in tiles although the results' may not."""
    return replace(shape, whole_values=not shape.value or needs_whole_values(replace(shape, epilogue=())))


def event_nodes(event: Decay | Read | Write | Readout) -> list[Node]:
    if isinstance(event, Decay):
        return [n for n in (event.factor, event.log, event.sign, event.angle) if n is not None]
    if isinstance(event, Write):
        return [event.key] + ([event.value] if event.value is not None else [])
    return [event.vector]


def infer_shape(normal: NormalForm, sizes: dict[str, int]) -> Shape | Reject:
    """The stage as chunk kernels see it, or why they cannot hold it."""
    forms = tuple(f for f in normal.forms if isinstance(f, MatrixForm))
    if normal.family != "matrix" or len(forms) != len(normal.forms):
        return Reject(f"needs a matrix state with factored decays; this stage is {normal.family}")
    try:
        return _joined_shape(normal, forms, sizes)
    except NotFoldable as failure:
        return Reject(f"state {forms[0].state} has the aligned dimension {forms[0].batch[0]}, and {failure}")
    except NotFusable as failure:
        return Reject(f"state {forms[0].state} has several key or value dimensions, and {failure}")


def _joined_shape(normal: NormalForm, forms: tuple[MatrixForm, ...], sizes: dict[str, int]) -> Shape | Reject:
    """The shape with aligned dims folded into the heads, and one key and one value dim."""
    folding = Folding(forms[0].batch)
    forms, epilogue = folding.stage(forms, normal.epilogue)
    forms = tuple(transpose(f) if _belongs_on_keys(f) else f for f in forms)
    key = max((f.key for f in forms), key=len)
    value = max((f.value for f in forms), key=len)
    reason = _reason_against(forms, key, value)
    if reason is not None:
        return Reject(reason)
    fused = fuse_dims(forms, epilogue, key, value, sizes)
    forms, epilogue = absorb_scales(fused.forms, fused.epilogue)
    own = {name: node.dims for name, node in normal.stage.updates}
    layouts = tuple((name, fused.dims(folding.dims(dims))) for name, dims in own.items())
    states = {name: own[state] for state, dims in layouts if dims != own[state] for name in (state, f"final_{state}")}
    views = tuple((dict(fused.views) | states | folding.tensors).items())
    sizes = {name: math.prod(sizes[d] for d in group) for name, group in fused.groups} | sizes
    key, value = ((next(f for f, g in fused.groups if g == dims),) if len(dims) > 1 else dims for dims in (key, value))
    draft = Shape(forms, epilogue, key, value, False, layouts, tuple(sizes.items()), fused.groups, views, folding.batch)
    return replace(draft, whole_values=not value or needs_whole_values(draft))


def _reason_against(forms: tuple[MatrixForm, ...], key: tuple[str, ...], value: tuple[str, ...]) -> str | None:
    for form in forms:
        if form.batch:
            return f"state {form.state} has the aligned dimension {form.batch[0]}, and others of its stage do not"
        if any(d.may_grow for d in form.decays):
            return (
                f"a decay of {form.state} may be more than one, which chunks do not hold: declare the range of what it "
                "is worked out from, such as g in (-inf, 0] for exp(g), or write min(a, 1)"
            )
        if form.is_complex and form.reads:
            return f"state {form.state} is complex and read by its own writes: complex systems are not solved in chunks"
        if form.key not in ((), key) or form.value not in ((), value):
            return "the states of this stage differ in their key or value dimensions"
        over_values = [d for d in form.decays if d.factor.dims and set(d.factor.dims) <= set(form.value)]
        if over_values and form.reads:
            return f"the decay of {form.state} runs over its value dimension while its reads contract the key dimension"
        if any(_is_bare(d) for d in over_values):
            return (
                f"{form.state} decays over its key and over its value dimension, and both decays are negative, complex "
                "or factors that may be zero; a chunk keeps track of such a decay along one of them"
            )
    return None


def _is_bare(decay: Decay) -> bool:
    """Whether a decay has more to keep track of than its log: a sign, a phase, or a gradient at zero."""
    return decay.sign is not None or decay.angle is not None or is_plain_factor(decay)


def _belongs_on_keys(form: MatrixForm) -> bool:
    """Whether the form is to be transposed: such a decay over its value dims, which only key dims have room for."""
    over = {side: [d for d in form.decays if set(d.factor.dims) & set(dims)]
            for side, dims in (("key", form.key), ("value", form.value))}
    return not form.reads and any(map(_is_bare, over["value"])) and not any(map(_is_bare, over["key"]))


def transpose(form: MatrixForm) -> MatrixForm:
    """The same state with key and value dims exchanged; it has no reads."""

    def event(e: Event) -> Event:
        if isinstance(e, Write):
            assert e.value is not None
            return replace(e, key=e.value, value=e.key)
        return replace(e, axis="value" if e.axis == "key" else "key") if isinstance(e, Readout) else e

    return replace(form, key=form.value, value=form.key, events=tuple(map(event, form.events)))


def needs_whole_values(shape: Shape) -> bool:
    """Value dims cannot be tiled where an expression mixes their entries, or where a readout sums over them."""
    value = set(shape.value)
    if any(r.axis == "value" for f in shape.forms for r in f.readouts):
        return True
    if any(value & mixed_dims(n) for n in topological(shape.nodes)):
        return True
    key_side = [n for f in shape.forms for e in f.events for n in key_side_nodes(f, e)]
    return any(value & set(x.dims) for x in leaves(key_side))


def mixed_dims(node: Node) -> set[str]:
    """The dims along which an operation's entries are not one by one those of its arguments."""
    if node.op in ("contract", "sum", "amax"):
        return {d for a in node.args for d in a.dims} - set(node.dims)
    if node.op in ("hadamard", "index", "place", "rename", "eye"):
        return {str(a) for a in node.attrs}
    return set()


def key_side_nodes(form: MatrixForm, event: Decay | Read | Write | Readout) -> list[Node]:
    if isinstance(event, Write):
        return [event.key]
    if isinstance(event, Readout) and event.axis == "value":
        return []
    if isinstance(event, Decay) and event.factor.dims and set(event.factor.dims) <= set(form.value):
        return []
    return event_nodes(event)


def solved_writes(form: MatrixForm) -> list[int]:
    """The numbers of the writes that read the state: the rows of the triangular system."""
    return [j for j, w in enumerate(form.writes) if w.read is not None]


def key_only(shape: Shape) -> tuple[Axis, ...]:
    return tuple(a for a in shape.axes if a.name not in shape.value)


def placed_axes(shape: Shape, places: dict[str, Place]) -> tuple[Axis, ...]:
    """The axes at their places; whole where none is given."""
    return tuple(replace(a, place=places.get(a.name, "whole")) for a in shape.axes)


def looped_values(shape: Shape) -> dict[str, Place]:
    """The place of value dims in tiles that a loop goes through, where they may be in tiles."""
    return {} if shape.whole_values else dict.fromkeys(shape.value, "loop")


def tile_widths(shape: Shape, dims: tuple[str, ...], width: int) -> tuple[tuple[str, int], ...]:
    """Tiles of a width along some dims, narrower where a dim is."""
    sizes = dict(shape.sizes)
    return tuple((d, max(LEAST_WIDTH, min(width, next_power_of_two(sizes[d])))) for d in dims)


# --- buffers and accesses --------------------------------------------------------------------------------------------


def token_access(buffer: str, dims: tuple[str, ...], rows: str = "c") -> Access:
    return Access(buffer, ("batch", "time", "head", *dims), rows)


def pair_access(buffer: str) -> Access:
    """A [C, C] tile a chunk, stored with its rows' tokens: layout B T H C."""
    return Access(buffer, ("batch", "time", "head", "s"), "c")


def load_turned(b: Builder, name: str, buffer: str) -> Value:
    """The transpose of such a tile. A product whose left operand is transposed in registers waits for it."""
    return b.load(name, Access(buffer, ("batch", "time", "head", "c"), "s"), ("s", "c"))


def state_access(buffer: str, dims: tuple[str, ...]) -> Access:
    return Access(buffer, ("batch", "head", *dims))


def chunk_access(buffer: str, dims: tuple[str, ...]) -> Access:
    return Access(buffer, ("batch", "chunk", "head", *dims))

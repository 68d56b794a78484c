"""The cotangents of scalar decays and of factors of rows, from what vectors are worth in pairs (see passes).

For states that nothing written depends on. The cotangent of a token's log decay is the sum of all pairs (write,
readout) on either side of it. With S at the chunk's start and R at its end, P = tril(Q B^T) D and E = tril(dO U^T):

    across the chunk             A = 2^G_C <S, R>
    from before, to a readout    q . (2^G dO S^T), of the readouts after the token          "outer" of a readout
    from a write, to after       b . (2^(G_C - G) U R^T), of the writes before the token    "outer" of a write
    inside the chunk             M = P * E of two tokens: its rows after the token less     "inner" of a readout
                                 its columns after it                                       "inner" of a write

A token's own pair is apart ("own"): it is large where decays are strong, and would leave its rounding behind. No state
goes to memory for A: with X = <S, R> of all pairs on either side of a chunk's start, which is a product of two states
at a segment's start,

    A = X - sum of the readouts' outer worth,    X of the next chunk = A + sum of the writes' outer worth

This is a difference, and exact: both walks round q~ and b~ alike, as the states took them, and take the states in two
parts, so that their products lose nothing to the operand type.

A factor f of a vector's rows is in all pairs of the vector, and what these are worth is f df. The walks take the
factor of the vector whose worth they find as one where it is zero, and the worth is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from recur.ir.core import Node, apply, const, leaves, neg, where
from recur.ir.normal import Decay, MatrixForm
from recur.ir.tile import Access, Buffer, Builder, Carry, Kernel, Value
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum
from recur.strategies.chunk.equations import sum_of
from recur.strategies.chunk.families import (
    Family,
    bounded_modulus,
    infer_families,
    write_dims,
    write_tiles,
    write_width,
)
from recur.strategies.chunk.gates import class_decays, is_plain_factor
from recur.strategies.chunk.gradients import BufferOf, Cotangents, add_decay, store_gradient
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.segments import Walk
from recur.strategies.chunk.shape import Shape, placed_axes, tile_widths
from recur.strategies.chunk.tiles import Tiles
from recur.strategies.chunk.weights import Own, nonzero, unless_zero
from recur.strategies.operands import argument_leaves

EQUATIONS = (
    "dg = A + sum after of q . (2^G dO S^T) + sum before of b . (2^(G_C - G) U R^T)",
    "     + sum after of the rows of M - sum after of its columns,   M = P * E",
    "A = X - sum of q . (2^G dO S^T),   X <- A + sum of b . (2^(G_C - G) U R^T),   X = <S, R> first",
)
WIDTH = 32  # of the tiles in which two states are multiplied


# --- what walks leave ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credited:
    """A vector whose pairs' worth something needs: the number of its readout or write, and its position."""

    name: str
    number: int
    position: int
    vector: Node
    is_write: bool

    @property
    def own(self) -> Own:
        """Whose weights have ones for zeros where its worth is found."""
        return "key" if self.is_write else "query"


def credited_vectors(family: Family) -> list[Credited]:
    lead = family.lead
    vectors = [Credited(r.name, n, lead.events.index(r), r.vector, False) for n, r in enumerate(lead.readouts)]
    vectors += [Credited(write_name(j), j, lead.events.index(w), w.key, True) for j, w in enumerate(lead.writes)]
    return [v for v in vectors if lead.decays or has_factor(v.vector)]


def has_factor(vector: Node) -> bool:
    """Whether a vector's rows have a factor that differs from token to token."""
    return bool(leaves([split_scale(vector)[0]]))


def write_name(j: int) -> str:
    return f"write_{j}"


def has_gates(shape: Shape) -> bool:
    """Whether there are decays, or factors that differ from token to token."""
    return any(credited_vectors(f) for f in infer_families(shape))


def own_partners(family: Family, of: Credited) -> list[int]:
    """The numbers of the writes (or readouts) whose pairs with the vector, of one token, are worth something."""
    lead = family.lead
    partners = [lead.events.index(e) for e in (lead.readouts if of.is_write else lead.writes)]
    found = []
    for number, position in enumerate(partners):
        write, readout = (of.position, position) if of.is_write else (position, of.position)
        decays = [e for e in lead.events[write + 1 : readout] if isinstance(e, Decay)]
        if write < readout and (has_factor(of.vector) or (decays and not of.is_write)):
            found.append(number)
    return found


def outer_access(shape: Shape, family: Family, of: Credited) -> Access:
    return _rows_access(shape, f"outer_{family.name}_{of.name}", not of.is_write)


def inner_access(shape: Shape, family: Family, of: Credited) -> Access:
    return _rows_access(shape, f"inner_{family.name}_{of.name}")


def own_access(shape: Shape, family: Family, of: Credited, partner: int) -> Access:
    return _rows_access(shape, f"own_{family.name}_{of.name}_{partner}")


def _rows_access(shape: Shape, buffer: str, of_queries: bool = False) -> Access:
    """A number a token, those of a chunk side by side; walks over tiles of the state leave one for every tile."""
    tiled = (shape.key[0],) if of_queries else write_dims(shape)
    return Access(buffer, ("batch", "chunk", "head", *(f"tile:{d}" for d in tiled), "c"))


def worth_buffers(shape: Shape) -> tuple[Buffer, ...]:
    def buffer(access: Access, doc: str) -> Buffer:
        letters = {"batch": "B", "chunk": "N", "head": "H", "c": "C"}
        layout = tuple(letters.get(entry, entry.replace("tile:", "tiles:")) for entry in access.index)
        return Buffer(access.buffer, layout, doc=doc)

    found = []
    for family in infer_families(shape):
        for v in credited_vectors(family):
            found.append(buffer(outer_access(shape, family, v), "worth of pairs with other chunks"))
            found.append(buffer(inner_access(shape, family, v), "worth of pairs with other tokens of the chunk"))
            for partner in own_partners(family, v):
                found.append(buffer(own_access(shape, family, v, partner), "worth of a token's pair with itself"))
    return tuple(found)


# --- gates -----------------------------------------------------------------------------------------------------------


def emit_gate_pass(shape: Shape, buffer_of: BufferOf, width: int) -> Kernel:
    """The cotangents of decays and of factors of rows; ``width``: of the tiles of the key dim."""
    b = Builder(complex_buffers=shape.complex_buffers)
    families = infer_families(shape)
    first = {f.name: straddling(b, shape, f) for f in families if f.lead.decays}
    inner = b.nested()
    tiles, cotangents = Tiles(inner), Cotangents()
    carries = []
    for family in families:
        worths = [Worth.load(shape, tiles, family, v) for v in credited_vectors(family)]
        factor_cotangents(inner, cotangents, worths)
        if family.lead.decays:
            start = first[family.name]
            x = inner.phi("X", start)
            carries.append(Carry(x, start, decay_cotangents(tiles, cotangents, family, worths, x)))
    for source, tile in cotangents.pull_each(tiles, argument_leaves(cotangents.nodes)):
        store_gradient(inner, source, tile, buffer_of(source, "gates", ""))
    b.loop("chunks", inner, tuple(carries))
    key, value = shape.key[0], shape.value[0]
    grid, axes = ("batch", "head", "segment"), placed_axes(shape, {key: "loop", value: "loop"})
    narrowest = write_width(shape) if write_tiles(shape) > 1 else WIDTH
    widths = ((key, width), *tile_widths(shape, shape.value, narrowest))
    # Four warps for the product of states that it starts with; for rows of numbers one would do.
    return Kernel("gate_gradients", grid, axes, tuple(b.statements), EQUATIONS, "gate gradients", widths, 4)


def straddling(b: Builder, shape: Shape, family: Family) -> Value:
    """X = <S, R> at the segment's start."""
    total = b.zeros((), "X")
    for form in family.forms:
        total = state_product(b, shape, form, (*form.key, *form.value), total)
    return total


def state_product(b: Builder, shape: Shape, form: MatrixForm, over: tuple[str, ...], total: Value) -> Value:
    """``total`` and the sum of S R, tile by tile along the dims ``over``."""
    if not over:
        axes = shape.state_axes(form)
        state = b.load("S", Walk(shape, form).start, axes)
        adjoint = b.load("R", Walk(shape, form, adjoint=True).end, axes)
        product = b.sum(b.mul(state, adjoint, name="S_R"), axes, name="S_R")
        return b.add(total, product, name="X")
    body = b.nested()
    phi = b.phi("X", total)
    b.loop("tiles", body, (Carry(phi, total, state_product(body, shape, form, over[1:], phi)),), axis=over[0])
    return phi


def factor_cotangents(b: Builder, cotangents: Cotangents, worths: list[Worth]) -> None:
    for worth in worths:
        if worth.factor is not None:
            total = sum_of(b, [worth.outer, worth.inner, *worth.own.values()], "worth")
            d_scale = b.map("div", total, nonzero(b, worth.factor), name="d_scale")
            cotangents.add(split_scale(worth.of.vector)[0], d_scale)


def decay_cotangents(
    tiles: Tiles, cotangents: Cotangents, family: Family, worths: list[Worth], x: Value
) -> Value:
    """The cotangents of a family's decays in a chunk; gives the next chunk's X."""
    b = tiles.b
    worths = [worth.unless_zero(b) for worth in worths]
    across = x
    for worth in worths:
        if not worth.of.is_write:
            across = b.sub(across, b.sum(worth.outer, ("c",), name="read"), name="A")
    following = across
    for worth in worths:
        if worth.of.is_write:
            following = b.add(following, b.sum(worth.outer, ("c",), name="written"), name="X")
    for i, decay in class_decays(family.lead, "key"):
        d_log = across
        for worth in worths:
            d_log = worth.add_pairs(b, family.lead, d_log, i)
        if is_plain_factor(decay):
            cotangents.add(decay.factor, over_factor(tiles, decay, d_log))
        else:
            add_decay(cotangents, b, decay, d_log, ())
    return following


@dataclass(frozen=True)
class Worth:
    """What a vector's rows are worth in pairs with other chunks, in its own, and with its token's own, by partner."""

    of: Credited
    factor: Value | None
    outer: Value
    inner: Value
    own: dict[int, Value]

    @classmethod
    def load(cls, shape: Shape, tiles: Tiles, family: Family, of: Credited) -> Worth:
        b = tiles.b
        factor = tiles.node(split_scale(of.vector)[0], "scale") if has_factor(of.vector) else None
        outer = load_worth(shape, b, outer_access(shape, family, of), ("c",), "outer")
        inner = load_worth(shape, b, inner_access(shape, family, of), ("c",), "inner")
        own = {i: load_worth(shape, b, own_access(shape, family, of, i), ("c",), "own")
               for i in own_partners(family, of)}  # fmt: skip
        return cls(of, factor, outer, inner, own)

    def unless_zero(self, b: Builder) -> Worth:
        """The worth with the factor as it is, not one where it is zero."""
        if self.factor is None:
            return self
        kept = unless_zero(b, self.factor)
        times = lambda x: b.mul(x, kept, name=x.name)  # noqa: E731
        return replace(self, outer=times(self.outer), inner=times(self.inner),
                       own={i: times(x) for i, x in self.own.items()})  # fmt: skip

    def add_pairs(self, b: Builder, form: MatrixForm, d_log: Value, decay: int) -> Value:
        """Adds the pairs on either side of the decay at a position."""
        position = self.of.position
        if self.of.is_write:
            d_log = b.add(d_log, earlier_sum(b, Row(self.outer, position), decay), name="d_log")
            return b.sub(d_log, later_sum(b, Row(self.inner, position), decay), name="d_log")
        read = Row(b.add(self.outer, self.inner, name="worth"), position)
        d_log = b.add(d_log, later_sum(b, read, decay), name="d_log")
        for j, own in self.own.items():
            if form.events.index(form.writes[j]) < decay < position:
                d_log = b.add(d_log, own, name="d_log")
        return d_log


def over_factor(tiles: Tiles, decay: Decay, d_log: Value) -> Value:
    """The cotangent of a decay that is a factor, from its log's."""
    modulus = bounded_modulus(decay)
    signed = modulus if decay.sign is None else where(apply("lt", decay.sign, const(0)), neg(modulus), modulus)
    return tiles.b.map("div", d_log, tiles.node(signed, "factor", fill=1.0), name="d_factor")


def load_worth(shape: Shape, b: Builder, access: Access, axes: tuple[str, ...], name: str) -> Value:
    """What a walk has left; the sum of all tiles' numbers, where it had a dim in tiles."""
    tiled = [entry.removeprefix("tile:") for entry in access.index if entry.startswith("tile:")]
    if not tiled:
        return b.load(name, access, axes)
    body = b.nested()
    zero = b.zeros(axes, name)
    total = b.phi(name, zero)
    following = body.add(total, body.load(f"{name}_of_tile", access, axes), name=name)
    b.loop("tiles", body, (Carry(total, zero, following),), axis=tiled[0])
    return total

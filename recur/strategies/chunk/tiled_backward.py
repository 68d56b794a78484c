"""The kernels of the tiled schedule, backward (docs/mathematics.md, section 3), with dO the readouts' cotangents:

    R_0 = 2^G_C R + sum over tiles of (2^G Q)^T dO                          the reverse walk, R kept at chunk ends
    dQ_i = 2^G dO_i S^T + sum over j <= i of (dO_i V_j^T * D_ij) K_j        a program owns query tile i
    dK_j = 2^(G_C - G) V_j R^T + sum over i >= j of (dO_i V_j^T * D_ij)^T Q_i      a program owns key tile j
    dV_j = 2^(G_C - G) K_j R + sum over i >= j of (Q_i K_j^T * D_ij)^T dO_i

The cotangent of the log decay of token t is the sum of what straddles it. With M = (Q K^T) (dO V^T) D and t in tile j,

    sum over c >= t of ( sum of M[c, s] over s in tiles before j   +   sum of M[c, s] over s < t in tile j )

whose first part the query programs leave for every row and tile; to it come the reads of the chunk's start after t, the
writes before t that outlive the chunk, and 2^G_C <S_0, R>. Nothing cancels, and all of it is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from recur.ir.core import Node, leaves
from recur.ir.normal import Decay, MatrixForm, Readout, Write
from recur.ir.tile import Access, Builder, Carry, Kernel, Place, Value
from recur.strategies.chunk.decay_gradient import Row, earlier_sum, later_sum
from recur.strategies.chunk.gates import is_plain_factor
from recur.strategies.chunk.gradients import (
    BufferOf,
    Cotangents,
    add_decay,
    emit_epilogue_gradient,
    store_gradient,
)
from recur.strategies.chunk.row_tiles import (
    Pairs,
    RowTile,
    StoredGates,
    distinct,
    full,
    joint,
    load_ends,
    times,
    whole_chunk,
)
from recur.strategies.chunk.shape import Shape, chunk_access, state_access, token_access
from recur.strategies.chunk.tiled_forward import Stored, load_state, tiled_axes
from recur.strategies.chunk.tiles import Rows, Tiles, Vector, signed
from recur.strategies.operands import argument_leaves


@dataclass(frozen=True)
class Straddle:
    """What straddles a decay of a family, ``crossing`` cuts between: the decay's position among the events."""

    family: StoredGates
    position: int
    decay: Decay
    crossing: int

    def buffer(self, part: str, own_after: bool = True) -> str:
        """``own_after``: whether a token's own event, whose amounts these are, comes after the token's decay."""
        number = [i for i, _ in self.family.decays].index(self.position)
        early = "" if own_after else "_early"
        return f"{part}{early}_{self.family.name}_{number}" + ("_cut" if self.crossing else "")


def straddles(stored: Stored) -> list[Straddle]:
    """One for every decay with a gradient; a second one, across the cut itself, where the factor was given."""
    found = []
    for family in distinct(stored):
        for i, decay in family.decays:
            if decay.log is not None and leaves([decay.log, decay.factor]):
                cut = "cuts" in family.parts and is_plain_factor(decay)
                found += [Straddle(family, i, decay, crossing) for crossing in range(1 + cut)]
    return found


def load_cotangent(b: Builder, shape: Shape, readout: str, rows: str) -> Value:
    dims = next(x.dims for x in shape.readouts if x.attrs[1] == readout)
    return b.load("dO", token_access(shape.cotangent_of(readout), dims, rows), (rows, *dims))


def emit_tiled_reverse(shape: Shape, stored: Stored) -> Kernel:
    """R at every chunk's end, and the initial state's gradient."""
    b = Builder()
    last = [
        b.load("R", state_access(f"d_final_{f.state}", shape.state_axes(f)), shape.state_axes(f)) for f in shape.forms
    ]
    inner = b.nested()
    adjoints = [inner.phi(f"R_{f.state}", r) for f, r in zip(shape.forms, last, strict=True)]
    for form, adjoint in zip(shape.forms, adjoints, strict=True):
        inner.store(chunk_access(f"chunk_R_{form.state}", shape.state_axes(form)), adjoint)
    ends = load_ends(inner, stored)
    body = inner.nested()
    tile = RowTile(Tiles(body), stored, ends)
    carries = []
    for form, adjoint in zip(shape.forms, adjoints, strict=True):
        decayed = times(inner, adjoint, whole_chunk(inner, stored, ends, form.state), name=adjoint.name)
        total = phi = body.phi(adjoint.name, decayed)
        for readout in form.readouts:
            q = tile.query(form, readout)
            scale = joint(body, q.scale, tile.factor(form, q.position, "start"))
            cotangent = times(body, load_cotangent(body, shape, readout.name, "c"), scale)
            total = body.add(total, body.contract(q.tile, cotangent, ("c",), name="read"), name=adjoint.name)
        carries.append(Carry(phi, decayed, total))
    inner.loop("tiles", body, tuple(carries), axis="c")
    pairs = zip(adjoints, last, carries, strict=True)
    b.loop("chunks", inner, tuple(Carry(p, i, c.phi) for p, i, c in pairs), reverse=True)
    for form, adjoint in zip(shape.forms, adjoints, strict=True):
        b.store(state_access(f"d_{form.state}", shape.state_axes(form)), adjoint)
    equations = ("R <- 2^G_C R + sum over the chunk's tiles of (2^G Q)^T dO",)
    axes = tiled_axes(shape, "loop", None, "grid")
    return Kernel("reverse", shape.grid, axes, tuple(b.statements), equations, "reverse_walk")


# --- gradients -------------------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """Amounts of events, added up over the forms: by decay, and whether a token's own event comes after its decay."""

    b: Builder
    amounts: dict[tuple[Straddle, bool], Value] = field(default_factory=dict)

    def add(self, straddle: Straddle, position: int, amount: Value) -> None:
        key = (straddle, position > straddle.position)
        known = self.amounts.get(key)
        self.amounts[key] = amount if known is None else self.b.add(known, amount, name=known.name)

    def store(self, part: str, rows: str) -> None:
        for (straddle, own_after), amount in self.amounts.items():
            self.b.store(token_access(straddle.buffer(part, own_after), (), rows), amount)


@dataclass
class Gradients:
    """What both gradient kernels need: the coefficients of a query tile and a key tile, one around the loop's body."""

    shape: Shape
    stored: Stored
    owner: str
    b: Builder = field(default_factory=Builder)
    carries: list[Carry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.body = self.b.nested()
        self.ends = load_ends(self.b, self.stored)
        builders = (self.b, self.body) if self.owner == "c" else (self.body, self.b)
        self.queries = RowTile(Tiles(builders[0]), self.stored, self.ends)
        self.keys = RowTile(Tiles(builders[1], rows_axis="s"), self.stored, self.ends)
        self.pairs = Pairs(self.body, self.queries, self.keys)

    def of(self, form: MatrixForm) -> list[Straddle]:
        family = self.stored.get(form.state)
        return [s for s in straddles(self.stored) if family is not None and s.family == family]

    def carry(self, name: str, start: Value) -> Value:
        phi = self.body.phi(name, start)
        self.carries.append(Carry(phi, start, phi))
        return phi

    def grow(self, phi: Value, amount: Value) -> None:
        """The carried value's next one grows by an amount."""
        at = next(i for i, c in enumerate(self.carries) if c.phi == phi)
        carry = self.carries[at]
        self.carries[at] = Carry(phi, carry.init, self.body.add(carry.next, amount, name=phi.name))

    def evidence(self, form: MatrixForm, cotangent: Value, v: Rows) -> Value:
        """E[c, s] = dO_c . v_s, without the rows' scales or the decay."""
        return self.pairs.products(cotangent, v.tile, form.value, "E")

    def unsigned(self, tile: RowTile, form: MatrixForm, vector: Vector, cotangent: Value) -> Value:
        """The cotangent of the vector's expression, from that of the rows with their sign."""
        return full(self.b, signed(self.b, tile.gates(form), vector.position, Rows(cotangent)))

    def store(self, cotangents: Cotangents, buffer_of: BufferOf, part: str) -> None:
        """The loop's registers are for its sums: what comes after it loads its rows again."""
        tiles = Tiles(self.b, rows_axis=self.owner)
        for source, tile in cotangents.pull(tiles, argument_leaves(cotangents.nodes)).items():
            store_partial(self.b, source, tile, self.owner, buffer_of(source, part, partial_over(source, self.owner)))

    def kernel(self, name: str, equations: tuple[str, ...]) -> Kernel:
        queries: Place = "grid" if self.owner == "c" else "loop"
        keys: Place = "loop" if self.owner == "c" else "grid"
        axes = tiled_axes(self.shape, queries, keys, "whole")
        return Kernel(
            name, ("batch", "head", "chunk", f"tile:{self.owner}"), axes, tuple(self.b.statements), equations, name
        )


def partial_over(source: Node, rows: str) -> str:
    """The axis of rows over whose tiles a source's gradient is left in partial sums: a parameter's."""
    return rows if source.attrs[0] == "param" else ""


def store_partial(b: Builder, source: Node, tile: Value, rows: str, buffer: str) -> None:
    """A tile's gradient of a source; of a parameter, the sum over the tile's rows."""
    if source.attrs[0] == "param":
        access = Access(buffer, ("batch", "chunk", "head", f"tile:{rows}", *source.dims))
        b.store(access, b.sum(tile, (rows,), name=tile.name), "one partial sum a tile")
    else:
        b.store(token_access(buffer, source.dims, rows), tile)


def before_access(straddle: Straddle, own_row_after: bool) -> Access:
    return Access(straddle.buffer("before", own_row_after), ("batch", "time", "head", "tile:s"), "c")


def emit_query_gradients(shape: Shape, stored: Stored, buffer_of: BufferOf) -> Kernel:
    """dQ of one tile, from the chunk's start and the key tiles up to its own; and what straddles by whole tiles."""
    g = Gradients(shape, stored, "c")
    b, body, pairs = g.b, g.body, g.pairs
    reads, crossings = Sums(b), Sums(body)
    cotangents, sums = Cotangents(), []
    for form in shape.forms:
        state = load_state(b, shape, form, form.state, f"chunk_{form.state}")
        writes = list(zip(g.keys.keys(form), g.keys.values(form), strict=True))
        for readout in form.readouts:
            q = g.queries.query(form, readout)
            cotangent = load_cotangent(b, shape, readout.name, "c")
            from_state = b.contract(cotangent, state, form.value, name="dO_S")
            inter = times(b, from_state, g.queries.factor(form, q.position, "start"), name="d_q")
            phi = g.carry("d_q", inter)
            for k, v in writes:
                scores = {x: pairs.scores(form, q, k, x.crossing) for x in g.of(form)}
                evidence, scale = g.evidence(form, cotangent, v), joint(body, v.scale, k.scale)
                weights = times(body, pairs.decayed(form, evidence, q.position, k.position), scale, name="E")
                g.grow(phi, body.contract(weights, k.tile, ("s",), name="intra"))
                for x, score in scores.items():
                    amount = body.mul(evidence, score, name="M")
                    row = body.sum(times(body, amount, scale), ("s",), name="M_rows")
                    crossings.add(x, q.position, times(body, row, q.scale))
            for x in g.of(form):
                read = times(b, from_state, g.queries.factor(form, q.position, "start", x.crossing), name="d_q")
                amount = b.sum(b.mul(full(b, q), read, name="read"), form.key, name="read")
                reads.add(x, q.position, amount)
            sums.append((form, q, phi))
    for (x, own_row_after), row in crossings.amounts.items():
        before = g.carry("before", b.zeros(("c",), name="before"))
        body.store(before_access(x, own_row_after), before, "what rows have of the writes in earlier tiles")
        g.grow(before, row)
    b.loop("tiles", body, tuple(g.carries), axis="s", last="c")
    for form, q, phi in sums:
        cotangents.add(q.node, g.unsigned(g.queries, form, q, phi))
    reads.store("read", "c")
    g.store(cotangents, buffer_of, "queries")
    return g.kernel("query_gradients", ("dQ_i = 2^G dO_i S^T + sum over j <= i of (dO_i V_j^T * D_ij) K_j",))


def emit_key_gradients(shape: Shape, stored: Stored, buffer_of: BufferOf) -> Kernel:
    """dK and dV of one tile, from the chunk's end and the query tiles from its own on; and what straddles in it."""
    g = Gradients(shape, stored, "s")
    b = g.b
    kept, crossings = Sums(b), Crossings(g)
    found = []
    for form in shape.forms:
        adjoint = load_state(b, shape, form, "R", f"chunk_R_{form.state}")
        queries = [(g.queries.query(form, r), load_cotangent(g.body, shape, r.name, "c")) for r in form.readouts]
        values = [w.value for w in form.writes if w.value is not None]
        for k, v, node in zip(g.keys.keys(form), g.keys.values(form), values, strict=True):
            remaining = g.keys.factor(form, k.position, "end")
            to_adjoint = b.contract(v.tile, adjoint, form.value, name="V_R")
            d_k = g.carry("d_k", times(b, to_adjoint, remaining, name="d_k"))
            d_v = g.carry("d_v", times(b, b.contract(k.tile, adjoint, form.key, name="K_R"), remaining, name="d_v"))
            for q, cotangent in queries:
                evidence = grow_key_side(g, form, q, k, cotangent, v, d_k, d_v)
                for x in g.of(form):
                    amount = g.body.mul(evidence, g.pairs.scores(form, q, k, x.crossing), name="M")
                    crossings.add(x, q, k, times(g.body, amount, joint(g.body, k.scale, v.scale), q.scale))
            for x in g.of(form):
                after = times(b, to_adjoint, g.keys.factor(form, k.position, "end", x.crossing), v.scale, name="after")
                kept.add(x, k.position, b.sum(b.mul(full(b, k), after, name="write"), form.key, name="write"))
            found.append((form, k, v, node, d_k, d_v))
    crossings.carry()
    b.loop("tiles", g.body, tuple(g.carries), axis="c", first="s")
    cotangents = Cotangents()
    for form, k, v, node, d_k, d_v in found:
        cotangents.add(k.node, g.unsigned(g.keys, form, k, times(b, d_k, v.scale)))
        cotangents.add(node, times(b, d_v, k.scale))
    kept.store("write", "s")
    crossings.store()
    g.store(cotangents, buffer_of, "keys")
    return g.kernel(
        "key_gradients",
        (
            "dK_j = 2^(G_C - G) V_j R^T + sum over i >= j of (dO_i V_j^T * D_ij)^T Q_i",
            "dV_j = 2^(G_C - G) K_j R + sum over i >= j of (Q_i K_j^T * D_ij)^T dO_i",
        ),
    )


def grow_key_side(
    g: Gradients, form: MatrixForm, q: Vector, k: Vector, cotangent: Value, v: Rows, d_k: Value, d_v: Value
) -> Value:
    """One query tile's part in dK and dV, without the keys' own scales; gives E."""
    body = g.body
    scores = times(body, g.pairs.scores(form, q, k), q.scale, name="P")
    evidence = g.evidence(form, cotangent, v)
    g.grow(d_v, body.contract(scores, cotangent, ("c",), name="intra"))
    weights = times(body, g.pairs.decayed(form, evidence, q.position, k.position), q.scale, name="E")
    g.grow(d_k, body.contract(weights, q.tile, ("c",), name="intra"))
    return evidence


@dataclass
class Crossings:
    """The pairs that straddle the decays of a key tile's tokens, added up over the query tiles."""

    g: Gradients
    amounts: dict[tuple[Straddle, bool, bool], Value] = field(default_factory=dict)
    totals: dict[Straddle, Value] = field(default_factory=dict)

    def add(self, x: Straddle, q: Vector, k: Vector, amount: Value) -> None:
        """M[c, s]; positions tell whether token t's own row and write come after its decay."""
        key = (x, q.position > x.position, k.position > x.position)
        known = self.amounts.get(key)
        self.amounts[key] = amount if known is None else self.g.body.add(known, amount, name="M")

    def carry(self) -> None:
        """sum over c >= t of (rows' part from earlier tiles + sum over s < t of M[c, s])."""
        body, entered = self.g.body, set()
        for (x, own_row_after, own_write_after), amount in self.amounts.items():
            running = body.cumsum(amount, "s", exclusive=own_write_after, name="written_before")
            if (x, own_row_after) not in entered:
                entered.add((x, own_row_after))
                before = body.load("before", before_access(x, own_row_after), ("c",))
                running = body.add(running, before, name="written_before")
            if x not in self.totals:
                self.totals[x] = self.g.carry("straddling", self.g.b.zeros(("s",), name="straddling"))
            seen = body.after("c", "s", 0 if own_row_after else 1)
            kept = body.where(seen, running, body.const(0.0, name="zero"), name="straddling")
            self.g.grow(self.totals[x], body.sum(kept, ("c",), name="straddling"))

    def store(self) -> None:
        for x, total in self.totals.items():
            self.g.b.store(token_access(x.buffer("straddle"), (), "s"), total)


# --- decays ----------------------------------------------------------------------------------------------------------


def emit_decay_gradients(shape: Shape, stored: Stored, buffer_of: BufferOf) -> Kernel:
    """Every log decay's cotangent, all chunks at once, from the parts that the gradient kernels left for each token."""
    b = Builder()
    ends = load_ends(b, stored)
    across = emit_across(b, shape, stored)
    found: dict[tuple[str, int], list[Value]] = {}
    for x in straddles(stored):
        over = whole_chunk(b, stored, ends, x.family.name, x.crossing)
        total = times(b, across[x.family.name], over, name="across")
        total = b.add(load_part(b, x, "straddle"), total, name="d_log")
        for after in own_afters(shape, stored, x, Readout):
            row = Row(load_part(b, x, "read", after), 1 if after else -1)
            total = b.add(total, later_sum(b, row, 0), name="d_log")
        for after in own_afters(shape, stored, x, Write):
            row = Row(load_part(b, x, "write", after), 1 if after else -1)
            total = b.add(total, earlier_sum(b, row, 0), name="d_log")
        found.setdefault((x.family.name, x.position), []).append(total)
    cotangents = Cotangents()
    for x in straddles(stored):
        if not x.crossing:
            add_decay(cotangents, b, x.decay, *decay_parts(found[x.family.name, x.position]))
    for source, tile in cotangents.pull(Tiles(b), argument_leaves(cotangents.nodes)).items():
        store_gradient(b, source, tile, buffer_of(source, "decays", ""))
    axes = tiled_axes(shape, "whole", None, "loop")
    equations = ("dg_t = M summed over the pairs around t + reads after t + writes before t + 2^G_C <S, R>",)
    return Kernel(
        "decay_gradients", ("batch", "head", "chunk"), axes, tuple(b.statements), equations, "decay_gradients"
    )


def decay_parts(totals: list[Value]) -> tuple[Value, tuple[str, ...], Value | None]:
    return totals[0], (), totals[1] if len(totals) > 1 else None


def load_part(b: Builder, x: Straddle, part: str, own_after: bool = True) -> Value:
    return b.load(part, token_access(x.buffer(part, own_after), ()), ("c",))


def own_afters(shape: Shape, stored: Stored, x: Straddle, kind: type[Readout] | type[Write]) -> list[bool]:
    """Whether a token's own event comes after its decay, for the events of a kind in the family's forms."""
    forms = [f for f in shape.forms if stored.get(f.state) == x.family]
    positions = {i for f in forms for i, e in enumerate(f.events) if isinstance(e, kind)}
    return sorted({i > x.position for i in positions})


def emit_across(b: Builder, shape: Shape, stored: Stored) -> dict[str, Value]:
    """<S_0, R> by family, summed over its forms, tile by tile of the value dims."""
    body = b.nested()
    inside, outside = Sums(body), Sums(b)
    families = {x.family.name: x for x in straddles(stored)}
    for form in shape.forms:
        x = families.get(stored[form.state].name) if form.state in stored else None
        if x is not None:
            part, sums = (body, inside) if form.value else (b, outside)
            state = load_state(part, shape, form, form.state, f"chunk_{form.state}")
            adjoint = load_state(part, shape, form, "R", f"chunk_R_{form.state}")
            sums.add(x, 0, part.sum(part.mul(state, adjoint, name="S_R"), form.key + form.value, name="S_R"))
    found = {x.family.name: amount for (x, _), amount in outside.amounts.items()}
    carries = []
    for (x, _), amount in inside.amounts.items():
        start = found.get(x.family.name) or b.zeros((), name="S_R")
        phi = body.phi("S_R", start)
        carries.append(Carry(phi, start, body.add(phi, amount, name="S_R")))
        found[x.family.name] = phi
    if shape.value:
        b.loop("tiles", body, tuple(carries), axis=shape.value[0])
    return found


# --- the epilogue ----------------------------------------------------------------------------------------------------


def emit_tiled_epilogue_gradient(shape: Shape, buffer_of: BufferOf) -> Kernel:
    """The results' cotangents pulled back to inner readouts, and to the inputs that the epilogue reads itself."""

    def store(b: Builder, source: Node, tile: Value, buffer: str) -> None:
        store_partial(b, source, tile, "c", buffer)

    kernel = emit_epilogue_gradient(
        shape, lambda source, part: buffer_of(source, part, partial_over(source, "c")), store
    )
    axes = tiled_axes(shape, "grid", None, "whole")
    return replace(kernel, grid=(*kernel.grid, "tile:c"), axes=axes)

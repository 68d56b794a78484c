"""Matrix states, chunk by chunk: inside a chunk everything is matrix products, between chunks only the state passes.

Four schedules: passes for states that are not read, under scalar decays (families.py); a stored key side under decays
over the key dims (key_side.py); states of every chunk in memory under decays over the value dims (kept,
value_decays.py); everything computed where it is needed for the rest. Kernels in order, each for all chunks at once
unless it walks:

forward     rows             vectors and gates that no kernel shall work out twice (passes, stored, and rows that
                             mix their entries before a walk over a whole sequence; rows_kept.py)
            gates            running sums of scalar decays (computed)
            weights          what decays and the factors of vectors come to (passes; weights.py)
            prepare          Tm = (I + L)^{-1} and the pairs outside the system (computed, where states are read)
            key_side,        every chunk's decayed vectors and pairs (stored); then Tm from L where states are read
            inverse
            local, starts    the state at every segment's start (where it is not read, and several segments run)
            vector_forward   walks with the states that are vectors (passes)
            forward          walks with a tile of S in registers: pseudo-values, readouts, epilogue, next state
            states, outputs  walks leaving S at every chunk's start; readouts and epilogue (value decays)
backward    epilogue         cotangents of the readouts (only where results are more than readouts)
            reverse_local,   R at every segment's end, as forward
            reverse_starts
  passes    vector_reverse   walks back with the vectors' R
            query, value, key, gate gradients: three walks and a sum; see passes.py
  others    reverse          walks back, leaving R at every chunk's end, and Z
            gradients        every coefficient's cotangent, pulled back to the inputs: in one kernel (for writes that
                             have read the state, in tiles of the key dims: solved_gradients.py), or in two with E in
                             memory between them, value_gradients first (stored; key_gradients.py)
  all       rows_gradient    the cotangents of kept rows, pulled back to the inputs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from recur.ir.core import Node, leaves
from recur.ir.normal import Decay, MatrixForm, NormalForm, Readout, Write
from recur.ir.plan import Contribution, Cost, Gradient, Plan, Reject
from recur.ir.tile import Buffer, Kernel
from recur.strategies.chunk import value_decay_gradients
from recur.strategies.chunk.families import (
    holds_whole,
    prepare_passes,
    sum_buffers,
    takes_passes,
    vector_part,
    write_tiles,
)
from recur.strategies.chunk.gates_kernel import emit_gates_kernel
from recur.strategies.chunk.gradients import (
    ADJOINT_EQUATION,
    ROWS,
    BufferOf,
    adjoint_name,
    begin_adjoints,
    emit_epilogue_gradient,
    emit_gradients,
    emit_reverse_walk,
)
from recur.strategies.chunk.interleave import infer_steps, interleave
from recur.strategies.chunk.kept_scales import scale_buffers
from recur.strategies.chunk.kernels import (
    STATE_EQUATION,
    ChunkOf,
    begin_states,
    computed_chunk,
    emit_prepare,
    emit_states,
    emit_walk,
    fit_chunk,
    fit_walk,
    fit_whole,
    inverse_name,
    values_name,
)
from recur.strategies.chunk.key_gradients import emit_key_gradients, emit_value_gradients, part_buffers
from recur.strategies.chunk.key_side import (
    emit_inverse,
    emit_key_side,
    has_stored_key_side,
    key_side_buffers,
    stored_chunk,
    stored_chunk_length,
    system_buffers,
)
from recur.strategies.chunk.pairs import evidence_buffers, pair_buffers, paired_chunk
from recur.strategies.chunk.passes import (
    emit_key_pass,
    emit_query_pass,
    emit_value_pass,
    emit_write_pass,
    has_rests_at_hand,
    query_width,
)
from recur.strategies.chunk.rows_kept import KeptRows, emit_rows, emit_rows_gradient, keep_rows
from recur.strategies.chunk.scales import split_scale
from recur.strategies.chunk.segments import emit_local, emit_starts, walks
from recur.strategies.chunk.shape import Shape, event_nodes, infer_shape, key_side_nodes, solved_writes, tiled_values
from recur.strategies.chunk.solved_gradients import emit_solved_gradients, takes_solved_gradients
from recur.strategies.chunk.stored_gates import distinct, scalar_gates
from recur.strategies.chunk.value_decays import emit_outputs, has_value_decays
from recur.strategies.chunk.vector_sums import emit_vector_sums
from recur.strategies.chunk.weights import emit_weights, infer_weights, weight_buffers, weighted_chunk
from recur.strategies.chunk.worths import emit_gate_pass, has_gates, worth_buffers
from recur.strategies.operands import argument_buffer, argument_leaves, entries, tensor_name
from recur.strategies.order import order_kernel
from recur.strategies.prune import prune_kernel

NAME = "chunkwise"

CHUNK = 64  # tokens a chunk
WIDE_CHUNK = 32  # of float32, where one kernel has all gradients of a chunk: with 64 it needs 270 KB at head dims of 64
TWO_READS_CHUNK = 32  # where they are solved together and have gradients of their own (see solved_gradients)
SHORT_CHUNK = 16  # where a decay runs over dims whose pairs are evaluated one by one, for two reads, and fused dims
KEY_ENTRIES = 64 * 512  # of a chunk's vectors along the key dim, beside whose gradients eight warps have room


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Plan | Reject:
    shape = infer_shape(normal, sizes)
    if isinstance(shape, Reject):
        return shape
    shape = prepare_passes(shape) if takes_passes(shape) else shape
    ledger, steps = Ledger(), infer_steps(shape)
    if steps is None:
        return plan_chunks(normal, shape, ledger)
    single = plan_chunks(normal, steps.shape, ledger)
    return interleave(replace(single, cost=modelled_cost(shape, single.chunk or CHUNK)), steps, ledger.entries)


def plan_chunks(normal: NormalForm, shape: Shape, ledger: Ledger) -> Plan:
    """The plan of a stage in chunks of rows; a token has one of them."""
    schedule = schedule_for(shape)
    forward, backward, with_rows, kept = schedule(shape, ledger)
    arguments = ordered_arguments(shape)
    return Plan(
        stage=normal.stage.name,
        strategy="chunkwise",
        arguments=tuple(argument_buffer(x) for x in arguments),
        initial=tuple(state_buffer(shape, f, f.state) for f in shape.forms),
        results=tuple(
            Buffer(name, ("B", "T", "H", *node.dims), "operand", node.is_complex) for name, node in shape.epilogue
        ),
        final=tuple(state_buffer(shape, f, f"final_{f.state}") for f in shape.forms),
        saved=saved_buffers(with_rows) + tuple(k.buffer for k in kept),
        workspace=workspace_buffers(with_rows) + tuple(k.gradient for k in kept) + ledger.buffers(arguments),
        forward=tuple(order_kernel(prune_kernel(k)) for k in forward),
        backward=tuple(order_kernel(prune_kernel(k)) for k in backward),
        gradients=ledger.lines(arguments) + initial_lines(shape),
        cost=modelled_cost(shape, chunk_length(shape)),
        chunk=chunk_length(shape),
        wide_chunk=WIDE_CHUNK if has_all_gradients_in_one(shape) else None,
        fixed_sizes=shape.fixed_sizes,
        fused=shape.fused,
        folded=shape.folded,
        views=shape.views,
        limits=shape.limits,
    )


def has_all_gradients_in_one(shape: Shape) -> bool:
    """Whether one kernel has all gradients of a chunk: then it holds more tiles than any other."""
    if shape.pass_forms:
        return write_tiles(shape) > 0
    return schedule_for(shape) is computed_schedule and takes_solved_gradients(shape)


# Forward, backward, the stage with rows that both have as leaves, and those rows.
Schedule = tuple[list[Kernel], list[Kernel], Shape, tuple[KeptRows, ...]]


def schedule_for(shape: Shape) -> Callable[[Shape, Ledger], Schedule]:
    if shape.pass_forms:
        return pass_schedule
    if has_stored_key_side(shape):
        return stored_schedule
    return value_decay_schedule if has_value_decays(shape) else computed_schedule


def computed_schedule(user_shape: Shape, ledger: Ledger) -> Schedule:
    """Every kernel works out from the inputs what it needs of a chunk's key side; but where one program walks over a
    whole sequence, its steps are a chain, and rows that mix their entries (l2norm) are worked out before it."""
    shape, kept = (user_shape, ()) if user_shape.splits else keep_rows(user_shape)
    gates, buffer_of = scalar_gates(shape), gradient_buffers(kept, ledger)
    forward = [emit_rows(user_shape, kept)] if kept else []
    forward += [emit_gates_kernel(shape, gates)] if gates else []
    chunk_of = computed_chunk if shape.splits else paired_chunk
    forward += [] if shape.splits else [emit_prepare(shape)]
    forward += starting_kernels(shape, chunk_of, adjoint=False)
    forward.append(fit_walk(shape, emit_walk(shape, chunk_of)))
    backward = [emit_epilogue_gradient(shape, ledger.buffer_of)] if shape.rests else []
    backward += starting_kernels(shape, chunk_of, adjoint=True)
    backward.append(fit_walk(shape, emit_reverse_walk(shape, chunk_of)))
    if takes_solved_gradients(shape):
        backward.append(emit_solved_gradients(shape, buffer_of, chunk_length(shape)))
    else:
        backward.append(emit_gradients(shape, buffer_of))
    backward += [emit_rows_gradient(user_shape, kept, ledger.buffer_of)] if kept else []
    return forward, backward, shape, kept


def value_decay_schedule(shape: Shape, ledger: Ledger) -> Schedule:
    """Walks leave the states of every chunk in memory; readouts and gradients, all chunks at once, start from those."""
    tiled, gates = tiled_values(shape), scalar_gates(shape)
    forward = [emit_gates_kernel(shape, gates)] if gates else []
    forward += fit_first(tiled, starting_kernels(tiled, computed_chunk, adjoint=False))
    forward.append(fit_walk(tiled, emit_states(tiled, computed_chunk)))
    forward.append(fit_chunk(shape, emit_outputs(shape)))
    backward = [emit_epilogue_gradient(shape, ledger.buffer_of)] if shape.rests else []
    backward += fit_first(tiled, starting_kernels(tiled, computed_chunk, adjoint=True))
    backward.append(fit_walk(tiled, emit_reverse_walk(tiled, computed_chunk)))
    backward.append(fit_chunk(tiled, value_decay_gradients.emit_value_gradients(tiled, ledger.buffer_of)))
    backward.append(value_decay_gradients.emit_key_gradients(tiled, ledger.buffer_of))
    return forward, backward, shape, ()


def fit_first(shape: Shape, kernels: list[Kernel]) -> list[Kernel]:
    """The walk that finds the segments' states as the others, where there is one."""
    return [fit_walk(shape, kernels[0]), *kernels[1:]] if kernels else []


def pass_schedule(user_shape: Shape, ledger: Ledger) -> Schedule:
    """Walks over tiles of the state, forward and backward."""
    whole, kept = keep_rows(user_shape)
    shape = tiled_values(whole)
    chunk_of, buffer_of = partial(weighted_chunk, shape), gradient_buffers(kept, ledger)
    has_vectors = bool(vector_part(shape).forms)
    forward = [emit_rows(user_shape, kept)] if kept else []
    forward += [emit_weights(shape)] if any(infer_weights(shape)) else []
    forward += [emit_vector_sums(shape, adjoint=False)] if has_vectors else []
    forward += starting_kernels(shape, chunk_of, adjoint=False)
    forward.append(fit_walk(whole, emit_walk(whole, chunk_of)))
    backward = [emit_epilogue_gradient(shape, ledger.buffer_of)] if not has_rests_at_hand(shape) else []
    backward += [emit_vector_sums(shape, adjoint=True)] if has_vectors else []
    backward += starting_kernels(shape, chunk_of, adjoint=True)
    backward.append(emit_query_pass(shape, buffer_of))
    writes = (emit_write_pass,) if write_tiles(shape) else (emit_value_pass, emit_key_pass)
    backward += [emit(shape, buffer_of) for emit in writes]
    backward += [emit_gate_pass(shape, buffer_of, query_width(shape))] if has_gates(shape) else []
    backward += [emit_rows_gradient(user_shape, kept, ledger.buffer_of)] if kept else []
    return forward, backward, whole, kept


def stored_schedule(user_shape: Shape, ledger: Ledger) -> Schedule:
    """The key side of every chunk goes to memory first; the other kernels have plain products to do."""
    shape, kept = keep_rows(user_shape)
    buffer_of = gradient_buffers(kept, ledger)
    forward = [emit_rows(user_shape, kept)] if kept else []
    forward += [emit_key_side(shape), *([] if shape.splits else [emit_inverse(shape)])]
    forward += starting_kernels(shape, stored_chunk, adjoint=False)
    forward.append(fit_walk(shape, emit_walk(shape, stored_chunk)))
    backward = [emit_epilogue_gradient(shape, ledger.buffer_of)] if shape.rests else []
    backward += starting_kernels(shape, stored_chunk, adjoint=True)
    backward.append(fit_walk(shape, emit_reverse_walk(shape, stored_chunk)))
    backward += [emit_value_gradients(shape, buffer_of), emit_key_gradients(shape, buffer_of)]
    backward += [emit_rows_gradient(user_shape, kept, ledger.buffer_of)] if kept else []
    return forward, backward, shape, kept


def gradient_buffers(kept: tuple[KeptRows, ...], ledger: Ledger) -> BufferOf:
    """Where kernels put gradients: those of kept rows in tensors of their own."""
    symbols = {k.symbol: k.gradient.name for k in kept}

    def buffer_of(source: Node, part: str, tiles: str = "") -> str:
        return symbols[source] if source in symbols else ledger.buffer_of(source, part, tiles)

    return buffer_of


def starting_kernels(shape: Shape, chunk_of: ChunkOf, adjoint: bool) -> list[Kernel]:
    """What gives every segment the state that its walk starts from."""
    if not shape.splits:
        return []
    begin, equation = (begin_adjoints, ADJOINT_EQUATION) if adjoint else (begin_states, STATE_EQUATION)
    local = emit_local(shape, adjoint, partial(begin, shape, chunk_of), equation)
    local = fit_whole(shape, local) if shape.pass_forms and holds_whole(shape) else local
    return [local, emit_starts(shape, adjoint)]


def ordered_arguments(shape: Shape) -> list[Node]:
    """The stage's tensors, the user's vectors first: the first one's type is what the matrix units take.

    Gates come after vectors: they may well be float32 beside vectors in bfloat16.
    """
    vectors = [n for f in shape.forms for e in f.events if not isinstance(e, Decay) for n in event_nodes(e)]
    in_products = set(leaves(vectors))
    arguments = argument_leaves(shape.nodes)
    return sorted(arguments, key=lambda x: (x.attrs[0] != "input", not x.dims, x not in in_products))


def chunk_length(shape: Shape) -> int:
    if has_stored_key_side(shape):
        return stored_chunk_length(shape)
    over_dims = not has_value_decays(shape) and any(d.factor.dims for f in shape.forms for d in f.decays)
    reads = max(len(f.reads) for f in shape.forms)
    if over_dims or reads > 2 or shape.fused or not shape.value or CHUNK * key_entries(shape) > KEY_ENTRIES:
        return SHORT_CHUNK
    if reads == 2:
        return TWO_READS_CHUNK if takes_solved_gradients(shape) else SHORT_CHUNK
    return CHUNK


def key_entries(shape: Shape) -> int:
    """What a token has along the key dims: an entry for every tensor in each distinct read, key and query."""
    sizes = dict(shape.sizes)
    keys = set(shape.key)
    events = [(f, e) for f in shape.forms for e in f.events if not isinstance(e, Decay)]
    vectors = {split_scale(n)[1] for f, e in events for n in key_side_nodes(f, e)}
    tensors = [x for n in vectors for x in leaves([n]) if keys & set(x.dims)]
    return sum(entries(tuple(d for d in x.dims if d in keys), sizes) for x in tensors)


def state_buffer(shape: Shape, form: MatrixForm, name: str) -> Buffer:
    return Buffer(name, ("B", "H", *shape.state_axes(form)), is_complex=form.is_complex)


def saved_buffers(shape: Shape) -> tuple[Buffer, ...]:
    buffers = [w.start_buffer for w in walks(shape)] if shape.pass_forms else []
    buffers += [] if shape.pass_forms else [b for family in distinct(scalar_gates(shape)) for b in family.buffers]
    buffers += weight_buffers(shape)
    buffers += sum_buffers(shape, Write) if shape.pass_forms else []
    buffers += [] if shape.pass_forms else [kept_states(shape, f) for f in shape.forms]
    if has_stored_key_side(shape):
        buffers += key_side_buffers(shape)
    elif not shape.splits:
        buffers += [b for form in shape.forms for b in pair_buffers(form)]
    buffers += scale_buffers(shape)
    for form in shape.forms:
        solved = solved_writes(form)
        for i in solved:
            buffers += [Buffer(inverse_name(form.state, i, j), ("B", "T", "H", "C"), "operand") for j in solved]
        buffers += [Buffer(values_name(form.state, j), ("B", "T", "H", *form.value), "operand") for j in solved]
    buffers += [
        Buffer(str(x.attrs[1]), ("B", "T", "H", *x.dims), readout_type(shape, x), x.is_complex)
        for x in shape.inner_readouts
    ]
    return tuple(buffers)


def kept_states(shape: Shape, form: MatrixForm) -> Buffer:
    """S at every chunk's start."""
    axes, dtype = shape.state_axes(form), "operand" if form.value else "accumulate"
    return Buffer(f"chunk_{form.state}", ("B", "N", "H", *axes), dtype, form.is_complex, "S at every chunk's start")


def readout_type(shape: Shape, readout: Node) -> str:
    """What of a readout goes to memory: an operand of products backward, unless it is a number a token."""
    return "operand" if shape.pass_forms and readout.dims else "accumulate"


def cotangent_type(shape: Shape, readout: Node) -> str:
    """The same of a readout's cotangent, which the softer conditions of a product suit where it is used in no other."""
    return "operand" if readout.dims and has_value_decays(shape) else readout_type(shape, readout)


def workspace_buffers(shape: Shape) -> tuple[Buffer, ...]:
    buffers = [b for a in (False, True) for w in walks(shape, a) for b in w.buffers] if shape.splits else []
    buffers += [b for w in walks(shape, adjoint=True) for b in (w.start_buffer, w.end_buffer)] if shape.splits else []
    buffers += [w.end_buffer for w in walks(shape)] if shape.splits else []
    buffers += [w.start_buffer for w in walks(shape)] if shape.splits and not shape.pass_forms else []
    buffers += [*sum_buffers(shape, Readout), *worth_buffers(shape)] if shape.pass_forms else []
    buffers += system_buffers(shape) if has_stored_key_side(shape) else []
    buffers += evidence_buffers(shape) if has_stored_key_side(shape) or takes_solved_gradients(shape) else []
    buffers += part_buffers(shape) if has_stored_key_side(shape) else []
    for form in shape.forms:
        if not shape.pass_forms:
            states = kept_states(shape, form)
            buffers.append(replace(states, name=f"chunk_R_{form.state}", doc="its adjoint at every chunk's end"))
        buffers.append(state_buffer(shape, form, f"d_{form.state}"))
        for j in solved_writes(form):
            buffers.append(Buffer(adjoint_name(form.state, j), ("B", "T", "H", *form.value), "operand"))
    buffers += [
        Buffer(f"d_{x.attrs[1]}", ("B", "T", "H", *x.dims), cotangent_type(shape, x), x.is_complex)
        for x in shape.inner_readouts
    ]
    return tuple(buffers)


def initial_lines(shape: Shape) -> tuple[Gradient, ...]:
    return tuple(Gradient(f.state, (Contribution(f"d_{f.state}"),)) for f in shape.forms)


@dataclass
class Ledger:
    """The cotangent ledger while kernels are emitted: which buffers make up each argument's gradient, in order.

    ``tiles``: where a buffer has a partial sum for every tile of an axis, that axis; for every token, ROWS.
    """

    entries: dict[Node, list[str]] = field(default_factory=dict)
    tiles: dict[str, str] = field(default_factory=dict)

    def buffer_of(self, source: Node, part: str, tiles: str = "") -> str:
        names = self.entries.setdefault(source, [])
        names.append(f"d_{tensor_name(source)}" if not names else f"d_{tensor_name(source)}_{part}")
        if tiles:
            self.tiles[names[-1]] = tiles
        return names[-1]

    def partial(self, name: str) -> tuple[str, ...]:
        """The layout's axis of a buffer's tiles."""
        tiles = self.tiles.get(name)
        return () if tiles in (None, ROWS) else (f"tiles:{tiles}",)

    def summed(self, x: Node, name: str) -> tuple[str, ...]:
        """The layout's axes along which a param's gradient has partial sums."""
        if x.attrs[0] != "param":
            return ()
        return ("B", "T") if self.tiles.get(name) == ROWS else ("B", "N")

    def buffers(self, arguments: list[Node]) -> tuple[Buffer, ...]:
        result = []
        for x in arguments:
            names = self.entries.get(x, [])
            alone = len(names) == 1 and not self.summed(x, names[0]) and not self.partial(names[0])
            dtype = f"input:{tensor_name(x)}" if alone else "accumulate"
            for name in names:
                lead = (*(self.summed(x, name) or ("B", "T")), "H", *self.partial(name))
                result.append(Buffer(name, (*lead, *x.dims), dtype, x.is_complex))
        return tuple(result)

    def lines(self, arguments: list[Node]) -> tuple[Gradient, ...]:
        def line(x: Node) -> Gradient:
            names = self.entries.get(x, [])
            parts = tuple(Contribution(n, (*self.summed(x, n), *self.partial(n))) for n in names)
            return Gradient(tensor_name(x), parts)

        return tuple(line(x) for x in arguments if x in self.entries)


def modelled_cost(shape: Shape, chunk: int) -> Cost:
    """Per token and head, forward: products of the chunk equations, and each tensor once."""
    sizes = dict(shape.sizes)
    flops = 0.0
    for form in shape.forms:
        k = entries(form.key, sizes)
        v = entries(form.value, sizes)
        rows = len(form.writes) + len(form.reads) + len(form.readouts)
        flops += rows * (2 * k * v + chunk * (k + v)) + len(form.reads) ** 2 * chunk * chunk
    tensors = {x for x in leaves(shape.nodes) if x.attrs[0] != "readout"}
    words = sum(entries(x.dims, sizes) for x in tensors) + sum(entries(n.dims, sizes) for _, n in shape.epilogue)
    return Cost(flops, 2.0 * words, 1 + any(f.reads for f in shape.forms), "T/C")

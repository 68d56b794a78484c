"""Matrix states in long chunks, tile by tile: tiled flash linear attention (arXiv 2503.14376).

States go to memory once every L tokens, not at every tile of R rows; inside a chunk the outputs are quadratic in L,
over tiles of query rows and key rows. Against `chunkwise`, L / R times fewer state bytes, and more arithmetic.

forward     gates               decays counted from each chunk's end, where there are any
            states              walks the tiles with S in registers, leaving S at every chunk's start
            outputs             all query tiles at once: readouts, epilogue
backward    epilogue_gradient   cotangents of the readouts (only where results are more than readouts)
            reverse             walks back, leaving R at every chunk's end
            query_gradients, key_gradients      all tiles at once
            decay_gradients     all chunks at once, from what the two before leave for each token
"""

from __future__ import annotations

import math

from recur.ir.core import leaves
from recur.ir.normal import MatrixForm, NormalForm, Readout, Write
from recur.ir.plan import Cost, Plan, Reject
from recur.ir.tile import Buffer
from recur.strategies.chunk.gates import decay_class
from recur.strategies.chunk.gates_kernel import emit_gates_kernel
from recur.strategies.chunk.shape import Shape, infer_shape
from recur.strategies.chunk.stored_gates import distinct, stored_gates
from recur.strategies.chunk.tiled_backward import (
    emit_decay_gradients,
    emit_key_gradients,
    emit_query_gradients,
    emit_tiled_epilogue_gradient,
    emit_tiled_reverse,
    own_afters,
    straddles,
)
from recur.strategies.chunk.tiled_forward import Stored, emit_outputs, emit_tiled_states
from recur.strategies.chunkwise import Ledger, initial_lines, ordered_arguments, state_buffer
from recur.strategies.operands import argument_buffer
from recur.strategies.prune import prune_kernel

NAME = "tiled"

CHUNK = 256  # tokens between the states that go to memory
ROWS = 32  # tokens a step of the walk takes


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Plan | Reject:
    shape = infer_shape(normal, sizes)
    if isinstance(shape, Reject):
        return shape
    reason = next((r for f in shape.forms for r in [_reason_against(f)] if r is not None), None)
    if reason is not None:
        return Reject(reason)
    stored, ledger = stored_gates(shape), Ledger()
    forward = [emit_gates_kernel(shape, stored)] if stored else []
    forward += [emit_tiled_states(shape, stored), emit_outputs(shape, stored)]
    backward = [emit_tiled_epilogue_gradient(shape, ledger.buffer_of)] if shape.rests else []
    backward.append(emit_tiled_reverse(shape, stored))
    backward.append(emit_query_gradients(shape, stored, ledger.buffer_of))
    backward.append(emit_key_gradients(shape, stored, ledger.buffer_of))
    if straddles(stored):
        backward.append(emit_decay_gradients(shape, stored, ledger.buffer_of))
    arguments = ordered_arguments(shape)
    return Plan(
        stage=normal.stage.name,
        strategy="tiled",
        arguments=tuple(argument_buffer(x) for x in arguments),
        initial=tuple(state_buffer(shape, f, f.state) for f in shape.forms),
        results=tuple(Buffer(name, ("B", "T", "H", *node.dims), "operand") for name, node in shape.epilogue),
        final=tuple(state_buffer(shape, f, f"final_{f.state}") for f in shape.forms),
        saved=saved_buffers(shape, stored),
        workspace=workspace_buffers(shape, stored) + ledger.buffers(arguments),
        forward=tuple(prune_kernel(k) for k in forward),
        backward=tuple(prune_kernel(k) for k in backward),
        gradients=ledger.lines(arguments) + initial_lines(shape),
        cost=modelled_cost(shape, stored),
        chunk=CHUNK,
        fixed_sizes=shape.fixed_sizes,
        fused=shape.fused,
        folded=shape.folded,
        views=shape.views,
        limits=shape.limits,
    )


def _reason_against(form: MatrixForm) -> str | None:
    if form.reads:
        return f"state {form.state} is read by its own update, which long chunks cannot solve tile by tile"
    if form.is_complex or any(d.angle is not None for d in form.decays):
        return f"state {form.state} is complex; tiles hold real states"
    if any(d.factor.dims or decay_class(form, d) != "key" for d in form.decays):
        return f"a decay of {form.state} runs over a dimension; over long chunks it has to be one number a token"
    if any(r.axis == "value" for r in form.readouts):
        return f"a readout of {form.state} contracts its value dimension"
    return None


def chunk_states(shape: Shape, name: str, doc: str) -> tuple[Buffer, ...]:
    return tuple(
        Buffer(f"{name}_{f.state}", ("B", "N", "H", *shape.state_axes(f)), "operand", doc=doc) for f in shape.forms
    )


def saved_buffers(shape: Shape, stored: Stored) -> tuple[Buffer, ...]:
    gates = tuple(b for family in distinct(stored) for b in family.buffers)
    kept = tuple(Buffer(str(x.attrs[1]), ("B", "T", "H", *x.dims)) for x in shape.inner_readouts)
    return (*gates, *chunk_states(shape, "chunk", "S at every chunk's start"), *kept)


def workspace_buffers(shape: Shape, stored: Stored) -> tuple[Buffer, ...]:
    buffers = list(chunk_states(shape, "chunk_R", "its adjoint at every chunk's end"))
    buffers += [state_buffer(shape, f, f"d_{f.state}") for f in shape.forms]
    buffers += [Buffer(f"d_{x.attrs[1]}", ("B", "T", "H", *x.dims)) for x in shape.inner_readouts]
    for x in straddles(stored):
        buffers.append(Buffer(x.buffer("straddle"), ("B", "T", "H"), doc="pairs around a token, within its tiles"))
        for after in own_afters(shape, stored, x, Readout):
            buffers.append(Buffer(x.buffer("read", after), ("B", "T", "H"), doc="reads of the chunk's start"))
            buffers.append(
                Buffer(x.buffer("before", after), ("B", "T", "H", "tiles:s"), doc="pairs with earlier tiles")
            )
        for after in own_afters(shape, stored, x, Write):
            buffers.append(Buffer(x.buffer("write", after), ("B", "T", "H"), doc="writes that outlive the chunk"))
    return tuple(buffers)


def modelled_cost(shape: Shape, stored: Stored) -> Cost:
    """Per token and head, forward: half of a chunk's pairs, each tensor once and the states' operands twice, states."""
    sizes = dict(shape.sizes)

    def volume(dims: tuple[str, ...]) -> int:
        return math.prod(sizes[d] for d in dims)

    flops = words = 0.0
    for form in shape.forms:
        key, value = volume(form.key), volume(form.value)
        flops += (len(form.writes) + len(form.readouts)) * (2 * key * value + CHUNK / 2 * (key + value))
        words += 2 * key * value / CHUNK + len(form.writes) * (key + value)
    tensors = {x for x in leaves(shape.nodes) if x.attrs[0] != "readout"}
    words += sum(volume(x.dims) for x in tensors) + sum(volume(n.dims) for _, n in shape.epilogue)
    return Cost(flops, 2.0 * words, 2 + bool(stored), f"T / {ROWS}")

"""Several like steps a token, as products of Householder factors have: their rows interleaved, one step a row.

With n steps a token, S <- S + b_j (y_j - a_j^T S) for j = 0 .. n - 1, the rows r = n t + j of a chunk are those of a
recurrence with one step: the equations of a chunk hold as they stand, with one triangular system of all rows. What a
token has once stands on one of its rows: what comes before the steps, such as its decay, on the first, what comes after
them, such as its query, on the last. Its other rows read as zeros there, and leave nothing in memory.

A chunk holds as many tokens as it has room for: of 64 rows, 21 tokens with three steps, and one row stays empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from recur.ir.core import Node, leaf, substitute, topological
from recur.ir.normal import Decay, Event, MatrixForm, Read, Readout, Write, map_event
from recur.ir.plan import Plan
from recur.ir.tile import Access, Buffer, Kernel, Let, Loop, Statement, Store, Value
from recur.strategies.chunk.adjoint import queries_of
from recur.strategies.chunk.gates import is_plain_factor
from recur.strategies.chunk.pairs import evidence_name, pairs_name, stored_pairs
from recur.strategies.chunk.shape import Shape, event_nodes
from recur.strategies.operands import argument_leaves, tensor_name


@dataclass(frozen=True)
class Steps:
    """The steps of a stage's tokens, counted by the dim ``dim``. ``shape``: the stage with one of them a token.

    ``places``: of every tensor with an entry for each step, the place of that dim among its dims. ``rows``: of every
    other tensor, the number of the row on which it stands.
    """

    dim: str
    count: int
    shape: Shape
    places: dict[str, int]
    rows: dict[str, int]


@dataclass(frozen=True)
class Parts:
    """A form's events before the steps, those of one step, and those after."""

    before: tuple[Event, ...]
    step: tuple[Event, ...]
    after: tuple[Event, ...]


def infer_steps(shape: Shape) -> Steps | None:
    """The steps of a stage whose tokens take several like ones along one dim of fixed size; else None."""
    nodes = [n for f in shape.forms for e in f.events for n in event_nodes(e)]
    dims = {str(n.attrs[0]) for n in topological(nodes) if n.op == "index"}
    if len(dims) != 1 or shape.splits or shape.fused or shape.folded or not all(map(_is_plain, shape.forms)):
        return None
    (dim,) = dims
    count = dict(shape.sizes)[dim]
    parts = [_split(form, dim, count) for form in shape.forms]
    if not all(parts):
        return None
    found = [p for p in parts if p is not None]
    forms = tuple(
        replace(f, events=p.before + p.step + p.after) for f, p in zip(shape.forms, found, strict=True)
    )
    stepped = {tensor_name(x) for p in found for x in _tensors(p.step)}
    first = {tensor_name(x) for p in found for x in _tensors(p.before)}
    last = {tensor_name(x) for p in found for x in _tensors(p.after)}
    readouts_first = any(isinstance(e, Readout) for p in found for e in p.before)
    readouts_last = any(isinstance(e, Readout) for p in found for e in p.after)
    others = argument_leaves([n for _, n in shape.epilogue])
    (first if readouts_first else last).update(tensor_name(x) for x in others)
    overlap = stepped & first or stepped & last or first & last
    if overlap or (readouts_first and readouts_last) or any(dim in x.dims for x in others):
        return None
    own = {tensor_name(x): x.dims.index(dim) for x in argument_leaves(nodes) if dim in x.dims}
    rows = dict.fromkeys(sorted(first), 0) | dict.fromkeys(sorted(last), count - 1)
    results = [name for name, _ in shape.epilogue]
    readouts = [r.name for f in forms for r in f.readouts]
    rows |= dict.fromkeys([*results, *readouts], 0 if readouts_first else count - 1)
    return Steps(dim, count, replace(shape, forms=forms), own, rows)


def _is_plain(form: MatrixForm) -> bool:
    """Whether all is real, decays are scalars given by their logs, and tensors tell on which row everything stands."""
    decays = all(
        not d.factor.dims and d.log is not None and d.sign is None and d.angle is None and not is_plain_factor(d)
        for d in form.decays
    )
    return decays and not form.is_complex and all(map(_is_placed, _coefficients(form.events)))


def _is_placed(node: Node) -> bool:
    """Whether tensors of tokens tell on which of a token's rows the expression stands."""
    return any(map(_has_tokens, argument_leaves([node])))


def _has_tokens(node: Node) -> bool:
    """Whether the node is a tensor with an entry for every token."""
    return node in argument_leaves([node]) and node.attrs[0] != "param"


def _coefficients(events: Iterable[Event]) -> list[Node]:
    """What an event's rows are made of: of a decay its log."""
    found: list[Node | None] = []
    for event in events:
        found += [event.log] if isinstance(event, Decay) else event_nodes(event)
    return [n for n in found if n is not None]


def _tensors(events: Iterable[Event]) -> list[Node]:
    return argument_leaves(_coefficients(events))


def _split(form: MatrixForm, dim: str, count: int) -> Parts | None:
    """The form's events around its steps, those of which pick one entry of ``dim`` after the other; else None."""
    picks = [i for i, e in enumerate(form.events) if any(n.op == "index" for n in topological(event_nodes(e)))]
    if count < 2 or not picks:
        return None
    body = form.events[picks[0] : picks[-1] + 1]
    size, left = divmod(len(body), count)
    steps = [_one_step(body[j * size : (j + 1) * size], dim, j) for j in range(count)]
    if left or steps[0] is None or any(step != steps[0] for step in steps):
        return None
    return Parts(form.events[: picks[0]], steps[0], form.events[picks[-1] + 1 :])


def _one_step(events: tuple[Event, ...], dim: str, number: int) -> tuple[Event, ...] | None:
    """A token's step with this number, in the tensors' entries for it and under names that all steps share; None where
    it has other entries, or tensors without."""
    nodes = topological([n for e in events for n in event_nodes(e)])
    picks = [n for n in nodes if n.op == "index"]
    if any(not _has_tokens(n.args[0]) or n.attrs != (dim, number) for n in picks):
        return None
    entries = {n: leaf(str(n.args[0].attrs[0]), str(n.args[0].attrs[1]), n.dims, n.is_complex) for n in picks}
    names: dict[str, str] = {}

    def own(event: Event) -> Event:
        event = map_event(event, lambda node: substitute([node], entries)[0])
        if isinstance(event, Read):
            return replace(event, name=names.setdefault(event.name, f"step_read{len(names)}"))
        return replace(event, read=names[event.read]) if isinstance(event, Write) and event.read in names else event

    renamed = tuple(map(own, events))
    tensors = {x for x in argument_leaves([n for e in renamed for n in event_nodes(e)]) if _has_tokens(x)}
    reads = {e.read for e in renamed if isinstance(e, Write) and e.read is not None}
    return renamed if tensors <= set(entries.values()) and reads <= set(names.values()) else None


# --- the plan ---------------------------------------------------------------------------------------------------------


def interleave(plan: Plan, steps: Steps, gradients: dict[Node, list[str]]) -> Plan:
    """The plan for rows r = n t + j of ``steps.shape``, a recurrence with one step, for tokens with n of them.

    ``gradients``: the buffers that each argument's gradient is in.
    """
    assert plan.chunk is not None
    places, rows = dict(steps.places), dict(steps.rows)
    dims = {x: len(x.dims) for x in gradients}
    for x, buffers in gradients.items():
        name = tensor_name(x)
        for buffer in buffers:
            if name in places:
                places[buffer] = places[name] - dims[x] - 1  # from the end: partial sums come before the dims
            elif name in rows:
                rows[buffer] = rows[name]
    rows |= _rows_of_pairs(steps) | {f"d_{name}": row for name, row in steps.rows.items() if f"d_{name}" not in rows}
    move = _Interleaver(steps, places, rows)
    return replace(
        plan,
        arguments=tuple(map(move.buffer, plan.arguments)),
        saved=tuple(map(move.buffer, plan.saved)),
        workspace=tuple(map(move.buffer, plan.workspace)),
        forward=tuple(map(move.kernel, plan.forward)),
        backward=tuple(map(move.kernel, plan.backward)),
        chunk=plan.chunk // steps.count,
        wide_chunk=plan.wide_chunk and plan.wide_chunk // steps.count,
        steps=steps.count,
    )


def _rows_of_pairs(steps: Steps) -> dict[str, int]:
    """Of pairs in memory whose later row is a readout's, the row of a token on which they stand."""
    found = {}
    for form in steps.shape.forms:
        for later, earlier in stored_pairs(form):
            event = form.events[later]
            if isinstance(event, Readout):
                found[pairs_name(form, later, earlier)] = steps.rows[event.name]
        for query in queries_of(form):
            if query.write is None:
                names = [evidence_name(form, query, j) for j in range(len(form.writes))]
                found |= dict.fromkeys(names, steps.rows[query.name])
    return found


@dataclass(frozen=True)
class _Interleaver:
    """Gives what has tokens a row of each, or all of a token's rows: a buffer of the plan's own an entry for each."""

    steps: Steps
    places: dict[str, int]
    rows: dict[str, int]

    def _at(self, buffer: str, length: int) -> int:
        """Where the dim of a token's steps goes in a layout of ``length`` others: at its place, or after B, T, H."""
        place = self.places.get(buffer, 0)
        return 3 + place if place >= 0 else length + 1 + place

    def buffer(self, buffer: Buffer) -> Buffer:
        if buffer.layout[:3] != ("B", "T", "H") or buffer.name in self.rows:
            return buffer
        at = self._at(buffer.name, len(buffer.layout))
        return replace(buffer, layout=(*buffer.layout[:at], self.steps.dim, *buffer.layout[at:]))

    def access(self, access: Access) -> Access:
        if access.rows is None or "time" not in access.index:
            return access
        if access.buffer in self.rows:
            return replace(access, step=self.rows[access.buffer])
        at = self._at(access.buffer, len(access.index))
        return replace(access, index=(*access.index[:at], "step", *access.index[at:]))

    def kernel(self, kernel: Kernel) -> Kernel:
        return replace(kernel, body=self.body(kernel.body, {}, self._sums_of_params(kernel.body)))

    def _sums_of_params(self, body: tuple[Statement, ...]) -> dict[str, int]:
        """The sums over rows that params' gradients are made of, and on which row of a token what they sum stands."""
        found: dict[str, int] = {}
        for s in body:
            if isinstance(s, Loop):
                found |= self._sums_of_params(s.body)
            elif isinstance(s, Store) and "time" not in s.access.index and s.access.buffer in self.rows:
                found[s.value.name] = self.rows[s.access.buffer]
        return found

    def body(
        self, body: tuple[Statement, ...], stands: dict[str, int | None], sums: dict[str, int]
    ) -> tuple[Statement, ...]:
        """``stands``: of every value made of tokens' tensors, the row on which it stands; None for all rows."""
        found: list[Statement] = []
        for statement in body:
            if isinstance(statement, Loop):
                found.append(replace(statement, body=self.body(statement.body, stands, sums)))
            elif isinstance(statement, Store):
                found.append(replace(statement, access=self.access(statement.access)))
            else:
                found += self.let(statement, stands, sums)
        return tuple(found)

    def let(self, let: Let, stands: dict[str, int | None], sums: dict[str, int]) -> list[Statement]:
        """The operation. What is to be zero, or some other number, past the sequence's end is so on a token's other
        rows too; and so is what is summed over rows."""
        if let.access is not None:
            access = self.access(let.access)
            if access != let.access:
                stands[let.out.name] = access.step
            return [replace(let, access=access)]
        places = {stands[a.name] for a in let.args if a.name in stands}
        if places:
            stands |= dict.fromkeys((out.name for out in let.outs), places.pop() if len(places) == 1 else None)
        row = sums.get(let.out.name)
        if row is None and let.op == "valid":
            row = stands.get(let.args[0].name)
        if row is None:
            return [let]
        (tile,) = let.args
        own = Value(f"own_{let.out.name}", tile.axes, tile.is_complex, tile.is_bool)
        attrs = (("axis", "c"), ("step", row), ("fill", let.attr("fill") if let.op == "valid" else 0.0))
        return [Let((own,), "at_step", (tile,), attrs), replace(let, args=(own,))]

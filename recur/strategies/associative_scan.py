"""Elementwise and max-plus states, by scans over chunks of tokens (mathematics.md, section 6)

    h_t = a_t h_{t-1} + x_t          the composition (a2, x2) o (a1, x1) = (a1 a2, a2 x1 + x2) is associative

One program owns (batch, head, a tile of the dims that nothing contracts) and walks the chunks with h in registers.
Coefficients, epilogue and their gradients are evaluated inside, so the states of all tokens are never written.

Backward, in reverse: with g_t the epilogue's cotangent of h_t, s_t its cotangent of h_{t-1}, and mu_t all of the
cotangent that reaches h_{t-1} from token t on,

    mu_t = conj(a_t) mu_{t+1} + (conj(a_t) g_t + s_t)         again a scan; mu after the last token is d_final
    lambda_t = g_t + mu_{t+1}                                 the cotangent of h_t
    da_t = lambda_t conj(h_{t-1}),  dx_t = lambda_t           pulled back through the coefficients' expressions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recur.ir.core import Node, apply, contract, leaf, leaves, mul, reduce, topological
from recur.ir.normal import ElementwiseForm, MaxPlusForm, NormalForm
from recur.ir.plan import Contribution, Cost, Gradient, Plan, Reject
from recur.ir.tile import Buffer, Builder, Carry, Kernel, Value
from recur.passes.autodiff import pull_back
from recur.strategies import operands
from recur.strategies.operands import Frame
from recur.strategies.pointwise import emit_nodes

NAME = "associative_scan"

TILE_ROWS = 64  # tokens in a chunk, where the untiled dims leave room
TILE_ENTRIES = 2048  # rows times untiled dims


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Plan | Reject:
    """``outputs``: the exports that the user gets, stored in the operand type; others stay in the accumulator's."""
    if normal.family == "matrix":
        names = ", ".join(f.state for f in normal.forms)
        return Reject(f"{names} is a matrix state that is read by contraction: a scan would write every token's matrix; "
                      "chunkwise keeps it in registers")
    if normal.family == "general":
        return Reject(f"the update is no affine function of the state: {normal.forms[0].why}")  # type: ignore[union-attr]
    if normal.family == "maxplus":
        return MaxPlusScan(normal, sizes, outputs).plan()
    if normal.family == "elementwise":
        return ElementwiseScan(normal, sizes, outputs).plan()
    return Reject("linear")


# --- what both scans share ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A stage of elementwise or max-plus states, with its tensors and its placement."""

    normal: NormalForm
    sizes: dict[str, int]
    outputs: frozenset[str]

    @property
    def roots(self) -> list[Node]:
        raise NotImplementedError

    @property
    def exports(self) -> list[Node]:
        return [node for _, node in self.normal.epilogue]

    @property
    def arguments(self) -> list[Node]:
        return operands.argument_leaves(self.roots)

    @property
    def frame(self) -> Frame:
        states = [f.dims for f in self.normal.forms]  # type: ignore[union-attr]
        owned = states + [node.dims for node in self.exports]
        dims = operands.all_dims(self.roots, *states)
        return Frame(operands.free_name("c", dims), operands.tileable_dims(self.roots, owned), dims)

    @property
    def chunk(self) -> int:
        """Rows so that a tile of the untiled dims stays small: a power of two, at least 16."""
        frame = self.frame
        widest = max((math.prod(self.sizes.get(d, 16) for d in n.dims if d not in frame.tiled)
                      for n in topological(self.roots)), default=1)
        rows = TILE_ENTRIES // max(widest, 1)
        return max(16, min(TILE_ROWS, 1 << max(rows.bit_length() - 1, 0)))

    def state_buffers(self, per: str, suffix: str) -> tuple[Buffer, ...]:
        return tuple(
            operands.make_buffer(f"{f.state}.{suffix}", per, f.dims, is_complex=getattr(f, "is_complex", False))  # type: ignore[union-attr]
            for f in self.normal.forms
        )

    def result_buffers(self) -> tuple[Buffer, ...]:
        return tuple(
            operands.make_buffer(name, "token", node.dims, "operand" if name in self.outputs else "accumulate",
                                 node.is_complex)
            for name, node in self.normal.epilogue
        )

    def needs_previous(self, state: str) -> bool:
        return any(n.attrs == ("state", state) for n in leaves(self.exports))


@dataclass(frozen=True)
class ElementwiseScan(Scan):
    """h_t = a_t h_{t-1} + x_t, for one or several states that meet in the epilogue only."""

    @property
    def forms(self) -> tuple[ElementwiseForm, ...]:
        return self.normal.forms  # type: ignore[return-value]

    @property
    def roots(self) -> list[Node]:
        return [n for f in self.forms for n in (f.decay, f.drive)] + self.exports

    def plan(self) -> Plan:
        forward, frame = self.forward(), self.frame
        backward, reached = self.backward()
        gradients = [operands.gradient_buffer(n, frame) for n in reached]
        ledger = [operands.gradient_line(n, frame) for n in reached]
        d_initial = tuple(
            operands.make_buffer(f"d_{f.state}.initial", "sequence", f.dims, is_complex=f.is_complex) for f in self.forms
        )
        ledger += [Gradient(f"{f.state}.initial", (Contribution(f"d_{f.state}.initial"),)) for f in self.forms]
        return Plan(
            stage=self.normal.stage.name,
            strategy="associative_scan",
            arguments=tuple(operands.argument_buffer(n) for n in self.arguments),
            initial=self.state_buffers("sequence", "initial"),
            results=self.result_buffers(),
            final=self.state_buffers("sequence", "final"),
            saved=self.state_buffers("chunk", "start"),
            workspace=(*gradients, *d_initial),
            forward=(forward,),
            backward=(backward,),
            gradients=tuple(ledger),
            cost=self.cost(),
            chunk=self.chunk,
        )

    def cost(self) -> Cost:
        def entries(dims: tuple[str, ...]) -> int:
            return math.prod(self.sizes.get(d, 64) for d in dims)

        moved = sum(entries(n.dims) for n in (*self.arguments, *self.exports) if n.op != "leaf" or n.attrs[0] != "param")
        work = sum(entries(f.dims) for f in self.forms)
        steps = math.ceil(math.log2(self.chunk))
        return Cost(2.0 * work * (steps + 2), 4.0 * moved, 2, f"T / {self.chunk} chunks, {steps} steps each")

    # forward

    def forward(self) -> Kernel:
        frame = self.frame
        names = operands.complex_names([operands.argument_buffer(n) for n in self.arguments],
                                       self.state_buffers("sequence", "initial"))
        b = Builder(complex_buffers=names)
        values: dict[Node, Value] = {}
        self.load_params(b, frame, values, self.roots)
        starts = [frame.load(b, f"{f.state}.initial", "sequence", f.dims) for f in self.forms]
        body = b.nested()
        carried = [body.phi(f.state, start) for f, start in zip(self.forms, starts, strict=True)]
        for f, h in zip(self.forms, carried, strict=True):
            frame.store(body, f"{f.state}.start", "chunk", f.dims, h, "the chunk's first state, for the backward pass")
        after = self.emit_states(body, frame, values, carried)
        for (name, node), tile in zip(self.normal.epilogue, emit_nodes(body, self.exports, values), strict=True):
            frame.store(body, name, "token", node.dims, tile)
        ends = [body.last(h, self.rows, f"{f.state}_end") for f, h in zip(self.forms, after, strict=True)]
        b.loop("chunks", body, tuple(Carry(*c) for c in zip(carried, starts, ends, strict=True)))
        for f, h in zip(self.forms, carried, strict=True):
            frame.store(b, f"{f.state}.final", "sequence", f.dims, h)
        return Kernel(f"{self.normal.stage.name}_forward", frame.grid, frame.axes, tuple(b.statements),
                      tuple(f"{f.state}_t = a_t * {f.state}_(t-1) + x_t" for f in self.forms), "scan")

    @property
    def rows(self) -> str:
        rows = self.frame.rows
        assert rows is not None
        return rows

    def load_params(self, b: Builder, frame: Frame, values: dict[Node, Value], roots: Sequence[Node]) -> None:
        """Params, and what depends on them alone, before the loop."""
        frame.load_leaves(b, [n for n in self.arguments if n.attrs[0] == "param"], values)
        emit_nodes(b, operands.per_head_nodes(roots), values, "w")

    def emit_states(
        self, b: Builder, frame: Frame, values: dict[Node, Value], carried: Sequence[Value], all_previous: bool = False
    ) -> list[Value]:
        """Loads the chunk's inputs and gives the states after each token; ``values`` gets the `state` and `next` leaves."""
        frame.load_leaves(b, [n for n in self.arguments if n.attrs[0] != "param"], values)
        after = []
        for f, h in zip(self.forms, carried, strict=True):
            axes = frame.token_axes(f.dims)
            a, x = emit_nodes(b, [f.decay, f.drive], values)
            a = b.valid(b.expand(a, axes, "a"), self.rows, 1.0, "a")
            x = b.valid(b.expand(x, axes, "x"), self.rows, 0.0, "x")
            running, own = b.scan(a, x, self.rows, names=(f"{f.state}_decay", f"{f.state}_own"))
            state = b.add(own, b.mul(running, h), name=f"{f.state}_next")
            values[leaf("next", f.state, f.dims, f.is_complex)] = state
            if all_previous or self.needs_previous(f.state):
                before = b.previous(state, h, self.rows, f"{f.state}_before")
                values[leaf("state", f.state, f.dims, f.is_complex)] = before
            after.append(state)
        return after

    # backward

    def backward(self) -> tuple[Kernel, list[Node]]:
        """The kernel, and the arguments that receive a gradient."""
        frame, rows = self.frame, self.rows
        adjoint = self.adjoint()
        names = operands.complex_names(
            [operands.argument_buffer(n) for n in self.arguments],
            self.state_buffers("chunk", "start"),
            [Buffer(f"d_{r.name}", (), "", r.is_complex) for r in self.result_buffers()],
            [Buffer(f"d_{f.state}.final", (), "", f.is_complex) for f in self.forms],
        )
        b = Builder(complex_buffers=names)
        values: dict[Node, Value] = {}
        self.load_params(b, frame, values, [*self.roots, *(node for _, node in adjoint.gradients)])
        ends = [frame.load(b, f"d_{f.state}.final", "sequence", f.dims) for f in self.forms]
        params = [n for n, _ in adjoint.gradients if n.attrs[0] == "param"]
        zeros = [b.zeros(n.dims, f"d_{n.attrs[1]}_none", n.is_complex) for n in params]

        body = b.nested()
        carried = [body.phi(f"d_{f.state}", end) for f, end in zip(self.forms, ends, strict=True)]
        sums = [body.phi(f"d_{n.attrs[1]}_sum", zero) for n, zero in zip(params, zeros, strict=True)]
        starts = [frame.load(body, f"{f.state}.start", "chunk", f.dims) for f in self.forms]
        self.emit_states(body, frame, values, starts, all_previous=True)
        for name, node in self.normal.epilogue:
            values[leaf("cotangent", name, node.dims, node.is_complex)] = frame.load(body, f"d_{name}", "token", node.dims)
        firsts = [self.emit_adjoint(body, frame, values, adjoint, i, mu) for i, mu in enumerate(carried)]

        memo: dict[Node, Value] = {}
        nexts = []
        for argument, node in adjoint.gradients:
            if argument.attrs[0] == "param":
                total = operands.emit_row_sum(body, node, values, rows, memo)
                nexts.append(body.add(sums[len(nexts)], body.expand(total, argument.dims), name=f"d_{argument.attrs[1]}_next"))
            else:
                frame.store_gradient(body, argument, emit_nodes(body, [node], values)[0])
        carries = [Carry(*c) for c in zip(carried + sums, ends + zeros, firsts + nexts, strict=True)]
        b.loop("chunks", body, tuple(carries), reverse=True)
        for f, mu in zip(self.forms, carried, strict=True):
            frame.store(b, f"d_{f.state}.initial", "sequence", f.dims, mu)
        for argument, total in zip(params, sums, strict=True):
            frame.store_gradient(b, argument, total)
        equations = (
            "mu_t = conj(a_t) mu_(t+1) + conj(a_t) g_t + s_t      the cotangent that reaches h_(t-1)",
            "lambda_t = g_t + mu_(t+1)                            the cotangent of h_t",
            "da_t = lambda_t conj(h_(t-1)),  dx_t = lambda_t",
        )
        kernel = Kernel(f"{self.normal.stage.name}_backward", frame.grid, frame.axes, tuple(b.statements), equations, "scan")
        return kernel, [n for n, _ in adjoint.gradients]

    def adjoint(self) -> Adjoint:
        """Every cotangent as a node over the primal leaves, d_result and lambda."""
        given = [leaf("cotangent", name, node.dims, node.is_complex) for name, node in self.normal.epilogue]
        nexts = [leaf("next", f.state, f.dims, f.is_complex) for f in self.forms]
        states = [leaf("state", f.state, f.dims, f.is_complex) for f in self.forms]
        direct = pull_back(self.exports, given, nexts + states)
        arrived = [leaf("cotangent", f"{f.state}.next", f.dims, f.is_complex) for f in self.forms]
        outputs, cotangents = list(self.exports), list(given)
        for f, g, h in zip(self.forms, arrived, states, strict=True):
            outputs += [f.decay, f.drive]
            cotangents += [_sum_product(g, h, f.decay.dims), _sum_to(g, f.drive.dims)]
        sources = self.arguments
        pulled = pull_back(outputs, cotangents, sources)
        gradients = tuple((s, n) for s, n in zip(sources, pulled, strict=True) if not operands.is_zero(n))
        return Adjoint(tuple(direct[: len(nexts)]), tuple(direct[len(nexts) :]), tuple(arrived), gradients)

    def emit_adjoint(
        self, b: Builder, frame: Frame, values: dict[Node, Value], adjoint: Adjoint, which: int, mu: Value
    ) -> Value:
        """One state's reverse scan: gives lambda to ``values`` and returns mu at the chunk's first token."""
        f, rows = self.forms[which], self.rows
        axes = frame.token_axes(f.dims)
        conjugate = apply("conj", f.decay)
        a, g, s = emit_nodes(b, [conjugate, adjoint.next[which], adjoint.state[which]], values)
        a = b.expand(a, axes, "a_conj")
        g = b.expand(g, axes, "g")
        drive = b.mul(a, g, name="reach")
        if not operands.is_zero(adjoint.state[which]):
            drive = b.add(drive, b.expand(s, axes, "s"), name="reach")
        running, own = b.scan(b.valid(a, rows, 1.0), b.valid(drive, rows), rows, names=("mu_decay", "mu_own"), reverse=True)
        before = b.add(own, b.mul(running, mu), name=f"mu_{f.state}", comment=f"the cotangent of {f.state} before each token")
        later = b.previous(before, mu, rows, "mu_later", reverse=True)
        values[adjoint.arrived[which]] = b.add(g, later, name=f"lambda_{f.state}", comment=f"the cotangent of {f.state} after")
        return b.last(before, rows, f"d_{f.state}_start", reverse=True)


@dataclass(frozen=True)
class Adjoint:
    """Cotangents as nodes: of each next state and previous state by the epilogue, and of every argument.

    ``arrived``: the leaves that stand for lambda, the whole cotangent of each next state.
    """

    next: tuple[Node, ...]
    state: tuple[Node, ...]
    arrived: tuple[Node, ...]
    gradients: tuple[tuple[Node, Node], ...]


def _sum_to(g: Node, dims: tuple[str, ...]) -> Node:
    return reduce("sum", g, tuple(d for d in g.dims if d not in dims))


def _sum_product(g: Node, h: Node, dims: tuple[str, ...]) -> Node:
    """g conj(h), summed over the dims that a decay lacks."""
    h = apply("conj", h)
    over = tuple(d for d in g.dims if d not in dims)
    return contract(g, h, over) if over else mul(g, h)


@dataclass(frozen=True)
class MaxPlusScan(Scan):
    """m_t = max(m_{t-1} + g_t, i_t): the running log scale; a constant to autodiff, so there is no backward pass."""

    @property
    def forms(self) -> tuple[MaxPlusForm, ...]:
        return self.normal.forms  # type: ignore[return-value]

    @property
    def roots(self) -> list[Node]:
        return [n for f in self.forms for n in (f.log_decay, f.drive)] + self.exports

    def plan(self) -> Plan:
        raise NotImplementedError

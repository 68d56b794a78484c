"""States whose steps compose: elementwise, max-plus and small linear ones (docs/mathematics.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from recur.ir.core import Node
from recur.ir.normal import GeneralForm, NormalForm
from recur.ir.plan import Choice, Plan, Reject
from recur.ir.tile import Builder, Value
from recur.strategies import operands
from recur.strategies.composed_scan import plan_linear
from recur.strategies.elementwise_scan import ElementwiseScan, Scan, scan_cost
from recur.strategies.walked_scan import WalkedScan

NAME = "associative_scan"


def plan(normal: NormalForm, sizes: dict[str, int], outputs: frozenset[str] = frozenset()) -> Choice:
    """Elementwise, max-plus and small linear states. ``outputs``: what the user gets, in the inputs' type."""
    if normal.family == "matrix":
        names = " and ".join(f.state for f in normal.forms)
        verb = "is" if len(normal.forms) == 1 else "are"
        return Reject(f"{names} {verb} read by contractions: a scan would hold the whole state for every token, "
                      "where chunkwise holds it once a chunk")
    if normal.family == "general":
        reasons = dict.fromkeys(f.why for f in normal.forms if isinstance(f, GeneralForm))
        return Reject(f"the step is not affine in its state, so steps do not compose: {'; '.join(reasons)}")
    if normal.family == "linear":
        return plan_linear(normal, sizes, outputs)
    if normal.family == "maxplus":
        return MaxPlusScan(normal, sizes, outputs).plan()
    walked = WalkedScan(normal, sizes, outputs)
    return walked.plan() if walked.applies else ElementwiseScan(normal, sizes, outputs).plan()


@dataclass(frozen=True)
class MaxPlusScan(Scan):
    """m_t = max(m_{t-1} + g_t, i_t): a running log scale; a constant to autodiff, so there is no backward pass."""

    @property
    def coefficients(self) -> list[Node]:
        return [n for f in self.forms for n in (f.log_decay, f.drive)]  # type: ignore[union-attr]

    def plan(self) -> Plan:
        return Plan(
            stage=self.stage,
            strategy="associative_scan",
            arguments=tuple(operands.argument_buffer(n) for n in self.arguments),
            initial=operands.state_buffers(self.states, "sequence", "initial"),
            results=operands.result_buffers(self.normal, self.outputs),
            final=operands.state_buffers(self.states, "sequence", "final"),
            saved=(),
            workspace=(),
            forward=(self.forward(keep_starts=False),),
            backward=(),
            gradients=(),
            cost=scan_cost(self),
            chunk=self.chunk,
            notes=("the log scale is a constant to differentiation: results do not depend on it",),
            fixed_sizes=((self.runs, self.run_count),),
        )

    @property
    def no_step(self) -> tuple[float, float]:
        return 0.0, float("-inf")

    def emit_scan(self, b: Builder, which: int, a: Value, x: Value, h: Value) -> tuple[Value, Value]:
        name = self.forms[which].state
        names = (f"{name}_decay", f"{name}_own")
        decay, own, decay_all, own_all = b.prescan(a, x, self.rows, self.runs, "maxprescan", names)
        end = b.map("max", own_all, b.add(decay_all, h), name=f"{name}_end")
        return b.map("max", own, b.add(decay, h), name=f"{name}_starts"), end

    def emit_resume(self, b: Builder, which: int, a: Value, x: Value, starts: Value, inclusive: bool) -> Value:
        name = f"{self.forms[which].state}_{'next' if inclusive else 'before'}"
        return b.resume(a, x, starts, self.rows, self.runs, "maxresume", name, inclusive=inclusive)

    def emit_step(self, b: Builder, which: int, a: Value, x: Value, before: Value) -> Value:
        return b.map("max", b.add(before, a), x, name=f"{self.forms[which].state}_next")

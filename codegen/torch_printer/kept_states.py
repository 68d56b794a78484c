"""States that the backward pass computes again, kept by the forward pass instead.

A walk over chunks whose kernels hold the state in registers leaves no states behind, so a plan's backward begins by
walking again. Torch code has them all anyway, stacked for the readouts: they cost no time to keep, and memory of
K V / C numbers a token.
"""

from __future__ import annotations

from dataclasses import replace

from recur.ir.plan import Plan
from recur.ir.tile import Access, Kernel, Let, Loop, Statement, Store, Value


def keep_states(plan: Plan) -> Plan:
    """The plan with its states stored by the walk, where the backward pass has a kernel that walks again for them."""
    again = next((k for k in plan.backward if k.role == "states"), None)
    walk = next((k for k in plan.forward if k.role == "walk"), None)
    stores = stores_of_carried(again) if again is not None else None
    if walk is None or again is None or stores is None or any(start not in initial_values(walk) for start in stores):
        return plan
    phis = initial_values(walk)
    added = tuple(Store(access, phis[start]) for start, access in stores.items())
    body = tuple(replace(s, body=(*added, *s.body)) if isinstance(s, Loop) else s for s in walk.body)
    names = {access.buffer for access in stores.values()}
    return replace(
        plan,
        forward=tuple(replace(k, body=body) if k is walk else k for k in plan.forward),
        backward=tuple(k for k in plan.backward if k is not again),
        saved=plan.saved + tuple(b for b in plan.workspace if b.name in names),
        workspace=tuple(b for b in plan.workspace if b.name not in names),
    )


def initial_values(kernel: Kernel) -> dict[Access, Value]:
    """The carried values of a kernel's only loop over chunks, by where their initial ones are loaded from."""
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    if len(loops) != 1 or loops[0].over != "chunks" or loops[0].reverse:
        return {}
    loads = {s.out.name: s.access for s in kernel.body if isinstance(s, Let) and s.op == "load" and s.access}
    return {loads[c.init.name]: c.phi for c in loops[0].carries if c.init.name in loads}


def stores_of_carried(kernel: Kernel) -> dict[Access, Access] | None:
    """For each carried value where its states go; None where the kernel stores anything else."""
    starts = {phi.name: start for start, phi in initial_values(kernel).items()}
    stores = [s for s in statements(kernel.body) if isinstance(s, Store)]
    if not stores or any(s.value.name not in starts for s in stores):
        return None
    return {starts[s.value.name]: s.access for s in stores}


def statements(body: tuple[Statement, ...]) -> list[Statement]:
    return [inner for s in body for inner in (statements(s.body) if isinstance(s, Loop) else [s])]

"""The associative scan's plans, run as tile programs in float64, against a step loop and autograd."""

from __future__ import annotations

import pytest
from stage_oracle import check_plan, random_tensors

from recur.ir.core import Node, add, apply, const, contract, leaf, mul, neg, sub
from recur.ir.normal import ElementwiseForm, NormalForm, Stage
from recur.ir.plan import Plan
from recur.strategies import associative_scan

SIZES = {"D": 3, "N": 2, "E": 4}
CHUNK = 4
LENGTHS = (1, 3, 4, 5, 7, 17)


def elementwise(states: dict[str, tuple[Node, Node]], dims: tuple[str, ...], exports: dict[str, Node]) -> NormalForm:
    """States h <- decay h + drive; exports over `state` and `next` leaves."""
    forms, updates = [], []
    for name, (decay, drive) in states.items():
        is_complex = decay.is_complex or drive.is_complex
        forms.append(ElementwiseForm(name, dims, decay, drive, is_complex=is_complex))
        updates.append((name, add(mul(decay, leaf("state", name, dims, is_complex)), drive)))
    table = {leaf("next", name, dims, node.is_complex): node for name, node in updates}
    from recur.ir.core import substitute

    stepwise = tuple(zip(exports, substitute(exports.values(), table), strict=True))
    stage = Stage("s", tuple(states), tuple(updates), stepwise)
    return NormalForm(stage, "elementwise", tuple(forms), tuple(exports.items()), "h = a h + x")


def hgrn() -> NormalForm:
    c, f, lower = leaf("input", "c", ("D",)), leaf("input", "f", ("D",)), leaf("param", "lower", ("D",))
    forget = add(lower, mul(sub(const(1), lower), apply("sigmoid", f)))
    drive = mul(sub(const(1), forget), apply("silu", c))
    return elementwise({"h": (forget, drive)}, ("D",), {"o": leaf("next", "h", ("D",))})


def mamba() -> NormalForm:
    """Mamba-1: outputs contract the state's N, and B, C are shared by all D."""
    x, dt = leaf("input", "x", ("D",)), leaf("input", "dt", ("D",))
    write, read = leaf("input", "B", ("N",)), leaf("input", "C", ("N",))
    a_log, bias, skip = leaf("param", "A_log", ("D", "N")), leaf("param", "dt_bias", ("D",)), leaf("param", "skip", ("D",))
    delta = apply("softplus", add(dt, bias))
    decay = apply("exp", neg(mul(delta, apply("exp", a_log))))
    drive = contract(mul(delta, x), write, ())
    output = add(contract(leaf("next", "h", ("D", "N")), read, ("N",)), mul(skip, x))
    return elementwise({"h": (decay, drive)}, ("D", "N"), {"y": output})


def make_plan(normal: NormalForm) -> Plan:
    plan = associative_scan.plan(normal, SIZES)
    assert isinstance(plan, Plan), plan
    return plan


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("make", [hgrn, mamba])
def test_every_length(make, tokens: int) -> None:
    normal = make()
    check_plan(make_plan(normal), normal, SIZES, random_tensors(normal, SIZES, 2, tokens, 2), CHUNK)


@pytest.mark.parametrize("make", [hgrn, mamba])
def test_tiles_give_partial_sums(make) -> None:
    normal = make()
    check_plan(make_plan(normal), normal, SIZES, random_tensors(normal, SIZES, 2, 7, 2), CHUNK, blocks={"D": 2})

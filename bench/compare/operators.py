"""What is compared: the zoo's recurrences, the shapes, and random inputs for both.

Tensors are [B, T, H, D] as everywhere in recur; a scan of [B, T, C] channels is H heads of D with H * D = C.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from recur.runtime.op import Op

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # inputs.py and compare.py: how the tests draw inputs and read states

DRAWN_TOKENS = 1024  # longer inputs repeat these tokens


@dataclass(frozen=True)
class Shape:
    """Batch, tokens, heads and head dims of one call; ``value`` is the values' head dim where it is another."""

    batch: int
    tokens: int
    heads: int
    head: int
    value: int | None = None

    @property
    def label(self) -> str:
        value = "" if self.value is None else f"/{self.value}"
        return f"B{self.batch} T{self.tokens} H{self.heads} D{self.head}{value}"

    @property
    def per_token(self) -> tuple[int, int, int | None]:
        """What kernels are compiled for, whatever the batch and the length."""
        return self.heads, self.head, self.value

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "B4,T2048,H16,D128" or, with values of another size, "B4,T2048,H8,D128/256"."""
        found = re.fullmatch(r"B(\d+)[, ]T(\d+)[, ]H(\d+)[, ]D(\d+)(?:/(\d+))?", text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not of the form B4,T2048,H16,D128")
        batch, tokens, heads, head, value = (None if x is None else int(x) for x in found.groups())
        assert batch and tokens and heads and head
        return cls(batch, tokens, heads, head, value)


SHAPES = tuple(
    map(
        Shape.parse,
        (
            "B4 T2048 H16 D128",
            "B2 T16384 H16 D128",
            "B1 T65536 H16 D128",
            "B8 T4096 H16 D64",
            "B8 T2048 H32 D256",
            "B1 T512 H16 D128",
            "B32 T1024 H8 D64",
        ),
    )
)
SCANS = (*SHAPES[:2], Shape.parse("B8 T4096 H16 D128"), Shape.parse("B1 T65536 H8 D128"))
MLSTM = (Shape.parse("B4 T2048 H8 D128/256"), Shape.parse("B2 T16384 H8 D128/256"), *SHAPES[2:])
SHORT_LIST = 2  # of each list, without --all


@dataclass(frozen=True)
class Operator:
    """A recurrence of the zoo and what the comparison must know of it.

    products: how often one token contracts with, or writes a product into, the whole state; what arithmetic cannot
    avoid. gates: the inputs whose gradients are judged by the gates' limit. sizes: dims that are not the head dim.
    """

    name: str
    products: int = 0
    gates: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    shapes: tuple[Shape, ...] = SHAPES


OPERATORS = (
    Operator("linear_attention", 2),
    Operator("simple_gla", 2, ("g",)),
    Operator("mamba2", 2, ("dt", "A_log", "dt_bias")),
    Operator("gated_delta_net", 3, ("g", "beta")),
    Operator("delta_net", 3, ("beta",)),
    Operator("gla", 2, ("g",)),
    Operator("kda", 3, ("g", "beta")),
    Operator("rwkv7", 4, ("w", "a")),
    Operator("mlstm_exp", 2, ("i", "f"), shapes=MLSTM),
    Operator("mlstm_sig", 2, ("i", "f"), shapes=MLSTM),
    Operator("hgrn", gates=("f", "lower"), shapes=SCANS),
    Operator("gated_delta_product", 5, ("g", "beta"), (("n", 2),)),
    Operator("gated_slot_attention", 4, ("g",), (("M", 64),)),
    Operator("retnet", 2, ("gamma",)),
    Operator("rwkv6", 2, ("w",)),
    Operator("hgrn2", 2, ("g",)),
    Operator("dplr", 4, ("g",)),
    Operator("delta_product", 5, ("beta",), (("n", 2),)),
    Operator("mingru", gates=("z",), shapes=SCANS),
    Operator("minlstm", gates=("f", "i"), shapes=SCANS),
    Operator("gateloop_real", gates=("a",), shapes=SCANS),
    Operator("linear_attention_normalised", 2),
    Operator("lightning", 2, ("slope",)),
    Operator("delta_net_negative", 3, ("b",)),
    Operator("ttt_linear", 3, ("eta",)),
    Operator("efla", 3, ("beta",)),
    Operator("comba", 3, ("g", "beta", "b", "d")),
    Operator("gated_oja", 3, ("g", "beta")),
    Operator("lightnet", 2),
    Operator("based", sizes=(("K", 16),)),
    Operator("rebased", sizes=(("K", 16),)),
    Operator("rwkv4", gates=("w", "u"), shapes=SCANS),
)
TIMED = 13  # the first so many are timed unless others are asked for; all of them are in the accuracy table


def operator(name: str) -> Operator:
    """The operator of that name; any other recurrence of the zoo has all of its inputs judged alike."""
    return next((o for o in OPERATORS if o.name == name), Operator(name))


def load(what: Operator) -> Op:
    """The compiled recurrence, with the fixed dims of ``what``."""
    from recur.api import make_op, read_file
    from recur.zoo import path

    recurrence = read_file(path(what.name))
    fixed = dict(what.sizes)
    dims = tuple(
        dataclasses.replace(d, size=fixed.get(d.name, d.size)) if d.size is not None else d for d in recurrence.dims
    )
    return make_op(dataclasses.replace(recurrence, dims=dims))


def draw(op: Op, what: Operator, shape: Shape, device: str, seed: int = 0) -> dict[str, Tensor]:
    """bfloat16 inputs [B, T, H, *dims] and params [H, *dims] on the device, inside their declared ranges."""
    import torch
    from inputs import random_inputs

    sizes = {d.name: shape.head for d in op.recurrence.dims} | {"V": shape.value or shape.head} | dict(what.sizes)
    drawn = min(shape.tokens, DRAWN_TOKENS)
    found = random_inputs(op.recurrence, shape.batch, drawn, shape.heads, sizes, seed, torch.float32)
    per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}

    def place(name: str, x: Tensor) -> Tensor:
        x = x.to(device).to(torch.bfloat16)
        if name not in per_token or drawn == shape.tokens:
            return x
        repeats = -(-shape.tokens // drawn)
        return x.repeat(1, repeats, *[1] * (x.dim() - 2))[:, : shape.tokens].contiguous()

    return {name: place(name, x) for name, x in found.items()}

"""A call's tensors against the declarations. A mistake is named: what was expected, what was found, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from recur.diagnostics import did_you_mean, listing
from recur.ir.spec import Range, Recurrence, Variable

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
DOUBLE = (torch.float64, torch.complex128)


class Call(NamedTuple):
    """What a call binds.

    ``tensors``: inputs [B, T, H, *dims] and params [H, *dims], in the text's order, the heads' axis present.
    ``sizes``: every declared dim. ``has_heads``: whether the caller's tensors have H. ``dtype``: the first input's.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    batch: int
    tokens: int
    heads: int
    has_heads: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def state_dtype(self) -> torch.dtype:
        """What states are kept in: float32, or float64 where the inputs are."""
        return torch.float64 if self.dtype in DOUBLE else torch.float32


def bind_arguments(
    rec: Recurrence, args: Sequence[object], kwargs: Mapping[str, object], one_token: bool = False
) -> Call:
    """Matches a call's arguments to the declarations.

    ``one_token``: inputs come without the time axis, [B, H, *dims]. Raises TypeError for arguments that are missing,
    unknown, given twice or of a wrong kind or dtype, and ValueError for shapes and devices that do not fit.
    """
    tensors = match_tensors(rec, args, kwargs, one_token)
    has_heads = _infer_heads(rec, tensors, one_token)
    tensors = _with_axes(rec, tensors, one_token, has_heads)
    shapes = _Shapes(rec, one_token, has_heads)
    for v in rec.inputs:
        shapes.bind(v, tensors[v.name])
    first = tensors[next(v.name for v in rec.inputs if v.role == "input")]
    for name, x in tensors.items():
        check_device(f"`{name}`", x, first.device)
    sizes = {d.name: shapes.found[rec.root_dim(d.name), "dim"][0] for d in rec.dims}
    batch, tokens, heads = (shapes.found[axis, "lead"][0] for axis in ("B", "T", "H"))
    return Call(tensors, sizes, batch, tokens, heads, has_heads, first.dtype, first.device)


def look_of(given: Sequence[object]) -> list[object]:
    """All of a call's tensors that `bind_arguments` depends on; only of other things it does not tell everything."""
    return [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in given]


def wants_gradients(given: Iterable[object]) -> bool:
    """Whether a call with these tensors is to be differentiated."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)


def _with_axes(rec: Recurrence, tensors: dict[str, Tensor], one_token: bool, has_heads: bool) -> dict[str, Tensor]:
    """The tensors with the axes of time and heads that the caller left out."""
    if one_token:
        tensors = {v.name: tensors[v.name].unsqueeze(1) if v.role == "input" else tensors[v.name] for v in rec.inputs}
    if not has_heads:
        tensors = {v.name: tensors[v.name].unsqueeze(2 if v.role == "input" else 0) for v in rec.inputs}
    return tensors


def match_tensors(
    rec: Recurrence, args: Sequence[object], kwargs: Mapping[str, object], one_token: bool = False
) -> dict[str, Tensor]:
    """A call's tensors by name, in the text's order, of a dtype that can be computed with. Raises TypeError."""
    given = _match_names(rec, args, kwargs)
    tensors = {v.name: _check_tensor(v, given[v.name], one_token) for v in rec.inputs}
    _check_precision(tensors)
    return tensors


def _match_names(rec: Recurrence, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    names = [v.name for v in rec.inputs]
    takes = f"{rec.name} takes {listing(names, 'and')}"
    if len(args) > len(names):
        raise TypeError(f"{len(args)} positional arguments, but {takes}; states go into `initial_state`")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(f"`{name}` is no argument of this recurrence; {did_you_mean(name, names, takes)}")
        if name in given:
            raise TypeError(f"`{name}` is given twice: by position {names.index(name) + 1} and by name")
        given[name] = value
    missing = [n for n in names if n not in given]
    if missing:
        raise TypeError(f"missing {listing(missing, 'and')}; {takes}")
    return given


# --- kinds and dtypes ------------------------------------------------------------------------------------------------


def axes_of(v: Variable, one_token: bool = False, has_heads: bool = True) -> tuple[str, ...]:
    """The axes of a variable's tensor as the spec names them."""
    lead = () if v.role == "param" else ("B",) if one_token or v.role == "state" else ("B", "T")
    return (*lead, *(("H",) if has_heads else ()), *v.dims)


def show_axes(axes: Sequence[str | int]) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _check_tensor(v: Variable, x: object, one_token: bool) -> Tensor:
    expected = f"`{v.name}` must be a tensor {show_axes(axes_of(v, one_token))}"
    if not isinstance(x, Tensor):
        raise TypeError(f"{expected}; found {type(x).__name__}")
    check_dtype(f"`{v.name}`", x, v.is_complex)
    return x


def check_dtype(name: str, x: Tensor, is_complex: bool) -> None:
    """Raises TypeError where the tensor is no floating-point tensor, or complex where it is declared real."""
    if x.dtype not in DTYPES:
        wanted = "torch.complex64" if is_complex else "torch.float32"
        raise TypeError(f"{name} has dtype {x.dtype}; use .to({wanted})")
    if is_complex and not x.is_complex():
        raise TypeError(f"{name} is declared complex; found {x.dtype}; use .to({x.dtype.to_complex()})")
    if x.is_complex() and not is_complex:
        raise TypeError(f"{name} is declared real; found {x.dtype}; use .real, or declare it `complex`")


def _check_precision(tensors: Mapping[str, Tensor]) -> None:
    double = [n for n, x in tensors.items() if x.dtype in DOUBLE]
    single = [n for n, x in tensors.items() if x.dtype not in DOUBLE]
    if double and single:
        raise TypeError(
            f"{listing(double, 'and')} in float64 and {listing(single, 'and')} in {tensors[single[0]].dtype}: "
            f"float64 does not mix with other dtypes; use .double() on all of them"
        )


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    """Raises ValueError where the tensor is on another device than the first input."""
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but the first input is on {device}; use .to({str(device)!r})")


# --- shapes ----------------------------------------------------------------------------------------------------------


def _infer_heads(rec: Recurrence, tensors: Mapping[str, Tensor], one_token: bool) -> bool:
    """Whether the tensors have the heads' axis: all of them, or none."""
    having: list[Variable] = []
    lacking: list[Variable] = []
    for v in rec.inputs:
        x, full = tensors[v.name], axes_of(v, one_token)
        if x.ndim not in (len(full), len(full) - 1):
            without = show_axes(axes_of(v, one_token, has_heads=False))
            raise ValueError(
                f"`{v.name}` must be {show_axes(full)} (or {without} for one head); "
                f"found {x.ndim} axes: {show_axes(x.shape)}"
            )
        (having if x.ndim == len(full) else lacking).append(v)
    if having and lacking:
        has, lacks = having[0], lacking[0]
        axis = axes_of(lacks, one_token).index("H")
        raise ValueError(
            f"the axis H must be in all tensors or in none: `{has.name}` {show_axes(tensors[has.name].shape)} has it "
            f"as {show_axes(axes_of(has, one_token))}, but `{lacks.name}` {show_axes(tensors[lacks.name].shape)} has "
            f"one axis less than {show_axes(axes_of(lacks, one_token))}; use {lacks.name}.unsqueeze({axis}) "
            f"where it is one head's, or give every head its values"
        )
    return bool(having)


@dataclass
class _Shapes:
    """Sizes of B, T, H and the dims as they are bound, each with the tensor that it came from."""

    rec: Recurrence
    one_token: bool
    has_heads: bool
    found: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fixed = [d for d in self.rec.dims if d.size is not None]
        self.found |= {(d.name, "dim"): (d.size, f"`dim {d.name} = {d.size}`") for d in fixed if d.size is not None}

    def bind(self, v: Variable, x: Tensor) -> None:
        axes = axes_of(v)
        lead = len(axes) - len(v.dims)
        for position, (axis, size) in enumerate(zip(axes, x.shape, strict=True)):
            key = (axis, "lead") if position < lead else (self.rec.root_dim(axis), "dim")
            if size == 0:
                raise ValueError(f"`{v.name}` has {axis} = 0: {self._show(v, x)}; every size must be at least 1")
            bound, source = self.found.setdefault(key, (size, f"`{v.name}`"))
            if bound != size:
                raise ValueError(self._mismatch(v, x, axis, size, bound, source, is_head=key == ("H", "lead")))

    def _mismatch(
        self, v: Variable, x: Tensor, axis: str, size: int, bound: int, source: str, is_head: bool
    ) -> str:
        at = f"`{v.name}` has {axis} = {size}, but {axis} = {bound} by {source}"
        if is_head:
            fewer, more = sorted((size, bound))
            if more % fewer == 0:
                small = f"`{v.name}`" if size == fewer else source
                dim = axes_of(v, self.one_token).index("H")
                return (
                    f"{at}: tensors with fewer heads are not supported yet; use op.reference, or "
                    f"{small.strip('`')}.repeat_interleave({more // fewer}, dim={dim})"
                )
        return f"{at}; expected {show_axes(axes_of(v, self.one_token, self.has_heads))}, found {self._show(v, x)}"

    def _show(self, v: Variable, x: Tensor) -> str:
        """The caller's shape, without the axes that were added."""
        sizes = dict(zip(range(x.ndim), x.shape, strict=True))
        if not self.has_heads:
            del sizes[2 if v.role == "input" else 0]
        if self.one_token and v.role == "input":
            del sizes[1]
        return show_axes(tuple(sizes.values()))


# --- debug=True ------------------------------------------------------------------------------------------------------


def check_ranges(rec: Recurrence, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a tensor leaves its declared range; an open bound admits its rounded end point."""
    for v in rec.inputs:
        if v.range is not None:
            _check_range(v.name, tensors[v.name].detach(), v.range)


def _check_range(name: str, x: Tensor, declared: Range) -> None:
    low, high = (torch.tensor(bound, dtype=torch.float64).to(x.dtype) for bound in (declared.low, declared.high))
    outside = ~((x >= low.to(x.device)) & (x <= high.to(x.device)))
    if outside.any():
        place = tuple(int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"`{name}` leaves its declared range {declared}: {int(outside.sum())} of {x.numel()} values, "
            f"the first at {show_axes(place)} is {float(x[place])}"
        )


def check_finite(what: str, x: Tensor) -> None:
    """Raises FloatingPointError where a value is infinite or not a number."""
    bad = ~torch.isfinite(x.detach())
    if bad.any():
        place = tuple(int(i) for i in bad.nonzero()[0])
        raise FloatingPointError(
            f"{what} is not finite: {int(bad.sum())} of {x.numel()} values, the first at {show_axes(place)} "
            f"is {x.detach()[place].item()}"
        )

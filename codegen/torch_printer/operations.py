"""Tile operations as torch expressions: one function an operation, from the operands' tensors to the result's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from recur.codegen.torch_printer.tensors import CHUNK, LEADS, TOKENS, Tensor, aligned, atom, bare, permuted, union_dims
from recur.ir.tile import Attr, Let, Value
from recur.operators import OPERATORS


class Sizes(Protocol):
    """What an operation asks of the function that is being printed."""

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    def size(self, dim: str) -> str:
        """The printed size of a lead, a tile axis, or a dimension of the recurrence."""
        ...

    def is_rows(self, axis: str) -> bool: ...

    @property
    def steps(self) -> int:
        """Of a token, each with a row of its own."""
        ...

    def inside(self, axis: str) -> Tensor:
        """Which rows hold a token."""
        ...


Args = tuple[Tensor, ...]
Operation = Callable[[Let, Args, Sizes], Tensor]


def names_attr(let: Let, name: str) -> tuple[str, ...]:
    value: Attr = let.attr(name)
    return value if isinstance(value, tuple) else (str(value),)


def whole(x: Tensor, axes: tuple[str, ...], sizes: Sizes) -> Tensor:
    """x with every one of ``axes`` really there, in an order of its own."""
    missing = [a for a in axes if a not in x.dims]
    if not missing:
        return x
    dims = tuple(d for d in LEADS if d in x.dims or d in axes)
    dims += tuple(a for a in dict.fromkeys((*axes, *x.dims)) if a not in dims)
    shape = ", ".join(sizes.size(d) if d in missing else "-1" for d in dims)
    if x.is_number:
        kind = f"{sizes.dtype}.to_complex()" if x.is_complex else sizes.dtype
        shape = ", ".join(sizes.size(d) for d in dims)
        return Tensor(f"torch.full(({shape},), {x.text}, dtype={kind}, device={sizes.device})", dims, x.is_complex)
    return Tensor(f"{atom(aligned(x, dims, keep_leading=True))}.expand({shape})", dims, x.is_complex, x.is_bool)


def positions(x: Tensor, axes: tuple[str, ...]) -> str:
    """The dims' numbers, from the last: -1, or (-2, -1)."""
    found = sorted(x.dims.index(a) - len(x.dims) for a in axes)
    return str(found[0]) if len(found) == 1 else f"({', '.join(map(str, found))})"


def selected(x: Tensor, axis: str, index: str) -> Tensor:
    """x at one index of an axis."""
    at = x.dims.index(axis)
    after = len(x.dims) - 1 - at
    marks = [":"] * at + [index] if at <= after + 1 else ["...", index] + [":"] * after
    return Tensor(f"{atom(x.text)}[{', '.join(marks)}]", tuple(d for d in x.dims if d != axis), x.is_complex, x.is_bool)


# Elementwise operations whose results are no views of their operands.
FRESH = ("add", "sub", "mul", "div", "neg", "exp", "exp2", "log", "where")


def is_zero(x: Tensor) -> bool:
    return x.is_number and x.text == "0.0"


def triangle(x: Tensor, row: str, column: str, offset: int) -> Tensor:
    """x where row - column >= offset, else zero."""
    rest = tuple(d for d in x.dims if d not in (row, column))
    dims = x.dims if x.dims[-2:] in ((row, column), (column, row)) else (*rest, row, column)
    text = atom(permuted(x.text, x.dims, dims))
    mark = "_" if x.is_spare and dims == x.dims else ""  # the variable is what is overwritten, not a view of it
    if dims[-2:] == (row, column):
        return Tensor(f"{text}.tril{mark}({-offset or ''})", dims, x.is_complex, is_spare=True)
    return Tensor(f"{text}.triu{mark}({offset or ''})", dims, x.is_complex, is_spare=True)


def tensor_of(number: Tensor, sizes: Sizes) -> Tensor:
    """A number as a tensor, where a function takes nothing else."""
    return Tensor(f"torch.tensor({bare(number.text)}, dtype={sizes.dtype}, device={sizes.device})")


def elementwise(let: Let, args: Args, sizes: Sizes) -> Tensor:
    row = OPERATORS[let.op]
    out = let.out
    dims = union_dims(out.axes, *args)
    if all(a.is_number for a in args) and row.torch.startswith("torch.") and let.op != "where":
        args = (tensor_of(args[0], sizes), *args[1:])
    if let.op == "add" and any(is_zero(a) for a in args):
        return next((a for a in args if not is_zero(a)), args[0])
    if let.op == "where":
        condition, x, y = args
        if condition.after is not None and is_zero(y) and set(condition.after[:2]) <= set(x.dims):
            return triangle(x, *condition.after)
        if condition.is_number:
            condition = Tensor(f"torch.tensor({bare(condition.text)}, device={sizes.device})")
        if (x.text, y.text) == ("1.0", "0.0"):
            return Tensor(f"{atom(condition.text)}.to({sizes.dtype})", condition.dims)
        args = (condition, tensor_of(x, sizes) if x.is_number and y.is_number else x, y)
    if let.op in ("max", "min") and any(a.is_number for a in args):
        number, tensor = sorted(args, key=lambda a: not a.is_number)
        bound = "min" if let.op == "max" else "max"
        return Tensor(f"{atom(tensor.text)}.clamp({bound}={bare(number.text)})", tensor.dims)
    if let.op in ("polar", "complex", "max", "min"):
        like = next(a for a in args if not a.is_number)
        args = tuple(
            Tensor(f"torch.full_like({bare(like.text)}, {bare(a.text)})", like.dims) if a.is_number else a for a in args
        )
    texts = [aligned(a, dims) for a in args]
    texts = [bare(t) for t in texts] if row.torch.startswith("torch.") else texts
    overwritten = in_place(let, args, texts, dims)
    if overwritten is not None:
        return overwritten
    if let.op == "add" and texts[1] != bare(texts[1]) and texts[1].startswith("(-"):
        is_number = all(a.is_number for a in args)
        return Tensor(f"({texts[0]} - {bare(texts[1])[1:]})", dims, out.is_complex, is_number=is_number)
    exponent = let.attrs[0][1] if let.attrs else None
    text = row.torch.format(*texts, exponent=exponent)
    is_number = all(a.is_number for a in args)
    factors = (bare(texts[0]), bare(texts[1])) if let.op == "mul" and not any(a.is_number for a in args) else None
    is_spare = let.op in FRESH and not is_number
    return Tensor(text, dims, out.is_complex, out.is_bool, is_number, is_spare=is_spare, factors=factors)


def in_place(let: Let, args: Args, texts: list[str], dims: tuple[str, ...]) -> Tensor | None:
    """The operation carried out in an operand's memory, where one has the result's shape and type and is spare."""
    free = [a.is_spare and a.dims == dims and a.is_complex == let.out.is_complex for a in args]
    if let.op in ("neg", "exp2") and free[0]:
        return Tensor(f"{atom(texts[0])}.{let.op}_()", dims, let.out.is_complex, is_spare=True)
    if let.op not in ("add", "sub", "mul") or not any(free[: 1 if let.op == "sub" else 2]):
        return None
    # A sum rather takes a product in than overwrites it.
    at = 1 if not free[0] or (let.op == "add" and free[1] and args[0].factors is not None) else 0
    target, other, added = atom(texts[at]), bare(texts[1 - at]), args[1 - at]
    factors = args[at].factors
    if let.op == "add" and factors is not None and added.dims == dims and not added.is_number:
        text = f"torch.addcmul({other}, {', '.join(factors)})"
    elif let.op == "add" and added.factors is not None and added.dims == dims:
        text = f"{target}.addcmul_({', '.join(added.factors)})"
    elif let.op == "add" and other.startswith("-"):
        text = f"{target}.sub_({bare(other[1:])})"
    else:
        text = f"{target}.{let.op}_({other})"
    return Tensor(text, dims, let.out.is_complex, is_spare=True)


def promoted(x: Tensor, is_complex: bool, sizes: Sizes) -> Tensor:
    """Products want operands of one type."""
    if not is_complex or x.is_complex or x.is_number:
        return x
    return Tensor(f"{atom(x.text)}.to({sizes.dtype}.to_complex())", x.dims, True)


def times(x: Tensor, y: Tensor, out: Value) -> Tensor:
    dims = union_dims(tuple(dict.fromkeys(out.axes + x.dims + y.dims)), x, y)
    is_number = x.is_number and y.is_number
    return Tensor(f"({aligned(x, dims)} * {aligned(y, dims)})", dims, x.is_complex or y.is_complex, is_number=is_number)


def sum_over(x: Tensor, axes: tuple[str, ...], sizes: Sizes) -> Tensor:
    """The sum over axes; an axis that x was only expanded along counts by its size."""
    present = tuple(a for a in axes if a in x.dims)
    text = x.text
    if present:
        text = f"{atom(text)}.sum({positions(x, present)})"
    for axis in axes:
        if axis not in present:
            text = f"({text} * {sizes.size(axis)})"
    is_spare = bool(present) and not x.is_number
    return Tensor(
        text, tuple(d for d in x.dims if d not in present), x.is_complex, is_number=x.is_number, is_spare=is_spare
    )


def contract(let: Let, args: Args, sizes: Sizes) -> Tensor:
    over = names_attr(let, "over")
    return contracted(args[0], args[1], over, let.out, sizes)


def contracted(x: Tensor, y: Tensor, over: tuple[str, ...], out: Value, sizes: Sizes) -> Tensor:
    """sum over ``over`` of x * y: a matrix product where each side brings at most one axis of its own."""
    missing = tuple(a for a in over if a not in x.dims and a not in y.dims)
    if missing:
        return sum_over(contracted(x, y, tuple(a for a in over if a not in missing), out, sizes), missing, sizes)
    alone = [tuple(a for a in over if a in t.dims and a not in other.dims) for t, other in ((x, y), (y, x))]
    x, y = sum_over(x, alone[0], sizes), sum_over(y, alone[1], sizes)
    summed = tuple(a for a in over if a in x.dims and a in y.dims)
    if not summed:
        return times(x, y, out)
    is_complex = x.is_complex or y.is_complex
    shared = tuple(d for d in x.dims if d in y.dims and d not in over and d not in LEADS)
    leads = tuple(d for d in LEADS if d in x.dims or d in y.dims)
    left = tuple(d for d in x.dims if d not in y.dims and d not in LEADS)
    right = tuple(d for d in y.dims if d not in x.dims and d not in LEADS)
    if not left and not right:
        return sum_over(times(x, y, out), summed, sizes)
    x, y = promoted(x, is_complex, sizes), promoted(y, is_complex, sizes)
    if len(summed) == 1 and len(left) <= 1 and len(right) <= 1:
        return matrix_product(x, y, leads + shared, left, summed, right)
    letters = {d: chr(ord("a") + i) for i, d in enumerate(dict.fromkeys(x.dims + y.dims))}
    dims = leads + shared + left + right
    spell = ["".join(letters[d] for d in group) for group in (x.dims, y.dims, dims)]
    text = f'torch.einsum("{spell[0]},{spell[1]}->{spell[2]}", {bare(x.text)}, {bare(y.text)})'
    return Tensor(text, dims, is_complex)


def matrix_product(
    x: Tensor, y: Tensor, batch: tuple[str, ...], left: tuple[str, ...], summed: tuple[str, ...], right: tuple[str, ...]
) -> Tensor:
    """x @ y. A side without an axis of its own takes a lead that the other side lacks (many vectors, one matrix)."""
    borrowed = next((d for d in reversed(batch) if d not in y.dims), None) if not left else None
    if borrowed is not None:
        batch, left = tuple(d for d in batch if d != borrowed), (borrowed,)
    lent = next((d for d in reversed(batch) if d not in x.dims), None) if not right else None
    if lent is not None:
        batch, right = tuple(d for d in batch if d != lent), (lent,)
    first = aligned(x, batch + left + summed)
    second = aligned(y, batch + summed + right)
    is_complex = x.is_complex
    if left and right:
        return Tensor(f"({first} @ {second})", batch + left + right, is_complex, is_spare=True)
    if left:
        return Tensor(f"({first} @ {atom(second)}[..., None])[..., 0]", batch + left, is_complex)
    return Tensor(f"({atom(first)}[..., None, :] @ {second})[..., 0, :]", batch + right, is_complex)


def weigh(let: Let, args: Args, sizes: Sizes) -> Tensor:
    """sum over ``over`` of x y 2^(gx - gy): the factor comes out of the sum, goes into one operand, or is blocked."""
    x, y, gx, gy = args
    over = names_attr(let, "over")
    gate_axes = tuple(dict.fromkeys(d for d in gx.dims + gy.dims if d not in LEADS))
    dims = union_dims(gate_axes, gx, gy)
    scale = Tensor(f"torch.exp2(({aligned(gx, dims)} - {aligned(gy, dims)}).clamp(max=0))", dims)
    if not set(gate_axes) & set(over):
        return times(contracted(x, y, over, let.out, sizes), scale, let.out)
    if set(gate_axes) <= set(x.dims):
        return contracted(times(x, scale, let.out), y, over, let.out, sizes)
    if set(gate_axes) <= set(y.dims):
        return contracted(x, times(y, scale, let.out), over, let.out, sizes)
    return blocked_weigh(x, y, gx, gy, scale, over, let.out, sizes)


def blocked_weigh(
    x: Tensor, y: Tensor, gx: Tensor, gy: Tensor, scale: Tensor, over: tuple[str, ...], out: Value, sizes: Sizes
) -> Tensor:
    """Gates of rows r (gx) and s (gy) and a further axis k, of which one is summed away: in blocks of rows."""
    rows = [a for a in gx.dims if sizes.is_rows(a) and a not in gy.dims]
    columns = [a for a in gy.dims if sizes.is_rows(a) and a not in gx.dims]
    own = {d for t in (x, y, gx, gy) for d in t.dims if d not in LEADS}
    further = sorted(own - set(rows) - set(columns))
    leads = tuple(d for d in LEADS if any(d in t.dims for t in (x, y, gx, gy)))
    if not (len(rows) == len(columns) == len(further) == len(over) == 1):
        return sum_over(times(times(x, y, out), scale, out), over, sizes)
    r, s, k = rows[0], columns[0], further[0]

    def lay(t: Tensor, *axes: str) -> str:
        return bare(aligned(whole(t, axes, sizes), leads + axes))

    is_complex = x.is_complex or y.is_complex
    if over == (k,):
        row, column = (x, y) if r in x.dims else (y, x)
        text = f"_weighed_scores({lay(row, r, k)}, {lay(column, s, k)}, {lay(gx, r, k)}, {lay(gy, s, k)})"
        return Tensor(text, (*leads, r, s), is_complex)
    weights, other = (x, y) if k not in x.dims else (y, x)
    if over == (s,):
        text = f"_weighed_rows({lay(weights, r, s)}, {lay(other, s, k)}, {lay(gx, r, k)}, {lay(gy, s, k)})"
        return Tensor(text, (*leads, r, k), is_complex)
    minus = [f"-{atom(lay(g, a, k))}" for g, a in ((gy, s), (gx, r))]
    text = f"_weighed_rows({lay(weights, s, r)}, {lay(other, r, k)}, {minus[0]}, {minus[1]}, reverse=True)"
    return Tensor(text, (*leads, s, k), is_complex)


def reduce_sum(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return sum_over(args[0], names_attr(let, "over"), sizes)


def reduce_amax(let: Let, args: Args, sizes: Sizes) -> Tensor:
    x = args[0]
    over = tuple(a for a in names_attr(let, "over") if a in x.dims)
    if not over:
        return x
    return Tensor(f"{atom(x.text)}.amax({positions(x, over)})", tuple(d for d in x.dims if d not in over))


def cumsum(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    x = whole(args[0], (axis,), sizes)
    at = positions(x, (axis,))
    text = f"_exclusive({bare(x.text)}, {at})" if let.attr("exclusive") else f"{atom(x.text)}.cumsum({at})"
    return Tensor(text, x.dims, x.is_complex)


def scan(let: Let, args: Args, sizes: Sizes) -> Tensor:
    texts, dims, at, is_complex = along_rows(let, args, sizes)
    return Tensor(f"_{let.op}({', '.join(texts)}, {at}{reverse_flag(let)})", dims, is_complex)


def along_rows(let: Let, args: Args, sizes: Sizes) -> tuple[list[str], tuple[str, ...], int, bool]:
    """The operands in full, their dims, where among them the rows are, and whether they are complex."""
    axis = str(let.attr("axis"))
    dims = union_dims(let.args[0].axes, *args)
    dims = dims if axis in dims else (*dims, axis)
    is_complex = any(a.is_complex for a in args)
    laid = [promoted(whole(a, dims, sizes), is_complex, sizes) for a in args]
    return [bare(aligned(a, dims)) for a in laid], dims, dims.index(axis) - len(dims), is_complex


def prescan(let: Let, args: Args, sizes: Sizes) -> Tensor:
    """What comes before every run and after all: the rows' place among the dims is that of the runs."""
    axis, runs = str(let.attr("axis")), str(let.attr("runs"))
    texts, dims, at, is_complex = along_rows(let, args, sizes)
    text = f"_{let.op}({', '.join(texts)}, {at}, {sizes.size(runs)}{reverse_flag(let)})"
    return Tensor(text, tuple(runs if d == axis else d for d in dims), is_complex)


def resume(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis, runs = str(let.attr("axis")), str(let.attr("runs"))
    starts = whole(args[2], (runs,), sizes)
    first = replace(starts, dims=tuple(axis if d == runs else d for d in starts.dims))
    texts, dims, at, is_complex = along_rows(let, (*args[:2], first), sizes)
    flag = ", inclusive=True" if dict(let.attrs).get("inclusive") else ""
    return Tensor(f"_{let.op}({', '.join(texts)}, {at}{reverse_flag(let)}{flag})", dims, is_complex)


def is_reverse(let: Let) -> bool:
    return bool(dict(let.attrs).get("reverse", False))


def reverse_flag(let: Let) -> str:
    return ", reverse=True" if is_reverse(let) else ""


def previous(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    dims = union_dims(let.out.axes, *args)
    dims = dims if axis in dims else (*dims, axis)
    x, first = whole(args[0], dims, sizes), whole(args[1], tuple(d for d in dims if d != axis), sizes)
    at = dims.index(axis) - len(dims)
    text = f"_previous({bare(aligned(x, dims))}, {bare(aligned(first, dims))}, {at}{reverse_flag(let)})"
    return Tensor(text, dims, x.is_complex or first.is_complex)


def last(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    return selected(args[0], axis, "0" if is_reverse(let) else "-1") if axis in args[0].dims else args[0]


def index(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    return selected(args[0], axis, str(let.attr("i"))) if axis in args[0].dims else args[0]


def place(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis, x = str(let.attr("axis")), args[0]
    if x.is_number:
        x = whole(x, tuple(a for a in let.out.axes if a != axis), sizes)
    return Tensor(f"_place({bare(x.text)}, {sizes.size(axis)}, {let.attr('i')})", (*x.dims, axis), x.is_complex)


def hadamard(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    x = whole(args[0], (axis,), sizes)
    return Tensor(f"_hadamard({bare(x.text)}, {positions(x, (axis,))})", x.dims, x.is_complex)


def rename(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return args[0].renamed(str(let.attr("old")), str(let.attr("new")))


def expand(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return args[0]


def after(let: Let, args: Args, sizes: Sizes) -> Tensor:
    row, column = let.out.axes
    offset = int(let.attr("offset"))  # type: ignore[arg-type]
    text = f"_after({sizes.size(row)}, {offset}, {sizes.device})"
    return Tensor(text, let.out.axes, is_bool=True, after=(row, column, offset))


def middle(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    x = whole(args[0], (axis,), sizes)
    return Tensor(f"_middle({bare(x.text)}, {let.attr('level')}, {positions(x, (axis,))})", x.dims, x.is_complex)


def right(let: Let, args: Args, sizes: Sizes) -> Tensor:
    (axis,) = let.out.axes
    return Tensor(f"_right({sizes.size(axis)}, {let.attr('level')}, {sizes.device})", (axis,), is_bool=True)


def apart(let: Let, args: Args, sizes: Sizes) -> Tensor:
    text = f"_apart({sizes.size(let.out.axes[0])}, {let.attr('level')}, {sizes.device})"
    return Tensor(text, let.out.axes, is_bool=True)


def start(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    x = whole(args[0], (axis,), sizes)
    return Tensor(f"_before_block({bare(x.text)}, {let.attr('rows')}, {positions(x, (axis,))})", x.dims, x.is_complex)


def end(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis = str(let.attr("axis"))
    x = whole(args[0], (axis,), sizes)
    return Tensor(f"_block_end({bare(x.text)}, {let.attr('rows')}, {positions(x, (axis,))})", x.dims, x.is_complex)


def together(let: Let, args: Args, sizes: Sizes) -> Tensor:
    text = f"_together({sizes.size(let.out.axes[0])}, {let.attr('level')}, {sizes.device})"
    return Tensor(text, let.out.axes, is_bool=True)


def beside(let: Let, args: Args, sizes: Sizes) -> Tensor:
    text = f"_{let.op}({sizes.size(let.out.axes[0])}, {let.attr('rows')}, {sizes.device})"
    return Tensor(text, let.out.axes, is_bool=True)


def room(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return Tensor("80.0", is_number=True)


def rounded(let: Let, args: Args, sizes: Sizes) -> Tensor:
    """Products here take their operands as they are."""
    return args[0]


def valid(let: Let, args: Args, sizes: Sizes) -> Tensor:
    """Rows past the last token are in the last chunk only; a tile of the current chunk alone is masked."""
    axis, x, fill = str(let.attr("axis")), args[0], number(let.attr("fill"))
    if CHUNK in x.dims and axis in x.dims and not x.is_bool:
        at = f"{x.dims.index(CHUNK)}, {x.dims.index(axis)}"
        text = f"_filled({bare(x.text)}, {sizes.size(TOKENS)}, {at}{'' if fill == '0.0' else f', {fill}'})"
        return Tensor(text, x.dims, x.is_complex)
    inside = sizes.inside(axis)
    dims = union_dims((*x.dims, axis), x, inside)
    x = tensor_of(x, sizes) if x.is_number else x
    text = f"torch.where({aligned(inside, dims)}, {bare(aligned(x, dims))}, {fill})"
    return Tensor(text, dims, x.is_complex, x.is_bool)


def at_step(let: Let, args: Args, sizes: Sizes) -> Tensor:
    axis, x, fill = str(let.attr("axis")), args[0], number(let.attr("fill"))
    mask = Tensor(f"_is_step({sizes.size(axis)}, {sizes.steps}, {let.attr('step')}, {sizes.device})", (axis,))
    dims = union_dims((*x.dims, axis), x, mask)
    x = tensor_of(x, sizes) if x.is_number else x
    text = f"torch.where({aligned(mask, dims)}, {bare(aligned(x, dims))}, {fill})"
    return Tensor(text, dims, x.is_complex, x.is_bool)


def inverse(let: Let, args: Args, sizes: Sizes) -> Tensor:
    pair = (str(let.attr("row")), str(let.attr("column")))
    x = whole(args[0], pair, sizes)
    dims = tuple(d for d in x.dims if d not in pair) + pair
    return Tensor(f"_inverse({bare(aligned(x, dims))})", dims, x.is_complex)


def eye(let: Let, args: Args, sizes: Sizes) -> Tensor:
    count = sizes.size(let.out.axes[0])
    return Tensor(f"torch.eye({count}, dtype={sizes.dtype}, device={sizes.device})", let.out.axes)


def select(let: Let, args: Args, sizes: Sizes) -> Tensor:
    fused, part = let.out.axes
    counts = ", ".join((sizes.size(fused), sizes.size(part), *(sizes.size(d) for d in names_attr(let, "inner"))))
    return Tensor(f"_part({counts}, dtype={sizes.dtype}, device={sizes.device})", let.out.axes)


def const(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return Tensor(number(let.attr("value")), is_number=True)


def zeros(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return Tensor("0.0", is_complex=let.out.is_complex, is_number=True)


def full(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return Tensor(number(let.attr("value")), is_number=True)


def size(let: Let, args: Args, sizes: Sizes) -> Tensor:
    return Tensor(sizes.size(str(let.attr("dim"))), is_number=True)


def number(attr: Attr) -> str:
    """A Python literal, parenthesised where negative."""
    value = float(attr)  # type: ignore[arg-type]
    text = f'float("{value}")' if value in (float("inf"), float("-inf")) else repr(value)
    return f"({text})" if value < 0 and not text.startswith("float") else text


OPERATIONS: dict[str, Operation] = {
    "const": const, "size": size, "zeros": zeros, "full": full, "eye": eye, "select": select,
    "contract": contract, "weigh": weigh, "sum": reduce_sum, "amax": reduce_amax,
    "cumsum": cumsum, "scan": scan, "prescan": prescan, "maxprescan": prescan,
    "resume": resume, "maxresume": resume, "inverse": inverse,
    "previous": previous, "last": last, "index": index, "place": place, "hadamard": hadamard,
    "rename": rename, "expand": expand, "after": after, "valid": valid, "at_step": at_step,
    "middle": middle, "right": right, "apart": apart, "together": together, "rounded": rounded,
    "start": start, "end": end, "beside": beside, "across": beside, "room": room,
}  # fmt: skip


def operation(let: Let, args: Args, sizes: Sizes) -> Tensor:
    """The expression of one statement. Raises KeyError for an operation that neither table has."""
    if let.op in OPERATIONS:
        return OPERATIONS[let.op](let, args, sizes)
    return elementwise(let, args, sizes)

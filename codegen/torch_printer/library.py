"""Functions that the printed torch code calls; a module gets the source of those that it uses.

Tiles are [batch, head, chunk, row, ...]; a chunk holds C tokens, and tokens past the end are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def _accumulate_dtype(x: torch.Tensor) -> torch.dtype:
    """What sums and states are kept in: float32, or float64 where the inputs are."""
    return torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32


def _chunked(x: torch.Tensor, C: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, T, H, ...] -> [B, H, N, C, ...], contiguous; zero past the last token."""
    B, T, H, *dims = x.shape
    N = -(-T // C)
    rows = torch.empty(B, H, N * C, *dims, dtype=dtype, device=x.device)
    rows[:, :, :T] = x.transpose(1, 2)
    rows[:, :, T:] = 0
    return rows.view(B, H, N, C, *dims)


def _tokens(x: torch.Tensor, T: int) -> torch.Tensor:
    """[B, H, N, C, ...] -> [B, T, H, ...]: the inverse of _chunked."""
    return x.flatten(2, 3)[:, :, :T].transpose(1, 2)


def _joined_steps(x: torch.Tensor, dim: int) -> torch.Tensor:
    """[B, T, H, ...] with a token's steps along ``dim`` -> [B, R, H, ...]: a token's rows one after another."""
    return x.movedim(dim, 2).flatten(1, 2)


def _at_step(x: torch.Tensor, step: int, steps: int) -> torch.Tensor:
    """[B, T, H, ...] -> [B, R, H, ...]: x on every token's row ``step``, zero on its others."""
    rows = x.new_zeros(*x.shape[:2], steps, *x.shape[2:])
    rows[:, :, step] = x
    return rows.flatten(1, 2)


def _split_steps(x: torch.Tensor, steps: int, dim: int) -> torch.Tensor:
    """The inverse of _joined_steps."""
    return x.unflatten(1, (x.shape[1] // steps, steps)).movedim(2, dim)


def _shifted(x: torch.Tensor, shift: int, dim: int = 1) -> torch.Tensor:
    """x at token t + shift, zero outside the sequence."""
    moved = torch.zeros_like(x)
    count = x.shape[dim] - abs(shift)
    if count > 0:
        moved.narrow(dim, max(-shift, 0), count).copy_(x.narrow(dim, max(shift, 0), count))
    return moved


def _inside(T: int, N: int, C: int, device: torch.device) -> torch.Tensor:
    """[N, C]: which rows hold a token."""
    return (torch.arange(N * C, device=device) < T).view(N, C)


def _is_step(C: int, steps: int, step: int, device: torch.device) -> torch.Tensor:
    """[C]: which rows are those of a step, where a token has ``steps`` of them."""
    return torch.arange(C, device=device) % steps == step


def _filled(x: torch.Tensor, T: int, chunk_dim: int, row_dim: int, fill: float = 0.0) -> torch.Tensor:
    """x with ``fill`` in the rows past the last token."""
    past = x.shape[chunk_dim] * x.shape[row_dim] - T
    if past > 0:
        x = x.clone()
        x.narrow(chunk_dim, x.shape[chunk_dim] - 1, 1).narrow(row_dim, x.shape[row_dim] - past, past).fill_(fill)
    return x


def _after(C: int, offset: int, device: torch.device) -> torch.Tensor:
    """[C, C]: whether row - column >= offset."""
    row = torch.arange(C, device=device)
    return row[:, None] - row >= offset


def _middle(x: torch.Tensor, level: int, dim: int) -> torch.Tensor:
    """For every row x's last row before the middle of the row's block of 2^(level + 1) rows."""
    row = torch.arange(x.shape[dim], device=x.device)
    return x.index_select(dim, ((row >> level | 1) << level) - 1)


def _right(C: int, level: int, device: torch.device) -> torch.Tensor:
    """[C]: whether a row is in the right half of its block of 2^(level + 1) rows."""
    return (torch.arange(C, device=device) >> level & 1).bool()


def _together(C: int, level: int, device: torch.device) -> torch.Tensor:
    """[C, C]: whether two rows are in the same half of one block of 2^(level + 1) rows."""
    row = torch.arange(C, device=device) >> level
    return row[:, None] == row


def _apart(C: int, level: int, device: torch.device) -> torch.Tensor:
    """[C, C]: whether two rows are in the two halves of one block of 2^(level + 1) rows."""
    row = torch.arange(C, device=device)
    return (row[:, None] ^ row) >> level == 1


def _before_block(x: torch.Tensor, rows: int, dim: int) -> torch.Tensor:
    """For every row x's last row before the row's block of ``rows`` rows, zero in the first block."""
    before = torch.arange(x.shape[dim], device=x.device) // rows * rows - 1
    return torch.nn.functional.pad(x.movedim(dim, -1), (1, 0)).movedim(-1, dim).index_select(dim, before + 1)


def _block_end(x: torch.Tensor, rows: int, dim: int) -> torch.Tensor:
    """For every row x's last row of the row's block of ``rows`` rows."""
    row = torch.arange(x.shape[dim], device=x.device)
    return x.index_select(dim, (row // rows * rows + rows - 1).clamp(max=x.shape[dim] - 1))


def _beside(C: int, rows: int, device: torch.device) -> torch.Tensor:
    """[C, C]: whether the column comes before the row in its block of ``rows`` rows."""
    row = torch.arange(C, device=device)
    return (row[:, None] > row) & (row[:, None] // rows == row // rows)


def _across(C: int, rows: int, device: torch.device) -> torch.Tensor:
    """[C, C]: whether the column's block of ``rows`` rows comes before the row's."""
    block = torch.arange(C, device=device) // rows
    return block[:, None] > block


def _part(fused: int, size: int, *inner: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[fused, size]: one where the column is the part of an entry of the fused dim; ``inner``: sizes of later parts."""
    index = torch.arange(fused, device=device)
    for count in inner:
        index = index // count
    return (index[:, None] % size == torch.arange(size, device=device)).to(dtype)


def _exclusive(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Running sums along dim, each without its own term."""
    sums = torch.empty_like(x)
    count = x.shape[dim] - 1
    sums.narrow(dim, 0, 1).zero_()
    torch.cumsum(x.narrow(dim, 0, count), dim, out=sums.narrow(dim, 1, count))
    return sums


def _inverse(L: torch.Tensor) -> torch.Tensor:
    """(I + L)^-1 for L strictly lower triangular in the last two dims."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False, unitriangular=True)


def _previous(x: torch.Tensor, first: torch.Tensor, dim: int, reverse: bool = False) -> torch.Tensor:
    """x one row later along dim, with ``first`` (of size 1 there) as row 0; ``reverse``: one row earlier."""
    count = x.shape[dim]
    first = first.expand(*x.narrow(dim, 0, 1).shape)
    return torch.cat((x.narrow(dim, 1, count - 1), first) if reverse else (first, x.narrow(dim, 0, count - 1)), dim)


def _row_pairs(count: int, reverse: bool) -> list[tuple[int, int]]:
    """Each row with the one before it, from the first; ``reverse``: with the one after it, from the last."""
    return [(r, r + 1) for r in range(count - 2, -1, -1)] if reverse else [(r, r - 1) for r in range(1, count)]


def _scan(a: torch.Tensor, x: torch.Tensor, dim: int, reverse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Running products of a, and h_r = a_r h_{r-1} + x_r from zero, along dim.

    Row by row, for all chunks at once: a chunk has few rows, and doubling steps would move log2(C) times the memory.
    """
    factor = a.movedim(dim, 0)
    a, x = factor.clone(), x.movedim(dim, 0).clone()
    for row, before in _row_pairs(x.shape[0], reverse):
        x[row].addcmul_(factor[row], x[before])
        a[row].mul_(a[before])
    return a.movedim(0, dim), x.movedim(0, dim)


def _prescan(
    a: torch.Tensor, x: torch.Tensor, dim: int, runs: int, reverse: bool = False
) -> tuple[torch.Tensor, ...]:
    """Products of a and h_r = a_r h_{r-1} + x_r from zero, along dim: before every run of rows, and after all."""
    return _scan_runs(a, x, dim, runs, reverse, torch.mul, _decayed_sum, (1.0, 0.0))


def _maxprescan(
    g: torch.Tensor, x: torch.Tensor, dim: int, runs: int, reverse: bool = False
) -> tuple[torch.Tensor, ...]:
    """Sums of g and m_r = max(m_{r-1} + g_r, x_r) from minus infinity: before every run of rows, and after all."""
    return _scan_runs(g, x, dim, runs, reverse, torch.add, _decayed_max, (0.0, float("-inf")))


def _resume(
    a: torch.Tensor, x: torch.Tensor, h: torch.Tensor, dim: int, reverse: bool = False, inclusive: bool = False
) -> torch.Tensor:
    """h_r = a_r h_{r-1} + x_r along dim, before every row (inclusive: after it), from h before every run of rows."""
    return _resume_runs(a, x, h, dim, reverse, inclusive, _decayed_sum)


def _maxresume(
    g: torch.Tensor, x: torch.Tensor, m: torch.Tensor, dim: int, reverse: bool = False, inclusive: bool = False
) -> torch.Tensor:
    """m_r = max(m_{r-1} + g_r, x_r), as _resume."""
    return _resume_runs(g, x, m, dim, reverse, inclusive, _decayed_max)


def _decayed_sum(a: torch.Tensor, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(x, a, h)


def _decayed_max(g: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return torch.maximum(m + g, x)


def _in_order(x: torch.Tensor, dim: int, reverse: bool) -> torch.Tensor:
    """x with dim in front, the other way round where a scan runs in reverse."""
    x = x.movedim(dim, 0)
    return x.flip(0) if reverse else x


def _rows_of_runs(x: torch.Tensor, dim: int, runs: int, reverse: bool) -> tuple[torch.Tensor, ...]:
    """Every run's first row [runs, ...], then every run's second, and so on."""
    return _in_order(x, dim, reverse).unflatten(0, (runs, -1)).unbind(1)


def _scan_runs(
    a: torch.Tensor, x: torch.Tensor, dim: int, runs: int, reverse: bool, times: Callable, step: Callable,
    nothing: tuple[float, float],
) -> tuple[torch.Tensor, ...]:
    """All runs at once, row by row; then from run to run."""
    a, x = torch.broadcast_tensors(a, x)
    (decay, *decays), (h, *drives) = (_rows_of_runs(t, dim, runs, reverse) for t in (a, x))
    for a_row, x_row in zip(decays, drives, strict=True):
        decay, h = times(a_row, decay), step(a_row, x_row, h)
    before = [tuple(torch.full_like(h[0], value) for value in nothing)]
    for a_run, x_run in zip(decay, h, strict=True):
        before.append((times(a_run, before[-1][0]), step(a_run, x_run, before[-1][1])))
    each = (torch.stack(values) for values in zip(*before[:-1], strict=True))
    return (*((t.flip(0) if reverse else t).movedim(0, dim) for t in each), *before[-1])


def _resume_runs(
    a: torch.Tensor, x: torch.Tensor, h: torch.Tensor, dim: int, reverse: bool, inclusive: bool, step: Callable
) -> torch.Tensor:
    a, x = torch.broadcast_tensors(a, x)
    h = _in_order(h, dim, reverse)
    states = [h]
    for a_row, x_row in zip(*(_rows_of_runs(t, dim, len(h), reverse) for t in (a, x)), strict=True):
        states.append(step(a_row, x_row, states[-1]))
    rows = torch.stack(states[1:] if inclusive else states[:-1], 1).flatten(0, 1)
    return (rows.flip(0) if reverse else rows).movedim(0, dim)


def _weighed_scores(x: torch.Tensor, y: torch.Tensor, gx: torch.Tensor, gy: torch.Tensor) -> torch.Tensor:
    """out[r, s] = sum_k x[r, k] y[s, k] 2^(gx[r, k] - gy[s, k]) where row r is not before row s, else finite.

    Rows in blocks of 16. Earlier blocks by one product, both exponents taken from the block's first row, which is in
    the future of none of its rows: 2^(gx - anchor) and 2^(anchor - gy) are at most 1. The block itself pair by pair.
    """
    C = x.shape[-2]
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x, y, gx, gy)))
    out = (x[..., :1, :1] * y[..., :1, :1]).new_zeros(*batch, C, C)
    x, y = x.to(out.dtype), y.to(out.dtype)
    for start in range(0, C, 16):
        block, past = slice(start, min(start + 16, C)), slice(0, start)
        anchor = gx[..., start : start + 1, :]
        scale = torch.exp2((gx[..., block, None, :] - gy[..., None, block, :]).clamp_(max=0))
        out[..., block, block] = (scale * x[..., block, None, :] * y[..., None, block, :]).sum(-1)
        left = x[..., block, :] * torch.exp2((gx[..., block, :] - anchor).clamp_(max=0))
        right = y[..., past, :] * torch.exp2((anchor - gy[..., past, :]).clamp_(max=0))
        out[..., block, past] = left @ right.mT
    return out


def _weighed_rows(
    p: torch.Tensor, y: torch.Tensor, gx: torch.Tensor, gy: torch.Tensor, reverse: bool = False
) -> torch.Tensor:
    """out[r, k] = sum_s p[r, s] y[s, k] 2^(gx[r, k] - gy[s, k]) for p that is zero where row r is before row s
    (``reverse``: after row s). Blocks and anchors as in _weighed_scores.
    """
    C = p.shape[-2]
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (p, y, gx, gy)))
    out = (p[..., :1, :1] * y[..., :1, :1]).new_empty(*batch, C, y.shape[-1])
    p, y = p.to(out.dtype), y.to(out.dtype)
    for start in range(0, C, 16):
        stop = min(start + 16, C)
        block, past = slice(start, stop), slice(stop, C) if reverse else slice(0, start)
        anchor = gx[..., stop - 1 : stop, :] if reverse else gx[..., start : start + 1, :]
        scale = torch.exp2((gx[..., block, None, :] - gy[..., None, block, :]).clamp_(max=0))
        here = (p[..., block, None, block] @ (scale * y[..., None, block, :])).squeeze(-2)
        right = y[..., past, :] * torch.exp2((anchor - gy[..., past, :]).clamp_(max=0))
        left = torch.exp2((gx[..., block, :] - anchor).clamp_(max=0))
        out[..., block, :] = here + left * (p[..., block, past] @ right)
    return out


def _place(x: torch.Tensor, size: int, i: int) -> torch.Tensor:
    """x as entry i of a new last dim, zero elsewhere."""
    out = x.new_zeros(*x.shape, size)
    out[..., i] = x
    return out


def _hadamard(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The Walsh-Hadamard transform along dim, unnormalised, in Sylvester's order."""
    x = x.movedim(dim, -1)
    shape, half = x.shape, 1
    while half < shape[-1]:
        x = x.reshape(*shape[:-1], -1, 2, half)
        x = torch.cat((x[..., :1, :] + x[..., 1:, :], x[..., :1, :] - x[..., 1:, :]), -2)
        half *= 2
    return x.reshape(shape).movedim(-1, dim)

"""Rows of all taps cut, laid together and summed: as few launches as there can be, forward and backward.

Autograd's own cuts and sums would launch something for every tap. Here the gradient of laying together is cutting, and
that is views; the gradient of cutting is laying together, and that is one copy of everything.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor


def hand_out(tensors: Sequence[Tensor], times: int) -> list[Sequence[Tensor]]:
    """The list ``times`` times over, for as many uses; one launch backward for each use beyond the first."""
    if times == 1:
        return [tensors]
    count = len(tensors)
    flat = _HandOut.apply(times, *tensors)
    return [flat[use * count : (use + 1) * count] for use in range(times)]


def below_each_other(*pairs: tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]) -> list:
    """Lay (a, D_l) above (b, D_l) for each l of each pair of lists: all pairs in one launch forward, none backward.

    Args:
        pairs: two lists each; where one of them is None, the other is the result.

    Returns:
        For each pair a list of (a + b, D_l) tensors.
    """
    full = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    halves = [tensor for half in zip(*full, strict=True) for tensors in half for tensor in tensors]
    laid = iter(_BelowEachOther.apply(*halves) if halves else ())
    return [
        list(islice(laid, len(upper))) if upper is not None and lower is not None else upper or lower
        for upper, lower in pairs
    ]


def cut_rows(tensors: Sequence[Tensor], k: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """(B, R, D_l) for each l -> views (B, k, D_l) and (B, R - k, D_l): no launch forward, one backward."""
    cut = _CutRows.apply(k, *tensors)
    return cut[: len(tensors)], cut[len(tensors) :]


def heads_below(columns: Tensor, owns: Tensor) -> Tensor:
    """Lay the heads' columns below each other, zeros in those of the others: one launch each way.

    Args:
        columns: (..., K, r).
        owns: (H, 1, r), ones in the columns of head h.

    Returns:
        (..., H K, r).
    """
    return _HeadsBelow.apply(columns, owns)


def heads_beside(rows: Tensor, owns: Tensor, more: Tensor | None = None) -> Tensor:
    """Lay the heads' own columns side by side, the inverse of :func:`heads_below`: one launch each way.

    Args:
        rows: (..., H K, r).
        owns: (H, 1, r), ones in the columns of head h.
        more: (..., K, e), to be laid on the right of them, without gradient.

    Returns:
        (..., K, r), or (..., K, r + e).
    """
    return _HeadsBeside.apply(rows, owns, more)


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, times, *tensors):
        ctx.count = len(tensors)
        return tuple(tensor.view_as(tensor) for _ in range(times) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads):
        total, *others = (grads[start : start + ctx.count] for start in range(0, len(grads), ctx.count))
        for grad in others:
            total = torch._foreach_add(total, grad)
        return None, *total


class _BelowEachOther(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *matrices):
        half = len(matrices) // 2
        ctx.heights = [len(matrix) for matrix in matrices[:half]]
        pairs = list(zip(matrices[:half], matrices[half:], strict=True))
        # Rows are contiguous, so that one flat copy of everything, cut between pairs, is all of them at once.
        flat = torch.cat([matrix.flatten() for pair in pairs for matrix in pair])
        rows = flat.split([upper.numel() + lower.numel() for upper, lower in pairs])
        return tuple(both.view(-1, upper.shape[-1]) for both, (upper, _) in zip(rows, pairs, strict=True))

    @staticmethod
    def backward(ctx, *grads):
        cut = list(zip(grads, ctx.heights, strict=True))
        return *(grad[:height] for grad, height in cut), *(grad[height:] for grad, height in cut)


class _CutRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, *tensors):
        ctx.shapes = [rows.shape[1:] for rows in tensors]
        return *(rows[:, :k] for rows in tensors), *(rows[:, k:] for rows in tensors)

    @staticmethod
    def backward(ctx, *grads):
        count = len(ctx.shapes)
        side_by_side = [grads[i + half].flatten(1) for i in range(count) for half in (0, count)]
        columns = torch.cat(side_by_side, 1).split([rows * width for rows, width in ctx.shapes], 1)
        return None, *(column.unflatten(1, shape) for column, shape in zip(columns, ctx.shapes, strict=True))


class _HeadsBelow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, columns, owns):
        ctx.heads = len(owns)
        return _apart(columns, owns)

    @staticmethod
    def backward(ctx, grad):
        return torch.cat(_own(grad, ctx.heads), -1), None


class _HeadsBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, owns, more):
        ctx.save_for_backward(owns)
        own = _own(rows, len(owns))
        return torch.cat(own if more is None else [*own, more], -1)

    @staticmethod
    def backward(ctx, grad):
        (owns,) = ctx.saved_tensors
        return _apart(grad[..., : owns.shape[-1]], owns), None, None


def _apart(columns: Tensor, owns: Tensor) -> Tensor:
    """(..., K, r) -> (..., H K, r)."""
    return (columns.unsqueeze(-3) * owns).flatten(-3, -2)


def _own(rows: Tensor, heads: int) -> list[Tensor]:
    """Of each head's rows its own columns: (..., H K, r) -> H views (..., K, d)."""
    blocks = rows.unflatten(-1, (heads, -1)).unflatten(-3, (heads, -1))  # (..., H, K, H, d)
    return [blocks[..., head, :, head, :] for head in range(heads)]

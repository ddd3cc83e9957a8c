"""What project and fuse share: rows through a norm and a matrix on the device, and what their launchers need to know.

For the rows ``x`` (M, D) of one entry, with mean ``mu`` and inverse deviation ``s``, and ``W`` (D, E)::

    y = s (x W - mu colsum(W)) + b

so that the tokens themselves are what is multiplied. ``colsum`` is taken over the weights as they are multiplied, after
narrowing to the tokens' dtype. Float32 rows are centred on their first channel before, which neither statistics nor
norm mind, so that rows far from zero stay as exact as they are.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from .launch import Blocks, Operand, blocks, chip
from .shared import add_to_statistics, inverse_deviation, pick, size, stride

#: Numbers a row that the first backward launch leaves for the second: mean, inverse, c1, c2, and for a gate over
#: layers a token each the factor of the gradient and that of the gate.
ROW_NUMBERS = tl.constexpr(6)


@triton.jit
def row_offsets(o_m, inner, stride_b, stride_m):
    """Where rows (B, M), counted through, begin: [BLOCK_M, 1]."""
    return ((o_m // inner).to(tl.int64) * stride_b + (o_m % inner).to(tl.int64) * stride_m)[:, None]


@triton.jit
def rows_and_matrix(tokens, weights, i_g, entry, o_m, VECTOR: tl.constexpr, W_VECTOR: tl.constexpr):
    """From the numbers of :func:`geometry`: where rows begin, [BLOCK_M, 1], where the matrix does, and its stride."""
    o_x = row_offsets(o_m, size(entry, 1), stride(entry, 4, VECTOR), stride(entry, 5, VECTOR))
    p_x = pick(tokens, i_g, VECTOR) + stride(entry, 6, VECTOR) + o_x
    return p_x, pick(weights, i_g, W_VECTOR) + stride(entry, 8, W_VECTOR), stride(entry, 7, W_VECTOR)


@triton.jit
def mapped_rows(
    p_x, m_m, p_w, stride_w, o_e, width, columns,
    X: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``norm(x) W`` of a block of rows and columns, and what its norm needs.

    Args:
        p_x: where the rows begin.  # [BLOCK_M, 1]
        m_m: which of them there are.  # [BLOCK_M]
        p_w, stride_w: the matrix (width, columns) and the distance of its rows.
        o_e: the columns.  # [BLOCK_E]
        width, columns: sizes of the matrix.
        X: dtype of what is multiplied.

    Returns:
        The product [BLOCK_M, BLOCK_E], the rows' means and inverse deviations [BLOCK_M], the columns' sums [BLOCK_E].
    """
    o_c = tl.arange(0, BLOCK_D)
    m_e = o_e < columns
    b_y = tl.zeros([m_m.shape[0], o_e.shape[0]], ACC)
    b_mean, b_square = tl.zeros([m_m.shape[0]], ACC), tl.zeros([m_m.shape[0]], ACC)
    b_total = tl.zeros([o_e.shape[0]], ACC)
    CENTRED: tl.constexpr = (NORM == "layer") & (tl.float32 == X)
    if CENTRED:
        b_first = tl.load(p_x, mask=m_m[:, None], other=0.0).to(ACC)
    for d in range(0, width, BLOCK_D):
        m_d = d + o_c < width
        m_x = m_m[:, None] & m_d[None, :]
        b_x = tl.load(p_x + (d + o_c)[None, :], mask=m_x, other=0.0)
        if CENTRED:
            b_x = tl.where(m_x, b_x.to(ACC) - b_first, 0.0)
        p_tile = p_w + (d + o_c)[:, None] * stride_w + o_e[None, :]
        b_w = tl.load(p_tile, mask=m_d[:, None] & m_e[None, :], other=0.0).to(X)
        b_y = tl.dot(b_x.to(X), b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
        if NORM == "layer":
            b_total += tl.sum(b_w.to(ACC), 0)
        count = tl.minimum(width - d, BLOCK_D)
        b_mean, b_square = add_to_statistics(b_x.to(ACC), m_x, count, d, b_mean, b_square, NORM)
    b_inverse = inverse_deviation(b_square, width, EPS, NORM)
    if NORM == "layer":
        b_y -= b_mean[:, None] * b_total[None, :]
    if NORM != "none":
        b_y *= b_inverse[:, None]
    if CENTRED:
        b_mean += tl.sum(b_first, 1)
    return b_y, b_mean, b_inverse, b_total


@triton.jit
def store_norm(p_n, m_m, rows, b_mean, b_inverse, b_c1, b_c2, NORM: tl.constexpr):
    """Leave the first four of the :data:`ROW_NUMBERS`, as far as the norm needs them."""
    if NORM == "layer":
        tl.store(p_n, b_mean, mask=m_m)
        tl.store(p_n + 2 * rows, b_c1, mask=m_m)
    if NORM != "none":
        tl.store(p_n + rows, b_inverse, mask=m_m)
        tl.store(p_n + 3 * rows, b_c2, mask=m_m)


@triton.jit
def layer_weight(gate, i_l, layers, COUNT: tl.constexpr, ACC: tl.constexpr):
    """The ``i_l``-th of the softmax of one logit a layer."""
    o_l = tl.arange(0, COUNT)
    b_logits = tl.load(gate + o_l, mask=o_l < layers, other=float("-inf")).to(ACC)
    top = tl.max(b_logits, 0)
    return tl.exp(tl.load(gate + i_l).to(ACC) - top) / tl.sum(tl.exp(b_logits - top), 0)


# ---- host -----------------------------------------------------------------------------------------------------------


def fitted(kernel: str, like: Tensor, rows: int, weights: Operand) -> Blocks:
    """A kernel's blocks, none larger than the power of two that holds the call's largest size: at least 16."""
    widths, columns = zip(*(shape for shape, _, _ in weights.sizes), strict=True)
    return _fitted(kernel, chip(like.device), like.element_size(), rows, max(widths), max(columns))


@functools.lru_cache(maxsize=256)
def _fitted(kernel: str, chip: str, item: int, rows: int, width: int, columns: int) -> Blocks:
    found, largest = blocks(kernel, chip, item), {"BLOCK_M": rows, "BLOCK_D": width, "BLOCK_E": columns}
    cut = {name: min(found.sizes[name], max(16, triton.next_power_of_2(n))) for name, n in largest.items()}
    return replace(found, sizes=found.sizes | cut)


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """All rows of (M, D) or (B, M, D), and M."""
    return math.prod(shape[:-1]), shape[-2]


def row_strides(strides: Sequence[int]) -> tuple[int, int]:
    """The two row strides of (M, D) or (B, M, D)."""
    return (0, strides[0]) if len(strides) == 2 else (strides[0], strides[1])


def geometry(tokens: tuple, matrix: tuple) -> list[int]:
    """An entry's B M, M, D, E; its tokens' two row strides and offset; its matrix's row stride and offset."""
    (shape, strides, offset), (sizes, w_strides, w_offset) = tokens, matrix
    return [*rows_of(shape), *sizes, *row_strides(strides), offset, w_strides[0], w_offset]


def common_columns(weights: Operand) -> int:
    """What every entry's number of columns is a multiple of: at most 16."""
    return math.gcd(16, *(shape[1] for shape, _, _ in weights.sizes))

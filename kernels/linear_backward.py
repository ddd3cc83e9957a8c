"""The kernel of all gradients of project and fuse: one program makes one block of one of them.

In the words of :mod:`fastav.kernels.linear`, with ``z = s (x - mu)``, so that ``y = z W + b``, and ``g`` its
gradient::

    dx = s (g W^T - c1 / D - z c2 / D)                   c1 = g . colsum(W), c2 = g . (z W), a number each a row
    dW = sum_m x_m h_m - sum_m mu_m h_m                  h = s g
    db = sum_m g_m

``mu``, ``s``, ``c1`` and ``c2`` come from an earlier launch. Float32 tokens are centred on ``mu`` before they are
multiplied. Float16 cannot hold every gradient: what is multiplied there is divided by its row's or column's maximum
first, and its product multiplied by it; bfloat16 has the exponents of float32.
"""

import triton
import triton.language as tl

from .linear import layer_weight, row_offsets
from .shared import find, narrow_along, pick, size, stride

FIELDS = tl.constexpr(18)

#: Kinds of programs.
TOKENS, WEIGHTS, RESIDUALS, GATE_KIND = (tl.constexpr(i) for i in range(4))


@triton.jit
def factors(p_rows, rows, gate, o_m, m_m, i_l, layers, LAYERS: tl.constexpr, GATE: tl.constexpr, ACC: tl.constexpr):
    """What the rows' incoming gradients are multiplied with, and what the gate is added with: [BLOCK_M] each."""
    b_one = tl.where(m_m, 1.0, 0.0).to(ACC)
    if GATE == "token":
        b_alpha = tl.load(p_rows + 4 * rows + o_m, mask=m_m, other=0.0)
        return b_alpha, tl.load(p_rows + 5 * rows + o_m, mask=m_m, other=0.0)
    if GATE == "layer":
        return b_one * layer_weight(gate, i_l, layers, LAYERS, ACC), b_one
    if GATE == "mean":
        return b_one / layers.to(ACC), b_one
    return b_one, b_one


@triton.jit
def step_tile(p_g, gate, o_e, m_m, columns, b_alpha, b_beta, GATE: tl.constexpr, ACC: tl.constexpr):
    """A tile of the gradient of ``y``: [BLOCK_M, BLOCK_E]."""
    m_e = o_e < columns
    b_g = tl.load(p_g + o_e[None, :], mask=m_m[:, None] & m_e[None, :], other=0.0).to(ACC)
    if GATE != "none":
        b_g *= b_alpha[:, None]
    if GATE == "token":
        b_g += b_beta[:, None] * tl.load(gate + o_e, mask=m_e, other=0.0).to(ACC)[None, :]
    return b_g


@triton.jit
def linear_bwd_kernel(
    tokens, weights, steps, grads, gate, rows, partials, d_tokens, d_weights, d_biases, d_residuals, d_gate, table,
    COUNT: tl.constexpr, LAYERS: tl.constexpr, VECTOR: tl.constexpr, W_VECTOR: tl.constexpr, S_VECTOR: tl.constexpr,
    G_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, R_VECTOR: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients; which block of which one a program makes stands in the table.

    Args:
        tokens, weights: tuples of pointers: (B, M, D) or (M, D), and (D, E).
        steps: tuple of pointers: the gradients (B, M, E) of what the matrices give, but for the gate's factors.
        grads: tuple of pointers: the gradients (B, M, E) of the outputs, where residuals want theirs.
        gate: None, or (L,) or (E,).
        rows: ROW_NUMBERS numbers a row, for each entry (ROW_NUMBERS, B M).
        partials: the gate's unfinished gradients: (L, blocks) or (L blocks, E).
        d_tokens, d_weights, d_biases, d_residuals: flat results, or None.
        d_gate: the gate's gradient, or None.
        table: see :mod:`fastav.kernels.linear_gradients`.
    """
    _, local, entry = find(table, COUNT, FIELDS)
    kind, i_l = size(entry, 0), size(entry, 1)
    p_x, p_w, p_g = pick(tokens, i_l, VECTOR), pick(weights, i_l, W_VECTOR), pick(steps, i_l, S_VECTOR)
    p_out = None if grads is None else pick(grads, i_l, G_VECTOR)
    X: tl.constexpr = tokens[0].dtype.element_ty if tl.float64 != ACC else ACC
    if d_tokens is not None and kind == TOKENS:
        tokens_gradient(
            p_x, p_w, p_g, gate, rows, d_tokens, entry, local, X, LAYERS, VECTOR, W_VECTOR, S_VECTOR,
            E_VECTOR, NORM, GATE, ACC, PRECISION, BLOCK_M, BLOCK_E, BLOCK_D,
        )  # fmt: skip
    if (d_weights is not None or d_biases is not None) and kind == WEIGHTS:
        weights_gradient(
            p_x, p_g, gate, rows, d_weights, d_biases, entry, local, X, LAYERS, VECTOR, S_VECTOR,
            E_VECTOR, NORM, GATE, ACC, PRECISION, BLOCK_M, BLOCK_E, BLOCK_D,
        )  # fmt: skip
    if d_residuals is not None and kind == RESIDUALS:
        residual_gradient(p_out, d_residuals, entry, local, G_VECTOR, E_VECTOR, R_VECTOR, ACC, BLOCK_M, BLOCK_E)
    if d_gate is not None and kind == GATE_KIND:
        gate_gradient(gate, partials, d_gate, entry, local, LAYERS, GATE, ACC, BLOCK_M, BLOCK_E)


@triton.jit
def tokens_gradient(
    p_x, p_w, p_g, gate, rows, d_tokens, entry, local, X: tl.constexpr, LAYERS: tl.constexpr, VECTOR: tl.constexpr,
    W_VECTOR: tl.constexpr, S_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``dx`` of a block of rows and channels."""
    i_l, count, inner = size(entry, 1), size(entry, 2), size(entry, 3)
    width, columns = size(entry, 4, VECTOR), size(entry, 5, E_VECTOR)
    d_blocks = tl.cdiv(width, BLOCK_D)
    o_m = local // d_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = local % d_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_m, m_d = o_m < count, o_d < width

    o_step = row_offsets(o_m, inner, stride(entry, 11, S_VECTOR), stride(entry, 12, S_VECTOR))
    p_g += stride(entry, 13, S_VECTOR) + o_step
    p_w += stride(entry, 10, W_VECTOR) + o_d[:, None] * stride(entry, 9, W_VECTOR)
    p_rows = None if rows is None else rows + tl.load(entry + 14)
    b_alpha, b_beta = factors(p_rows, count, gate, o_m, m_m, i_l, size(entry, 17), LAYERS, GATE, ACC)
    b_dx = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    for e in range(0, columns, BLOCK_E):
        o_e = e + tl.arange(0, BLOCK_E)
        b_g = step_tile(p_g, gate, o_e, m_m, columns, b_alpha, b_beta, GATE, ACC)
        b_w = tl.load(p_w + o_e[None, :], mask=m_d[:, None] & (o_e < columns)[None, :], other=0.0).to(X)
        if tl.float16 == X:
            b_h, b_top = narrow_along(b_g, 1, X)
            b_dx += tl.dot(b_h, tl.trans(b_w), input_precision=PRECISION, out_dtype=ACC) * b_top[:, None]
        else:
            b_dx = tl.dot(b_g.to(X), tl.trans(b_w), b_dx, input_precision=PRECISION, out_dtype=ACC)

    m_x = m_m[:, None] & m_d[None, :]
    if NORM != "none":
        o_x = row_offsets(o_m, inner, stride(entry, 6, VECTOR), stride(entry, 7, VECTOR))
        p_x += stride(entry, 8, VECTOR) + o_x
        b_z = tl.load(p_x + o_d[None, :], mask=m_x, other=0.0).to(ACC)
        b_inverse = tl.load(p_rows + count + o_m, mask=m_m, other=0.0)[:, None]
        if NORM == "layer":
            b_z -= tl.load(p_rows + o_m, mask=m_m, other=0.0)[:, None]
            b_dx -= (tl.load(p_rows + 2 * count + o_m, mask=m_m, other=0.0) / width)[:, None]
        b_c2 = (tl.load(p_rows + 3 * count + o_m, mask=m_m, other=0.0) / width)[:, None]
        b_dx = (b_dx - b_z * (b_inverse * b_c2)) * b_inverse
    p_dx = d_tokens + stride(entry, 15, VECTOR) + o_m.to(tl.int64)[:, None] * width + o_d[None, :]
    tl.store(p_dx, b_dx.to(d_tokens.dtype.element_ty), mask=m_x)


@triton.jit
def weights_gradient(
    p_x, p_g, gate, rows, d_weights, d_biases, entry, local, X: tl.constexpr, LAYERS: tl.constexpr,
    VECTOR: tl.constexpr, S_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``dW`` of a block of channels and columns, over all rows in their order, and with the first channels ``db``."""
    i_l, count, inner = size(entry, 1), size(entry, 2), size(entry, 3)
    width, columns = size(entry, 4, VECTOR), size(entry, 5, E_VECTOR)
    e_blocks = tl.cdiv(columns, BLOCK_E)
    i_d = local // e_blocks
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_e = local % e_blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    m_d, m_e = o_d < width, o_e < columns

    p_x += stride(entry, 8, VECTOR)
    p_g += stride(entry, 13, S_VECTOR)
    x_b, x_m = stride(entry, 6, VECTOR), stride(entry, 7, VECTOR)
    g_b, g_m = stride(entry, 11, S_VECTOR), stride(entry, 12, S_VECTOR)
    p_rows = None if rows is None else rows + tl.load(entry + 14)
    b_dw = tl.zeros([BLOCK_D, BLOCK_E], ACC)
    b_db, b_offset = tl.zeros([BLOCK_E], ACC), tl.zeros([BLOCK_E], ACC)
    for m in range(0, count, BLOCK_M):
        o_m = m + tl.arange(0, BLOCK_M)
        m_m = o_m < count
        b_alpha, b_beta = factors(p_rows, count, gate, o_m, m_m, i_l, size(entry, 17), LAYERS, GATE, ACC)
        b_g = step_tile(p_g + row_offsets(o_m, inner, g_b, g_m), gate, o_e, m_m, columns, b_alpha, b_beta, GATE, ACC)
        if d_biases is not None:
            b_db += tl.sum(b_g, 0)
        if d_weights is not None:
            p_tile = p_x + row_offsets(o_m, inner, x_b, x_m) + o_d[None, :]
            m_x = m_m[:, None] & m_d[None, :]
            b_x = tl.load(p_tile, mask=m_x, other=0.0).to(X)
            if NORM == "layer":
                b_mean = tl.load(p_rows + o_m, mask=m_m, other=0.0)
                if tl.float32 == X:
                    b_x = tl.where(m_x, b_x - b_mean[:, None], 0.0)
            if NORM != "none":
                b_g *= tl.load(p_rows + count + o_m, mask=m_m, other=0.0)[:, None]
            if tl.float16 == X:
                b_h, b_top = narrow_along(b_g, 0, X)
                b_part = tl.dot(tl.trans(b_x), b_h, input_precision=PRECISION, out_dtype=ACC)
                b_dw += b_part * b_top[None, :]
            else:
                b_h = b_g.to(X)
                b_dw = tl.dot(tl.trans(b_x), b_h, b_dw, input_precision=PRECISION, out_dtype=ACC)
            if (NORM == "layer") & (tl.float32 != X):
                b_moved = tl.sum(b_h.to(ACC) * b_mean[:, None], 0)
                b_offset += b_moved * b_top if tl.float16 == X else b_moved

    if d_weights is not None:
        b_dw -= b_offset[None, :]
        p_dw = d_weights + stride(entry, 15, E_VECTOR) + o_d.to(tl.int64)[:, None] * columns + o_e[None, :]
        tl.store(p_dw, b_dw.to(d_weights.dtype.element_ty), mask=m_d[:, None] & m_e[None, :])
    if d_biases is not None:
        tl.store(d_biases + tl.load(entry + 16) + o_e, b_db.to(d_biases.dtype.element_ty), mask=m_e & (i_d == 0))


@triton.jit
def residual_gradient(
    p_g, d_residuals, entry, local, G_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, R_VECTOR: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A residual's gradient: a copy of a block of ``g``, or for one row the sum of all that it was added to."""
    count, inner, columns = size(entry, 2), size(entry, 3), size(entry, 5, E_VECTOR)
    terms, inner_terms, own_columns = size(entry, 6), size(entry, 7), size(entry, 8)
    g_b, g_m = stride(entry, 11, G_VECTOR), stride(entry, 12, G_VECTOR)
    p_g += stride(entry, 13, G_VECTOR)
    p_out = d_residuals + stride(entry, 15, R_VECTOR)
    o_b = tl.arange(0, BLOCK_E)
    o_k = tl.arange(0, BLOCK_M)
    blocks = tl.cdiv(own_columns, BLOCK_E)
    i_r = local // blocks
    first = local % blocks * BLOCK_E
    if (terms == 1) & (own_columns == columns):
        o_m, o_e = i_r * BLOCK_M + o_k, first + o_b
        m_g = (o_m < count)[:, None] & (o_e < columns)[None, :]
        b_g = tl.load(p_g + row_offsets(o_m, inner, g_b, g_m) + o_e[None, :], mask=m_g, other=0.0)
        p_tile = p_out + o_m.to(tl.int64)[:, None] * columns + o_e[None, :]
        tl.store(p_tile, b_g.to(d_residuals.dtype.element_ty), mask=m_g)
    else:
        last = first + BLOCK_E if own_columns == columns else columns
        p_g += (i_r // inner).to(tl.int64) * g_b + (i_r % inner).to(tl.int64) * g_m
        b_sum = tl.zeros([BLOCK_E], ACC)
        for k in range(0, terms, BLOCK_M):
            p_rows = p_g + row_offsets(k + o_k, inner_terms, g_b, g_m)
            for e in range(first, last, BLOCK_E):
                m_g = (k + o_k < terms)[:, None] & (e + o_b < columns)[None, :]
                b_sum += tl.sum(tl.load(p_rows + (e + o_b)[None, :], mask=m_g, other=0.0).to(ACC), 0)
        if own_columns == columns:
            p_row = p_out + i_r.to(tl.int64) * columns + first
            tl.store(p_row + o_b, b_sum.to(d_residuals.dtype.element_ty), mask=first + o_b < columns)
        else:
            tl.store(p_out + i_r, tl.sum(b_sum, 0).to(d_residuals.dtype.element_ty))


@triton.jit
def gate_gradient(
    gate, partials, d_gate, entry, local, LAYERS: tl.constexpr, GATE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gate's gradient from the partial sums of all layers and blocks of rows, in their order."""
    layers, blocks, columns = size(entry, 2), size(entry, 3), size(entry, 5)
    if GATE == "layer":
        o_l, o_k = tl.arange(0, LAYERS), tl.arange(0, BLOCK_E)
        m_l = o_l < layers
        # Summed over columns once, after the loop: a sum that is taken in a loop and used twice breaks Triton 3.6.
        b_parts = tl.zeros([LAYERS, BLOCK_E], ACC)
        for k in range(0, blocks, BLOCK_E):
            m_k = m_l[:, None] & (k + o_k < blocks)[None, :]
            b_parts += tl.load(partials + o_l[:, None] * blocks + (k + o_k)[None, :], mask=m_k, other=0.0)
        b_sum = tl.sum(b_parts, 1)
        b_logits = tl.load(gate + o_l, mask=m_l, other=float("-inf")).to(ACC)
        b_alpha = tl.exp(b_logits - tl.max(b_logits, 0))
        b_alpha /= tl.sum(b_alpha, 0)
        b_d = b_alpha * (b_sum - tl.sum(b_alpha * b_sum, 0))
        tl.store(d_gate + o_l, b_d.to(d_gate.dtype.element_ty), mask=m_l)
    else:
        o_e, o_k = local * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_M)
        m_e = o_e < columns
        b_d = tl.zeros([BLOCK_E], ACC)
        for k in range(0, layers * blocks, BLOCK_M):
            m_k = (k + o_k < layers * blocks)[:, None] & m_e[None, :]
            p_tile = partials + (k + o_k).to(tl.int64)[:, None] * columns + o_e[None, :]
            b_d += tl.sum(tl.load(p_tile, mask=m_k, other=0.0), 0)
        tl.store(d_gate + o_e, b_d.to(d_gate.dtype.element_ty), mask=m_e)

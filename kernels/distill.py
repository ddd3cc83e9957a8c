"""Distil on the device: all taps of all layers pooled by their queries in one launch.

For one sample of one tap, ``x`` (N, D) with row statistics ``mu`` and ``s`` = 1 / deviation, ``q`` (R, D)::

    score_nr = scale s_n (x_n . qw_r - mu_n sum(qw_r))         qw = q * weight
    p        = softmax over n        lse_r = log sum_n exp score_nr
    o_r      = weight * (sum_n a_nr x_n - sum_n a_nr mu_n) + bias        a_nr = p_nr s_n

so that the tap itself is what is multiplied, and its norm costs a few numbers a row. Tokens are the rows of every
product and query rows its columns. A tile of tokens is read twice, once for scores and statistics and once, from the
caches, for the pooled rows. How a tap is cut into programs depends on that tap alone: what else is in the launch, and
for the forward pass in the batch, does not change a bit of its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    Blocks,
    Flat,
    Operand,
    Traffic,
    accumulator,
    arrivals,
    blocks,
    chip,
    elements,
    in_order,
    items,
    launch,
    planned,
    precision,
)
from .shared import (
    LOG2E,
    add_to_statistics,
    centre,
    find,
    inverse_deviation,
    narrow_along,
    pick,
    row_tile,
    size,
    stride,
)

#: What one forward program reads at most of a tap: small enough to fill a large device from one clip, large enough that
#: what is written beside it where a sample has several parts stays below a tenth.
FORWARD_BYTES = 1 << 19

FIELDS = tl.constexpr(19)


@triton.jit
def query_tile(pointer, weight, o_d, o_r, stride, width, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Query rows as columns, with the norm's affine factor, [BLOCK_D, BLOCK_R]."""
    m_d = o_d < width
    b_q = tl.load(
        pointer + o_d[:, None] + o_r.to(tl.int64)[None, :] * stride,
        mask=m_d[:, None] & (o_r < ROWS)[None, :],
        other=0.0,
    )
    b_q = b_q.to(ACC)
    if weight is not None:
        b_q *= tl.load(weight + o_d, mask=m_d, other=0.0).to(ACC)[:, None]
    return b_q


@triton.jit
def score_scale(width, SCALE: tl.constexpr, ACC: tl.constexpr):
    """The factor on scores, by default 1 / sqrt(D)."""
    return 1.0 / tl.sqrt(width.to(ACC)) if SCALE is None else tl.full((), SCALE, ACC)


@triton.jit
def inverse(b_sum):
    """1 / sum, or 0 for a row without any key."""
    return tl.where(b_sum > 0, 1.0 / tl.where(b_sum > 0, b_sum, 1.0), 0.0)


@triton.jit
def logarithm(b_max, b_sum):
    """The natural log-sum-exp from the maximum, a power of two, and the sum above it; -inf without any key."""
    return tl.where(b_sum > 0, (b_max + tl.log2(tl.where(b_sum > 0, b_sum, 1.0))) / LOG2E, float("-inf"))


@triton.jit
def distill_fwd_kernel(
    taps, queries, weights, biases, masks, out, lse, slots, arrived, table,
    ROWS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr,
    VECTOR: tl.constexpr, Q_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one sample's query rows over one part of its tokens; the last part to arrive merges them in order.

    Args:
        taps, queries, weights, biases, masks: tuples of pointers: (B, N, D), (R, D) or (B, R, D), (D,), (D,), (B, N).
        out: (B, R, D) of each tap, flat.
        lse: (B, R) of each tap, flat, natural logarithm.
        slots: a program's unfinished sums: (BLOCK_R, D) rows, then maxima and sums (BLOCK_R,) of its softmax.
        arrived: for each sample in several parts, how many are done; all zeros before and after.
        table: see :func:`_plan_forward`.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    tokens, width, parts, length = size(entry, 0), size(entry, 1, VECTOR), size(entry, 2), size(entry, 3)
    R_BLOCKS: tl.constexpr = (ROWS + BLOCK_R - 1) // BLOCK_R
    part, i_r = local % parts, local // parts % R_BLOCKS
    i_b = (local // parts // R_BLOCKS).to(tl.int64)
    o_r, o_c = i_r * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    m_r = o_r < ROWS

    stride_n = size(entry, 5, VECTOR)
    p_x = pick(taps, i_g, VECTOR) + stride(entry, 14, VECTOR) + i_b * stride(entry, 4, VECTOR)
    p_q = pick(queries, i_g, Q_VECTOR) + stride(entry, 15, Q_VECTOR) + i_b * stride(entry, 6, Q_VECTOR)
    stride_r = size(entry, 7, Q_VECTOR)
    p_w = None if weights is None else pick(weights, i_g) + stride(entry, 16)
    p_b = None if biases is None else pick(biases, i_g) + stride(entry, 17)
    p_out = out + stride(entry, 10, VECTOR) + (i_b * ROWS + o_r[None, :]) * width
    p_lse = lse + tl.load(entry + 11) + i_b * ROWS + o_r
    p_slot = slots + stride(entry, 12, 16) + local.to(tl.int64) * (BLOCK_R * (width + 2))
    o_slot = tl.arange(0, BLOCK_R)
    X: tl.constexpr = taps[0].dtype.element_ty
    CENTRED: tl.constexpr = NORM == "layer" and X.primitive_bitwidth >= 32
    scale = score_scale(width, SCALE, ACC) * LOG2E

    b_max = tl.full([BLOCK_R], float("-inf"), ACC)
    b_sum = tl.zeros([BLOCK_R], ACC)
    first, last = part * length, tl.minimum((part + 1) * length, tokens)
    for n in tl.range(first, last, BLOCK_N, disable_licm=True):
        o_n = n + tl.arange(0, BLOCK_N)
        m_n = o_n < last
        if masks is not None:
            p_m = pick(masks, i_g) + stride(entry, 18) + i_b * tl.load(entry + 8) + o_n * tl.load(entry + 9)
            m_n = m_n & (tl.load(p_m, mask=m_n, other=0) != 0)
        p_tile = p_x + o_n.to(tl.int64)[:, None] * stride_n + o_c[None, :]
        b_centre = centre(p_tile, m_n, o_c, width, CENTRED, ACC)

        b_s = tl.zeros([BLOCK_N, BLOCK_R], ACC)
        b_mean, b_square = tl.zeros([BLOCK_N], ACC), tl.zeros([BLOCK_N], ACC)
        b_total = tl.zeros([BLOCK_R], ACC)
        for d in tl.range(0, width, BLOCK_D, disable_licm=True):
            m_x = m_n[:, None] & (d + o_c < width)[None, :]
            b_x = row_tile(p_tile + d, m_x, b_centre, CENTRED)
            b_q = query_tile(p_q, p_w, d + o_c, o_r, stride_r, width, ROWS, ACC).to(X)
            b_s = tl.dot(b_x, b_q, b_s, input_precision=PRECISION, out_dtype=ACC)
            b_total += tl.sum(b_q.to(ACC), 0)
            count = tl.minimum(width - d, BLOCK_D)
            b_mean, b_square = add_to_statistics(b_x.to(ACC), m_x, count, d, b_mean, b_square, NORM)
        b_inverse = inverse_deviation(b_square, width, EPS, NORM)

        b_s = (b_s - b_mean[:, None] * b_total[None, :]) * (b_inverse * scale)[:, None]
        b_s = tl.where(m_n[:, None], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 0))
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)  # no key so far
        b_keep = tl.exp2(b_max - b_shift)
        b_p = tl.exp2(b_s - b_shift[None, :])
        b_sum = b_sum * b_keep + tl.sum(b_p, 0)
        b_max = b_new
        b_a, b_top = narrow_along(b_p * b_inverse[:, None], 0, X)
        b_offset = tl.sum(b_a.to(ACC) * b_mean[:, None], 0)

        done = (n + BLOCK_N >= last) & (parts == 1)
        b_over = inverse(b_sum)
        tl.debug_barrier()  # the rows of the slot are read by other threads than wrote them
        for d in tl.range(0, width, BLOCK_D, disable_licm=True):
            o_d = d + o_c
            m_o = (o_d < width)[:, None] & m_r[None, :]
            b_x = row_tile(p_tile + d, m_n[:, None] & (o_d < width)[None, :], b_centre, CENTRED)
            b_o = tl.dot(tl.trans(b_x), b_a, input_precision=PRECISION, out_dtype=ACC)
            b_o = (b_o - b_offset[None, :]) * b_top[None, :]
            p_rows = p_slot + o_slot[None, :] * width + o_d[:, None]
            if n > first:
                b_o += tl.load(p_rows, mask=m_o, other=0.0) * b_keep[None, :]
            if done:
                store_rows(p_out, b_o, b_over, p_w, p_b, o_d, m_o, width, ACC)
            else:
                tl.store(p_rows, b_o, mask=m_o)

    if parts == 1:
        tl.store(p_lse, logarithm(b_max, b_sum), mask=m_r)
    else:
        p_state = p_slot + BLOCK_R * width + o_slot
        tl.store(p_state, b_max)
        tl.store(p_state + BLOCK_R, b_sum)
        tl.debug_barrier()
        p_arrived = arrived + tl.load(entry + 13) + local // parts
        if tl.atomic_add(p_arrived, 1, sem="acq_rel") == parts - 1:
            tl.debug_barrier()
            step = BLOCK_R * (width + 2)
            p_first, p_state = p_slot - part * step, p_state - part * step
            b_max = tl.full([BLOCK_R], float("-inf"), ACC)
            for i in range(parts):
                b_max = tl.maximum(b_max, tl.load(p_state + i * step))
            b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
            b_sum = tl.zeros([BLOCK_R], ACC)
            for i in range(parts):
                b_sum += tl.load(p_state + i * step + BLOCK_R) * tl.exp2(tl.load(p_state + i * step) - b_shift)
            b_over = inverse(b_sum)
            for d in tl.range(0, width, BLOCK_D, disable_licm=True):
                o_d = d + o_c
                m_o = (o_d < width)[:, None] & m_r[None, :]
                b_o = tl.zeros([BLOCK_D, BLOCK_R], ACC)
                for i in range(parts):
                    b_part = tl.load(p_first + i * step + o_slot[None, :] * width + o_d[:, None], mask=m_o, other=0.0)
                    b_o += b_part * tl.exp2(tl.load(p_state + i * step) - b_shift)[None, :]
                store_rows(p_out, b_o, b_over, p_w, p_b, o_d, m_o, width, ACC)
            tl.store(p_lse, logarithm(b_max, b_sum), mask=m_r)
            tl.store(p_arrived, 0)


@triton.jit
def store_rows(p_out, b_o, b_over, weight, bias, o_d, m_o, width, ACC: tl.constexpr):
    """Bring pooled rows to their sum of one, through the norm's affine part, and store them."""
    b_o *= b_over[None, :]
    if weight is not None:
        b_o *= tl.load(weight + o_d, mask=o_d < width, other=0.0).to(ACC)[:, None]
    if bias is not None:
        b_bias = tl.load(bias + o_d, mask=o_d < width, other=0.0).to(ACC)
        b_o += tl.where(b_over > 0, 1.0, 0.0)[None, :] * b_bias[:, None]
    tl.store(p_out + o_d[:, None], b_o.to(p_out.dtype.element_ty), mask=m_o)


@dataclass(frozen=True)
class _Forward:
    order: tuple[int, ...]
    count: int
    programs: int
    table: Tensor
    out: Flat
    lse: Flat
    slots: int
    arrived: int
    traffic: Traffic


def distill_forward(
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    weight: Sequence[Tensor] | None,
    bias: Sequence[Tensor] | None,
    key_mask: Sequence[Tensor] | None,
    *,
    scale: float | None,
    norm: str,
    eps: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """See :func:`fastav.ops.distill`; gives the pooled rows (B, R, D) and the log-sum-exps (B, R) of each tap."""
    rows, like = queries[0].shape[-2], taps[0]
    operands: list[Any] = [Operand.of(tensors) for tensors in (taps, queries, weight, bias, key_mask)]
    block, block_r = tile_sizes("distill_fwd_kernel", like, rows)
    sizes = (None if o is None else o.sizes for o in operands)
    acc, acc_type = accumulator(like, queries[0])
    bytes_each = (*items(operands), queries[0].element_size(), acc.itemsize)
    plan = _plan_forward(*sizes, bytes_each, rows, block.sizes["BLOCK_N"], block_r, like.device)
    out, outputs = plan.out.empty(like, queries[0].dtype)
    lse, sums = plan.lse.empty(like, acc)
    names = ("taps", "queries", "weights", "biases", "masks")
    arguments: dict[str, Any] = {
        name: None if o is None else o.pointers(plan.order) for name, o in zip(names, operands, strict=True)
    }
    arguments |= {
        "out": out,
        "lse": lse,
        "slots": torch.empty(plan.slots, dtype=acc, device=like.device),
        "arrived": arrivals(plan.arrived, like),
        "table": plan.table,
    }
    constants = {
        "ROWS": rows, "SCALE": scale, "EPS": eps, "NORM": norm, "COUNT": plan.count,
        "VECTOR": operands[0].vector(), "Q_VECTOR": operands[1].vector(), "ACC": acc_type,
        "PRECISION": precision(like.dtype, chip(like.device)), "BLOCK_R": block_r,
    }  # fmt: skip
    launch(distill_fwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return outputs, sums


def tile_sizes(kernel: str, tap: Tensor, rows: int) -> tuple[Blocks, int]:
    """Block sizes, with query rows in blocks of at least the 16 that matrix units want and at most 32."""
    return blocks(kernel, chip(tap.device), tap.element_size()), min(max(16, triton.next_power_of_2(rows)), 32)


@planned
def _plan_forward(taps, queries, weights, biases, masks, bytes_each, rows, block_n, block_r, device):
    out = Flat.of([(shape[0], rows, shape[2]) for shape, _, _ in taps])
    lse = Flat.of([(shape[0], rows) for shape, _, _ in taps])
    row_blocks = triton.cdiv(rows, block_r)
    entries, programs, loads, slots, merged, arrived = [], [], [], 0, 0, 0
    for i, ((shape, strides, offset), (_, q_strides, q_offset)) in enumerate(zip(taps, queries, strict=True)):
        batch, tokens, width = shape
        parts = triton.cdiv(tokens, max(block_n, FORWARD_BYTES // (width * bytes_each[0]) // block_n * block_n))
        length = triton.cdiv(triton.cdiv(tokens, parts), block_n) * block_n
        parts = triton.cdiv(tokens, length)
        mask = (0, 0) if masks is None else masks[i][1]
        q_batch = q_strides[0] if len(q_strides) == 3 else 0
        offsets = [offset, q_offset, *(0 if o is None else o[i][2] for o in (weights, biases, masks))]
        entries.append([
            tokens, width, parts, length, *strides[:2], q_batch, q_strides[-2], *mask,
            out.offsets[i], lse.offsets[i], slots, arrived, *offsets,
        ])  # fmt: skip
        programs.append(batch * row_blocks * parts)
        loads.append(min(length, tokens) * width)
        if tokens > block_n:
            slots += programs[-1] * block_r * (width + 2)
        if parts > 1:
            arrived += batch * row_blocks
            merged += programs[-1] * block_r * (width + 2)
    order, count, numbers = in_order(loads, programs, entries, device)
    given = (taps, queries, weights, biases, masks)
    read = sum(elements(sizes) * each for sizes, each in zip(given, bytes_each, strict=False)) + merged * bytes_each[-1]
    written = out.size * bytes_each[-2] + (lse.size + slots) * bytes_each[-1]
    return _Forward(order, count, sum(programs), numbers, out, lse, slots, arrived, Traffic(read, written))

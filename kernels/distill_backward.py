"""Distil backward on the device: the gradients of all taps' queries and norms, in two launches.

In the words of :mod:`fastav.kernels.distill`, with ``do`` the gradient of the pooled rows::

    ds_nr    = scale p_nr (s_n (x_n . dow_r - mu_n sum(dow_r)) - delta_r)    p comes from the scores and their lse
    dow      = do * weight          delta_r = do_r . (o_r - bias)
    dz_r     = sum_n ds_nr s_n x_n - sum_n ds_nr s_n mu_n
    dq_r     = weight * dz_r            dbias = sum of do_r over samples and rows that have a key
    dweight  = sum of do_r * pz_r + q_r * dz_r, pz_r being o_r before weight and bias
    dx_n     = s_n (h_n - mean(h_n) - z_n mean(h_n z_n))                     h_n = sum_r p_nr dow_r + ds_nr qw_r

A program goes through tiles of one tap, reads each as the forward pass does, and adds what it finds to rows of its
own; the second launch adds the programs' rows in their order. The two means in ``dx`` are sums over query rows of
numbers that are there already. Gradients to taps are computed only where they are wanted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .distill import query_tile, score_scale, tile_sizes
from .launch import Flat, Operand, Traffic, accumulator, chip, elements, in_order, items, launch, planned, precision
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
    sum_slots,
)

#: Tokens a program reads for each query row, whose gradient it writes and the second launch reads: 48 keep a large
#: device busy from one clip, 96 halve those bytes where a tap is long enough for PROGRAMS such programs.
FEWEST, MOST, PROGRAMS = 48, 96, 8

FIELDS = tl.constexpr(29)


@triton.jit
def distill_bwd_kernel(
    taps, queries, weights, biases, masks, grads, outs, sums, d_taps, unfinished, slots, table,
    ROWS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr,
    VECTOR: tl.constexpr, Q_VECTOR: tl.constexpr, G_VECTOR: tl.constexpr, O_VECTOR: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, QUERY_GRAD: tl.constexpr,
    AFFINE_GRAD: tl.constexpr, R_BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: a run of tiles of one tap, of one sample where queries are per sample, over all its samples else.

    Args:
        taps, queries, weights, biases, masks: as forward.
        grads, outs, sums: tuples of pointers: gradients of the results and the results, (B, R, D); their lse (B, R).
        d_taps: None, or the taps' gradients, (B, N, D) each, flat; then a program goes through all query rows.
        unfinished: the same in the accumulator's dtype, where there are several blocks of query rows, else None.
        slots: a program's sum of ``weight * ds z``, (ROWS, D), and those for weight and bias, (2, D).
        table: see :func:`_plan_backward`.
        QUERY_GRAD, AFFINE_GRAD: whether the gradients of queries, and of weight or bias, are wanted.
        R_BLOCKS: blocks of query rows a program goes through.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    tokens, width, tiles = size(entry, 0), size(entry, 1, VECTOR), size(entry, 2)
    length, slices, groups, total = size(entry, 3), size(entry, 4), size(entry, 5), size(entry, 6)
    i_slice, i_group, i_r = local % slices, local // slices % groups, local // (slices * groups)
    o_c = tl.arange(0, BLOCK_D)
    stride_n, stride_r = size(entry, 8, VECTOR), size(entry, 11, Q_VECTOR)
    p_x = pick(taps, i_g, VECTOR) + stride(entry, 9, VECTOR)
    p_q = pick(queries, i_g, Q_VECTOR) + stride(entry, 12, Q_VECTOR) + i_group * stride(entry, 10, Q_VECTOR)
    p_w = None if weights is None else pick(weights, i_g) + stride(entry, 13)
    p_b = None if biases is None else pick(biases, i_g) + stride(entry, 14)
    p_g, stride_g = pick(grads, i_g, G_VECTOR) + stride(entry, 20, G_VECTOR), size(entry, 19, G_VECTOR)
    p_o, stride_o = pick(outs, i_g, O_VECTOR) + stride(entry, 23, O_VECTOR), size(entry, 22, O_VECTOR)
    p_lse = pick(sums, i_g) + stride(entry, 25)
    p_slot = slots + stride(entry, 26, 16) + (i_slice * groups + i_group).to(tl.int64) * (ROWS * width)
    if AFFINE_GRAD:
        p_affine = slots + stride(entry, 27, 16) + local.to(tl.int64) * (2 * width) + o_c
    X: tl.constexpr = taps[0].dtype.element_ty
    CENTRED: tl.constexpr = NORM == "layer" and X.primitive_bitwidth >= 32
    scale = score_scale(width, SCALE, ACC)

    first, last = i_slice * length, tl.minimum((i_slice + 1) * length, total)
    for i in range(R_BLOCKS):
        o_r = (i_r + i) * BLOCK_R + tl.arange(0, BLOCK_R)
        m_r = o_r < ROWS
        b_delta, b_peak, b_unpeak = tl.zeros([BLOCK_R], ACC), tl.zeros([BLOCK_R], ACC), tl.zeros([BLOCK_R], ACC)
        for unit in tl.range(first, last, disable_licm=True):
            i_b, i_t = (i_group * tiles + unit) // tiles, (i_group * tiles + unit) % tiles
            i_b = i_b.to(tl.int64)
            p_grad, p_out = p_g + i_b * stride(entry, 18, G_VECTOR), p_o + i_b * stride(entry, 21, O_VECTOR)
            if (unit == first) | (i_t == 0):  # a new sample: what is the same for all its tokens
                b_delta, b_peak = tl.zeros([BLOCK_R], ACC), tl.zeros([BLOCK_R], ACC)
                for d in tl.range(0, width, BLOCK_D, disable_licm=True):
                    b_do = query_tile(p_grad, None, d + o_c, o_r, stride_g, width, ROWS, ACC)
                    b_o = query_tile(p_out, None, d + o_c, o_r, stride_o, width, ROWS, ACC)
                    if biases is not None:
                        b_o -= tl.load(p_b + d + o_c, mask=d + o_c < width, other=0.0).to(ACC)[:, None]
                    b_delta += tl.sum(b_do * b_o, 0)
                    if weights is not None:
                        b_do *= tl.load(p_w + d + o_c, mask=d + o_c < width, other=0.0).to(ACC)[:, None]
                    b_peak = tl.maximum(b_peak, tl.max(tl.abs(b_do), 0))
                b_peak = tl.where(b_peak > 0, b_peak, 1.0)
                b_unpeak = 1.0 / b_peak
            b_lse = tl.load(p_lse + i_b * stride(entry, 24) + o_r, mask=m_r, other=0.0).to(ACC)
            b_some = b_lse > float("-inf")

            o_n = i_t * BLOCK_N + tl.arange(0, BLOCK_N)
            m_n = o_n < tokens
            if masks is not None:
                p_m = pick(masks, i_g) + stride(entry, 17) + i_b * stride(entry, 15) + o_n * stride(entry, 16)
                m_n = m_n & (tl.load(p_m, mask=m_n, other=0) != 0)
            p_tile = p_x + i_b * stride(entry, 7, VECTOR) + o_n.to(tl.int64)[:, None] * stride_n + o_c[None, :]
            b_centre = centre(p_tile, m_n, o_c, width, CENTRED, ACC)

            b_s, b_d = tl.zeros([BLOCK_N, BLOCK_R], ACC), tl.zeros([BLOCK_N, BLOCK_R], ACC)
            b_mean, b_square = tl.zeros([BLOCK_N], ACC), tl.zeros([BLOCK_N], ACC)
            b_total, b_all = tl.zeros([BLOCK_R], ACC), tl.zeros([BLOCK_R], ACC)
            for d in tl.range(0, width, BLOCK_D, disable_licm=True):
                m_x = m_n[:, None] & (d + o_c < width)[None, :]
                b_x = row_tile(p_tile + d, m_x, b_centre, CENTRED)
                b_q = query_tile(p_q, p_w, d + o_c, o_r, stride_r, width, ROWS, ACC).to(X)
                b_do = (query_tile(p_grad, p_w, d + o_c, o_r, stride_g, width, ROWS, ACC) * b_unpeak[None, :]).to(X)
                b_s = tl.dot(b_x, b_q, b_s, input_precision=PRECISION, out_dtype=ACC)
                b_d = tl.dot(b_x, b_do, b_d, input_precision=PRECISION, out_dtype=ACC)
                b_total += tl.sum(b_q.to(ACC), 0)
                b_all += tl.sum(b_do.to(ACC), 0)
                count = tl.minimum(width - d, BLOCK_D)
                b_mean, b_square = add_to_statistics(b_x.to(ACC), m_x, count, d, b_mean, b_square, NORM)
            b_inverse = inverse_deviation(b_square, width, EPS, NORM)

            b_s = (b_s - b_mean[:, None] * b_total[None, :]) * b_inverse[:, None]
            b_d = (b_d - b_mean[:, None] * b_all[None, :]) * (b_inverse[:, None] * b_peak[None, :])
            b_p = tl.exp2((b_s * scale - tl.where(b_some, b_lse, 0.0)[None, :]) * LOG2E)
            b_p = tl.where(m_n[:, None], b_p, 0.0)
            b_ds = b_p * (b_d - b_delta[None, :]) * scale
            b_a, b_top = narrow_along(b_ds * b_inverse[:, None], 0, X)
            b_offset = tl.sum(b_a.to(ACC) * b_mean[:, None], 0)
            if AFFINE_GRAD:
                b_pa, b_most = narrow_along(b_p * b_inverse[:, None], 0, X)
                b_shift = tl.sum(b_pa.to(ACC) * b_mean[:, None], 0)
            if d_taps is not None:
                b_first = tl.sum(b_p * (b_all * b_peak)[None, :] + b_ds * b_total[None, :], 1) / width
                b_second = tl.sum(b_p * b_d + b_ds * b_s, 1) / width

            tl.debug_barrier()  # what a slot holds is read by other threads than wrote it
            for d in tl.range(0, width, BLOCK_D, disable_licm=True):
                o_d = d + o_c
                m_d = o_d < width
                m_o = m_d[:, None] & m_r[None, :]
                b_x = row_tile(p_tile + d, m_n[:, None] & m_d[None, :], b_centre, CENTRED)
                b_z = tl.dot(tl.trans(b_x), b_a, input_precision=PRECISION, out_dtype=ACC)
                b_z = (b_z - b_offset[None, :]) * b_top[None, :]
                if AFFINE_GRAD:
                    b_pz = tl.dot(tl.trans(b_x), b_pa, input_precision=PRECISION, out_dtype=ACC)
                    b_pz = (b_pz - b_shift[None, :]) * b_most[None, :]
                    b_do = query_tile(p_grad, None, o_d, o_r, stride_g, width, ROWS, ACC)
                    b_dw = tl.sum(b_pz * b_do + b_z * query_tile(p_q, None, o_d, o_r, stride_r, width, ROWS, ACC), 1)
                    b_db = tl.sum(tl.where(b_some[None, :] & (i_t == 0), b_do, 0.0), 1)
                    if (unit > first) | (i > 0):
                        b_dw += tl.load(p_affine + d, mask=m_d, other=0.0)
                        b_db += tl.load(p_affine + width + d, mask=m_d, other=0.0)
                    tl.store(p_affine + d, b_dw, mask=m_d)
                    tl.store(p_affine + width + d, b_db, mask=m_d)
                if QUERY_GRAD:
                    if weights is not None:
                        b_z *= tl.load(p_w + o_d, mask=m_d, other=0.0).to(ACC)[:, None]
                    p_rows = p_slot + o_r[None, :] * width + o_d[:, None]
                    if unit > first:
                        b_z += tl.load(p_rows, mask=m_o, other=0.0)
                    tl.store(p_rows, b_z, mask=m_o)
                if d_taps is not None:
                    b_q = query_tile(p_q, p_w, o_d, o_r, stride_r, width, ROWS, ACC).to(X).to(ACC)
                    b_do = query_tile(p_grad, p_w, o_d, o_r, stride_g, width, ROWS, ACC) * b_unpeak[None, :]
                    b_do = b_do.to(X).to(ACC) * b_peak[None, :]
                    b_dx = tl.dot(b_p, tl.trans(b_do), input_precision=PRECISION, out_dtype=ACC)
                    b_dx = tl.dot(b_ds, tl.trans(b_q), b_dx, input_precision=PRECISION, out_dtype=ACC)
                    if NORM == "layer":
                        b_dx -= b_first[:, None]
                    if NORM != "none":
                        b_unit = (b_x.to(ACC) - b_mean[:, None]) * b_inverse[:, None]
                        b_dx = (b_dx - b_unit * b_second[:, None]) * b_inverse[:, None]
                    o_dx = stride(entry, 28, VECTOR) + (i_b * tokens + o_n[:, None]) * width + o_d[None, :]
                    m_dx = (o_n < tokens)[:, None] & m_d[None, :]
                    if R_BLOCKS > 1:
                        if i > 0:
                            b_dx += tl.load(unfinished + o_dx, mask=m_dx, other=0.0)
                        tl.store(unfinished + o_dx, b_dx, mask=m_dx)
                    if i == R_BLOCKS - 1:
                        tl.store(d_taps + o_dx, b_dx.to(d_taps.dtype.element_ty), mask=m_dx)


@dataclass(frozen=True)
class _Backward:
    order: tuple[int, ...]
    count: int
    programs: int
    table: Tensor
    slots: int
    gradients: tuple[Flat, ...]
    segments: tuple[tuple[int, ...], ...]
    taps: Flat
    traffic: Traffic


def distill_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    weight: Sequence[Tensor] | None,
    bias: Sequence[Tensor] | None,
    key_mask: Sequence[Tensor] | None,
    *,
    scale: float | None,
    norm: str,
    eps: float,
    wanted: Collection[str],
) -> dict[str, list[Tensor]]:
    """Gradients of :func:`distill_forward`, whose results ``kept`` are, with respect to the lists ``wanted``."""
    rows, like, small = queries[0].shape[-2], taps[0], tuple(n for n in ("queries", "weight", "bias") if n in wanted)
    lists = (taps, queries, weight, bias, key_mask, grads, kept[: len(taps)], kept[len(taps) :])
    operands: list[Any] = [Operand.of(tensors) for tensors in lists]
    into_taps = "_into_taps" if "taps" in wanted else ""  # which takes more registers, so smaller blocks
    block, block_r = tile_sizes(f"distill_bwd_kernel{into_taps}", like, rows)
    tap_blocks = triton.cdiv(rows, block_r) if "taps" in wanted else 0
    sizes = (None if o is None else o.sizes for o in operands)
    acc, acc_type = accumulator(like, queries[0])
    bytes_each = (*items(operands), acc.itemsize)
    plan = _plan_backward(*sizes, bytes_each, small, tap_blocks, block.sizes["BLOCK_N"], block_r, like.device)
    d_flat, d_taps = plan.taps.empty(like, like.dtype) if tap_blocks else (None, [])
    unfinished = torch.empty(plan.taps.size, dtype=acc, device=like.device) if tap_blocks > 1 else None
    names = ("taps", "queries", "weights", "biases", "masks", "grads", "outs", "sums")
    arguments: dict[str, Any] = {
        name: None if o is None else o.pointers(plan.order) for name, o in zip(names, operands, strict=True)
    }
    slots = torch.empty(plan.slots, dtype=acc, device=like.device)
    arguments |= {"d_taps": d_flat, "unfinished": unfinished, "slots": slots, "table": plan.table}
    constants = {
        "ROWS": rows, "SCALE": scale, "EPS": eps, "NORM": norm, "COUNT": plan.count,
        "VECTOR": operands[0].vector(), "Q_VECTOR": operands[1].vector(), "G_VECTOR": operands[5].vector(),
        "O_VECTOR": operands[6].vector(), "ACC": acc_type, "PRECISION": precision(like.dtype, chip(like.device)),
        "QUERY_GRAD": "queries" in wanted, "AFFINE_GRAD": small not in ((), ("queries",)),
        "R_BLOCKS": max(tap_blocks, 1), "BLOCK_R": block_r,
    }  # fmt: skip
    launch(distill_bwd_kernel, plan.programs, arguments, constants, block, plan.traffic)

    given: dict[str, Any] = {"queries": queries, "weight": weight, "bias": bias}
    sums = [flat.empty(like, given[name][0].dtype) for name, flat in zip(small, plan.gradients, strict=True)]
    if small:
        sum_slots(slots, tuple(buffer for buffer, _ in sums), plan.segments)
    found = {name: views for name, (_, views) in zip(small, sums, strict=True)}
    return found | ({"taps": d_taps} if tap_blocks else {})


@planned
def _plan_backward(
    taps, queries, weights, biases, masks, grads, outs, sums, bytes_each, small, tap_blocks, block_n, block_r, device
):
    shapes, rows = [shape for shape, _, _ in taps], queries[0][0][-2]
    flat_taps, widths = Flat.of(shapes), Flat.of([shape[-1:] for shape in shapes])
    gradients = tuple(Flat.of([shape for shape, _, _ in queries]) if n == "queries" else widths for n in small)
    row_programs = 1 if tap_blocks else triton.cdiv(rows, block_r)
    entries, programs, loads, segments, slots = [], [], [], [], 0
    for i, ((shape, strides, offset), (_, q_strides, q_offset)) in enumerate(zip(taps, queries, strict=True)):
        batch, tokens, width = shape
        tiles, groups = triton.cdiv(tokens, block_n), batch if len(q_strides) == 3 else 1
        total = tiles * batch // groups if groups else 0
        tile = min(block_n, tokens)
        reach = min(rows, block_r) * min(max(FEWEST, total * tile // (PROGRAMS * min(rows, block_r))), MOST)
        length = max(1, reach // tile)
        slices = triton.cdiv(total, length)
        count = slices * groups * row_programs
        rows_at, affine_at = slots, slots + -(-slices * groups * rows * width // 16) * 16
        slots = affine_at + -(-count * 2 * width // 16) * 16
        for which, name in enumerate(small):
            start = gradients[which].offsets[i]
            numel = groups * rows * width
            segments.append(
                (numel, rows_at, numel, slices, which, start)
                if name == "queries"
                else (width, affine_at + (name == "bias") * width, 2 * width, count, which, start)
            )
        q_batch = q_strides[0] if len(q_strides) == 3 else 0
        mask = (0, 0, 0) if masks is None else (*masks[i][1], masks[i][2])
        affine = [0 if o is None else o[i][2] for o in (weights, biases)]
        rows_of = [n for o in (grads, outs) for n in (*o[i][1][:2], o[i][2])]
        entries.append([
            tokens, width, tiles, length, max(slices, 1), max(groups, 1), total, *strides[:2], offset,
            q_batch, q_strides[-2], q_offset, *affine, *mask, *rows_of, sums[i][1][0], sums[i][2],
            rows_at, affine_at, flat_taps.offsets[i],
        ])  # fmt: skip
        programs.append(count)
        loads.append(length * tile * width)
    order, count, numbers = in_order(loads, programs, entries, device)
    given = (taps, queries, weights, biases, masks, grads, outs, sums)
    read = sum(elements(sizes) * each for sizes, each in zip(given, bytes_each, strict=False))
    written = sum(s[0] * s[3] for s in segments) * bytes_each[-1]
    if tap_blocks:
        written += flat_taps.size * (bytes_each[0] + (tap_blocks > 1) * bytes_each[-1])
    return _Backward(
        order, count, sum(programs), numbers, slots, gradients, tuple(segments), flat_taps, Traffic(read, written)
    )

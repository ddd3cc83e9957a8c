"""Inject backward on the device: gradients of keys, values and features, at most two launches for all stages.

In the words of :mod:`fastav.kernels.inject`, with ``g`` the gradient of y::

    ds_nm = scale p_nm (g_n . v_m - sum_j p_nj g_n . v_j)      dv_m = sum_n p_nm g_n
    dk_m  = sum_n ds_nm s_n x_n - sum_n ds_nm s_n mu_n
    dx_n  = g_n + s_n (dz_n - mean(dz_n) - z_n mean(dz_n z_n))     dz_n = sum_m ds_nm k_m

The two means of dx need no pass over D: they are ``sum_m ds_nm sum(k_m) / D`` and ``sum_m ds_nm score_nm / D``. A
program goes through tiles of one sample's features; where a sample has several programs, the second launch adds their
sums in order.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .inject import attend, constant_arguments, places, softmax_scale, tile_sizes
from .launch import ALIGNMENT, Flat, Operand, Traffic, accumulator, bytes_of, in_order, items, launch, planned
from .shared import find, narrow_along, place, read_tile, size, stride, sum_slots

#: What one program reads at most of the features: small enough to fill a large device from one clip; and the fewest
#: tokens it reads for each key, so that its partial results are a fraction of what it reads.
PROGRAM_BYTES, TOKENS_PER_KEY = 1 << 18, 32

FIELDS = tl.constexpr(20)


@triton.jit
def add_rows(slot, out, b_rows, o_m, o_d, ROWS: tl.constexpr, width, more, done):
    """Add a tile's share to a program's rows; the last tile of an undivided sample stores their sum as the result."""
    offsets, mask = o_m[None, :] * width + o_d[:, None], (o_m < ROWS)[None, :] & (o_d < width)[:, None]
    if more:
        b_rows += tl.load(slot + offsets, mask=mask, other=0.0)
    if done:
        tl.store(out + offsets, b_rows.to(out.dtype.element_ty), mask=mask)
    else:
        tl.store(slot + offsets, b_rows, mask=mask)


@triton.jit
def inject_bwd_kernel(
    features, keys, values, grads, d_features, d_keys, d_values, key_slots, value_slots, table,
    ROWS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr,
    VECTOR: tl.constexpr, K_VECTOR: tl.constexpr, V_VECTOR: tl.constexpr, G_VECTOR: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one part of one sample's features, tile by tile.

    Args:
        features, keys, values, grads: tuples of pointers: (B, N, D), (B, M, D), (B, M, D), (B, N, D).
        d_features, d_keys, d_values: the gradients of each stage, flat; None where not wanted.
        key_slots, value_slots: partial sums of d_keys and d_values: (parts, B, M, D) of each stage.
        table: see :func:`_plan_backward`.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    tokens, width, parts, length = size(entry, 0), size(entry, 1, VECTOR), size(entry, 2), size(entry, 3)
    part, i_b = local % parts, (local // parts).to(tl.int64)
    o_m, o_c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    p_x, stride_x = place(features, i_g, i_b, entry, 4, VECTOR)
    p_k, stride_k = place(keys, i_g, i_b, entry, 7, K_VECTOR)
    p_v, stride_v = place(values, i_g, i_b, entry, 10, V_VECTOR)
    p_g, stride_g = place(grads, i_g, i_b, entry, 13, G_VECTOR)
    slot = stride(entry, 16, 16) + (part * tl.load(entry + 17) + i_b) * (ROWS * width)
    rows = stride(entry, 18, VECTOR) + i_b * (ROWS * width)
    X: tl.constexpr = features[0].dtype.element_ty

    first, last = part * length, tl.minimum((part + 1) * length, tokens)
    for n in range(first, last, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        b_p, b_s, b_mean, b_inverse, b_total = attend(
            p_x, stride_x, p_k, stride_k, o_n, last, width,
            ROWS, SCALE, EPS, NORM, ACC, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        done = (n + BLOCK_N >= last) & (parts == 1)
        tl.debug_barrier()  # what a slot holds is read by other threads than wrote it

        b_w, b_most = narrow_along(b_p, 0, X)
        b_dp = tl.zeros([BLOCK_N, BLOCK_M], ACC)
        for d in range(0, width, BLOCK_D):
            b_g = read_tile(p_g, o_n, d + o_c, stride_g, last, width).to(X)
            b_v = tl.trans(read_tile(p_v, o_m, d + o_c, stride_v, ROWS, width)).to(X)
            b_dp = tl.dot(b_g, b_v, b_dp, input_precision=PRECISION, out_dtype=ACC)
            if d_values is not None:
                b_dv = tl.dot(tl.trans(b_g), b_w, input_precision=PRECISION, out_dtype=ACC) * b_most[None, :]
                add_rows(value_slots + slot, d_values + rows, b_dv, o_m, d + o_c, ROWS, width, n > first, done)

        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None]) * softmax_scale(width, SCALE, ACC)
        if d_keys is not None:
            b_a, b_peak = narrow_along(b_ds * b_inverse[:, None], 0, X)
            b_offset = tl.sum(b_a.to(ACC) * b_mean[:, None], 0)
            for d in range(0, width, BLOCK_D):
                b_x = read_tile(p_x, o_n, d + o_c, stride_x, last, width)
                b_dk = tl.dot(tl.trans(b_x), b_a, input_precision=PRECISION, out_dtype=ACC)
                b_dk = (b_dk - b_offset[None, :]) * b_peak[None, :]
                add_rows(key_slots + slot, d_keys + rows, b_dk, o_m, d + o_c, ROWS, width, n > first, done)
        if d_features is not None:
            b_z, b_top = narrow_along(b_ds, 1, X)
            b_first = tl.sum(b_z.to(ACC) * b_total[None, :], 1) / width
            b_second = tl.sum(b_z.to(ACC) * b_s, 1) / width
            p_dx = d_features + stride(entry, 19, VECTOR) + (i_b * tokens + o_n[:, None]) * width
            for d in range(0, width, BLOCK_D):
                b_k = read_tile(p_k, o_m, d + o_c, stride_k, ROWS, width).to(X)
                b_dz = tl.dot(b_z, b_k, input_precision=PRECISION, out_dtype=ACC)
                if NORM == "layer":
                    b_dz -= b_first[:, None]
                if NORM != "none":
                    b_x = read_tile(p_x, o_n, d + o_c, stride_x, last, width).to(ACC)
                    b_dz -= (b_x - b_mean[:, None]) * (b_inverse * b_second)[:, None]
                b_g = read_tile(p_g, o_n, d + o_c, stride_g, last, width).to(ACC)
                b_dx = b_g + b_dz * (b_inverse * b_top)[:, None]
                m_dx = (o_n < last)[:, None] & (d + o_c < width)[None, :]
                tl.store(p_dx + (d + o_c)[None, :], b_dx.to(d_features.dtype.element_ty), mask=m_dx)


@dataclass(frozen=True)
class _Backward:
    order: tuple[int, ...]
    count: int
    programs: int
    table: Tensor
    flats: dict[str, Flat]
    slots: int
    segments: tuple[tuple[int, ...], ...]
    traffic: Traffic


def inject_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None,
    norm: str,
    eps: float,
    wanted: Collection[str],
) -> dict[str, list[Tensor]]:
    """Gradients of :func:`fastav.kernels.inject_forward` with respect to the lists ``wanted``."""
    given = {"features": features, "keys": keys, "values": values}
    operands, like = [Operand.of(tensors) for tensors in (*given.values(), grads)], features[0]
    block, block_m = tile_sizes("inject_bwd_kernel", like, keys[0].shape[1])
    acc, names = accumulator(like, keys[0], values[0])[0], tuple(name for name in given if name in wanted)
    sizes, block_n = [o.sizes for o in operands], block.sizes["BLOCK_N"]
    plan = _plan_backward(*sizes, items(operands), acc.itemsize, names, block_n, like.device)
    flats = {name: plan.flats[name].empty(like, given[name][0].dtype) for name in names}
    buffers = {name: buffer for name, (buffer, _) in flats.items()}
    slots, summed = torch.empty(plan.slots, dtype=acc, device=like.device), [n for n in names if n != "features"]
    slots_of = dict(zip(summed, slots.chunk(len(summed)) if summed else (), strict=True))

    arguments: dict[str, Any] = {n: o.pointers(plan.order) for n, o in zip((*given, "grads"), operands, strict=True)}
    arguments |= {f"d_{name}": buffers.get(name) for name in given}
    arguments |= {"key_slots": slots_of.get("keys"), "value_slots": slots_of.get("values"), "table": plan.table}
    constants = constant_arguments(operands, scale, norm, eps) | {"COUNT": plan.count, "BLOCK_M": block_m}
    launch(inject_bwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    if plan.segments:
        sum_slots(slots, tuple(buffers[name] for name in summed), plan.segments)
    return {name: views for name, (_, views) in flats.items()}


@planned
def _plan_backward(features, keys, values, grads, bytes_each, slot_item, names, block_n, device):
    rows_flat = Flat.of([shape for shape, _, _ in keys])
    flats = {"features": Flat.of([shape for shape, _, _ in features]), "keys": rows_flat, "values": rows_flat}
    entries, programs, loads, divided, slots, whole = [], [], [], [], 0, 0
    for i, (shape, _, _) in enumerate(features):
        batch, tokens, width = shape
        rows, start = keys[i][0][1], rows_flat.offsets[i]
        longest = max(PROGRAM_BYTES // (width * bytes_each[0]), TOKENS_PER_KEY * rows, block_n) // block_n * block_n
        length = triton.cdiv(triton.cdiv(tokens, triton.cdiv(tokens, longest)), block_n) * block_n
        parts, numel = triton.cdiv(tokens, length), batch * rows * width
        entries.append([tokens, width, parts, length, *places(i, features, keys, values, grads),
                        slots, batch, start, flats["features"].offsets[i]])  # fmt: skip
        programs.append(batch * parts)
        loads.append(length * width)
        if parts > 1:
            divided.append((numel, slots, parts, start))
        else:
            whole += numel
        if tokens > block_n:
            slots += -(-parts * numel // ALIGNMENT) * ALIGNMENT
    order, count, numbers = in_order(loads, programs, entries, device)
    summed = [name for name in names if name != "features"]
    segments = tuple(
        (numel, which * slots + first, numel, parts, which, start)
        for which in range(len(summed))
        for numel, first, parts, start in divided
    )
    item_of = dict(zip(("features", "keys", "values"), bytes_each, strict=False))
    written = slots * len(summed) * slot_item + sum(whole * item_of[name] for name in summed)
    written += flats["features"].size * bytes_each[0] if "features" in names else 0
    traffic = Traffic(bytes_of((features, keys, values, grads), bytes_each), written)
    return _Backward(order, count, sum(programs), numbers, flats, slots * len(summed), segments, traffic)

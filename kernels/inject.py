"""Inject on the device: every feature attends to its sample's few keys; one launch forward, at most two backward.

For one sample of one stage, ``x`` (N, D) with row statistics ``mu`` and ``s`` = 1 / deviation, ``k`` and ``v`` (M, D)::

    score_nm = s_n (x_n . k_m - mu_n sum(k_m))                 z_n . k_m, z the normalised row
    p        = softmax over m of scale score                   y_n = x_n + sum_m p_nm v_m

    ds_nm = scale p_nm (g_n . v_m - sum_j p_nj g_n . v_j)      dv_m = sum_n p_nm g_n
    dk_m  = sum_n ds_nm s_n x_n - sum_n ds_nm s_n mu_n
    dx_n  = g_n + s_n (dz_n - mean(dz_n) - z_n mean(dz_n z_n))     dz_n = sum_m ds_nm k_m

so that the feature itself is what is multiplied, and its norm costs a few numbers a row. The two means of dx need no
pass over D: they are ``sum_m ds_nm sum(k_m) / D`` and ``sum_m ds_nm score_nm / D``. A tile of features is read twice,
once for the scores and once, from the caches, for what comes of them. How a stage is cut into programs depends on
that stage alone.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    ALIGNMENT,
    Blocks,
    Flat,
    Operand,
    Traffic,
    accumulator,
    blocks,
    chip,
    launch,
    planned,
    precision,
    table,
)
from .shared import (
    LOG2E,
    add_to_statistics,
    find,
    inverse_deviation,
    narrow_along,
    place,
    read_tile,
    size,
    stride,
    sum_slots,
)

#: What one program of the backward pass reads at most of the features: small enough to fill a large device from one
#: clip; and the fewest tokens it reads for each key, so that its partial results are a fraction of what it reads.
PROGRAM_BYTES, TOKENS_PER_KEY = 1 << 18, 32

#: All keys of a sample are held at once: more do not fit.
MOST_KEYS = 128

#: Most bytes of a tile of scores, were they in the features' dtype, and of a tile of keys: what bounds registers and
#: shared memory for many keys. The backward pass holds four such tiles at once.
SCORE_BYTES, KEY_BYTES = {"inject_fwd_kernel": 1 << 13, "inject_bwd_kernel": 1 << 11}, 1 << 12

FORWARD_FIELDS, BACKWARD_FIELDS = tl.constexpr(13), tl.constexpr(20)


@triton.jit
def attend(
    p_x, stride_x, p_k, stride_k, o_n, last, width,
    ROWS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of features' attention to the keys, with what the backward pass wants besides; zeros in rows outside.

    Returns:
        p and unscaled scores [BLOCK_N, BLOCK_M], mean and inverse deviation [BLOCK_N], sums of the keys [BLOCK_M].
    """
    o_m, o_c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_n = o_n < last
    b_s, b_total = tl.zeros([BLOCK_N, BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    b_mean, b_square = tl.zeros([BLOCK_N], ACC), tl.zeros([BLOCK_N], ACC)
    for d in range(0, width, BLOCK_D):
        b_x = read_tile(p_x, o_n, d + o_c, stride_x, last, width)
        b_k = tl.trans(read_tile(p_k, o_m, d + o_c, stride_k, ROWS, width)).to(b_x.dtype)
        b_s = tl.dot(b_x, b_k, b_s, input_precision=PRECISION, out_dtype=ACC)
        b_total += tl.sum(b_k.to(ACC), 0)
        m_x = m_n[:, None] & (d + o_c < width)[None, :]
        count = tl.minimum(width - d, BLOCK_D)
        b_mean, b_square = add_to_statistics(b_x.to(ACC), m_x, count, d, b_mean, b_square, NORM)
    b_inverse = tl.where(m_n, inverse_deviation(b_square, width, EPS, NORM), 0.0)

    b_s = (b_s - b_mean[:, None] * b_total[None, :]) * b_inverse[:, None]
    b_e = tl.where((o_m < ROWS)[None, :], b_s * (softmax_scale(width, SCALE, ACC) * LOG2E), float("-inf"))
    b_e = tl.exp2(b_e - tl.max(b_e, 1)[:, None])
    b_p = tl.where(m_n[:, None], b_e / tl.sum(b_e, 1)[:, None], 0.0)
    return b_p, b_s, b_mean, b_inverse, b_total


@triton.jit
def softmax_scale(width, SCALE: tl.constexpr, ACC: tl.constexpr):
    """``SCALE``, or 1 / sqrt(width) for None."""
    return 1.0 / tl.sqrt(width.to(ACC)) if SCALE is None else SCALE


@triton.jit
def inject_fwd_kernel(
    features, keys, values, out, table,
    ROWS: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr,
    VECTOR: tl.constexpr, K_VECTOR: tl.constexpr, V_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one tile of one sample's features.

    Args:
        features, keys, values: tuples of pointers: (B, N, D), (B, M, D), (B, M, D).
        out: (B, N, D) of each stage, flat.
        table: see :func:`_plan_forward`.
    """
    i_g, local, entry = find(table, COUNT, FORWARD_FIELDS)
    tokens, width, tiles = size(entry, 0), size(entry, 1, VECTOR), size(entry, 2)
    i_b = (local // tiles).to(tl.int64)
    o_n, o_m, o_c = local % tiles * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    p_x, stride_x = place(features, i_g, i_b, entry, 3, VECTOR)
    p_k, stride_k = place(keys, i_g, i_b, entry, 6, K_VECTOR)
    p_v, stride_v = place(values, i_g, i_b, entry, 9, V_VECTOR)
    p_out = out + stride(entry, 12, VECTOR) + (i_b * tokens + o_n[:, None]) * width

    b_p, _, _, _, _ = attend(
        p_x, stride_x, p_k, stride_k, o_n, tokens, width,
        ROWS, SCALE, EPS, NORM, ACC, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    b_p = b_p.to(features[0].dtype.element_ty)
    for d in range(0, width, BLOCK_D):
        o_d = d + o_c
        b_x = read_tile(p_x, o_n, o_d, stride_x, tokens, width)
        b_v = read_tile(p_v, o_m, o_d, stride_v, ROWS, width).to(b_x.dtype)
        b_y = b_x.to(ACC) + tl.dot(b_p, b_v, input_precision=PRECISION, out_dtype=ACC)
        m_y = (o_n < tokens)[:, None] & (o_d < width)[None, :]
        tl.store(p_out + o_d[None, :], b_y.to(out.dtype.element_ty), mask=m_y)


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
    i_g, local, entry = find(table, COUNT, BACKWARD_FIELDS)
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


def unsupported(features: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor]) -> str:
    """Why these kernels cannot serve these arguments, in words; empty if they can."""
    rows = keys[0].shape[1]
    return (
        ""
        if rows <= MOST_KEYS
        else f"inject's kernels hold at most {MOST_KEYS} keys of a sample at once, here are {rows}"
    )


def _blocks(kernel: str, feature: Tensor, rows: int) -> tuple[Blocks, int]:
    """Block sizes, smaller where keys are many; keys in one block of at least the 16 that matrix units want."""
    block, item = blocks(kernel, chip(feature.device), feature.element_size()), feature.element_size()
    block_m = max(16, triton.next_power_of_2(rows))
    most = {"BLOCK_N": SCORE_BYTES[kernel] // item // block_m, "BLOCK_D": KEY_BYTES // item // block_m}
    sizes = {name: min(n, max(16, most[name])) for name, n in block.sizes.items()}
    block = replace(block, sizes=sizes)
    return replace(block, warps=8, stages=1) if block_m > 64 else block, block_m


@dataclass(frozen=True)
class _Forward:
    order: tuple[int, ...]
    count: int
    programs: int
    table: Tensor
    out: Flat
    traffic: Traffic


def inject_forward(
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None,
    norm: str,
    eps: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """See :func:`fastav.ops.inject`; the backward pass needs nothing but the inputs."""
    operands, like = [Operand.of(tensors) for tensors in (features, keys, values)], features[0]
    block, block_m = _blocks("inject_fwd_kernel", like, keys[0].shape[1])
    plan = _plan_forward(*(o.sizes for o in operands), _items(operands), block.sizes["BLOCK_N"], like.device)
    out, outputs = plan.out.empty(like, like.dtype)
    arguments = {n: o.pointers(plan.order) for n, o in zip(("features", "keys", "values"), operands, strict=True)}
    arguments |= {"out": out, "table": plan.table}
    constants = _constants(operands, scale, norm, eps) | {"COUNT": plan.count, "BLOCK_M": block_m}
    launch(inject_fwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return outputs, []


def _constants(operands: Sequence[Operand], scale: float | None, norm: str, eps: float) -> dict:
    features, keys, values = (o.tensors[0] for o in operands[:3])
    vectors = zip(("VECTOR", "K_VECTOR", "V_VECTOR", "G_VECTOR"), operands, strict=False)
    return {name: operand.vector() for name, operand in vectors} | {
        "ROWS": keys.shape[1],
        "SCALE": scale,
        "EPS": eps,
        "NORM": norm,
        "ACC": accumulator(features, keys, values)[1],
        "PRECISION": precision(features.dtype, chip(features.device)),
    }


def _items(operands: Sequence[Operand]) -> tuple[int, ...]:
    return tuple(o.tensors[0].element_size() for o in operands)


def _read(lists: Sequence[Sequence[tuple]], items: Sequence[int]) -> int:
    """Bytes of lists of tensors; what is repeated with stride 0 counts once."""
    return sum(
        item * math.prod(n for n, step in zip(shape, strides, strict=True) if step)
        for sizes, item in zip(lists, items, strict=True)
        for shape, strides, _ in sizes
    )


@planned
def _plan_forward(features, keys, values, items, block_n, device):
    out = Flat.of([shape for shape, _, _ in features])
    entries, programs = [], []
    for i, (shape, _, _) in enumerate(features):
        tiles = triton.cdiv(shape[1], block_n)
        entries.append([shape[1], shape[2], tiles, *_places(i, features, keys, values), out.offsets[i]])
        programs.append(shape[0] * tiles)
    order, count, numbers = _sorted([shape[2] for shape, _, _ in features], programs, entries, device)
    traffic = Traffic(_read((features, keys, values), items), out.size * items[0])
    return _Forward(order, count, sum(programs), numbers, out, traffic)


def _places(i: int, *operands: Sequence[tuple]) -> list[int]:
    """Offset, batch stride and row stride of entry ``i`` of each list."""
    return [number for sizes in operands for number in (sizes[i][2], *sizes[i][1][:2])]


def _sorted(loads, programs, entries, device) -> tuple[tuple[int, ...], int, Tensor]:
    """The launch's order, long programs first, short ones fill the end; its count of entries and its table."""
    order = tuple(sorted(range(len(loads)), key=lambda i: -loads[i]))
    return (
        order,
        triton.next_power_of_2(len(loads)),
        table([programs[i] for i in order], [entries[i] for i in order], device),
    )


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
    """Gradients of :func:`inject_forward` with respect to the lists ``wanted``."""
    given = {"features": features, "keys": keys, "values": values}
    operands, like = [Operand.of(tensors) for tensors in (*given.values(), grads)], features[0]
    block, block_m = _blocks("inject_bwd_kernel", like, keys[0].shape[1])
    acc, names = accumulator(like, keys[0], values[0])[0], tuple(name for name in given if name in wanted)
    sizes, items, block_n = [o.sizes for o in operands], _items(operands), block.sizes["BLOCK_N"]
    plan = _plan_backward(*sizes, items, acc.itemsize, names, block_n, like.device)
    flats = {name: plan.flats[name].empty(like, given[name][0].dtype) for name in names}
    buffers = {name: buffer for name, (buffer, _) in flats.items()}
    slots, summed = torch.empty(plan.slots, dtype=acc, device=like.device), [n for n in names if n != "features"]
    slots_of = dict(zip(summed, slots.chunk(len(summed)) if summed else (), strict=True))

    arguments: dict[str, Any] = {n: o.pointers(plan.order) for n, o in zip((*given, "grads"), operands, strict=True)}
    arguments |= {f"d_{name}": buffers.get(name) for name in given}
    arguments |= {"key_slots": slots_of.get("keys"), "value_slots": slots_of.get("values"), "table": plan.table}
    constants = _constants(operands, scale, norm, eps) | {"COUNT": plan.count, "BLOCK_M": block_m}
    launch(inject_bwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    if plan.segments:
        sum_slots(slots, tuple(buffers[name] for name in summed), plan.segments)
    return {name: views for name, (_, views) in flats.items()}


@planned
def _plan_backward(features, keys, values, grads, items, slot_item, names, block_n, device):
    rows_flat = Flat.of([shape for shape, _, _ in keys])
    flats = {"features": Flat.of([shape for shape, _, _ in features]), "keys": rows_flat, "values": rows_flat}
    entries, programs, loads, divided, slots, whole = [], [], [], [], 0, 0
    for i, (shape, _, _) in enumerate(features):
        batch, tokens, width = shape
        rows, start = keys[i][0][1], rows_flat.offsets[i]
        longest = max(PROGRAM_BYTES // (width * items[0]), TOKENS_PER_KEY * rows, block_n) // block_n * block_n
        length = triton.cdiv(triton.cdiv(tokens, triton.cdiv(tokens, longest)), block_n) * block_n
        parts, numel = triton.cdiv(tokens, length), batch * rows * width
        entries.append([tokens, width, parts, length, *_places(i, features, keys, values, grads),
                        slots, batch, start, flats["features"].offsets[i]])  # fmt: skip
        programs.append(batch * parts)
        loads.append(length * width)
        if parts > 1:
            divided.append((numel, slots, parts, start))
        else:
            whole += numel
        if tokens > block_n:
            slots += -(-parts * numel // ALIGNMENT) * ALIGNMENT
    order, count, numbers = _sorted(loads, programs, entries, device)
    summed = [name for name in names if name != "features"]
    segments = tuple(
        (numel, which * slots + first, numel, parts, which, start)
        for which in range(len(summed))
        for numel, first, parts, start in divided
    )
    item_of = dict(zip(("features", "keys", "values"), items, strict=False))
    written = slots * len(summed) * slot_item + sum(whole * item_of[name] for name in summed)
    written += flats["features"].size * items[0] if "features" in names else 0
    traffic = Traffic(_read((features, keys, values, grads), items), written)
    return _Backward(order, count, sum(programs), numbers, flats, slots * len(summed), segments, traffic)

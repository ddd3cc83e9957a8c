"""Inject on the device: every feature attends to its sample's few keys; one launch for all stages.

For one sample of one stage, ``x`` (N, D) with row statistics ``mu`` and ``s`` = 1 / deviation, ``k`` and ``v`` (M, D)::

    score_nm = s_n (x_n . k_m - mu_n sum(k_m))                 z_n . k_m, z the normalised row
    p        = softmax over m of scale score                   y_n = x_n + sum_m p_nm v_m

so that the feature itself is what is multiplied, and its norm costs a few numbers a row. A tile of features is read
twice, once for the scores and once, from the caches, for what comes of them. How a stage is cut into programs depends
on that stage alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    Blocks,
    Flat,
    Operand,
    Traffic,
    accumulator,
    blocks,
    bytes_of,
    chip,
    in_order,
    items,
    launch,
    planned,
    precision,
)
from .shared import LOG2E, add_to_statistics, find, inverse_deviation, place, read_tile, size, stride

#: All keys of a sample are held at once: more do not fit.
MOST_KEYS = 128

#: Most bytes of a tile of scores, were they in the features' dtype, and of a tile of keys: what bounds registers and
#: shared memory for many keys. The backward pass holds four such tiles at once.
SCORE_BYTES, KEY_BYTES = {"inject_fwd_kernel": 1 << 13, "inject_bwd_kernel": 1 << 11}, 1 << 12

FIELDS = tl.constexpr(13)


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
    i_g, local, entry = find(table, COUNT, FIELDS)
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


def unsupported(features: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor]) -> str:
    """Why these kernels cannot serve these arguments, in words; empty if they can."""
    rows = keys[0].shape[1]
    return (
        ""
        if rows <= MOST_KEYS
        else f"inject's kernels hold at most {MOST_KEYS} keys of a sample at once, here are {rows}"
    )


def tile_sizes(kernel: str, feature: Tensor, rows: int) -> tuple[Blocks, int]:
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
    block, block_m = tile_sizes("inject_fwd_kernel", like, keys[0].shape[1])
    plan = _plan_forward(*(o.sizes for o in operands), items(operands), block.sizes["BLOCK_N"], like.device)
    out, outputs = plan.out.empty(like, like.dtype)
    arguments = {n: o.pointers(plan.order) for n, o in zip(("features", "keys", "values"), operands, strict=True)}
    arguments |= {"out": out, "table": plan.table}
    constants = constant_arguments(operands, scale, norm, eps) | {"COUNT": plan.count, "BLOCK_M": block_m}
    launch(inject_fwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return outputs, []


def constant_arguments(operands: Sequence[Operand], scale: float | None, norm: str, eps: float) -> dict:
    """What is known when a kernel is compiled, but for its blocks."""
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


@planned
def _plan_forward(features, keys, values, bytes_each, block_n, device):
    out = Flat.of([shape for shape, _, _ in features])
    entries, programs = [], []
    for i, (shape, _, _) in enumerate(features):
        tiles = triton.cdiv(shape[1], block_n)
        entries.append([shape[1], shape[2], tiles, *places(i, features, keys, values), out.offsets[i]])
        programs.append(shape[0] * tiles)
    order, count, numbers = in_order([shape[2] for shape, _, _ in features], programs, entries, device)
    traffic = Traffic(bytes_of((features, keys, values), bytes_each), out.size * bytes_each[0])
    return _Forward(order, count, sum(programs), numbers, out, traffic)


def places(i: int, *operands: Sequence[tuple]) -> list[int]:
    """Offset, batch stride and row stride of entry ``i`` of each list."""
    return [number for sizes in operands for number in (sizes[i][2], *sizes[i][1][:2])]

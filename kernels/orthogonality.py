"""Orthogonality on the device: the penalty of all taps' tokens in one launch, its gradient in another.

For one sample of one tap, ``t`` (K, D) with row lengths ``l``, at least 1e-12, and ``u`` = t / l::

    E_ij     = t_i . t_j / (l_i l_j) - (i == j)                the cosines, less the identity
    penalty  = mean over taps and samples of sum_ij E_ij^2 / (K (K - 1))

    du_i = c sum_j E_ij u_j        c = 4 grad / (K (K - 1) taps samples)
    dt_i = (du_i - u_i (du_i . u_i)) / l_i      du_i . u_i = c sum_j E_ij^2, or 0 for a row without a direction

The raw rows are what is multiplied: products of 16-bit numbers are exact in float32, and lengths are the diagonal's
roots. So the diagonal of E is zero by definition, but for rows shorter than 1e-12: t_i . t_i / l_i^2 - 1 there.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    Flat,
    Operand,
    Traffic,
    accumulator,
    arrivals,
    blocks,
    bytes_of,
    chip,
    in_order,
    launch,
    planned,
    precision,
)
from .shared import find, narrow_along, place, read_tile, size, stride

#: Rows shorter than this are divided by it instead of by their length: a zero row has no direction and stays zero.
SHORTEST = tl.constexpr(1e-12)

#: All tokens of a sample are held at once, and their cosines: more do not fit. (More than 64 in float32, whose operands
#: live in registers as two TF32 parts, still spill.)
MOST_TOKENS = 128

#: Most elements of a tile of tokens: what bounds registers and shared memory for many tokens.
TILE = 1 << 10

FIELDS = tl.constexpr(5)


@triton.jit
def excess(
    pointer, stride_k, width,
    ROWS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A sample's ``E``, zeros outside [BLOCK_K, BLOCK_K], and the lengths of its rows [BLOCK_K]."""
    o_k, o_c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    b_e = tl.zeros([BLOCK_K, BLOCK_K], ACC)
    for d in range(0, width, BLOCK_D):
        b_t = read_tile(pointer, o_k, d + o_c, stride_k, ROWS, width)
        b_e = tl.dot(b_t, tl.trans(b_t), b_e, input_precision=PRECISION, out_dtype=ACC)
    m_same = o_k[:, None] == o_k[None, :]
    b_length = tl.sqrt(tl.sum(tl.where(m_same, b_e, 0.0), 1))
    b_inverse = 1.0 / tl.maximum(b_length, tl.full([BLOCK_K], SHORTEST, ACC))
    b_e = b_e * b_inverse[:, None] * b_inverse[None, :]
    m_unit = (b_length >= SHORTEST) | (o_k >= ROWS)
    return tl.where(m_same, tl.where(m_unit[:, None], 0.0, b_e - 1.0), b_e), b_length


@triton.jit
def orthogonality_fwd_kernel(
    tokens, out, slots, arrived, table,
    ROWS: tl.constexpr, SHARE: tl.constexpr, COUNT: tl.constexpr, VECTOR: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one sample of one tap; the last to arrive takes the mean of all.

    Args:
        tokens: tuple of pointers: (B, K, D).
        out: the penalty, a scalar.
        slots: a program's penalty.
        arrived: how many programs are done; zero before and after.
        table: see :func:`_plan`.
        SHARE: 1 / (K (K - 1)), or 0 for a single token.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    p_t, stride_k = place(tokens, i_g, local.to(tl.int64), entry, 1, VECTOR)
    b_e, _ = excess(p_t, stride_k, size(entry, 0, VECTOR), ROWS, ACC, PRECISION, BLOCK_K, BLOCK_D)
    tl.store(slots + tl.program_id(0), tl.sum(b_e * b_e) * SHARE)

    tl.debug_barrier()
    total = tl.num_programs(0)
    if tl.atomic_add(arrived, 1, sem="acq_rel") == total - 1:
        tl.debug_barrier()
        o_p, b_sum = tl.arange(0, BLOCK_D), tl.zeros([BLOCK_D], ACC)
        for i in range(0, total, BLOCK_D):
            b_sum += tl.load(slots + i + o_p, mask=i + o_p < total, other=0.0)
        tl.store(out, tl.sum(b_sum, 0) / total)
        tl.store(arrived, 0)


@triton.jit
def orthogonality_bwd_kernel(
    tokens, grad, d_tokens, table,
    ROWS: tl.constexpr, SHARE: tl.constexpr, COUNT: tl.constexpr, VECTOR: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one sample of one tap.

    Args:
        tokens: tuple of pointers: (B, K, D).
        grad: gradient of the penalty, a scalar.
        d_tokens: (B, K, D) of each tap, flat.
        table: see :func:`_plan`.
        SHARE: as forward.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    i_b, width = local.to(tl.int64), size(entry, 0, VECTOR)
    o_k, o_c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    p_t, stride_k = place(tokens, i_g, i_b, entry, 1, VECTOR)
    p_dt = d_tokens + stride(entry, 4, VECTOR) + (i_b * ROWS + o_k[:, None]) * width
    X: tl.constexpr = tokens[0].dtype.element_ty

    b_e, b_length = excess(p_t, stride_k, width, ROWS, ACC, PRECISION, BLOCK_K, BLOCK_D)
    b_inverse = 1.0 / tl.maximum(b_length, tl.full([BLOCK_K], SHORTEST, ACC))
    # Rows are brought near unit length by powers of two, which costs no digits, and the rest of it goes into E.
    b_power = tl.exp2(tl.floor(tl.log2(b_inverse)))
    b_rest = b_inverse / b_power
    b_w, b_top = narrow_along(b_e * b_rest[None, :], 1, X)
    # Taken from the narrowed E, so that what is left of du is at right angles to its row.
    b_along = tl.sum(b_w.to(ACC) * (b_e / b_rest[None, :]), 1)
    b_along = tl.where(b_length > SHORTEST, b_along, 0.0) * b_inverse
    b_factor = tl.load(grad).to(ACC) * (4.0 * SHARE) / tl.num_programs(0) * b_top * b_inverse
    for d in range(0, width, BLOCK_D):
        o_d = d + o_c
        b_t = read_tile(p_t, o_k, o_d, stride_k, ROWS, width).to(ACC)
        b_near = (b_t * b_power[:, None]).to(X)
        b_dt = tl.dot(b_w, b_near, input_precision=PRECISION, out_dtype=ACC) - b_t * b_along[:, None]
        m_dt = (o_k < ROWS)[:, None] & (o_d < width)[None, :]
        tl.store(p_dt + o_d[None, :], (b_dt * b_factor[:, None]).to(d_tokens.dtype.element_ty), mask=m_dt)


def unsupported(tokens: Sequence[Tensor]) -> str:
    """Why these kernels cannot serve these arguments, in words; empty if they can."""
    rows, most = tokens[0].shape[1], MOST_TOKENS
    if rows <= most:
        return ""
    return (
        f"orthogonality's kernels hold at most {most} tokens of a sample in {tokens[0].dtype} at once, here are {rows}"
    )


def orthogonality_forward(tokens: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """See :func:`fastav.ops.orthogonality`; gives the penalty, and keeps nothing for the backward pass."""
    operand, acc = Operand.of(tokens), accumulator(*tokens)[0]
    plan = _plan(operand.sizes, tokens[0].element_size(), acc.itemsize, tokens[0].device)
    out = torch.empty((), dtype=acc, device=tokens[0].device)
    slots = torch.empty(plan.programs, dtype=acc, device=tokens[0].device)
    arguments = {"out": out, "slots": slots, "arrived": arrivals(1, slots)}
    _launch(orthogonality_fwd_kernel, operand, plan, arguments, plan.forward)
    return [out], []


def orthogonality_backward(
    grads: Sequence[Tensor], kept: Sequence[Tensor], tokens: Sequence[Tensor], *, wanted: Collection[str]
) -> dict[str, list[Tensor]]:
    """Gradient of :func:`orthogonality_forward` with respect to the tokens, if ``wanted``."""
    if "tokens" not in wanted:
        return {}
    operand, acc = Operand.of(tokens), accumulator(*tokens)[0]
    plan = _plan(operand.sizes, tokens[0].element_size(), acc.itemsize, tokens[0].device)
    d_flat, d_tokens = plan.flat.empty(tokens[0], tokens[0].dtype)
    _launch(orthogonality_bwd_kernel, operand, plan, {"grad": grads[0], "d_tokens": d_flat}, plan.backward)
    return {"tokens": d_tokens}


@dataclass(frozen=True)
class _Plan:
    order: tuple[int, ...]
    count: int
    programs: int
    table: Tensor
    flat: Flat
    forward: Traffic
    backward: Traffic


@planned
def _plan(tokens, item, slot_item, device):
    shapes = [shape for shape, _, _ in tokens]
    flat, programs = Flat.of(shapes), [shape[0] for shape in shapes]
    entries = [
        [shape[2], offset, *strides[:2], start]
        for (shape, strides, offset), start in zip(tokens, flat.offsets, strict=True)
    ]
    order, count, numbers = in_order([shape[2] for shape in shapes], programs, entries, device)
    read = bytes_of((tokens,), (item,))
    partial = sum(programs) * slot_item
    forward = Traffic(read + partial, partial + slot_item)
    backward = Traffic(read + slot_item, item * sum(math.prod(shape) for shape in shapes))
    return _Plan(order, count, sum(programs), numbers, flat, forward, backward)


def _launch(kernel, operand: Operand, plan: _Plan, arguments: dict, traffic: Traffic) -> None:
    """What both launches have in common."""
    like, rows = operand.tensors[0], operand.tensors[0].shape[1]
    arguments |= {"tokens": operand.pointers(plan.order), "table": plan.table}
    on, block_k = chip(like.device), max(16, triton.next_power_of_2(rows))
    block = blocks(kernel.__name__, on, like.element_size())
    block = replace(block, sizes={"BLOCK_D": min(block.sizes["BLOCK_D"], max(16, TILE // block_k))})
    if block_k > 32:  # at most 512 threads, 16 of NVIDIA's warps and 8 of AMD's
        block = replace(block, warps=16 if block_k > 64 and on.startswith("sm_") else 8)
    constants = {
        "ROWS": rows, "SHARE": 1 / (rows * (rows - 1)) if rows > 1 else 0.0, "COUNT": plan.count,
        "VECTOR": operand.vector(), "ACC": accumulator(like)[1],
        "PRECISION": precision(like.dtype, on), "BLOCK_K": block_k,
    }  # fmt: skip
    launch(kernel, plan.programs, arguments, constants, block, traffic)

"""Fuse on the device: all layers' tokens to one width and mixed, in one launch.

In the words of :mod:`fastav.kernels.linear`, for layer ``l`` and each row of (B, K)::

    y_l  = norm(x_l) W_l + b_l       Z = sum_l alpha_l y_l
    mean:   alpha_l = 1 / L
    layer:  alpha = softmax(gate)
    token:  alpha_l = exp(t_l - lse)        t_l = y_l . gate / sqrt(W), lse = log sum_l exp(t_l)

A program mixes a few consecutive layers, and the last one to arrive merges them in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Operand, Traffic, accumulator, arrivals, bytes_of, chip, items, launch, planned, precision, table
from .linear import fitted, geometry, layer_weight, mapped_rows, row_offsets, rows_of
from .shared import find, size, stride

#: Layers that one program mixes at most: what it writes of its unfinished sum, and reads again, stays a small part of
#: what it reads.
PROGRAM_LAYERS = 2

FIELDS = tl.constexpr(10)


@triton.jit
def token_logits(b_y, gate, o_e, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """``y . gate`` over a block of columns: [BLOCK_M]."""
    b_gate = tl.load(gate + o_e, mask=o_e < WIDTH, other=0.0).to(ACC)
    return tl.sum(b_y * b_gate[None, :], 1)


@triton.jit
def with_bias(b_y, p_b, o_e, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """Add the bias, if there is one, to a block of columns."""
    if p_b is not None:
        b_y += tl.load(p_b + o_e, mask=o_e < WIDTH, other=0.0).to(ACC)[None, :]
    return b_y


@triton.jit
def pick_two(pointers, i_g, j_g, VECTOR: tl.constexpr):
    """Two of a tuple of pointers, as :func:`pick` does one, in one go through them."""
    GROUP: tl.constexpr = 8
    first, other = pointers[0].to(tl.int64), pointers[0].to(tl.int64)
    for j in tl.static_range(0, len(pointers), GROUP):
        if (i_g // GROUP == j // GROUP) | (j_g // GROUP == j // GROUP):
            for i in tl.static_range(j, min(j + GROUP, len(pointers))):
                first = tl.where(i_g == i, pointers[i].to(tl.int64), first)
                other = tl.where(j_g == i, pointers[i].to(tl.int64), other)
    ALIGNED: tl.constexpr = VECTOR * pointers[0].dtype.element_ty.primitive_bitwidth // 8
    first = tl.multiple_of(first.to(pointers[0].dtype), ALIGNED)
    return first, tl.multiple_of(other.to(pointers[0].dtype), ALIGNED)


@triton.jit
def either(pointer, other, condition, VECTOR: tl.constexpr):
    """One of two pointers to addresses that are multiples of ``VECTOR`` elements."""
    address = tl.where(condition, pointer.to(tl.int64), other.to(tl.int64)).to(pointer.dtype)
    return tl.multiple_of(address, VECTOR * pointer.dtype.element_ty.primitive_bitwidth // 8)


@triton.jit
def fuse_fwd_kernel(
    tokens, weights, biases, gate, out, lse, slots, arrived, table,
    COUNT: tl.constexpr, GATE: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr,
    VECTOR: tl.constexpr, W_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: a few layers' share in a block of rows and columns of the result.

    Args:
        tokens, weights, biases: tuples of pointers: (B, K, D), (D, W), (W,).
        gate: None, (L,) or (W,).
        out: (B, K, W).
        lse: (B, K), natural logarithm, for a gate a token.
        slots: a program's unfinished sums: (BLOCK_M, BLOCK_E), then maxima and sums (BLOCK_M,) of its softmax.
        arrived: for each block of the result, how many programs are done; all zeros before and after.
        table: see :func:`_plan_forward`; after the groups of layers stand the layers.
    """
    i_group, local, entry = find(table, COUNT, FIELDS)
    X: tl.constexpr = tokens[0].dtype.element_ty if tl.float64 != ACC else ACC
    first, last, groups = size(entry, 0), size(entry, 1), size(entry, 2)
    layers, rows = size(entry, 3), size(entry, 4)
    E_BLOCKS: tl.constexpr = (WIDTH + BLOCK_E - 1) // BLOCK_E
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E)
    o_m, o_e = local // E_BLOCKS * BLOCK_M + o_row, local % E_BLOCKS * BLOCK_E + o_column
    m_m, m_e = o_m < rows, o_e < WIDTH
    b_out = tl.zeros([BLOCK_M, BLOCK_E], ACC)
    b_max, b_sum = tl.full([BLOCK_M], float("-inf"), ACC), tl.zeros([BLOCK_M], ACC)
    p_layers = table + COUNT + groups * FIELDS
    # A program's two layers, or twice the one. Picked before the loop: to pick within it spills scalars on gfx942.
    other = last - 1
    x_first, x_other = pick_two(tokens, first, other, VECTOR)
    w_first, w_other = pick_two(weights, first, other, W_VECTOR)
    b_first, b_other = (None, None) if biases is None else pick_two(biases, first, other, 1)
    for i_l in range(first, last):
        layer = p_layers + i_l * FIELDS
        inner, width, stride_w = size(layer, 1), size(layer, 2, VECTOR), stride(layer, 7, W_VECTOR)
        o_x = row_offsets(o_m, inner, stride(layer, 4, VECTOR), stride(layer, 5, VECTOR))
        p_x = either(x_first, x_other, i_l == first, VECTOR) + stride(layer, 6, VECTOR) + o_x
        p_w = either(w_first, w_other, i_l == first, W_VECTOR) + stride(layer, 8, W_VECTOR)
        p_b = None if biases is None else either(b_first, b_other, i_l == first, 1) + stride(layer, 9)
        b_y, _, _, _ = mapped_rows(p_x, m_m, p_w, stride_w, o_e, width, WIDTH, X, EPS, NORM, ACC, PRECISION, BLOCK_D)
        b_y = with_bias(b_y, p_b, o_e, WIDTH, ACC)
        if GATE == "mean":
            b_out += b_y
        if GATE == "layer":
            b_out += b_y * layer_weight(gate, i_l, layers, COUNT, ACC)
        if GATE == "token":
            b_logit = tl.zeros([BLOCK_M], ACC)
            if E_BLOCKS == 1:
                b_logit += token_logits(b_y, gate, o_e, WIDTH, ACC)
            else:
                for e in range(0, WIDTH, BLOCK_E):
                    b_block, _, _, _ = mapped_rows(
                        p_x, m_m, p_w, stride_w, e + o_column, width, WIDTH, X, EPS, NORM, ACC, PRECISION, BLOCK_D
                    )
                    b_block = with_bias(b_block, p_b, e + o_column, WIDTH, ACC)
                    b_logit += token_logits(b_block, gate, e + o_column, WIDTH, ACC)
            b_logit *= WIDTH**-0.5
            b_new = tl.maximum(b_max, b_logit)
            b_keep, b_power = tl.exp(b_max - b_new), tl.exp(b_logit - b_new)
            b_out = b_out * b_keep[:, None] + b_y * b_power[:, None]
            b_sum = b_sum * b_keep + b_power
            b_max = b_new

    p_out = out + o_m.to(tl.int64)[:, None] * WIDTH + o_e[None, :]
    m_out = m_m[:, None] & m_e[None, :]
    turn = groups - 1
    if slots is not None:
        STEP: tl.constexpr = BLOCK_M * (BLOCK_E + 2)
        blocks = tl.cdiv(rows, BLOCK_M) * E_BLOCKS
        p_first = slots + local.to(tl.int64) * STEP
        p_slot = p_first + i_group.to(tl.int64) * blocks * STEP
        o_tile = o_row[:, None] * BLOCK_E + o_column[None, :]
        o_state = BLOCK_M * BLOCK_E + o_row
        tl.store(p_slot + o_tile, b_out)
        if GATE == "token":
            tl.store(p_slot + o_state, b_max)
            tl.store(p_slot + o_state + BLOCK_M, b_sum)
        tl.debug_barrier()
        turn = tl.atomic_add(arrived + local, 1, sem="acq_rel")
        if turn == groups - 1:
            tl.debug_barrier()
            b_out, b_sum = tl.zeros([BLOCK_M, BLOCK_E], ACC), tl.zeros([BLOCK_M], ACC)
            if GATE == "token":
                b_max = tl.full([BLOCK_M], float("-inf"), ACC)
                for i in range(groups):
                    b_max = tl.maximum(b_max, tl.load(p_first + i * blocks.to(tl.int64) * STEP + o_state))
            for i in range(groups):
                p_part = p_first + i * blocks.to(tl.int64) * STEP
                b_part = tl.load(p_part + o_tile)
                if GATE == "token":
                    b_power = tl.exp(tl.load(p_part + o_state) - b_max)
                    b_sum += tl.load(p_part + o_state + BLOCK_M) * b_power
                    b_part *= b_power[:, None]
                b_out += b_part
            tl.store(arrived + local, 0)
    if turn == groups - 1:
        if GATE == "mean":
            b_out /= layers.to(ACC)
        if GATE == "token":
            b_out /= b_sum[:, None]
            if local % E_BLOCKS == 0:
                tl.store(lse + o_m, b_max + tl.log(b_sum), mask=m_m)
        tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


@dataclass(frozen=True)
class _Forward:
    count: int
    programs: int
    table: Tensor
    blocks: int
    slots: int
    traffic: Traffic


def fuse_forward(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """See :func:`fastav.ops.fuse`; gives the mix, and for a gate a token keeps the log-sum-exps (B, K)."""
    like, width, order = tokens[0], weights[0].shape[1], range(len(tokens))
    x, w, b = Operand.of(tokens), Operand.of(weights), Operand.of(biases)
    acc, acc_type = widest(tokens, weights, biases, gate)
    block = fitted("fuse_fwd_kernel", like, rows_of(like.shape)[0], w)
    plan = _plan_forward(
        x.sizes, w.sizes, b and b.sizes, (*items((x, w, b)), acc.itemsize), gate_kind,
        block.sizes["BLOCK_M"], block.sizes["BLOCK_E"], like.device,
    )  # fmt: skip
    out = torch.empty((*like.shape[:-1], width), dtype=like.dtype, device=like.device)
    kept = [torch.empty(like.shape[:-1], dtype=acc, device=like.device)] if gate_kind == "token" else []
    arguments: dict[str, Any] = {
        "tokens": x.pointers(order), "weights": w.pointers(order), "biases": b and b.pointers(order),
        "gate": None if gate is None else gate.contiguous(), "out": out, "lse": kept[0] if kept else None,
        "slots": torch.empty(plan.slots, dtype=acc, device=like.device) if plan.slots else None,
        "arrived": arrivals(plan.blocks, like) if plan.slots else None, "table": plan.table,
    }  # fmt: skip
    constants = {
        "COUNT": plan.count, "GATE": gate_kind or "mean", "WIDTH": width, "EPS": eps, "NORM": norm,
        "VECTOR": x.vector(), "W_VECTOR": w.vector(), "ACC": acc_type,
        "PRECISION": precision(like.dtype, chip(like.device)),
    }  # fmt: skip
    launch(fuse_fwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return [out], kept


def widest(
    tokens: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] | None, gate: Tensor | None
) -> tuple[torch.dtype, tl.dtype]:
    """The accumulator of a call."""
    return accumulator(tokens[0], weights[0], *(biases or ())[:1], *(() if gate is None else (gate,)))


@planned
def _plan_forward(tokens, weights, biases, bytes_each, gate_kind, block_m, block_e, device):
    layers, width = len(tokens), weights[0][0][1]
    rows, _ = rows_of(tokens[0][0])
    blocks = triton.cdiv(rows, block_m) * triton.cdiv(width, block_e)
    firsts = list(range(0, layers, PROGRAM_LAYERS))
    groups = len(firsts)
    entries = [[first, min(first + PROGRAM_LAYERS, layers), groups, layers, rows, *[0] * 5] for first in firsts]
    for i, (own, matrix) in enumerate(zip(tokens, weights, strict=True)):
        entries.append([*geometry(own, matrix), 0 if biases is None else biases[i][2]])
    programs = [blocks] * groups + [0] * layers  # the layers' rows are no programs' own
    token = gate_kind == "token"
    slots = 0 if groups == 1 else groups * blocks * block_m * (block_e + 2)
    unfinished = 0 if groups == 1 else groups * rows * (width + 2 * token) * bytes_each[-1]
    read = bytes_of((tokens, weights, biases), bytes_each[:-1])
    written = rows * (width * bytes_each[0] + token * bytes_each[-1])
    traffic = Traffic(read + unfinished, written + unfinished)
    numbers = table(programs, entries, device)
    return _Forward(triton.next_power_of_2(len(entries)), sum(programs), numbers, blocks, slots, traffic)

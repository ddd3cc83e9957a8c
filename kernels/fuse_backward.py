"""Fuse backward on the device: all gradients, in two launches at most.

In the words of :mod:`fastav.kernels.fuse` and :mod:`fastav.kernels.linear_backward`, with ``g`` the gradient of ``Z``::

    dy_l = alpha_l g + dt_l gate / sqrt(W)      the latter term for a gate a token only
    layer:  dgate_l = alpha_l (S_l - sum_k alpha_k S_k)        S_l = sum_m g . y_l
    token:  dgate = sum_lm dt_l y_l / sqrt(W)                  dt_l = alpha_l (g . y_l - g . Z)

so that ``dy_l`` need not be written anywhere: two numbers a row make it from ``g`` and the gate. The first launch
leaves these, those of the norm, and unfinished gradients of the gate.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fuse import token_logits, widest, with_bias
from .launch import Operand, Traffic, bytes_of, chip, items, launch, planned, precision, table
from .linear import (
    ROW_NUMBERS,
    fitted,
    geometry,
    layer_weight,
    mapped_rows,
    row_offsets,
    row_strides,
    rows_and_matrix,
    rows_of,
    store_norm,
)
from .linear_gradients import Gate, gradients
from .shared import find, pick, size, stride

FIELDS = tl.constexpr(15)


@triton.jit
def fuse_rows_kernel(
    tokens, weights, biases, gate, grads, out, lse, numbers, partials, table,
    COUNT: tl.constexpr, GATE: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr,
    VECTOR: tl.constexpr, W_VECTOR: tl.constexpr, G_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: what the gradients need of a block of rows of one layer, and its part of the gate's gradient.

    Args:
        tokens, weights, biases, gate, out, lse: as forward.
        grads: the gradient (B, K, W) of the result, a tuple of one pointer.
        numbers: (ROW_NUMBERS, B K) of each layer, flat, see :data:`fastav.kernels.linear.ROW_NUMBERS`.
        partials: (L, blocks) or (L, blocks, W), unfinished gradients of the gate, or None.
        table: see :func:`_plan_rows`.
    """
    i_l, local, entry = find(table, COUNT, FIELDS)
    X: tl.constexpr = tokens[0].dtype.element_ty if tl.float64 != ACC else ACC
    rows, inner, width, layers = size(entry, 0), size(entry, 1), size(entry, 2, VECTOR), size(entry, 14)
    o_m, o_c = local * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_E)
    m_m = o_m < rows
    p_x, p_w, stride_w = rows_and_matrix(tokens, weights, i_l, entry, o_m, VECTOR, W_VECTOR)
    p_b = None if biases is None else pick(biases, i_l) + stride(entry, 9)
    o_g = row_offsets(o_m, inner, stride(entry, 10, G_VECTOR), stride(entry, 11, G_VECTOR))
    p_g = pick(grads, 0, G_VECTOR) + stride(entry, 12, G_VECTOR) + o_g
    p_out = None if out is None else out + o_m.to(tl.int64)[:, None] * WIDTH

    b_mean, b_inverse = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    # Products of y with g and with the gate, of g with Z; of W's sums (c1) and of z W (c2) with g and with the gate.
    b_gy, b_gz, b_logit = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    b_c1, b_c2 = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    b_gate_c1, b_gate_c2 = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    b_y = tl.zeros([BLOCK_M, BLOCK_E], ACC)
    for e in range(0, WIDTH, BLOCK_E):
        o_e = e + o_c
        m_y = m_m[:, None] & (o_e < WIDTH)[None, :]
        b_y, b_mean, b_inverse, b_total = mapped_rows(
            p_x, m_m, p_w, stride_w, o_e, width, WIDTH, X, EPS, NORM, ACC, PRECISION, BLOCK_D
        )
        b_g = tl.load(p_g + o_e[None, :], mask=m_y, other=0.0).to(ACC)
        b_c1 += tl.sum(b_g * b_total[None, :], 1)
        b_c2 += tl.sum(b_g * b_y, 1)
        if GATE == "token":
            b_gate_c2 += token_logits(b_y, gate, o_e, WIDTH, ACC)
            b_gate_c1 += token_logits(tl.broadcast_to(b_total[None, :], [BLOCK_M, BLOCK_E]), gate, o_e, WIDTH, ACC)
            b_z = tl.load(p_out + o_e[None, :], mask=m_y, other=0.0).to(ACC)
            b_gz += tl.sum(b_g * b_z, 1)
        b_y = with_bias(b_y, p_b, o_e, WIDTH, ACC)
        if GATE != "mean":
            b_gy += tl.sum(tl.where(m_y, b_g * b_y, 0.0), 1)
        if GATE == "token":
            b_logit += token_logits(b_y, gate, o_e, WIDTH, ACC)

    p_n = numbers + tl.load(entry + 13) + o_m
    if GATE == "mean":
        b_alpha = tl.full([BLOCK_M], 1.0, ACC) / layers.to(ACC)
    if GATE == "layer":
        b_alpha = tl.full([BLOCK_M], 1.0, ACC) * layer_weight(gate, i_l, layers, COUNT, ACC)
        if partials is not None:
            tl.store(partials + i_l * tl.cdiv(rows, BLOCK_M) + local, tl.sum(b_gy, 0))
    if GATE == "token":
        ROOT: tl.constexpr = WIDTH**-0.5
        b_alpha = tl.exp(b_logit * ROOT - tl.load(lse + o_m, mask=m_m, other=0.0))
        b_beta = tl.where(m_m, b_alpha * (b_gy - b_gz) * ROOT, 0.0)
        tl.store(p_n + 4 * rows, b_alpha, mask=m_m)
        tl.store(p_n + 5 * rows, b_beta, mask=m_m)
        b_c1 = b_alpha * b_c1 + b_beta * b_gate_c1
        b_c2 = b_alpha * b_c2 + b_beta * b_gate_c2
        if partials is not None:
            p_part = partials + (i_l * tl.cdiv(rows, BLOCK_M) + local).to(tl.int64) * WIDTH
            if WIDTH <= BLOCK_E:
                tl.store(p_part + o_c, tl.sum(tl.where(m_m[:, None], b_y, 0.0) * b_beta[:, None], 0), mask=o_c < WIDTH)
            else:
                for e in range(0, WIDTH, BLOCK_E):
                    b_y, _, _, _ = mapped_rows(
                        p_x, m_m, p_w, stride_w, e + o_c, width, WIDTH, X, EPS, NORM, ACC, PRECISION, BLOCK_D
                    )
                    b_y = tl.where(m_m[:, None], with_bias(b_y, p_b, e + o_c, WIDTH, ACC), 0.0)
                    tl.store(p_part + e + o_c, tl.sum(b_y * b_beta[:, None], 0), mask=e + o_c < WIDTH)
    else:
        b_c1 *= b_alpha
        b_c2 *= b_alpha
    store_norm(p_n, m_m, rows, b_mean, b_inverse, b_c1, b_c2, NORM)


@dataclass(frozen=True)
class _Rows:
    programs: int
    table: Tensor
    numbers: int
    blocks: int
    traffic: Traffic


def fuse_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
    wanted: Collection[str],
) -> dict[str, list[Tensor]]:
    """Gradients of :func:`fastav.kernels.fuse_forward` with respect to the arguments ``wanted``.

    ``kept`` is the mix and its log-sum-exps for a gate a token, else nothing.
    """
    acc = widest(tokens, weights, biases, gate)
    x, w, b, g = Operand.of(tokens), Operand.of(weights), Operand.of(biases), Operand.of(grads)
    whole, numbers = Gate(gate_kind or "mean", None if gate is None else gate.contiguous()), None
    normed = norm != "none" and ("tokens" in wanted or "weights" in wanted)
    if normed or gate_kind == "token" or "gate" in wanted:
        numbers, whole = _rows(x, w, b, g, whole, kept, norm, eps, acc, "gate" in wanted)
    return gradients(x, w, b, None, g, g, numbers, norm=norm, gate=whole, acc=acc, wanted=wanted)


def _rows(
    x: Operand,
    w: Operand,
    b: Operand | None,
    g: Operand,
    gate: Gate,
    kept: Sequence[Tensor],
    norm: str,
    eps: float,
    acc: tuple[torch.dtype, tl.dtype],
    wants_gate: bool,
) -> tuple[Tensor, Gate]:
    """The first launch: the rows' numbers, and the gate with its unfinished gradient."""
    like, layers, width = x.tensors[0], len(x.tensors), w.tensors[0].shape[1]
    block = fitted("fuse_rows_kernel", like, rows_of(like.shape)[0], w)
    plan = _plan_rows(
        x.sizes, w.sizes, b and b.sizes, g.sizes, (*items((x, w, b, g)), acc[0].itemsize), norm, gate.kind, wants_gate,
        block.sizes["BLOCK_M"], like.device,
    )  # fmt: skip
    numbers = torch.empty(plan.numbers, dtype=acc[0], device=like.device)
    shape = (layers, plan.blocks, width) if gate.kind == "token" else (layers, plan.blocks)
    partials = torch.empty(shape, dtype=acc[0], device=like.device) if wants_gate else None
    out, lse = kept if gate.kind == "token" else (None, None)
    order = range(layers)
    arguments: dict[str, Any] = {
        "tokens": x.pointers(order), "weights": w.pointers(order), "biases": b and b.pointers(order),
        "gate": gate.gate, "grads": g.pointers((0,)), "out": out, "lse": lse, "numbers": numbers,
        "partials": partials, "table": plan.table,
    }  # fmt: skip
    constants = {
        "COUNT": triton.next_power_of_2(layers), "GATE": gate.kind, "WIDTH": width, "EPS": eps, "NORM": norm,
        "VECTOR": x.vector(), "W_VECTOR": w.vector(), "G_VECTOR": g.vector(), "ACC": acc[1],
        "PRECISION": precision(like.dtype, chip(like.device)),
    }  # fmt: skip
    launch(fuse_rows_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return numbers, replace(gate, partials=partials)


@planned
def _plan_rows(tokens, weights, biases, grads, bytes_each, norm, gate, wants_gate, block_m, device):
    layers, width = len(tokens), weights[0][0][1]
    rows, _ = rows_of(tokens[0][0])
    blocks = triton.cdiv(rows, block_m)
    ((_, strides, offset),) = grads
    entries = []
    for i, (own, matrix) in enumerate(zip(tokens, weights, strict=True)):
        bias, first = 0 if biases is None else biases[i][2], i * rows * ROW_NUMBERS.value
        entries.append([*geometry(own, matrix), bias, *row_strides(strides), offset, first, layers])
    numbers = table([blocks] * layers, entries, device)
    read = bytes_of((tokens, weights, biases, grads), bytes_each[:-1])
    written = layers * rows * {"none": 0, "rms": 2, "layer": 4}[norm]
    if gate == "token":
        read += rows * (width * bytes_each[0] + bytes_each[-1])
        written += 2 * layers * rows
    if wants_gate:
        written += layers * blocks * (width if gate == "token" else 1)
    traffic = Traffic(read, written * bytes_each[-1])
    return _Rows(layers * blocks, numbers, layers * rows * ROW_NUMBERS.value, blocks, traffic)

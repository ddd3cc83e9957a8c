"""Project on the device: each entry's tokens through its own matrix, in one launch.

For the rows ``x`` (M, D) of one entry, ``W`` (D, E), with ``y`` as in :mod:`fastav.kernels.linear`::

    out = act(y) + residual        y = norm(x) W + b
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Flat, Operand, Traffic, accumulator, bytes_of, chip, items, launch, planned, precision, table
from .linear import (
    common_columns,
    fitted,
    geometry,
    mapped_rows,
    row_offsets,
    rows_and_matrix,
    rows_of,
)
from .shared import find, pick, size, stride

FIELDS = tl.constexpr(15)


@triton.jit
def normal_distribution(b_y):
    """Phi(y) of the standard normal distribution."""
    return 0.5 * (1.0 + tl.erf(b_y * 0.7071067811865476))


@triton.jit
def project_fwd_kernel(
    tokens, weights, biases, residuals, out, table,
    COUNT: tl.constexpr, ACTIVATION: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, VECTOR: tl.constexpr,
    W_VECTOR: tl.constexpr, R_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: one block of rows and columns of one entry.

    Args:
        tokens, weights, biases, residuals: tuples of pointers: (B, M, D) or (M, D), (D, E), (E,), and what broadcasts
            to (B, M, E).
        out: (B, M, E) of each entry, flat.
        R_VECTOR: how many elements of a residual's row may be read at once, 0 if any has one column for many.
        table: see :func:`_plan_forward`.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    X: tl.constexpr = tokens[0].dtype.element_ty if tl.float64 != ACC else ACC
    rows, inner, width, columns = size(entry, 0), size(entry, 1), size(entry, 2, VECTOR), size(entry, 3, E_VECTOR)
    e_blocks = tl.cdiv(columns, BLOCK_E)
    o_m = local // e_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_e = local % e_blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    m_m, m_e = o_m < rows, o_e < columns
    m_y = m_m[:, None] & m_e[None, :]

    p_x, p_w, stride_w = rows_and_matrix(tokens, weights, i_g, entry, o_m, VECTOR, W_VECTOR)
    # Asked for before the product, so that they are there after it.
    if biases is not None:
        b_bias = tl.load(pick(biases, i_g) + stride(entry, 9) + o_e, mask=m_e, other=0.0).to(ACC)
    if residuals is not None:
        R: tl.constexpr = R_VECTOR if R_VECTOR > 0 else 1  # without vectors a row may begin anywhere
        o_r = row_offsets(o_m, inner, stride(entry, 10, R), stride(entry, 11, R))
        p_r = pick(residuals, i_g, R) + stride(entry, 13, R) + o_r
        p_r += o_e[None, :] if R_VECTOR > 0 else o_e[None, :] * stride(entry, 12)
        b_r = tl.load(p_r, mask=m_y, other=0.0)
    b_y, _, _, _ = mapped_rows(p_x, m_m, p_w, stride_w, o_e, width, columns, X, EPS, NORM, ACC, PRECISION, BLOCK_D)
    if biases is not None:
        b_y += b_bias[None, :]
    if ACTIVATION == "gelu":
        b_y *= normal_distribution(b_y)
    if ACTIVATION == "relu":
        b_y = tl.where(b_y <= 0, 0.0, b_y)
    if residuals is not None:
        b_y += b_r.to(ACC)
    p_out = out + stride(entry, 14, E_VECTOR) + o_m.to(tl.int64)[:, None] * columns + o_e[None, :]
    tl.store(p_out, b_y.to(out.dtype.element_ty), mask=m_y)


@dataclass(frozen=True)
class _Forward:
    order: tuple[int, ...]
    programs: int
    table: Tensor
    out: Flat
    traffic: Traffic


def project_forward(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    residuals: Sequence[Tensor] | None,
    *,
    norm: str,
    eps: float,
    activation: str | None,
    stack: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """See :func:`fastav.ops.project`; gives the outputs, one tensor if they are stacked, and keeps nothing."""
    like = tokens[0]
    _, acc_type = accumulator(*(given[0] for given in (tokens, weights, biases, residuals) if given is not None))
    # A residual that is a number alone is read as one column.
    rows = None if residuals is None else [r.view(1) if r.ndim == 0 else r for r in residuals]
    x, w, b, r = Operand.of(tokens), Operand.of(weights), Operand.of(biases), Operand.of(rows)
    block = fitted("project_fwd_kernel", like, max(rows_of(t.shape)[0] for t in tokens), w)
    plan = _plan_forward(
        x.sizes, w.sizes, b and b.sizes, r and r.sizes, stack, items((x, w, b, r)),
        block.sizes["BLOCK_M"], block.sizes["BLOCK_E"], like.device,
    )  # fmt: skip
    out, outputs = plan.out.empty(like, like.dtype)
    if stack:
        outputs = [out.view(len(tokens), *outputs[0].shape)]
    arguments: dict[str, Any] = {
        "tokens": x.pointers(plan.order), "weights": w.pointers(plan.order), "biases": b and b.pointers(plan.order),
        "residuals": r and r.pointers(plan.order), "out": out, "table": plan.table,
    }  # fmt: skip
    whole = r is not None and all(own[0][-1] == m[0][-1] for own, m in zip(r.sizes, w.sizes, strict=True))
    constants = {
        "COUNT": triton.next_power_of_2(len(tokens)), "ACTIVATION": activation, "EPS": eps, "NORM": norm,
        "VECTOR": x.vector(), "W_VECTOR": w.vector(), "R_VECTOR": r.vector() if r is not None and whole else 0,
        "E_VECTOR": common_columns(w), "ACC": acc_type, "PRECISION": precision(like.dtype, chip(like.device)),
    }  # fmt: skip
    launch(project_fwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return outputs, []


def longest_first(tokens: Sequence[tuple]) -> tuple[int, ...]:
    """Entries by the length of their programs: long ones first, short ones fill the end."""
    return tuple(sorted(range(len(tokens)), key=lambda i: -tokens[i][0][-1]))


@planned
def _plan_forward(tokens, weights, biases, residuals, stack, bytes_each, block_m, block_e, device):
    out = Flat.of([(*shape[:-1], matrix[1]) for (shape, _, _), (matrix, _, _) in zip(tokens, weights, strict=True)])
    if stack:  # side by side without a gap
        numel = torch.Size(out.shapes[0]).numel()
        out = Flat(out.shapes, tuple(i * numel for i in range(len(tokens))), len(tokens) * numel)
    entries, programs = [], []
    for i, (own, matrix) in enumerate(zip(tokens, weights, strict=True)):
        rows, _, _, columns, *_ = entry = geometry(own, matrix)
        added = [0, 0, 0, 0] if residuals is None else _broadcast(*residuals[i])
        entries.append([*entry, 0 if biases is None else biases[i][2], *added, out.offsets[i]])
        programs.append(triton.cdiv(rows, block_m) * triton.cdiv(columns, block_e))
    order = longest_first(tokens)
    numbers = table([programs[i] for i in order], [entries[i] for i in order], device)
    written = sum(torch.Size(shape).numel() for shape in out.shapes) * bytes_each[0]
    traffic = Traffic(bytes_of((tokens, weights, biases, residuals), bytes_each), written)
    return _Forward(order, sum(programs), numbers, out, traffic)


def _broadcast(shape: Sequence[int], strides: Sequence[int], offset: int) -> list[int]:
    """Strides along (B, M, E) and offset of a residual: 0 where it is broadcast."""
    missing = [0] * (3 - len(shape))
    return [*missing, *(0 if n == 1 else s for n, s in zip(shape, strides, strict=True)), offset]

"""Project backward on the device: all gradients, in two launches at most.

In the words of :mod:`fastav.kernels.project` and :mod:`fastav.kernels.linear_backward`, with ``g`` that of ``out``::

    g' = g act'(y)                dx, dW and db from g'; the residual's gradient is g, summed over what it was added to

The first launch leaves ``g'`` and the numbers of the rows. Without norm and activation ``g' = g`` and nothing of a row
is needed, so that one launch gives all gradients.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    ALIGNMENT,
    Flat,
    Operand,
    Traffic,
    accumulator,
    bytes_of,
    chip,
    items,
    launch,
    planned,
    precision,
    table,
)
from .linear import (
    ROW_NUMBERS,
    common_columns,
    fitted,
    geometry,
    mapped_rows,
    row_offsets,
    row_strides,
    rows_and_matrix,
    rows_of,
    store_norm,
)
from .linear_gradients import Gate, gradients
from .project import longest_first, normal_distribution
from .shared import find, pick, size, stride

FIELDS = tl.constexpr(15)


@triton.jit
def project_rows_kernel(
    tokens, weights, biases, grads, steps, numbers, table,
    COUNT: tl.constexpr, ACTIVATION: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, VECTOR: tl.constexpr,
    W_VECTOR: tl.constexpr, G_VECTOR: tl.constexpr, E_VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: for a block of rows the gradient of ``y``, and the numbers that the norm's gradient needs.

    Args:
        tokens, weights, biases: as forward; no biases without activation.
        grads: tuple of pointers: (B, M, E), gradients of the outputs.
        steps: (B, M, E) of each entry, flat: gradients of y; None without activation.
        numbers: (ROW_NUMBERS, B M) of each entry, flat: mean, inverse, c1, c2; None without norm.
        table: see :func:`_plan_rows`.
    """
    i_g, local, entry = find(table, COUNT, FIELDS)
    X: tl.constexpr = tokens[0].dtype.element_ty if tl.float64 != ACC else ACC
    rows, inner, width, columns = size(entry, 0), size(entry, 1), size(entry, 2, VECTOR), size(entry, 3, E_VECTOR)
    o_m = local * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    p_x, p_w, stride_w = rows_and_matrix(tokens, weights, i_g, entry, o_m, VECTOR, W_VECTOR)
    o_g = row_offsets(o_m, inner, stride(entry, 10, G_VECTOR), stride(entry, 11, G_VECTOR))
    p_g = pick(grads, i_g, G_VECTOR) + stride(entry, 12, G_VECTOR) + o_g
    p_b = None if biases is None else pick(biases, i_g) + stride(entry, 9)

    b_mean, b_inverse = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    b_c1, b_c2 = tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M], ACC)
    for e in range(0, columns, BLOCK_E):
        o_e = e + tl.arange(0, BLOCK_E)
        m_e = o_e < columns
        m_y = m_m[:, None] & m_e[None, :]
        b_z, b_mean, b_inverse, b_total = mapped_rows(
            p_x, m_m, p_w, stride_w, o_e, width, columns, X, EPS, NORM, ACC, PRECISION, BLOCK_D
        )
        b_g = tl.load(p_g + o_e[None, :], mask=m_y, other=0.0).to(ACC)
        if ACTIVATION is not None:
            b_y = b_z
            if biases is not None:
                b_y += tl.load(p_b + o_e, mask=m_e, other=0.0).to(ACC)[None, :]
            if ACTIVATION == "gelu":
                b_g *= normal_distribution(b_y) + b_y * tl.exp(-0.5 * b_y * b_y) * 0.3989422804014327
            else:
                b_g = tl.where(b_y > 0, b_g, 0.0)
            p_step = steps + stride(entry, 13, 16) + o_m.to(tl.int64)[:, None] * columns + o_e[None, :]
            tl.store(p_step, b_g, mask=m_y)
        b_c1 += tl.sum(b_g * b_total[None, :], 1)
        b_c2 += tl.sum(b_g * b_z, 1)
    if numbers is not None:
        store_norm(numbers + tl.load(entry + 14) + o_m, m_m, rows, b_mean, b_inverse, b_c1, b_c2, NORM)


@dataclass(frozen=True)
class _Rows:
    order: tuple[int, ...]
    programs: int
    table: Tensor
    steps: Flat
    numbers: int
    traffic: Traffic


def project_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    residuals: Sequence[Tensor] | None,
    *,
    norm: str,
    eps: float,
    activation: str | None,
    stack: bool,
    wanted: Collection[str],
) -> dict[str, list[Tensor]]:
    """Gradients of :func:`fastav.kernels.project_forward` with respect to the lists ``wanted``."""
    acc = accumulator(*(given[0] for given in (tokens, weights, biases, residuals) if given is not None))
    x, w, b = Operand.of(tokens), Operand.of(weights), Operand.of(biases)
    g = Operand.of(grads[0].unbind() if stack else grads)
    steps, numbers = g, None
    products = "tokens" in wanted or "weights" in wanted
    if (norm != "none" and products) or (activation is not None and (products or "biases" in wanted)):
        steps, numbers = _rows(x, w, None if activation is None else b, g, norm, eps, activation, acc)
    return gradients(x, w, b, residuals, steps, g, numbers, norm=norm, gate=Gate(), acc=acc, wanted=wanted)


def _rows(
    x: Operand,
    w: Operand,
    b: Operand | None,
    g: Operand,
    norm: str,
    eps: float,
    activation: str | None,
    acc: tuple[torch.dtype, tl.dtype],
) -> tuple[Operand, Tensor | None]:
    """The first launch: the gradients of ``y``, and the rows' numbers where there is a norm."""
    like = x.tensors[0]
    block = fitted("project_rows_kernel", like, max(rows_of(shape)[0] for shape, _, _ in x.sizes), w)
    bytes_each = (*items((x, w, b, g)), acc[0].itemsize)
    plan = _plan_rows(
        x.sizes, w.sizes, b and b.sizes, g.sizes, norm, activation, bytes_each, block.sizes["BLOCK_M"], like.device
    )
    steps, views = (None, g.tensors) if activation is None else plan.steps.empty(like, acc[0])
    numbers = None if norm == "none" else torch.empty(plan.numbers, dtype=acc[0], device=like.device)
    arguments: dict[str, Any] = {
        "tokens": x.pointers(plan.order), "weights": w.pointers(plan.order), "biases": b and b.pointers(plan.order),
        "grads": g.pointers(plan.order), "steps": steps, "numbers": numbers, "table": plan.table,
    }  # fmt: skip
    constants = {
        "COUNT": triton.next_power_of_2(len(x.tensors)), "ACTIVATION": activation, "EPS": eps, "NORM": norm,
        "VECTOR": x.vector(), "W_VECTOR": w.vector(), "G_VECTOR": g.vector(), "E_VECTOR": common_columns(w),
        "ACC": acc[1], "PRECISION": precision(like.dtype, chip(like.device)),
    }  # fmt: skip
    launch(project_rows_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return g if steps is None else Operand.of(views), numbers


@planned
def _plan_rows(tokens, weights, biases, grads, norm, activation, bytes_each, block_m, device):
    steps = Flat.of([shape for shape, _, _ in grads], ALIGNMENT)
    entries, programs, first = [], [], 0
    for i, (own, matrix) in enumerate(zip(tokens, weights, strict=True)):
        _, strides, offset = grads[i]
        entry = geometry(own, matrix)
        bias = 0 if biases is None else biases[i][2]
        entries.append([*entry, bias, *row_strides(strides), offset, steps.offsets[i], first])
        programs.append(triton.cdiv(entry[0], block_m))
        first += entry[0] * ROW_NUMBERS.value
    order = longest_first(tokens)
    numbers = table([programs[i] for i in order], [entries[i] for i in order], device)
    written = 0 if activation is None else sum(torch.Size(shape).numel() for shape in steps.shapes)
    written += first // ROW_NUMBERS.value * {"none": 0, "rms": 2, "layer": 4}[norm]
    traffic = Traffic(bytes_of((tokens, weights, biases, grads), bytes_each[:-1]), written * bytes_each[-1])
    return _Rows(order, sum(programs), numbers, steps, first, traffic)

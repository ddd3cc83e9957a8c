"""The launch that gives project and fuse their gradients: the work of :mod:`fastav.kernels.linear_backward`."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ALIGNMENT, Flat, Operand, Traffic, bytes_of, chip, launch, planned, precision, table
from .linear import ROW_NUMBERS, common_columns, fitted, geometry, row_strides, rows_of
from .linear_backward import GATE_KIND, RESIDUALS, TOKENS, WEIGHTS, linear_bwd_kernel

LISTS = ("tokens", "weights", "biases", "residuals")


@dataclass(frozen=True)
class Gate:
    """The gate over layers, as the gradients need it: its kind, what it is, and its unfinished gradients.

    Attributes:
        kind: "none" for no sum over layers, "mean", "layer" or "token".
        gate: (L,), (W,) or None.
        partials: (L, blocks) or (L, blocks, W), in the accumulator's dtype, or None if it wants no gradient.
    """

    kind: str = "none"
    gate: Tensor | None = None
    partials: Tensor | None = None


@dataclass(frozen=True)
class _Plan:
    count: int
    programs: int
    table: Tensor
    results: dict[str, Flat]
    traffic: Traffic


def gradients(
    tokens: Operand,
    weights: Operand,
    biases: Operand | None,
    residuals: Sequence[Tensor] | None,
    steps: Operand,
    grads: Operand,
    rows: Tensor | None,
    *,
    norm: str,
    gate: Gate,
    acc: tuple[torch.dtype, tl.dtype],
    wanted: Collection[str],
) -> dict[str, list[Tensor]]:
    """All the gradients ``wanted``, in one launch.

    Args:
        tokens, weights, biases, residuals: the op's arguments.
        steps: the gradients of what the matrices give, one tensor, or one for each entry.
        grads: the gradients of the outputs.
        rows: ROW_NUMBERS numbers a row.
        norm: the row norm.
        gate: the gate over layers.
        acc: the accumulator's dtype.
        wanted: names of the lists whose gradients are asked for.
    """
    like, count = tokens.tensors[0], len(tokens.tensors)
    block = fitted("linear_bwd_kernel", like, max(rows_of(shape)[0] for shape, _, _ in tokens.sizes), weights)
    lists: tuple[Any, ...] = (tokens.tensors, weights.tensors, biases and biases.tensors, residuals)
    dtypes = {name: given[0].dtype for name, given in zip(LISTS, lists, strict=True) if name in wanted}
    items = {name: dtype.itemsize for name, dtype in dtypes.items()}
    plan = _plan(
        tokens.sizes, weights.sizes, steps.sizes, grads.sizes, steps is grads,
        tuple(r.shape for r in residuals) if residuals is not None and "residuals" in wanted else None,
        norm, gate.kind, None if gate.partials is None else gate.partials.shape, tuple(items.items()),
        (like.element_size(), weights.tensors[0].element_size(), steps.tensors[0].element_size(), acc[0].itemsize),
        block.sizes["BLOCK_M"], block.sizes["BLOCK_D"], block.sizes["BLOCK_E"], like.device,
    )  # fmt: skip
    results = {name: plan.results[name].empty(like, dtype) for name, dtype in dtypes.items()}
    found = {name: views for name, (_, views) in results.items()}
    if gate.gate is not None and gate.partials is not None:
        found["gate"] = [torch.empty_like(gate.gate)]
    arguments: dict[str, Any] = {
        "tokens": tokens.pointers(range(count)), "weights": weights.pointers(range(count)),
        "steps": steps.pointers(range(len(steps.tensors))),
        "grads": grads.pointers(range(len(grads.tensors))) if "residuals" in wanted else None,
        "gate": gate.gate, "rows": rows, "partials": gate.partials,
        **{f"d_{name}": results[name][0] if name in results else None for name in LISTS},
        "d_gate": found["gate"][0] if "gate" in found else None, "table": plan.table,
    }  # fmt: skip
    constants = {
        "COUNT": plan.count, "LAYERS": triton.next_power_of_2(count), "VECTOR": tokens.vector(),
        "W_VECTOR": weights.vector(), "S_VECTOR": steps.vector(), "G_VECTOR": grads.vector(),
        "E_VECTOR": common_columns(weights),
        "R_VECTOR": math.gcd(ALIGNMENT, *(r.numel() for r in residuals or ())), "NORM": norm, "GATE": gate.kind,
        "ACC": acc[1], "PRECISION": precision(like.dtype, chip(like.device)),
    }  # fmt: skip
    launch(linear_bwd_kernel, plan.programs, arguments, constants, block, plan.traffic)
    return found


@planned
def _plan(
    tokens, weights, steps, grads, same, residuals, norm, gate, partials, wanted, items,
    block_m, block_d, block_e, device,
):  # fmt: skip
    """Tables and traffic of :func:`fastav.kernels.linear_backward.linear_bwd_kernel`.

    Args:
        tokens, weights, steps, grads: sizes of these lists; one of steps and of grads may serve all entries.
        same: whether steps are grads.
        residuals: shapes, or None if their gradients are not asked for.
        norm: the row norm.
        gate: kind of the gate over layers.
        partials: shape of the gate's unfinished gradients, or None.
        wanted: names of the lists whose gradients are asked for, and bytes of an element of each.
        items: bytes of an element of tokens, weights, steps and the accumulator.
        block_m, block_d, block_e: block sizes.
        device: where the table is wanted.
    """
    length, wanted = len(tokens), dict(wanted)
    results = {
        "tokens": Flat.of([shape for shape, _, _ in tokens]),
        "weights": Flat.of([shape for shape, _, _ in weights]),
        "biases": Flat.of([shape[1:] for shape, _, _ in weights]),
        "residuals": Flat.of(residuals or ()),
    }
    work, first = [], 0  # (length of a program, programs, numbers)
    for i, (own, matrix) in enumerate(zip(tokens, weights, strict=True)):
        rows, inner, width, columns, *_ = both = geometry(own, matrix)
        at = {name: flat.offsets[i] for name, flat in results.items() if flat.offsets}
        d_blocks, e_blocks = triton.cdiv(width, block_d), triton.cdiv(columns, block_e)
        entry = [i, *both, *_placed(steps[i % len(steps)]), first]
        if "tokens" in wanted:
            programs = triton.cdiv(rows, block_m) * d_blocks
            work.append((columns, programs, [TOKENS.value, *entry, at["tokens"], 0, length]))
        if "weights" in wanted or "biases" in wanted:
            programs = (d_blocks if "weights" in wanted else 1) * e_blocks
            work.append((rows, programs, [WEIGHTS.value, *entry, at["weights"], at["biases"], length]))
        if "residuals" in wanted:
            terms, programs, summed = _residual_work(rows, inner, columns, residuals[i], block_m, block_e)
            placed = _placed(grads[i % len(grads)])
            work.append((terms, programs, [RESIDUALS.value, i, *summed, 0, 0, *placed, 0, at["residuals"], 0, 0]))
        first += rows * ROW_NUMBERS.value
    if partials is not None:
        layers, blocks, columns = (*partials, 1)[:3]
        numbers = [GATE_KIND.value, 0, layers, blocks, 0, columns, *[0] * 12]
        work.append((layers * blocks, triton.cdiv(columns, block_e), numbers))
    work.sort(key=lambda w: -w[0])  # long programs first, short ones fill the end

    products = "tokens" in wanted or "weights" in wanted
    normed, stepped = norm != "none" and products, products or "biases" in wanted
    given = (
        tokens if "weights" in wanted or normed else None,
        weights if "tokens" in wanted else None,
        steps if stepped else None,
        grads if "residuals" in wanted and not (same and stepped) else None,
    )
    left = first // ROW_NUMBERS.value * ((4 if norm == "layer" else 2) * normed + 2 * (gate == "token"))
    left += 0 if partials is None else math.prod(partials)
    read = bytes_of(given, (*items[:3], items[0])) + left * items[-1]
    written = sum(item * math.prod(shape) for name, item in wanted.items() for shape in results[name].shapes)
    counts = [w[1] for w in work]
    entries = table(counts, [w[2] for w in work], device)
    return _Plan(triton.next_power_of_2(len(work)), sum(counts), entries, results, Traffic(read, written))


def _placed(size: tuple) -> list[int]:
    """Row strides and offset of a gradient."""
    _, strides, offset = size
    return [*row_strides(strides), offset]


def _residual_work(
    rows: int, inner: int, columns: int, own: Sequence[int], block_m: int, block_e: int
) -> tuple[int, int, list[int]]:
    """Length and number of one residual's programs, and what they are told of sizes.

    These are, for :func:`fastav.kernels.linear_backward.residual_gradient`: rows of the output, rows of the residual
    along M, 0, columns of the output, how many rows are summed to one, how many of these along M, own columns.
    """
    outer = rows // inner if inner else 0
    own_b, own_m, own_columns = (1,) * (3 - len(own)) + tuple(own)
    inner_terms = 1 if own_m == inner else inner
    terms = (1 if own_b == outer else outer) * inner_terms
    whole = terms == 1 and own_columns == columns
    programs = (triton.cdiv(own_b * own_m, block_m) if whole else own_b * own_m) * triton.cdiv(own_columns, block_e)
    return 1 if whole else terms, programs, [rows, own_m, 0, columns, terms, inner_terms, own_columns]

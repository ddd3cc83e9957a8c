"""What the kernels share on the device: finding their work, reading tiles, the statistics of rows; and one sum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Traffic, blocks, chip, launch, planned, table

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def find(table, COUNT: tl.constexpr, FIELDS: tl.constexpr):
    """The entry of this program's work: its index, the program's number within it, and where its numbers stand."""
    i_p = tl.program_id(0)
    b_starts = tl.load(table + tl.arange(0, COUNT))
    i_g = tl.sum((b_starts <= i_p).to(tl.int32), 0) - 1
    local = i_p - tl.load(table + i_g).to(tl.int32)
    return i_g, local, table + COUNT + i_g * FIELDS


@triton.jit
def pick(pointers, i_g, VECTOR: tl.constexpr = 1):
    """The ``i_g``-th of a tuple of pointers; ``VECTOR`` is how many elements each address is a multiple of.

    By selects in groups behind branches: one chain of many would keep all addresses alive at once, in more registers
    than AMD's scalar units have.
    """
    GROUP: tl.constexpr = 8
    address = pointers[0].to(tl.int64)
    for j in tl.static_range(0, len(pointers), GROUP):
        if i_g // GROUP == j // GROUP:
            for i in tl.static_range(j, min(j + GROUP, len(pointers))):
                address = tl.where(i_g == i, pointers[i].to(tl.int64), address)
    BYTES: tl.constexpr = max(VECTOR * pointers[0].dtype.element_ty.primitive_bitwidth // 8, 1)  # a bool has one bit
    return tl.multiple_of(address.to(pointers[0].dtype), BYTES)


@triton.jit
def size(entry, i: tl.constexpr, MULTIPLE: tl.constexpr = 1):
    """The entry's ``i``-th number, as an int32 that is a multiple of ``MULTIPLE``."""
    return tl.multiple_of(tl.load(entry + i).to(tl.int32), MULTIPLE)


@triton.jit
def stride(entry, i: tl.constexpr, MULTIPLE: tl.constexpr = 1):
    """The entry's ``i``-th number, as an int64 that is a multiple of ``MULTIPLE``."""
    return tl.multiple_of(tl.load(entry + i), MULTIPLE)


@triton.jit
def add_to_statistics(b_x, m_x, count, seen, b_mean, b_square, NORM: tl.constexpr):
    """Take a tile's ``count`` more channels into the statistics of its rows.

    Means and squared deviations are merged (Chan, Golub, LeVeque 1979), never plain sums of squares, which lose
    everything where a row's mean is far larger than its spread. ``"rms"`` has no mean to lose.

    Args:
        b_x: the tile in the accumulator's dtype, zeros outside.  # [rows, channels]
        m_x: which of it is inside.
        count: channels of the tile.
        seen: channels before it.
        b_mean: mean of those.  # [rows]
        b_square: sum of their squared deviations from it.  # [rows]
        NORM: "layer", "rms" or "none".
    """
    if NORM == "layer":
        b_tile = tl.sum(b_x, 1) / count
        b_deviation = tl.where(m_x, b_x - b_tile[:, None], 0.0)
        b_step = b_tile - b_mean
        share = count.to(b_mean.dtype) / (seen + count).to(b_mean.dtype)
        b_square += tl.sum(b_deviation * b_deviation, 1) + b_step * b_step * (seen * share)
        b_mean += b_step * share
    if NORM == "rms":
        b_square += tl.sum(b_x * b_x, 1)
    return b_mean, b_square


@triton.jit
def centre(p_tile, m_n, o_c, width, CENTRED: tl.constexpr, ACC: tl.constexpr):
    """What is taken off float32 rows before a product, [rows]: the mean of their first channels, near the row's own.

    A row far from zero loses its digits in a product with the raw row whose part along the mean is taken off
    afterwards. 16-bit rows have no such digits: where not ``CENTRED``, nothing is read and the result is not used.
    """
    b_centre = tl.zeros([m_n.shape[0]], p_tile.dtype.element_ty)
    if CENTRED:
        b_x = tl.load(p_tile, mask=m_n[:, None] & (o_c < width)[None, :], other=0.0).to(ACC)
        b_centre = (tl.sum(b_x, 1) / tl.minimum(width, o_c.shape[0]).to(ACC)).to(p_tile.dtype.element_ty)
    return b_centre


@triton.jit
def row_tile(p_tile, m_x, b_centre, CENTRED: tl.constexpr):
    """A tile of rows, where ``CENTRED`` less their centres, zeros outside."""
    b_x = tl.load(p_tile, mask=m_x, other=0.0)
    if CENTRED:
        b_x = tl.where(m_x, b_x - b_centre[:, None], 0.0)
    return b_x


@triton.jit
def inverse_deviation(b_square, width, EPS: tl.constexpr, NORM: tl.constexpr):
    """What a row is multiplied with by its norm, from the sum of squares that :func:`add_to_statistics` leaves."""
    if NORM == "none":
        return b_square + 1.0  # which nothing was added to
    b_inverse = 1.0 / tl.sqrt(b_square / width + EPS)
    if NORM == "layer":
        b_inverse = tl.where(width > 1, b_inverse, 0.0)  # a single channel is its own mean: its rows are zeros
    return b_inverse


@triton.jit
def place(pointers, i_g, i_b, entry, FIELD: tl.constexpr, VECTOR: tl.constexpr):
    """Where a sample begins and how far its rows lie apart: offset and two strides stand from ``FIELD`` on."""
    start = pick(pointers, i_g, VECTOR) + stride(entry, FIELD, VECTOR)
    return start + i_b * stride(entry, FIELD + 1, VECTOR), stride(entry, FIELD + 2, VECTOR)


@triton.jit
def read_tile(pointer, o_r, o_c, stride, rows, columns):
    """A tile of a matrix whose rows lie ``stride`` apart, zeros outside it: [rows, columns]."""
    mask = (o_r < rows)[:, None] & (o_c < columns)[None, :]
    return tl.load(pointer + o_r.to(tl.int64)[:, None] * stride + o_c[None, :], mask=mask, other=0.0)


@triton.jit
def narrow_along(b_a, AXIS: tl.constexpr, X: tl.constexpr):
    """A matrix in dtype ``X``, divided by its largest numbers along an axis, and these, to multiply with after a dot.

    So gradients of any size keep their digits in 16 bits.
    """
    b_top = tl.max(tl.abs(b_a), AXIS)
    b_top = tl.where(b_top == 0, 1.0, b_top)
    return (b_a / tl.expand_dims(b_top, AXIS)).to(X), b_top


@triton.jit
def sum_kernel(slots, outs, table, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """``out = sum over slots``, in the slots' order: the second launch of a backward pass.

    Args:
        slots: partial sums of all entries.
        outs: tuple of the flat results; an entry says which one it belongs to.
        table: see :func:`sum_slots`.
        COUNT: entries, filled up to a power of two.
        BLOCK: elements a program.
    """
    _, local, entry = find(table, COUNT, 6)
    numel, first, stride = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    count, which, start = size(entry, 3), size(entry, 4), tl.load(entry + 5)
    o_e = local.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e < numel
    b_sum = tl.zeros([BLOCK], slots.dtype.element_ty)
    for i in range(count):
        b_sum += tl.load(slots + first + i * stride + o_e, mask=m_e, other=0.0)
    for i in tl.static_range(len(outs)):
        if which == i:
            tl.store(outs[i] + start + o_e, b_sum.to(outs[i].dtype.element_ty), mask=m_e)


def sum_slots(slots: Tensor, outs: tuple[Tensor, ...], segments: tuple[tuple[int, ...], ...]) -> None:
    """Sum partial results in their fixed order.

    Args:
        slots: all partial sums, flat, in the accumulator's dtype.
        outs: the flat results.
        segments: for each result tensor: elements, offset of its first slot, distance between slots, number of slots,
            index of its flat result, offset in that.
    """
    block = blocks("sum_kernel", chip(slots.device), slots.element_size())
    plan = _plan_sum(
        segments, tuple(o.element_size() for o in outs), slots.element_size(), block.sizes["BLOCK"], slots.device
    )
    count, programs, numbers, traffic = plan
    launch(sum_kernel, programs, {"slots": slots, "outs": outs, "table": numbers}, {"COUNT": count}, block, traffic)


@planned
def _plan_sum(
    segments: tuple[tuple[int, ...], ...], sizes: tuple[int, ...], slot_size: int, block: int, device: torch.device
) -> tuple[int, int, Tensor, Traffic]:
    programs = [triton.cdiv(segment[0], block) for segment in segments]
    read = sum(numel * count for numel, _, _, count, _, _ in segments) * slot_size
    written = sum(numel * sizes[which] for numel, _, _, _, which, _ in segments)
    count = triton.next_power_of_2(len(segments))
    return count, sum(programs), table(programs, segments, device), Traffic(read, written)

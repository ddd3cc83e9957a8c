"""Lists of results as one tensor: how they cross the border of a dispatcher op, whose results must not share memory.

A kernel writes all results of a launch into one buffer. Where they lie in it one after the other they cross without a
copy; where there are gaps between them, or a backend makes each by itself, in one.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Shape = Sequence[int]

#: A list of results as backends give it: its tensors, or all of them as one, flat.
Results: TypeAlias = Sequence[Tensor] | Tensor


def numel(shape: Shape) -> int:
    """Number of elements of a tensor of this shape."""
    product = 1
    for size in shape:
        product *= size
    return product


def together(tensors: Results) -> Tensor:
    """The tensors as one, flat."""
    if isinstance(tensors, Tensor):
        return tensors
    first = tensors[0]
    end, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for t in tensors:
        if not t.is_contiguous() or t.storage_offset() != end or t.untyped_storage().data_ptr() != storage:
            return torch.cat([t.reshape(-1) for t in tensors])
        end += t.numel()
    return first.as_strided((end - first.storage_offset(),), (1,))


def apart(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Cut :func:`together`'s tensor into those of these shapes, which autograd takes for tensors of their own."""
    pieces = torch.ops.aten.unsafe_split_with_sizes(flat, [numel(shape) for shape in shapes])
    return [torch.ops.aten._unsafe_view(piece, list(shape)) for piece, shape in zip(pieces, shapes, strict=True)]

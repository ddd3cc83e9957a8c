"""What autograd is given to keep for backward, in bytes: whatever the machine has free."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_for_backward(
    forward: Callable[[], Any], own: Iterable[Tensor] = (), where: Callable[[Tensor], str] = lambda tensor: "all"
) -> dict[str, int]:
    """Run something and count what its graph keeps, every storage once and whole.

    Args:
        forward: what to run; what it returns is kept until it is counted.
        own: tensors that are there anyway, such as parameters: their storages do not count.
        where: to which place a tensor that is saved belongs; the first time that its storage is saved counts.

    Returns:
        Bytes by place.
    """
    apart = {tensor.untyped_storage().data_ptr() for tensor in own}
    sizes: dict[int, tuple[str, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            sizes.setdefault(storage.data_ptr(), (where(tensor), storage.nbytes()))
        return tensor.detach()  # with its own graph, the output of a node would hold that node for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    found: dict[str, int] = {}
    for place, size in sizes.values():
        found[place] = found.get(place, 0) + size
    del kept
    return found

"""What autograd is given to keep for backward, in bytes: whatever the machine has free."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class _Saved:
    """What autograd keeps in a tensor's place, as long as it does."""

    tensor: Tensor
    place: str


def saved_for_backward(
    forward: Callable[[], Any], own: Iterable[Tensor] = (), where: Callable[[Tensor], str] = lambda tensor: "all"
) -> dict[str, int]:
    """Run something and count what its graph keeps in the end, every storage once and whole.

    Args:
        forward: what to run; what it returns is kept until it is counted.
        own: tensors that are there anyway, such as parameters: their storages do not count.
        where: to which place a tensor that is saved belongs; of a storage that is saved several times the first counts.

    Returns:
        Bytes by place.
    """
    apart = {tensor.untyped_storage().data_ptr() for tensor in own}
    seen: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        one = _Saved(tensor.detach(), where(tensor))  # with its own graph, a node's output would hold it for ever
        seen.append(weakref.ref(one))
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        kept = forward()
    # Parts of a graph that nothing depends on are gone by now, and their memory is others'.
    sizes: dict[int, tuple[str, int]] = {}
    for one in filter(None, (reference() for reference in seen)):
        storage = one.tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            sizes.setdefault(storage.data_ptr(), (one.place, storage.nbytes()))
    found: dict[str, int] = {}
    for place, size in sizes.values():
        found[place] = found.get(place, 0) + size
    del kept
    return found

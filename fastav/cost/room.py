"""Room in memory: where there is none, and how it is given back."""

from __future__ import annotations

import gc

import torch

#: What libraries say when the device's memory is exhausted, where PyTorch has no class of error for it: its own
#: allocator on a CPU; on a GPU the driver, cuBLAS, cuDNN and Triton, which ask past PyTorch's allocator.
_EXHAUSTED = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")


def lacks_room(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, a GPU's or the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)


def give_back() -> None:
    """Free what nobody holds any more, and let other allocations of the GPU have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def room(memory: int | None) -> str:
    """Words for so many bytes, or for all that a device has."""
    return "the device's memory" if memory is None else f"{memory / 2**30:g} GiB"

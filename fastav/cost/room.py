"""Room in memory: where there is none, and how it is given back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

#: What libraries say when the device's memory is exhausted, where PyTorch has no class of error for it: its own
#: allocator on a CPU; on a GPU the driver, cuBLAS, cuDNN and Triton, which ask past PyTorch's allocator.
_EXHAUSTED = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")

#: Where containers are told how much memory they may use, by the second and the first version of control groups.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def lacks_room(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, a GPU's or the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)


@contextmanager
def unless_too_large() -> Iterator[None]:
    """End the ``with`` block where memory is exhausted, and go on after it."""
    try:
        yield
    except Exception as error:
        if not lacks_room(error):
            raise


def give_back() -> None:
    """Free what nobody holds any more, and let other allocations of the GPU have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_of_machine() -> int:
    """Bytes that this machine has, or as many as its container may use."""
    told = [path.read_text().strip() for path in _LIMITS if path.is_file()]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(limit) for limit in told if limit != "max")])


def room(memory: int | None) -> str:
    """Words for so many bytes, or for all that a device has."""
    return "the device's memory" if memory is None else f"{memory / 2**30:g} GiB"

"""Peak memory of a call, over what there was before it, as PyTorch's allocators count it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import profile


@dataclass(frozen=True)
class Peak:
    """What one call took, in bytes.

    Attributes:
        bytes: of tensors at its peak, over what there was before.
        reserved: what the device's allocator held at its peak, all in all; None on a CPU.
    """

    bytes: int
    reserved: int | None = None


def peak(call: Callable[[], Any], device: torch.device) -> Peak:
    """Measure one call, which has run before.

    On a CPU, PyTorch's profiler tells what is allocated and freed: the same number each time. What libraries take
    beside PyTorch's allocator is not in it; that of the native kernels goes through it.

    Args:
        call: what to measure.
        device: where it works.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        # Memory that was freed while another stream may still use it: "allocated" counts it no more, "active" does.
        active = "active_bytes.all"
        before = torch.cuda.memory_stats(device)[f"{active}.current"]
        call()
        torch.cuda.synchronize(device)
        after = torch.cuda.memory_stats(device)
        return Peak(after[f"{active}.peak"] - before, torch.cuda.max_memory_reserved(device))
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or builds for CUDA complain that there is no GPU
    with profile(profile_memory=True) as profiler:
        call()
    assert profiler.kineto_results is not None
    return Peak(_highest(_changes(profiler.kineto_results.experimental_event_tree())))


def _changes(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """When, where and by how many bytes memory grew or shrank, below some events of a profile."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation and event.extra_fields.device.type == "cpu":
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _changes(event.children)


def _highest(changes: Iterable[tuple[int, int, int]]) -> int:
    """The most bytes held at once, of what was allocated meanwhile."""
    held: dict[int, int] = {}
    now = highest = 0
    for _, place, size in sorted(changes, key=lambda change: change[0]):
        if size > 0:
            held[place] = size
            now += size
            highest = max(highest, now)
        else:
            now -= held.pop(place, 0)  # others were there before: PyTorch remembers what earlier profiles saw
    return highest

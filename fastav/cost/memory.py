"""Peak memory of a call, over what there was before it."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_AT_ONCE = (0, 1 << 16)  # bytes: freed memory goes back to the system, so that what is resident is in use
_AS_IT_GROWS = (64 << 20, 32 << 20)  # what glibc's own moving thresholds end at


#: Calls that are weighed on a CPU, of which the heaviest counts: memory that is free but not given back hides some.
REPEATS = 3


@dataclass(frozen=True)
class Peak:
    """What one call took, in bytes, or why nobody knows.

    Attributes:
        bytes: at its peak, over what there was before; None where the system does not tell.
        reserved: what the device's allocator held at its peak, all in all; None on a CPU.
        reason: why there is no figure.
    """

    bytes: int | None
    reserved: int | None = None
    reason: str = ""


def peak(call: Callable[[], Any], device: torch.device) -> Peak:
    """Measure one call, which has run before.

    On a CPU it is how far the resident memory of this process rises, as Linux tells; other threads are to rest.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - before, torch.cuda.max_memory_reserved(device))
    try:
        with _returned_at_once():
            return Peak(max(rise(call) for _ in range(REPEATS)))
    except (OSError, AttributeError) as error:
        return Peak(None, reason=str(error))


def rise(call: Callable[[], Any]) -> int:
    """Bytes by which this process' resident memory rises in one call.

    Raises:
        OSError: the system does not tell.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = _resident()
    call()
    return _resident() - before


def _resident() -> int:
    """The peak of the resident memory."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} does not tell the peak of the resident memory")
    return int(found[1]) << 10


@contextmanager
def _returned_at_once() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    _set(libc, *_AT_ONCE)
    try:
        yield
    finally:
        _set(libc, *_AS_IT_GROWS)


def _set(libc: ctypes.CDLL, trim: int, mmap: int) -> None:
    libc.mallopt(_TRIM_THRESHOLD, trim)
    libc.mallopt(_MMAP_THRESHOLD, mmap)

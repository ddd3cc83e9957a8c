"""Timing: cold caches, synchronised clocks, medians and quartiles, and the copy bandwidth of the same run."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some times, in seconds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, times: Sequence[float]) -> "Spread":
        """The spread of at least two times."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(times))

    @property
    def iqr(self) -> float:
        """The distance between the quartiles."""
        return self.high - self.low


def clock(device: torch.device) -> Callable[[], float]:
    """A timer in seconds as the device counts them, which waits for the work so far: for pytest-benchmark.

    On a GPU it reads CUDA events and adds up the time from each call to the next, because a CUDA event's distance from
    a far one has few digits.
    """
    if device.type != "cuda":
        return time.perf_counter
    last = torch.cuda.Event(enable_timing=True)
    seconds = 0.0
    last.record(torch.cuda.current_stream(device))

    def now() -> float:
        nonlocal last, seconds
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        event.synchronize()
        seconds += last.elapsed_time(event) / 1e3
        last = event
        return seconds

    return now


#: Clones at most on a CPU, where data that so many do not bring out of the caches are a smoke test's.
MOST_CLONES = 16


@functools.cache
def last_level_cache() -> int:
    """Bytes of the CPU's largest cache as Linux tells them, 32 MiB where nothing does."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    told = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in told if size[-1:] in units), default=32 << 20)


def copies(size: int, device: torch.device) -> int:
    """How many clones of data of this size to go through in turn, so that none is cached when its turn comes."""
    on_gpu = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else last_level_cache()
    count = 1 + -(-3 * cache // max(size, 1))
    return count if on_gpu else min(count, MOST_CLONES)


def measure(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int, *, warm: int = 3) -> Spread:
    """Time the calls in turn, one at a time.

    On a GPU each is queued behind a wait of the device, so that the host is ahead of it and only the device's own time
    counts; the time that the host needs is what a benchmark of wall time shows.
    """
    for i in range(max(warm, len(calls))):
        calls[i % len(calls)]()
    if device.type != "cuda":
        times = []
        for i in range(rounds):
            began = time.perf_counter()
            calls[i % len(calls)]()
            times.append(time.perf_counter() - began)
        return Spread.of(times)
    events = []
    for i in range(rounds):
        torch.cuda.synchronize(device)
        torch.cuda._sleep(2_000_000)  # clock cycles: about a millisecond
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[i % len(calls)]()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return Spread.of([start.elapsed_time(end) / 1e3 for start, end in events])


def copy_bandwidth(device: torch.device, rounds: int = 10) -> float:
    """Bytes a second, read and written, of a copy far larger than the caches."""
    source = _streamed(device)
    target = torch.empty_like(source).zero_()
    return 2 * source.nbytes / measure([lambda: target.copy_(source)], device, rounds).median


def read_bandwidth(device: torch.device, rounds: int = 10) -> float:
    """Bytes a second of the fastest of some reductions over data far larger than the caches.

    A loop of vector loads in C was no faster than the fastest of these where it was tried.
    """
    source = _streamed(device)
    ways = (source.sum, source.amax, source.norm, lambda: torch.dot(source, source))
    return source.nbytes / min(measure([way], device, rounds).median for way in ways)


def _streamed(device: torch.device) -> torch.Tensor:
    """Ones in float32, every page of them written: pages that nobody wrote to are all one page of zeros."""
    size = 1 << 30 if device.type == "cuda" else max(1 << 26, 6 * last_level_cache())
    return torch.ones(size // 4, device=device)

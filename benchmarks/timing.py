"""Timing: cold caches, synchronised clocks, medians and quartiles, and the copy bandwidth of the same run."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def copies(size: int, device: torch.device) -> int:
    """How many clones of data of this size to go through in turn, so that none is cached when its turn comes.

    On a CPU two: times there are a smoke test and no claim.
    """
    if device.type != "cuda":
        return 2
    return 1 + -(-3 * torch.cuda.get_device_properties(device).L2_cache_size // max(size, 1))


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
    size = 1 << 30 if device.type == "cuda" else 1 << 26
    source = torch.empty(size, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    return 2 * size / measure([lambda: target.copy_(source)], device, rounds).median

"""Clocks, and times as medians and quartiles."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some times, in seconds, or of their ratios.

    Attributes:
        median: of all.
        low: the lower quartile.
        high: the upper quartile.
        rounds: how many times.
        late: in how many of them the device had to wait for the host, so that the host's time is in them.
    """

    median: float
    low: float
    high: float
    rounds: int
    late: int = 0

    @classmethod
    def of(cls, times: Sequence[float], late: int = 0) -> Spread:
        """The spread of at least two times."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(times), late)

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


class Marks:
    """Moments of one run by name; the last one of a name counts.

    On a GPU they are events on the stream that is current where they are set, which the host does not wait for.

    Args:
        device: whose work it is; waited for, so that nothing earlier is in the times.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._found: dict[str, list[Any]] = {}

    def set(self, name: str) -> None:
        """This moment."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._found.setdefault(name, []).append(event)
        else:
            self._found[name] = [time.perf_counter()]

    def since(self, first: str) -> dict[str, float]:
        """Seconds from one moment to each, the latest of its name; waits for the device."""
        start = self._found[first][0]
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return {name: max(start.elapsed_time(e) for e in some) / 1e3 for name, some in self._found.items()}
        return {name: max(some) - start for name, some in self._found.items()}


def measure(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int, *, warm: int = 3) -> Spread:
    """Time the calls in turn, one at a time.

    On a GPU each is queued behind a wait of the device that is longer than the host needs, so that only the device's
    own time counts; the time that the host needs is what a benchmark of wall time shows. Rounds in which the device
    came to the call before the host had queued all of it are told: a call that waits for the device is always late.
    """
    hosts = []
    for i in range(max(warm, len(calls))):
        began = time.perf_counter()
        calls[i % len(calls)]()
        hosts.append(time.perf_counter() - began)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # or a full queue would let the host wait
    if device.type != "cuda":
        times = []
        for i in range(rounds):
            began = time.perf_counter()
            calls[i % len(calls)]()
            times.append(time.perf_counter() - began)
        return Spread.of(times)
    # Twice what the host needed, and a millisecond; the later half of the calls, as the first ones compile.
    ahead = int((1e-3 + 2 * statistics.median(hosts[len(hosts) // 2 :])) * _cycles_a_second(device))
    events, late = [], 0
    for i in range(rounds):
        torch.cuda.synchronize(device)
        torch.cuda._sleep(ahead)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[i % len(calls)]()
        end.record()
        late += start.query()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return Spread.of([start.elapsed_time(end) / 1e3 for start, end in events], late)


@functools.cache
def _cycles_a_second(device: torch.device) -> float:
    """How fast the device counts down a wait."""
    torch.cuda._sleep(1_000_000)  # wakes it up
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.cuda._sleep(10_000_000)
    end.record()
    torch.cuda.synchronize(device)
    return 10_000_000 / (start.elapsed_time(end) / 1e3)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, from when the device has nothing to do until it has nothing left to do."""
    now = clock(device)
    start = now()
    call()
    return now() - start

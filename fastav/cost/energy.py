"""Energy, where the device counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastav.optional import load_optional

#: For so long energy is counted, unless two calls take longer.
SECONDS = 3.0

_POWERCAP = Path("/sys/class/powercap")


def energy_counter(device: torch.device) -> tuple[Callable[[], float] | None, str]:
    """A function that gives the joules that a device has used since some moment; or None, and why.

    NVIDIA's count is of the whole device (NVML), a CPU's of its packages (RAPL), whoever uses them.
    """
    return _nvml(device) if device.type == "cuda" else _rapl()


def joules_a_call(call: Callable[[], Any], counter: Callable[[], float]) -> tuple[float | None, str]:
    """Joules of a call that is made again and again for :data:`SECONDS`; or None, and why.

    Counters move a few times a second. What counts is what they say between two calls after which they had just moved,
    so that it is off by one such interval at most where calls are longer, and by a call where they are shorter.

    Args:
        call: waits until the device has done it.
        counter: of joules so far.
    """
    began, before, calls = time.perf_counter(), counter(), 0
    moved: list[tuple[int, float]] = []
    while (elapsed := time.perf_counter() - began) < SECONDS or len(moved) < 2:
        if elapsed > 5 * SECONDS and calls > 2 and len(moved) < 2:
            return None, f"the counter of energy did not move in {elapsed:.0f} s"
        call()
        calls += 1
        if (now := counter()) != before:
            moved.append((calls, now))
            before = now
    (first, start), (last, end) = moved[0], moved[-1]
    return (end - start) / (last - first), ""


def _nvml(device: torch.device) -> tuple[Callable[[], float] | None, str]:
    try:
        nvml: Any = load_optional("pynvml", by="energy counts", extra="bench")
    except ImportError as error:
        return None, str(error)
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own errors exist only where it loads
        return None, f"the driver does not tell: {error}"
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, ""


def _rapl() -> tuple[Callable[[], float] | None, str]:
    # Domains are called intel-rapl:0 and so on, also on AMD. Packages have such names as package-0; what is in one is
    # counted in it, and psys counts the packages once more.
    try:
        names = {path.parent: path.read_text() for path in _POWERCAP.glob("intel-rapl:*/name")}
        packages = [domain / "energy_uj" for domain, name in names.items() if name.startswith("package")]
        tops = [int((path.parent / "max_energy_range_uj").read_text()) for path in packages]
        last = [int(path.read_text()) for path in packages]
    except OSError as error:
        return None, f"the system does not tell: {error}"
    if not packages:
        return None, f"the system does not tell: no package in {_POWERCAP}"
    total = 0

    def joules() -> float:
        nonlocal last, total
        now = [int(path.read_text()) for path in packages]
        total += sum((b - a) % (top + 1) for a, b, top in zip(last, now, tops, strict=True))  # counters start again
        last = now
        return total / 1e6

    return joules, ""

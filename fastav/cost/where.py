"""Where something was measured, in a line."""

from __future__ import annotations

import datetime
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

import fastav

#: Whose versions figures depend on, beside PyTorch's and fastav's.
_PACKAGES = ("triton", "timm", "transformers", "peft")


def device_name(device: torch.device) -> str:
    """The device's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return found[1] if found else f"{platform.machine()} CPU"


def where(device: torch.device) -> str:
    """Device, versions and date; of a CPU the vectors that PyTorch's own kernels use there, too."""
    count = torch.get_num_threads()
    threads = f" ({torch.backends.cpu.get_cpu_capability()}), {count} thread{'s' * (count > 1)}"
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    versions = [f"torch {torch.__version__}", *_versions(), f"fastav {fastav.__version__}"]
    return f"{device_name(device)}{'' if device.type == 'cuda' else threads}, {', '.join(versions)}, {date}"


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found

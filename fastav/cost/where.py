"""Where something was measured, in a line."""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path

import torch

import fastav


def device_name(device: torch.device) -> str:
    """The device's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return found[1] if found else f"{platform.machine()} CPU"


def where(device: torch.device) -> str:
    """Device, versions and date."""
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return f"{device_name(device)}{threads}, torch {torch.__version__}, fastav {fastav.__version__}, {date}"

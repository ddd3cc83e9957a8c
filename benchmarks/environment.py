"""Where something was measured: device, driver, clocks, versions, commit, date."""

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import fastav
from benchmarks.contenders import vector_path
from benchmarks.timing import last_level_cache
from fastav.cost.where import device_name

ROOT = Path(__file__).parents[1]

#: What ``pytest benchmarks`` measures.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

NVIDIA = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def environment(device: torch.device) -> dict[str, str]:
    """One line of words for each thing that a figure depends on."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "fastav": fastav.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "backends": ", ".join(name for name, status in fastav.backends().items() if status.usable),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        found["multiprocessors"] = str(properties.multi_processor_count)
        found |= {"hip": torch.version.hip} if torch.version.hip else {"cuda": str(torch.version.cuda)}
        found |= _clocks(device)
    else:
        found["threads"] = str(torch.get_num_threads())
        found["cores"] = str(os.cpu_count())
        found["last-level cache"] = f"{last_level_cache() / 2**20:.0f} MiB"
        found["vector path"] = vector_path() or "none: " + fastav.backends()["native"].reason
        found["PyTorch's vectors"] = torch.backends.cpu.get_cpu_capability()
        found["compiler"] = _told("g++", "--version").partition("\n")[0]
        found["load"] = " ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5, 15 minutes, at the start)"
    return found


def commit() -> str:
    """The commit of the checkout, with a plus sign if files but results differ from it, or "unknown"."""
    try:
        git = ("git", "-C", str(ROOT))
        head = _run(*git, "rev-parse", "--short=12", "HEAD").strip()
        return head + ("+" if _run(*git, "status", "--porcelain", "--", ".", ":!benchmarks/results").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(module: str) -> str:
    try:
        return __import__(module).__version__
    except ImportError:
        return "none"


def _clocks(device: torch.device) -> dict[str, str]:
    """What the driver says of itself and of the clocks at this moment."""
    if shutil.which("nvidia-smi"):
        this = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # its number may be another one there
        try:
            line = _run("nvidia-smi", "-i", this, f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader")
            return dict(zip(NVIDIA, (word.strip() for word in line.split(",")), strict=True))
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            return {"clocks": f"nvidia-smi does not tell: {error}"}
    return {"rocm-smi": _told("rocm-smi", "--showdriverversion", "--showclocks")} if shutil.which("rocm-smi") else {}


def _told(*command: str) -> str:
    """What a command says, or "none"."""
    try:
        return _run(*command)
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

"""``fastav env``: what fastav runs on, to be pasted into a report."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch

import fastav

#: Optional packages by the extra that brings them.
_OPTIONAL = {
    "backbones": ("timm", "transformers"),
    "audio": ("torchaudio",),
    "data": ("av", "h5py", "pillow", "soundfile", "tqdm"),
    "training": ("jsonargparse", "lightning", "rich", "safetensors", "torchmetrics"),
    "plots": ("matplotlib",),
}


def main(arguments: Sequence[str]) -> int:
    """Print what there is."""
    parser = argparse.ArgumentParser(prog="fastav env", description="Say what fastav runs on.")
    parser.parse_args(list(arguments))
    print("\n".join(describe_environment()))
    return 0


def describe_environment() -> Iterator[str]:
    """Lines: versions, devices, which backends serve the ops and why others do not, optional packages."""
    yield f"fastav {fastav.__version__}"
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {metadata.version('numpy')}"
    yield from _devices()
    yield "backends:"
    for name, backend in fastav.backends().items():
        usable = "usable" + (f", {backend.detail}" if backend.detail else "")
        yield f"  {name}: {usable if backend.usable else f'not usable: {backend.reason}'}"
    yield "optional packages:"
    for extra, packages in _OPTIONAL.items():
        found = [f"{package} {_version(package) or 'missing'}" for package in packages]
        lacks = any(_version(package) is None for package in packages)
        yield f"  {extra}: {', '.join(found)}" + (f'; pip install "fastav[{extra}]"' if lacks else "")


def _devices() -> Iterator[str]:
    if not torch.cuda.is_available():
        yield "devices: no GPU that torch can use" + ("; mps" if torch.backends.mps.is_available() else "")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield f"device {number}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

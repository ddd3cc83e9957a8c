"""Cold caches, and the bandwidths of the machine itself in the same run."""

import functools
from functools import partial
from pathlib import Path

import torch

from fastav.cost.timing import measure

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


def matmul_rate(device: torch.device, rounds: int = 10) -> float:
    """Floating-point operations a second of PyTorch's fastest square product, in bf16 on a GPU, in float32 on a CPU.

    It is no limit of the machine: PyTorch's products may not be the best there are.
    """
    on_gpu = device.type == "cuda"
    rates = []
    for side in (4096, 8192) if on_gpu else (512, 1024, 2048):
        a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
        rates.append(2 * side**3 / measure([partial(torch.matmul, a, a)], device, rounds).median)
    return max(rates)


def _streamed(device: torch.device) -> torch.Tensor:
    """Ones in float32, every page of them written: pages that nobody wrote to are all one page of zeros."""
    size = 1 << 30 if device.type == "cuda" else max(1 << 26, 6 * last_level_cache())
    return torch.ones(size // 4, device=device)

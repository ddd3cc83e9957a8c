"""The largest batch that a method can be trained with."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from fastav.cost import peak


def largest_batch(step: Callable[[int], Callable[[], Any]], device: torch.device, memory: int | None) -> int:
    """How many clips fit: by the line through the peaks of one clip and two, tried, and less by eighths until it does.

    Args:
        step: makes a training step for a number of clips.
        device: where.
        memory: bytes that a step may take over what there was before it; None for what a GPU has.

    Returns:
        Clips; 0 if not even one fits, or nobody knows what a step takes.
    """
    limit = memory or torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    one, two = (_peak(step, clips, device) for clips in (1, 2))
    if one is None or one > limit:
        return 0
    if two is None or two > limit:
        return 1
    clips = max(2, 1 + int((limit - one) / max(two - one, 1)))
    while clips > 2:
        found = _peak(step, clips, device)
        if found is not None and found <= limit:
            break
        clips -= max(1, clips // 8)
    return clips


def _peak(step: Callable[[int], Callable[[], Any]], clips: int, device: torch.device) -> int | None:
    """Bytes; None if there are not so many, or nobody knows."""
    try:
        run = step(clips)
        run()
        return peak(run, device).bytes
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

"""The largest batch that a method can be trained with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastav.cost.memory import peak
from fastav.cost.room import give_back, lacks_room


def largest_batch(step: Callable[[int], Callable[[], Any]], device: torch.device, memory: int | None) -> int:
    """How many clips fit, to within an eighth: by the line through two that do, else by doubling, then by halving.

    What fails for another reason than memory, where fewer clips do not, counts as too many, with a warning: some
    operators cannot address as many elements as a large GPU has room for.

    Args:
        step: makes a training step for a number of clips.
        device: where.
        memory: bytes that a step may take over what there was before it; None for what the device has.

    Returns:
        Clips; 0 if not even one fits.
    """

    def weigh(clips: int) -> int | None:
        try:
            found = _peak(step, clips, device)
        except RuntimeError as error:
            if not fits:
                raise
            warnings.warn(f"{clips} clips count as too many: {error}", RuntimeWarning, stacklevel=2)
            found = None
        give_back()  # not in _peak, whose frame holds the step
        return found if found is not None and (memory is None or found <= memory) else None

    fits, taken, beyond = 0, 0, 1
    while beyond > fits + fits // 8 and (found := weigh(beyond)) is not None:
        each = (found - taken) / (beyond - fits) if fits else 0.0  # the first clip takes what all do
        fits, taken, beyond = beyond, found, 2 * beyond
        if memory is not None and each > 0:
            beyond = min(fits + int((memory - taken) / each), 8 * fits)
    while beyond - fits > max(1, fits // 8):
        between = (fits + beyond) // 2
        if weigh(between) is None:
            beyond = between
        else:
            fits = between
    return fits


def fewer(clips: int) -> Iterator[int]:
    """So many clips, then an eighth fewer each time: one step may fit where many with what is between them do not."""
    while clips:
        yield clips
        clips -= max(1, clips // 8)


def _peak(step: Callable[[int], Callable[[], Any]], clips: int, device: torch.device) -> int | None:
    """Bytes; None if the device has not as many, or only by asking for them again and again, which takes time."""
    try:
        run = step(clips)
        run()
        before = _retries(device)
        found = peak(run, device).bytes
        return found if _retries(device) == before else None
    except Exception as error:
        if lacks_room(error):
            return None
        raise


def _retries(device: torch.device) -> int:
    """How often PyTorch's allocator had to give back everything to find room; never on a CPU."""
    return torch.cuda.memory_stats(device)["num_alloc_retries"] if device.type == "cuda" else 0

"""Every method on one pair of backbones, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastav.cost.measure import Cost, frozen_forward, measure_cost
from fastav.cost.methods import build_step
from fastav.cost.proof import WrongError, check
from fastav.cost.step import Step

#: Segments of the one clip that methods are checked on.
CHECKED_SEGMENTS = 2


@dataclass(frozen=True)
class Absence:
    """A method that was not measured.

    Attributes:
        method: its name.
        reason: it does not go with these backbones, is not what it claims to be, or does not fit into the memory.
    """

    method: str
    reason: str


def profile(
    methods: Sequence[str],
    visual: nn.Module,
    audio: nn.Module,
    inputs: tuple[Tensor, Tensor],
    *,
    audio_layout: str = "segment",
    chunks: tuple[int | None, int | None] = (None, None),
    rounds: int = 5,
    then: Callable[[str, Step], Any] | None = None,
    **options: Any,
) -> Iterator[Cost | Absence]:
    """Check and measure methods; each is gone before the next is built.

    Args:
        methods: names, see :data:`fastav.cost.METHODS`.
        visual: the visual backbone.
        audio: the audio backbone.
        inputs: (B, T, ...) each, or (B, ...) of sound for whole clips.
        audio_layout: see :class:`fastav.MettleConfig`.
        chunks: how many frames and sounds go through frozen backbones at a time, None for all.
        rounds: how often each thing is timed.
        then: called with each method's name and step, when it has been measured.
        options: of the methods, all of them.
    """
    frozen = frozen_forward(visual, audio, inputs, audio_layout, chunks)
    frames, sound = inputs
    if audio_layout == "segment":
        frames, sound = frames[:, :CHECKED_SEGMENTS], sound[:, :CHECKED_SEGMENTS]
    for name in methods:
        build: Callable[..., Step] = partial(
            build_step, name, visual, audio, audio_layout=audio_layout, chunks=chunks, **options
        )
        try:
            reached = check(build((frames[:1], sound[:1])))
            yield _measured(name, build(inputs), frozen, reached, rounds, then)
        except (ValueError, ImportError, WrongError) as error:
            yield Absence(name, str(error))
        except torch.cuda.OutOfMemoryError:
            yield Absence(name, f"{len(inputs[0])} clips do not fit into the device's memory")
        gc.collect()
        if inputs[0].device.type == "cuda":
            torch.cuda.empty_cache()


def _measured(
    name: str,
    step: Step,
    frozen: Callable[[], Any],
    reached: Mapping[str, int],
    rounds: int,
    then: Callable[[str, Step], Any] | None,
) -> Cost:
    cost = measure_cost(name, step, frozen, reached=reached, rounds=rounds)
    if then is not None:
        then(name, step)
    return cost


def write_snapshot(step: Step, path: Path) -> None:
    """Write the history of the CUDA allocator over one step, for pytorch.org/memory_viz."""
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        step()
        torch.cuda.synchronize(step.device)
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)

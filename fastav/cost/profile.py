"""Every method on one pair of backbones, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastav.cost.largest import largest_batch
from fastav.cost.measure import Cost, frozen_forward, measure_cost
from fastav.cost.methods import build_step
from fastav.cost.proof import WrongError, check
from fastav.cost.step import Step

Found = TypeVar("Found")

#: Segments of the one clip that methods are checked on.
CHECKED_SEGMENTS = 2


@dataclass(frozen=True)
class Absence:
    """A method that was not measured.

    Attributes:
        method: its name.
        reason: why not.
        failed: whether it should have been: it is not what it claims to be, or broke. Others do not go with these
            backbones, lack a package, or do not fit into the memory.
    """

    method: str
    reason: str
    failed: bool = False


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
        checked = partial(_checked, build, (frames[:1], sound[:1]))
        reached = _or_absent(name, checked, f"its check in float64, of {frames.shape[1]} segments, does")
        if isinstance(reached, Absence):
            yield reached
            continue
        measured = partial(_measured, name, partial(build, inputs), frozen, reached, rounds, then)
        yield _or_absent(name, measured, f"{len(inputs[0])} clip(s) do")


def profile_largest(
    costs: Iterable[Cost],
    visual: nn.Module,
    audio: nn.Module,
    inputs: Callable[[int], tuple[Tensor, Tensor]],
    memory: int,
    *,
    audio_layout: str = "segment",
    chunks: tuple[int | None, int | None] = (None, None),
    rounds: int = 5,
) -> Iterator[Cost | Absence]:
    """Measure methods once more, each with the largest batch whose step takes no more than so much memory.

    Args:
        costs: what :func:`profile` found, for the methods that are to be measured.
        visual: the visual backbone.
        audio: the audio backbone.
        inputs: makes those of so many clips.
        memory: bytes, over model, optimizer and inputs.
        audio_layout: see :func:`profile`, as for what follows.
        chunks: likewise.
        rounds: likewise.
    """
    for cost in costs:
        build: Callable[..., Step] = partial(
            build_step, cost.method, visual, audio, audio_layout=audio_layout, chunks=chunks
        )

        def measure(name: str = cost.method, build: Callable[..., Step] = build, known: Cost = cost) -> Cost | Absence:
            clips = largest_batch(lambda count: build(inputs(count)), next(visual.parameters()).device, memory)
            if not clips:
                return Absence(name, f"not even one clip fits into {memory / 2**30:g} GiB")
            given = inputs(clips)
            frozen = frozen_forward(visual, audio, given, audio_layout, chunks)
            reached = {"reached": known.reached, "blocks": known.blocks}
            return _measured(name, partial(build, given), frozen, reached, rounds, None)

        yield _or_absent(cost.method, measure, "its largest batch does")


def _or_absent(name: str, call: Callable[[], Found], what: str) -> Found | Absence:
    """What a call gives, or why it gives nothing; what it held is given back."""
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        return Absence(name, f"{what} not fit into the device's memory")
    except (ValueError, ImportError) as error:
        return Absence(name, str(error))
    except (WrongError, RuntimeError) as error:
        return Absence(name, f"{type(error).__name__}: {error}", failed=True)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _checked(build: Callable[..., Step], inputs: tuple[Tensor, Tensor]) -> dict[str, int]:
    return check(build(inputs))


def _measured(
    name: str,
    build: Callable[[], Step],
    frozen: Callable[[], Any],
    reached: Mapping[str, int],
    rounds: int,
    then: Callable[[str, Step], Any] | None,
) -> Cost:
    step = build()
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

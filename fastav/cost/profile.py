"""Every method on one pair of backbones, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastav.cost.largest import fewer, largest_batch
from fastav.cost.measure import Cost, check_rounds, frozen_forward, measure_cost
from fastav.cost.methods import build_step
from fastav.cost.proof import check
from fastav.cost.room import give_back, lacks_room, room, unless_too_large
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


class _UnfitError(Exception):
    """A method does not go with the backbones that it is built for."""


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
    own: Mapping[str, Mapping[str, Any]] | None = None,
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
        then: called with each method's name and step, after its cost was handed out.
        own: options of single methods, by their names.

    Raises:
        ValueError: fewer than two rounds, or a backbone of no known family: before anything is measured.
    """
    check_rounds(rounds)
    frozen = frozen_forward(visual, audio, inputs, audio_layout, chunks)
    frames, sound = inputs
    if audio_layout == "segment":
        frames, sound = frames[:, :CHECKED_SEGMENTS], sound[:, :CHECKED_SEGMENTS]

    def one(name: str) -> Iterator[Cost | Absence]:
        settings = {"audio_layout": audio_layout, "chunks": chunks, **(own or {}).get(name, {})}
        build: Callable[..., Step] = partial(build_step, name, visual, audio, **settings)
        if not (own or {}).get(name):  # what it refuses of its own options is no matter of the backbones
            build = partial(_built, build)
        return _profiled(name, build, (frames[:1], sound[:1]), inputs, frozen, rounds, then)

    return chain.from_iterable(map(one, methods))


def profile_largest(
    costs: Iterable[Cost],
    visual: nn.Module,
    audio: nn.Module,
    inputs: Callable[[int], tuple[Tensor, Tensor]],
    memory: int | None,
    *,
    audio_layout: str = "segment",
    chunks: tuple[int | None, int | None] = (None, None),
    rounds: int = 5,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Cost | Absence]:
    """Measure methods once more, each with the largest batch whose step takes no more than so much memory.

    Args:
        costs: what :func:`profile` found, for the methods that are to be measured.
        visual: the visual backbone.
        audio: the audio backbone.
        inputs: makes those of so many clips.
        memory: bytes, over model, optimizer and inputs; None for what the device has.
        audio_layout: see :func:`profile`, as for what follows.
        chunks: likewise.
        rounds: likewise.
        own: likewise.
    """
    for cost in costs:
        settings = {"audio_layout": audio_layout, "chunks": chunks, **(own or {}).get(cost.method, {})}
        build: Callable[..., Step] = partial(build_step, cost.method, visual, audio, **settings)

        def measure(name: str = cost.method, build: Callable[..., Step] = build, known: Cost = cost) -> Cost | Absence:
            clips = largest_batch(lambda count: build(inputs(count)), next(visual.parameters()).device, memory)
            reached = {"reached": known.reached, "blocks": known.blocks}
            for count in fewer(clips):
                given = inputs(count)
                frozen = frozen_forward(visual, audio, given, audio_layout, chunks)
                with unless_too_large():
                    return measure_cost(name, build(given), frozen, reached=reached, rounds=rounds)
                give_back()
            return Absence(name, f"not even one clip fits into {room(memory)}")

        yield _or_absent(cost.method, measure, "its largest batch does")


def _profiled(
    name: str,
    build: Callable[..., Step],
    few: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
    frozen: Callable[[], Any],
    rounds: int,
    then: Callable[[str, Step], Any] | None,
) -> Iterator[Cost | Absence]:
    """One method: checked on a few inputs, measured on all."""
    what = f"its check in float64, of {few[0].shape[1]} segments, does"
    reached = _or_absent(name, lambda: check(build(few)), what)
    if isinstance(reached, Absence):
        yield reached
        return

    def measure() -> tuple[Cost, Step]:
        step = build(inputs)
        return measure_cost(name, step, frozen, reached=reached, rounds=rounds), step

    measured = _or_absent(name, measure, f"{len(inputs[0])} clip(s) do")
    if isinstance(measured, Absence):
        yield measured
        return
    cost, step = measured
    yield cost
    if then is not None:
        then(name, step)
    del measured, step
    give_back()


def _built(build: Callable[..., Step], inputs: tuple[Tensor, Tensor]) -> Step:
    """A step; what a method refuses while it is built does not go with it, what it refuses later is a mistake."""
    try:
        return build(inputs)
    except ValueError as error:
        raise _UnfitError(str(error)) from error


def _or_absent(name: str, call: Callable[[], Found], what: str) -> Found | Absence:
    """What a call gives, or why it gives nothing; what it held is given back."""
    try:
        return call()
    except (_UnfitError, ImportError) as error:
        return Absence(name, str(error))
    except Exception as error:  # whatever it is, the other methods can be measured
        if lacks_room(error):
            return Absence(name, f"{what} not fit into {room(None)}")
        return Absence(name, f"{type(error).__name__}: {error}", failed=True)
    finally:
        give_back()


def write_snapshot(step: Step, path: Path) -> None:
    """Write the history of the CUDA allocator over one step, for pytorch.org/memory_viz; all of it or no file."""
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        step()
        torch.cuda.synchronize(step.device)
        torch.cuda.memory._dump_snapshot(str(path))
    except Exception:
        path.unlink(missing_ok=True)  # half a snapshot cannot be read, and takes room that others' files need
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)

"""Every method by name, on any pair of backbones, with one head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from fastav.adapters import Adapter, adapter_class, create_adapter
from fastav.backbones import FrozenBackbone
from fastav.backbones.blocks import example_for
from fastav.backbones.layout import flat_inputs
from fastav.baselines import BASELINES, Baseline, create_baseline
from fastav.cost.step import Step
from fastav.tasks import LocalizationTask

#: The adapters.
OURS = ("mettle", "molt")

#: All of them, ours first.
METHODS = (*OURS, *BASELINES)

#: Of the head: event localisation on AVE.
NUM_CLASSES = 28

#: Options of methods that are not the user's here: they follow from the step, or make its rounds alike.
DERIVED = ("audio_layout", "num_segments", "standardize_batches")


def check_options(options: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Check options of methods before any of them is built.

    Args:
        options: those of each method, by its name.
        methods: which methods there will be.

    Raises:
        ValueError: another method, an option that the method does not have, or a value that an adapter's
            configuration refuses.
    """
    for name, own in options.items():
        if name not in methods:
            raise ValueError(f"options for {name!r}, which is not measured; measured are {', '.join(methods)}")
        known = method_options(name)
        if unknown := sorted(set(own) - set(known)):
            raise ValueError(f"options for {name}: there is no {', '.join(unknown)}; choose among {', '.join(known)}")
        if name in OURS:
            try:
                adapter_class(name).config_class(**own)
            except (TypeError, ValueError) as error:
                raise ValueError(f"options for {name}: {error}") from error


def method_options(name: str) -> list[str]:
    """Names of the options that a method of :data:`METHODS` leaves to the user."""
    never = {"gradient_checkpointing"} if name in BASELINES and BASELINES[name].runs_once else set()
    return sorted(set(default_options(name)) - set(DERIVED) - never)


def default_options(name: str) -> dict[str, Any]:
    """All options of a method of :data:`METHODS`, with what they are unless it is told otherwise."""
    if name in OURS:
        return asdict(adapter_class(name).config_class())
    classes = [cls for cls in reversed(BASELINES[name].__mro__) if issubclass(cls, Baseline)]
    taken = [one for cls in classes for one in signature(cls).parameters.values()]
    return {one.name: one.default for one in taken if one.kind is Parameter.KEYWORD_ONLY}


def build_method(
    name: str, visual: nn.Module, audio: nn.Module, *, segments: int, audio_layout: str = "segment", **options: Any
) -> Adapter | Baseline:
    """An adapter or a baseline.

    Args:
        name: one of :data:`METHODS`.
        visual: the visual backbone.
        audio: the audio backbone.
        segments: T.
        audio_layout: see :class:`fastav.MettleConfig`.
        options: the method's own.

    Raises:
        ValueError: no such method, or backbones that it does not go with.
    """
    # One batch of statistics, so that steps are alike from the second on.
    options = {"standardize_batches": 1, **options}
    if name in BASELINES:
        if name == "dg-sct":
            options = {"num_segments": segments, **options}
        return create_baseline(name, visual=visual, audio=audio, audio_layout=audio_layout, **options)
    return create_adapter(name, visual=visual, audio=audio, audio_layout=audio_layout, **options)


def random_inputs(
    visual: nn.Module,
    audio: nn.Module,
    *,
    clips: int,
    segments: int,
    audio_layout: str = "segment",
    seconds: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """What a pair of backbones takes for some clips, drawn: (B, T, ...) each, or (B, ...) of sound for whole clips.

    Args:
        visual: the visual backbone.
        audio: the audio backbone.
        clips: B.
        segments: T.
        audio_layout: see :class:`fastav.MettleConfig`.
        seconds: how long a sound is, where the backbone takes waveforms; spectrograms are of its own length.
        seed: of what is drawn.

    Raises:
        ValueError: a backbone whose configuration does not tell what it takes.
    """
    device = next(visual.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    leading = (clips, segments)
    frame, sound = (tuple(example_for(module).shape[1:]) for module in (visual, audio))
    if len(sound) == 1:  # a waveform, by way of example of one second
        sound = (round(seconds * sound[0]),)
    of_sound = leading if audio_layout == "segment" else leading[:1]
    drawn = (torch.randn(*shape, generator=generator) for shape in ((*leading, *frame), (*of_sound, *sound)))
    frames, sounds = (x.to(device) for x in drawn)
    return frames, sounds


def build_step(
    name: str,
    visual: nn.Module,
    audio: nn.Module,
    inputs: tuple[Tensor, Tensor],
    *,
    chunks: tuple[int | None, int | None] = (None, None),
    **options: Any,
) -> Step:
    """A training step of a method with the head of event localisation, of always the same weights and labels.

    Nobody else's random numbers change by it.

    Args:
        name: one of :data:`METHODS`.
        visual: the visual backbone.
        audio: the audio backbone.
        inputs: as :func:`random_inputs` makes them.
        chunks: how many frames and sounds go through frozen backbones at a time; where gradients run through them, all.
        options: see :func:`build_method`.
    """
    clips, segments = inputs[0].shape[:2]
    device = inputs[0].device
    if name == "dg-sct":  # whose maps mix tokens: as many as come of these inputs, not of an example
        flat, _ = flat_inputs(*inputs, options.get("audio_layout", "segment"))
        visual, audio = (
            FrozenBackbone(module, example_input=flat[side][:1].clone())
            for side, module in (("visual", visual), ("audio", audio))
        )
    with _seeded(device):
        labels = torch.randint(NUM_CLASSES + 1, (clips, segments))
        method = build_method(name, visual, audio, segments=segments, **options)
        if not getattr(method, "through", False):
            method.visual.chunk, method.audio.chunk = chunks
    with _seeded(device):
        shape = method if isinstance(method, Baseline) else method.config
        task = LocalizationTask(NUM_CLASSES, num_tokens=shape.num_tokens, width=shape.width)
    return Step(method.to(device), task.to(device), inputs, {"labels": labels.to(device)})


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """While it lasts, the same random numbers each time on the CPU and on one device.

    ``torch.manual_seed`` would seed every GPU, and ``fork_rng`` restores no others than it is told.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(0)
        if on_gpu:
            torch.cuda.default_generators[device.index].manual_seed(0)
        yield

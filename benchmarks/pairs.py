"""Pairs of backbones with random weights, whose methods are compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastav.cost.methods import random_inputs
from fastav.cost.room import memory_of_machine

#: K = 8 query tokens a tap and as many rows of one head, of Mettle and MoLT on the AVE step.
AVE: Mapping[str, Any] = {"num_tokens": 8, "heads": 1}


@dataclass(frozen=True)
class Size:
    """A pair of backbones and how it is used.

    Attributes:
        name: what reports call it.
        visual: makes the visual backbone.
        audio: makes the audio backbone.
        segments: T.
        dtype: of the backbones.
        memory: bytes that a step's peak may be for the largest batch; None for what the device has.
        ours: fields of Mettle's and MoLT's configurations.
    """

    name: str
    visual: Callable[[], nn.Module]
    audio: Callable[[], nn.Module]
    segments: int
    dtype: torch.dtype
    memory: int | None
    ours: Mapping[str, Any] = field(default_factory=dict)


def build(size: Size, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Both backbones, of always the same weights."""
    torch.manual_seed(0)
    visual, audio = (make().to(device, size.dtype) for make in (size.visual, size.audio))
    return visual, audio


def inputs(pair: tuple[nn.Module, nn.Module], clips: int, segments: int) -> tuple[Tensor, Tensor]:
    """Random frames and spectrograms of some clips."""
    return random_inputs(*pair, clips=clips, segments=segments)


def ave_step(dtype: torch.dtype, memory: int | None) -> Size:
    """Swin-V2-L at 192 px and HTS-AT, ten segments."""
    return Size("AVE step", _swin_large, _htsat, 10, dtype, memory, AVE)


def size_for(device: torch.device, *, full: bool) -> Size:
    """The AVE step on a GPU or where it is asked for; else a smaller pair."""
    if device.type == "cuda":
        return ave_step(torch.bfloat16, None)
    if full:
        return ave_step(torch.float32, memory_of_machine() // 2)
    name = "Swin-V2-T at 64 px and HTS-AT at a quarter of its spectrogram"
    return Size(name, _swin_tiny, _htsat_quarter, 2, torch.float32, 112 << 20)


def _swin(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=0, **options)


def _htsat(**options: Any) -> nn.Module:
    import transformers

    return transformers.ClapAudioModel(transformers.ClapAudioConfig(**options))


_htsat_quarter = partial(_htsat, spec_size=128, window_size=4)
_swin_large = partial(_swin, "swinv2_large_window12_192")
_swin_tiny = partial(_swin, "swinv2_tiny_window8_256", img_size=64)

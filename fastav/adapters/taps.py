"""Which blocks of a backbone an adapter taps, what it does with each, and how taps are checked."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastav.adapters.config import AdapterConfig, Layers
from fastav.backbones import FrozenBackbone
from fastav.backbones.blocks import find_blocks, select_taps
from fastav.backbones.layout import stage_ends
from fastav.backbones.whisper import whisper_encoder


class Tapped(NamedTuple):
    """A backbone with its taps.

    Attributes:
        backbone: the frozen backbone.
        distilled: numbers of its taps that are distilled.
        injected: numbers of its taps that learned tokens are injected into.
    """

    backbone: FrozenBackbone
    distilled: tuple[int, ...]
    injected: tuple[int, ...]


def choose_taps(module: nn.Module | FrozenBackbone, config: AdapterConfig, modality: str) -> Tapped:
    """Freeze a backbone and tap what the configuration asks for; of a ``FrozenBackbone``, choose among its own taps.

    Raises:
        ValueError: the configuration asks for blocks that there are not, or that a ``FrozenBackbone`` does not tap.
    """
    if not isinstance(module, nn.Module):
        FrozenBackbone(module)  # says what is wrong with it
    layers, stages = config.layers_of(modality), config.inject_stages if modality == "visual" else None
    if isinstance(module, FrozenBackbone):
        own = module.tap_names
        if layers is None:
            chosen = "all" if config.inject_stages is None else config.default_layers(len(own))
            distilled = own[-chosen:] if isinstance(chosen, int) else own
        else:
            distilled = own if layers == "all" else _among(module, "layers", layers, modality)
        injected: tuple[str, ...] = ()
        if stages is not None:
            injected = stage_ends(module) if stages == "stages" else _among(module, "inject_stages", stages, modality)
        backbone = module
    else:
        inner = whisper_encoder(module) or module
        if layers is None:
            layers = config.default_layers(len(find_blocks(inner)))
        distilled, injected = select_taps(inner, layers), ()
        if stages is not None:
            injected = stage_ends(FrozenBackbone(inner)) if stages == "stages" else select_taps(inner, stages)
        backbone = FrozenBackbone(inner, [*distilled, *injected])
    number = backbone.tap_names.index
    return Tapped(backbone, tuple(map(number, distilled)), tuple(map(number, injected)))


def _among(backbone: FrozenBackbone, field: str, wanted: Layers, modality: str) -> tuple[str, ...]:
    names = select_taps(backbone.module, wanted)
    if not set(names) <= set(backbone.tap_names):
        raise ValueError(
            f"the {modality} backbone has the taps {backbone.tap_names}, but config.{field} asks for {wanted!r}, which "
            f"is {names}; let FrozenBackbone(module, taps=...) tap these too, or give the bare module"
        )
    return names


def check_taps(name: str, taps: Sequence[Tensor], backbone: FrozenBackbone) -> None:
    """Check that ``taps`` are what ``backbone`` gives, for one batch."""
    if len(taps) != len(backbone.widths):
        raise ValueError(f"{name} holds {len(taps)} taps, wanted {len(backbone.widths)}: {backbone.tap_names}")
    for i, (tap, width) in enumerate(zip(taps, backbone.widths, strict=True)):
        if not isinstance(tap, Tensor) or not tap.is_floating_point():
            got = str(tap.dtype) if isinstance(tap, Tensor) else type(tap).__name__
            raise TypeError(f"{name}[{i}] must be a floating tensor (B, N, D), got {got}")
        if tap.ndim != 3 or tap.shape[-1] != width or len(tap) != len(taps[0]) or 0 in tap.shape:
            raise ValueError(
                f"{name}[{i}] has shape {tuple(tap.shape)}, wanted ({len(taps[0])}, N, {width}): the batch of "
                f"{name}[0], at least one token, and the width of block {backbone.tap_names[i]!r}"
            )
        if tap.device != backbone.device:
            raise ValueError(f"{name}[{i}] is on {tap.device}, the adapter's backbone on {backbone.device}")

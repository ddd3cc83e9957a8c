"""How clips of segments are laid out: as a backbone's batch, and back again from its taps, as maps and by stage."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, isqrt

from torch import Tensor

from fastav.backbones.frozen import FrozenBackbone

#: One audio input per segment, or one per clip.
AUDIO_LAYOUTS = ("segment", "clip")


def check_audio_layout(layout: str, audio: FrozenBackbone, *, by: str) -> None:
    """Check that a clip's audio tokens can be cut into segments, if they have to be.

    Args:
        layout: ``"segment"`` or ``"clip"``.
        audio: the audio backbone.
        by: who asks.

    Raises:
        ValueError: another layout, or ``"clip"`` for tokens that are not in order of time.
    """
    if layout not in AUDIO_LAYOUTS:
        raise ValueError(f"{by}: audio_layout is {layout!r}, wanted one of {AUDIO_LAYOUTS}")
    if layout == "clip" and audio.tokens_in_time_order is False:
        raise ValueError(
            f"{by}: audio_layout='clip' cuts the audio tokens into spans of time, but those of "
            f"{type(audio.module).__name__} are not in order of time; use audio_layout='segment'"
        )


def flat_inputs(
    visual_input: Tensor, audio_input: Tensor, layout: str, *, square: bool = False
) -> tuple[dict[str, Tensor], int]:
    """What the two backbones take for some clips, one row an item, and T.

    Args:
        visual_input: (B, T, 3, H, W).
        audio_input: (B, T, ...) for the layout ``"segment"``, (B, ...) for ``"clip"``.
        layout: the audio layout.
        square: whether frames must be square, as what is made of their patches takes them for.

    Returns:
        "visual", (B * T, 3, H, W), and "audio", (B * T, ...) or (B, ...); and T.

    Raises:
        TypeError: an input that is not a tensor.
        ValueError: inputs whose clips or segments do not match.
    """
    for name, value in (("visual_input", visual_input), ("audio_input", audio_input)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if visual_input.ndim != 5 or 0 in visual_input.shape:
        raise ValueError(f"visual_input has shape {tuple(visual_input.shape)}, wanted (B, T, 3, H, W), none of them 0")
    clips, segments, _, height, across = visual_input.shape
    if square and height != across:
        raise ValueError(
            f"visual_input has frames of {height} x {across} pixels, but feature maps, and layers that work in "
            f"windows, are of square frames alone; cut or stretch them"
        )
    leading = (clips, segments) if layout == "segment" else (clips,)
    if tuple(audio_input.shape[: len(leading)]) != leading or audio_input.ndim == len(leading):
        raise ValueError(
            f"audio_input has shape {tuple(audio_input.shape)}, wanted {leading} first, as visual_input and "
            f"audio_layout={layout!r} have it, and then what the audio backbone takes of each"
        )
    return {"visual": visual_input.flatten(0, 1), "audio": audio_input.flatten(0, len(leading) - 1)}, segments


def cut_spans(tap: Tensor, segments: int, name: str) -> Tensor:
    """(B, T * n, D) -> (B * T, n, D), a view of a tap that is contiguous; ``name`` is for what errors say."""
    if tap.shape[1] % segments:
        raise ValueError(
            f"{name} has {tap.shape[1]} tokens a clip, which do not divide into {segments} equal spans of "
            f"time; change the clip's length, or use audio_layout='segment'"
        )
    return tap.unflatten(1, (segments, -1)).flatten(0, 1)


def patch_map(tap: Tensor, backbone: FrozenBackbone, name: str) -> Tensor:
    """(B, prefix + h * w, D) -> (B, h, w, D), a view of the patches' tokens, of square frames; as above."""
    patches = tap[:, backbone.prefix_tokens :]
    side = isqrt(patches.shape[1])
    if side * side != patches.shape[1] or side == 0:
        raise ValueError(
            f"{name} has {patches.shape[1]} tokens beside {backbone.prefix_tokens} of no place, which are no "
            f"square map; feature maps want square frames and blocks that put out patches"
        )
    return patches.unflatten(1, (side, side))


def stage_ends(backbone: FrozenBackbone) -> tuple[str, ...]:
    """Names of the last tap of each stage; of a single stage, of each quarter."""
    count = len(backbone.stages)
    ends = [last for last, (one, next_one) in enumerate(pairwise(backbone.stages)) if one != next_one] + [count - 1]
    if len(ends) == 1:
        parts = min(4, count)
        ends = [ceil(count * (part + 1) / parts) - 1 for part in range(parts)]
    return tuple(backbone.tap_names[end] for end in ends)

"""LAVISH: one backbone for both modalities, with adapters in every block between what it sees and what it hears."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import Baseline, Seen
from fastav.baselines.latent import LavishAdapter
from fastav.baselines.sites import blocks_with_branches, inserted
from fastav.counts import check_counts


class Pictures(nn.Module):
    """Spectrograms as what a visual backbone takes: standardised, one channel three times, stretched to its size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, sound: Tensor, segments: int, size: torch.Size) -> Tensor:
        """Spectrograms (B, ..., a, b) of ``segments`` segments each, b their time if there are several.

        Returns:
            (B * segments, 3, *size).

        Raises:
            ValueError: spectrograms of several channels, or that do not divide into so many spans of time.
        """
        if sound.ndim < 3 or sound[0].numel() != sound.shape[-2] * sound.shape[-1]:
            raise ValueError(
                f"audio_input has sounds of shape {tuple(sound.shape[1:])}, wanted spectrograms of one channel: LAVISH "
                f"gives the visual backbone the same one three times"
            )
        assert self.norm.running_mean is not None
        sound = sound.reshape(len(sound), *sound.shape[-2:]).to(self.norm.running_mean.dtype)
        if sound.shape[-1] % segments:
            raise ValueError(
                f"audio_input has {sound.shape[-1]} frames a clip, which do not divide into {segments} "
                f"equal spans of time; change the clip's length, or use audio_layout='segment'"
            )
        spans = torch.stack(sound.chunk(segments, -1), 1).flatten(0, 1)
        return interpolate(self.norm(spans[:, None]), size, mode="bilinear", antialias=True).expand(-1, 3, -1, -1)


class Lavish(Baseline):
    """LAVISH (Lin et al., CVPR 2023): the visual backbone sees the frames and, as pictures, the spectrograms.

    In each block four :class:`LavishAdapter`, one a modality beside the attention and one beside the MLP, are given
    both modalities' tokens as they come in. The two modalities go through the blocks as one batch.

    Args:
        visual: see :class:`Baseline`.
        audio: the backbone that the sound was prepared for. It does not run: it tells whether a clip's spectrogram can
            be cut into segments. Those of Whisper can, whose last axis is time.
        num_tokens: K; see :class:`LatentAttention`, as for ``zeros``.
        ratio: see :class:`Bottleneck`, as for the next two.
        groups: of its maps.
        batch_norm: whether it has them.
        zeros: how the latent tokens start.
        options: see :class:`Baseline`.

    Raises:
        ValueError: sound that is no spectrogram, whole clips of it for an audio backbone of no known family, a block
            whose branches are not known, or a ratio or groups that do not divide its width.
    """

    name = "lavish"

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        num_tokens: int = 2,
        ratio: int = 8,
        groups: int = 2,
        batch_norm: bool = True,
        zeros: bool = False,
        **options: Any,
    ) -> None:
        check_counts("Lavish", num_tokens=num_tokens, ratio=ratio, groups=groups)
        self.settings: dict[str, Any] = {
            "num_tokens": num_tokens,
            "ratio": ratio,
            "groups": groups,
            "batch_norm": batch_norm,
            "zeros": zeros,
        }
        super().__init__(visual, audio, **options)
        self.pictures = Pictures()  # in float32, whatever the backbones' dtype: on a CPU 16 bits cannot be resized

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        if audio.example_input.ndim < 3:
            raise ValueError(
                f"Lavish hears spectrograms, but {type(audio.module).__name__} takes raw sound: choose an audio "
                f"backbone whose front end makes spectrograms, such as HTS-AT, AST or Whisper"
            )
        if self.audio_layout == "clip" and audio.tokens_in_time_order is None:
            raise ValueError(
                f"Lavish: audio_layout='clip' cuts spectrograms into spans of time, but the blocks of "
                f"{type(audio.module).__name__} are of no known family, which would tell which axis of its input is "
                f"time; use audio_layout='segment'"
            )
        self.visual = self._tapped(visual, self._visual_taps(visual))
        self._blocks = blocks_with_branches(visual)
        self.adapters = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict({modality: LavishAdapter(width, **self.settings) for modality in ("visual", "audio")})
                for _ in ("attention", "mlp")
            )
            for width in visual.widths
        )

    def _read_widths(self) -> tuple[int, int]:
        return self.visual.widths[-1], self.visual.widths[-1]

    def _run(self, visual: Tensor, audio: Tensor, segments: int) -> Seen:
        for name, x in (("visual_input", visual), ("audio_input", audio)):
            if not x.is_floating_point():
                raise TypeError(f"{name} is {x.dtype}, wanted floating numbers, normalised as its backbone wants them")
            if x.device != self.visual.device:
                raise ValueError(f"{name} is on {x.device}, the backbone on {self.visual.device}: move one of them")
        spans = segments if self.audio_layout == "clip" else 1
        pictures = self.pictures(audio, spans, visual.shape[-2:])
        both = torch.cat([visual.to(self.visual.dtype), pictures.to(self.visual.dtype)])

        def added(number: int, which: int, tokens: Tensor) -> Tensor:
            seen, heard = tokens.chunk(2)
            adapters: Any = self.adapters[number]
            return torch.cat([adapters[which]["visual"](seen, heard), adapters[which]["audio"](heard, seen)])

        taps = self.visual(both, inside=partial(inserted, self._blocks, added))
        return Seen([tap[: len(visual)] for tap in taps], taps[-1][len(visual) :])

    def _cut(self, tokens: Tensor, segments: int) -> Tensor:
        """As they are: the spectrograms were cut."""
        return tokens

"""The two ends of the scale: nothing of the backbones trained, and everything."""

from __future__ import annotations

import torch

from fastav.backbones import FrozenBackbone
from fastav.backbones.whisper import whisper_encoder
from fastav.baselines.base import NOTHING_KEPT, Baseline, trial_input


class FrozenFeatures(Baseline):
    """The last blocks of two frozen backbones, read out: what a head costs without any adapter."""

    name = "frozen"
    through = False
    runs_once = NOTHING_KEPT
    moves = False


class FullFineTuning(Baseline):
    """All weights of both backbones trained, those that the last block depends on.

    The backbones are copied, so that what was given stays as it is. The copies are part of ``state_dict()``. A Whisper
    encoder's table of positions stays as it is: its authors computed it, and do not train it either.
    """

    name = "full"
    copies = True

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        self.visual = self._trained(visual, self._visual_taps(visual))
        self.audio = self._trained(audio, list(audio.tap_names[-1:]))

    def _trained(self, backbone: FrozenBackbone, taps: list[str]) -> FrozenBackbone:
        live = self._tapped(backbone, taps, in_state_dict=True)
        live.requires_grad_(True)
        if encoder := whisper_encoder(live.module):
            encoder.embed_positions.requires_grad_(False)
        with torch.enable_grad():
            last = live(trial_input(live))[-1]
        weights = [weight for weight in live.parameters() if weight.requires_grad]
        # Norms and heads behind the last block are never run.
        found = torch.autograd.grad(last.sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.requires_grad_(gradient is not None)
        return live

"""The demo's clips, split by split, as taps of the two frozen backbones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from examples.stamps import weights
from examples.stamps.assets import cache_folder
from examples.stamps.exercises import CLIP_TAPS, SCENE_TAPS
from examples.stamps.material import Material
from examples.stamps.scenes import SEGMENTS, compose, compose_segmentation
from examples.stamps.scenes.segmentation import SECONDS
from examples.stamps.taps import Split
from fastav import FrozenBackbone

CPU = torch.device("cpu")
CLIP_SIZE = 126  # pixels, 9 x 9 patches: large enough to tell the animals apart, small enough for two cores
SCENE_SIZE = 168  # 12 x 12 patches: masks want more of them


@dataclass(frozen=True)
class Studio:
    """What all splits are made of.

    Attributes:
        material: pictures and sounds.
        vit: file with the visual backbone's weights, None for random ones.
        whisper: file with the audio backbone's, likewise.
        device: where the backbones run.
    """

    material: Material
    vit: Path | None
    whisper: Path | None
    device: torch.device = CPU

    def clips(self, sizes: dict[str, int], image_size: int | None = None, seed: int = 0) -> dict[str, Split]:
        """Ten-second clips for localisation, parsing and questions, so many in each split; others with another seed."""
        image_size = CLIP_SIZE if image_size is None else image_size
        visual, audio = self._backbones(image_size, CLIP_TAPS, SEGMENTS)
        made = {}
        for name, count in sizes.items():
            if name == "cross" and not self.material.held_out:
                continue
            clips = compose(self.material, name, count, seed, image_size)
            apart = f"-{image_size}" * (image_size != CLIP_SIZE) + f"-seed{seed}" * (seed > 0)
            folder = _folder(f"clips-{name}-{count}{apart}")
            made[name] = Split(clips, clips.labels, visual, audio, folder)
        return made

    def scenes(self, subset: str, sizes: dict[str, int]) -> dict[str, Split]:
        """Five-second scenes for segmentation, of the subset ``"single"`` or ``"multiple"``."""
        visual, audio = self._backbones(SCENE_SIZE, SCENE_TAPS, SECONDS)
        made = {}
        for name, count in sizes.items():
            scenes = compose_segmentation(self.material, name, count, subset, image_size=SCENE_SIZE)
            made[name] = Split(scenes, scenes.sounding, visual, audio, _folder(f"{subset}-{name}-{count}"))
        return made

    def _backbones(self, image_size: int, taps: list[int], seconds: int) -> tuple[FrozenBackbone, FrozenBackbone]:
        vit = weights.load_vit(self.vit, image_size) if self.vit else weights.random_vit(image_size)
        if self.whisper:
            whisper = weights.load_whisper_encoder(self.whisper, seconds)
        else:
            whisper = weights.random_whisper_encoder(seconds)
        return FrozenBackbone(vit, taps).to(self.device), FrozenBackbone(whisper).to(self.device)


def _folder(name: str) -> Path:
    return cache_folder() / "taps" / name

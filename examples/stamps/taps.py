"""Runs the frozen backbones over the clips once; everything else is trained from their taps on disk."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from examples.stamps.material import SAMPLE_RATE
from examples.stamps.scenes import SEGMENTS, Clip, Clips, mismatched
from fastav import FrozenBackbone, TapStore
from fastav.data import whisper_front_end

SECONDS = SEGMENTS  # one segment a second
BATCH = 8  # clips; more is no faster on two cores
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Inputs(NamedTuple):
    """What the backbones take for B clips."""

    frames: Tensor  # (B, 10, 3, H, W) float32, normalised
    log_mel: Tensor  # (B, 80, 1000) float32


class Taps(NamedTuple):
    """What ``MettleAdapter.forward_taps`` takes for B clips."""

    visual: list[Tensor]  # each (B * 10, N, D)
    audio: list[Tensor]  # each (B, 500, D): a clip's tokens in order of time


def prepare(clips: Clip) -> Inputs:
    """Make backbone inputs of a batch of clips, as a DataLoader stacks them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    frames = (clips.frames / 255 - mean) / std
    return Inputs(frames, whisper_front_end(SECONDS)(clips.sound, SAMPLE_RATE))


class Split:
    """One split's clips as taps and labels.

    Attributes:
        clips: the clips themselves, rendered when asked for.
        labels: (num_clips, 10) int64, num_classes for background.
        mismatched: (num_clips, 10) bool, seconds in which one class is seen and another heard.
        pooled: (num_taps, num_clips, 10, D) float32, the mean over a second's tokens of each tap's normalised rows:
            all that the baselines read. Visual taps first.
        num_visual: how many of the taps are visual.
    """

    def __init__(self, clips: Clips, visual: FrozenBackbone, audio: FrozenBackbone, folder: Path) -> None:
        self.clips, self.labels, self.mismatched = clips, clips.labels, mismatched(clips)
        self._visual, self._audio = _stores(clips, visual, audio, folder)
        self.num_visual = len(visual.widths)
        rows = [self.taps(index) for index in tqdm(torch.arange(len(clips)).split(50), "pooling taps", leave=False)]
        self.pooled = torch.cat([_pool(taps) for taps in rows], 1)

    def __len__(self) -> int:
        return len(self.labels)

    def taps(self, index: Tensor) -> Taps:
        """Read the taps of the clips at ``index`` (B,)."""
        segments = (index[:, None] * SEGMENTS + torch.arange(SEGMENTS)).flatten()
        return Taps(self._visual[segments], self._audio[index])


def _pool(taps: Taps) -> Tensor:
    """(num_taps, B, 10, D)."""
    spans = [tap.unflatten(0, (-1, SEGMENTS)) for tap in taps.visual]
    spans += [tap.unflatten(1, (SEGMENTS, -1)) for tap in taps.audio]
    return torch.stack([F.layer_norm(tap.float(), tap.shape[-1:]).mean(2) for tap in spans])


def _stores(clips: Clips, visual: FrozenBackbone, audio: FrozenBackbone, folder: Path) -> tuple[TapStore, TapStore]:
    """Open the split's two stores, or write them."""
    metadata = _metadata(clips, visual, audio)
    place = folder / f"{clips.split}-{hashlib.sha256(repr(metadata).encode()).hexdigest()[:12]}"
    paths = place / "visual", place / "audio"
    try:
        return TapStore.open(paths[0], metadata), TapStore.open(paths[1], metadata)
    except (FileNotFoundError, ValueError):  # not there, or broken off
        for stale in folder.glob(f"{clips.split}-*"):  # each split's taps are gigabytes
            shutil.rmtree(stale)
    stores: tuple[TapStore, TapStore] | None = None
    loader = DataLoader(clips, BATCH)
    with tqdm(total=len(clips), desc=f"frozen backbones, {clips.split}", unit="clip") as bar:
        for start, batch in zip(range(0, len(clips), BATCH), loader, strict=True):
            inputs = prepare(batch)
            taps = visual(inputs.frames.flatten(0, 1)), audio(inputs.log_mel)
            if stores is None:
                rows = len(clips) * SEGMENTS, len(clips)
                v, a = (
                    TapStore.create(path, length, [tap.shape[1:] for tap in some], metadata=metadata)
                    for path, length, some in zip(paths, rows, taps, strict=True)
                )
                stores = v, a
            stores[0].write(start * SEGMENTS, taps[0])
            stores[1].write(start, taps[1])
            bar.update(len(inputs.frames))
    return TapStore.open(paths[0], metadata), TapStore.open(paths[1], metadata)


def _metadata(clips: Clips, visual: FrozenBackbone, audio: FrozenBackbone) -> dict[str, Any]:
    """What the taps depend on: the backbones' inputs and weights, by content, and the tapped blocks."""
    content = hashlib.sha256(clips.labels.numpy().tobytes())
    for values in prepare(default_collate([clips[0], clips[-1]])):
        content.update(values.numpy().tobytes())
    for backbone in (visual, audio):
        for parameter in backbone.module.parameters():
            content.update(parameter.detach().flatten()[:256].numpy().tobytes())
    return {"content": content.hexdigest(), "visual": list(visual.tap_names), "audio": list(audio.tap_names)}

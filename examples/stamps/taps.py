"""Runs the frozen backbones over the clips once; everything else is trained from their taps on disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from examples.stamps.material import SAMPLE_RATE
from fastav import FrozenBackbone, TapStore
from fastav.data import whisper_front_end

BATCH = 8  # clips; more is no faster on two cores
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Inputs(NamedTuple):
    """What the backbones take for B clips of T seconds, a segment each."""

    frames: Tensor  # (B, T, 3, H, W) float32, normalised
    log_mel: Tensor  # (B, 80, 100 T) float32


class Taps(NamedTuple):
    """What an adapter's ``forward_taps`` takes for B clips."""

    visual: list[Tensor]  # each (B * T, N, D)
    audio: list[Tensor]  # each (B, 50 * T, D): a clip's tokens in order of time


class Pairs(NamedTuple):
    """Clips by their numbers: those that are looked at and those that are listened to, mostly the same."""

    seen: Tensor  # (B,) int64
    heard: Tensor  # (B,) int64


def prepare(clips: Sequence[Any]) -> Inputs:
    """Make backbone inputs of some clips, which have ``frames`` (T, 3, H, W) uint8 and ``sound`` (16000 T,)."""
    frames, sound = (torch.stack([_part(clip, name) for clip in clips]) for name in ("frames", "sound"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return Inputs((frames / 255 - mean) / std, whisper_front_end(frames.shape[1])(sound, SAMPLE_RATE))


def _part(clip: Any, name: str) -> Tensor:
    return clip[name] if isinstance(clip, dict) else getattr(clip, name)


class Split:
    """One split's clips as taps.

    Attributes:
        clips: the clips themselves, rendered when asked for.
        segments: T, seconds of a clip.
        visual: the visual backbone, with every tap that any method reads.
        audio: the audio backbone.
    """

    def __init__(
        self, clips: Dataset, plan: Tensor, visual: FrozenBackbone, audio: FrozenBackbone, folder: Path
    ) -> None:
        """Open the stores of the split's taps, or write them.

        Args:
            clips: a data set of one split.
            plan: what tells these clips from others of the same name, with one row a clip.
            visual: the visual backbone.
            audio: the audio backbone.
            folder: where the stores of this split are; others are removed from it.
        """
        self.clips, self.visual, self.audio = clips, visual, audio
        self.segments = len(_part(clips[0], "frames"))
        self._length = len(plan)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):  # another process may be making them
            self._visual, self._audio = self._stores(plan, folder)
        self._pooled: dict[tuple[str, ...], Tensor] = {}
        self._inputs: Inputs | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def device(self) -> torch.device:
        """Where the backbones are, and so everything that is trained."""
        return self.visual.device

    def taps(self, clips: Pairs, visual: FrozenBackbone, audio: FrozenBackbone) -> Taps:
        """Read the taps that two backbones have, which are among the split's, of B clips."""
        segments = (clips.seen[:, None] * self.segments + torch.arange(self.segments)).flatten()
        visual_taps = self._visual.select(visual.tap_names)[segments]
        audio_taps = self._audio.select(audio.tap_names)[clips.heard]
        return Taps(*([tap.to(self.device) for tap in some] for some in (visual_taps, audio_taps)))

    def inputs(self, clips: Pairs) -> Inputs:
        """What the backbones take for B clips, for methods that run through them; all are kept, in 16 bits."""
        if self._inputs is None:
            parts = DataLoader(self.clips, BATCH, collate_fn=prepare)
            made = [(x.frames.half(), x.log_mel.half()) for x in tqdm(parts, "preparing clips", leave=False)]
            self._inputs = Inputs(*map(torch.cat, zip(*made, strict=True)))
        frames, log_mel = self._inputs.frames[clips.seen], self._inputs.log_mel[clips.heard]
        return Inputs(frames.to(self.device).float(), log_mel.to(self.device).float())

    def pooled(self, visual: FrozenBackbone, audio: FrozenBackbone) -> Tensor:
        """Every second's mean over the tokens of each tap's normalised rows, visual taps first.

        Returns:
            (num_taps, num_clips, T, D) float32: all that the baselines read of a clip.
        """
        key = visual.tap_names + audio.tap_names
        if key not in self._pooled:
            parts = tqdm(torch.arange(len(self)).split(50), "pooling taps", leave=False)
            rows = [_pool(self.taps(Pairs(some, some), visual, audio), self.segments) for some in parts]
            self._pooled[key] = torch.cat(rows, 1)
        return self._pooled[key]

    def _stores(self, plan: Tensor, folder: Path) -> tuple[TapStore, TapStore]:
        metadata = self._metadata(plan)
        place = folder / hashlib.sha256(repr(metadata).encode()).hexdigest()[:12]
        paths, backbones = (place / "visual", place / "audio"), (self.visual, self.audio)
        try:
            return TapStore.open(paths[0], metadata), TapStore.open(paths[1], metadata)
        except (FileNotFoundError, ValueError):  # not there, or broken off
            shutil.rmtree(folder, ignore_errors=True)  # each split's taps are gigabytes
        stores: tuple[TapStore, TapStore] | None = None
        loader = DataLoader(self.clips, BATCH, collate_fn=prepare)
        with tqdm(total=len(self), desc=f"frozen backbones, {folder.name}", unit="clip") as bar:
            for start, inputs in zip(range(0, len(self), BATCH), loader, strict=True):
                frames, log_mel = (part.to(self.device) for part in inputs)
                taps = self.visual(frames.flatten(0, 1)), self.audio(log_mel)
                if stores is None:
                    rows = len(self) * self.segments, len(self)
                    v, a = (
                        TapStore.create(
                            path, length, [tap.shape[1:] for tap in some], names=one.tap_names, metadata=metadata
                        )
                        for path, length, some, one in zip(paths, rows, taps, backbones, strict=True)
                    )
                    stores = v, a
                stores[0].write(start * self.segments, taps[0])
                stores[1].write(start, taps[1])
                bar.update(len(frames))
        return TapStore.open(paths[0], metadata), TapStore.open(paths[1], metadata)

    def _metadata(self, plan: Tensor) -> dict[str, Any]:
        """What the taps depend on: the backbones' inputs and weights, by content, and the tapped blocks."""
        content = hashlib.sha256(plan.numpy().tobytes())
        for values in prepare([self.clips[0], self.clips[len(plan) - 1]]):
            content.update(values.numpy().tobytes())
        for backbone in (self.visual, self.audio):
            for parameter in backbone.module.parameters():
                content.update(parameter.detach().flatten()[:256].cpu().numpy().tobytes())
        taps = {"visual": list(self.visual.tap_names), "audio": list(self.audio.tap_names)}
        return {"content": content.hexdigest(), **taps}


def _pool(taps: Taps, segments: int) -> Tensor:
    """(num_taps, B, T, D)."""
    spans = [tap.unflatten(0, (-1, segments)) for tap in taps.visual]
    spans += [tap.unflatten(1, (segments, -1)) for tap in taps.audio]
    return torch.stack([F.layer_norm(tap.float(), tap.shape[-1:]).mean(2) for tap in spans])

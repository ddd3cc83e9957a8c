"""The three methods that the demo compares: Mettle, mean-pooled tokens under Mettle's own head, and a linear probe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.stamps.taps import SEGMENTS, Split
from fastav import FrozenBackbone, MettleAdapter, MettleConfig, ops
from fastav.tasks import LocalizationHead


class Mettle(nn.Module):
    """The adapter with its head, as a user would build it."""

    def __init__(self, visual: FrozenBackbone, audio: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        self.adapter = MettleAdapter(visual, audio, MettleConfig(audio_layout="clip"))
        config = self.adapter.config
        self.head = LocalizationHead(num_classes, num_tokens=config.num_tokens, width=config.width)

    def forward(self, split: Split, index: Tensor) -> Tensor:
        """Logits (B, 10, num_classes + 1) of the clips at ``index``."""
        out = self.adapter.forward_taps(*split.taps(index), num_segments=SEGMENTS)
        return self.head(out.visual, out.audio)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return {f"adapter.{name}" for name in self.adapter.no_weight_decay()}


class MeanPooled(nn.Module):
    """The honest baseline: Mettle with the mean of each tap's tokens instead of what attention distils.

    The same taps, standardisation, token fusion and head; no meta-token ever looks at a token.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, train: Split, num_classes: int) -> None:
        super().__init__()
        config = MettleConfig()
        self.num_visual = train.num_visual
        self.register_buffer("mean", train.pooled.mean((1, 2))[:, None, None])
        self.register_buffer("std", train.pooled.std((1, 2))[:, None, None])
        widths = [train.pooled.shape[-1]] * len(train.pooled)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(d, config.width) * d**-0.5) for d in widths)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(config.width)) for _ in widths)
        self.head = LocalizationHead(num_classes, num_tokens=1, width=config.width)

    def forward(self, split: Split, index: Tensor) -> Tensor:
        """Logits (B, 10, num_classes + 1) of the clips at ``index``."""
        tokens = list(((split.pooled[:, index] - self.mean) / self.std).flatten(1, 2)[:, :, None])
        weights, biases = list(self.weights), list(self.biases)
        fused = [
            ops.fuse(tokens[layers], weights[layers], biases[layers], norm="layer").unflatten(0, (-1, SEGMENTS))
            for layers in (slice(self.num_visual), slice(self.num_visual, None))
        ]
        return self.head(*fused)


class LinearProbe(nn.Module):
    """A linear map from the mean-pooled last layers of both backbones, standardised."""

    mean: Tensor
    std: Tensor

    def __init__(self, train: Split, num_classes: int) -> None:
        super().__init__()
        features = self._features(train, torch.arange(len(train)))
        self.register_buffer("mean", features.mean((0, 1)))
        self.register_buffer("std", features.std((0, 1)))
        self.linear = nn.Linear(features.shape[-1], num_classes + 1)

    def forward(self, split: Split, index: Tensor) -> Tensor:
        """Logits (B, 10, num_classes + 1) of the clips at ``index``."""
        return self.linear((self._features(split, index) - self.mean) / self.std)

    @staticmethod
    def _features(split: Split, index: Tensor) -> Tensor:
        return torch.cat([split.pooled[split.num_visual - 1, index], split.pooled[-1, index]], -1)


def build(train: Split, visual: FrozenBackbone, audio: FrozenBackbone) -> dict[str, Callable[[], nn.Module]]:
    """Each method's name and how to make a new one."""
    classes = train.clips.material.num_classes
    return {
        "linear probe, last layers": lambda: LinearProbe(train, classes),
        "mean-pooled, all layers": lambda: MeanPooled(train, classes),
        "Mettle": lambda: Mettle(visual, audio, classes),
    }

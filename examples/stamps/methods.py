"""The methods that the demo compares: sources of tokens, and the tasks' heads that read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.stamps.examples import Examples
from examples.stamps.taps import Pairs, Split
from fastav import AdapterOutput, FrozenBackbone, ops
from fastav.adapters import Adapter
from fastav.baselines import Baseline
from fastav.tasks.task import Task

WIDTH = 128  # of the mean-pooled tokens: what the adapters have by default


class Model(nn.Module):
    """A source of tokens with a task's head."""

    def __init__(self, source: nn.Module, task: Task) -> None:
        super().__init__()
        self.source, self.task = source, task

    def forward(self, examples: Examples, index: Tensor) -> tuple[object, Tensor]:
        """What the head says of the examples at ``index`` (B,), and the source's auxiliary loss."""
        batch, of = examples.batch(index), None
        clips = Pairs(*self.task.pairing(batch, examples.clip[index]))
        if examples.several_a_clip:
            different, of = torch.stack(clips).unique(dim=1, return_inverse=True)
            clips = Pairs(*different)
        out = self.source(examples.split, clips)
        if of is not None:
            out = out._replace(visual=out.visual[of], audio=out.audio[of])
        return self.task(out, batch), out.aux_loss

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        adapter = getattr(self.source, "adapter", None)
        return set() if adapter is None else {f"source.adapter.{name}" for name in adapter.no_weight_decay()}


class Adapted(nn.Module):
    """An adapter, fed with stored taps; without the sound, if asked: what the eyes alone can do."""

    def __init__(self, adapter: Adapter, *, muted: bool = False) -> None:
        super().__init__()
        self.adapter, self.muted = adapter, muted

    def forward(self, split: Split, clips: Pairs) -> AdapterOutput:
        """Tokens (B, T, K, W) of B clips."""
        taps = split.taps(clips, self.adapter.visual, self.adapter.audio)
        out = self.adapter.forward_taps(*taps, num_segments=split.segments)
        return out._replace(audio=torch.zeros_like(out.audio)) if self.muted else out


class Live(nn.Module):
    """A peer's method, run through the backbones themselves."""

    def __init__(self, adapter: Baseline) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, split: Split, clips: Pairs) -> AdapterOutput:
        """Tokens (B, T, 1, W) of B clips."""
        return self.adapter(*split.inputs(clips))


class Backbones(NamedTuple):
    """Two backbones with the taps that a method reads."""

    visual: FrozenBackbone
    audio: FrozenBackbone


class MeanPooled(nn.Module):
    """The honest baseline: Mettle with the mean of each tap's tokens instead of what attention distils.

    The same taps, standardisation, token fusion and head; no learned token ever looks at a token. For dense tasks the
    same feature maps as they are, with nothing injected.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, train: Split, backbones: Backbones, *, dense: bool = False) -> None:
        super().__init__()
        self.backbones, self.dense = (backbones,), dense  # in a tuple: no part of this module
        pooled = train.pooled(*backbones)
        self.register_buffer("mean", pooled.mean((1, 2))[:, None, None])
        self.register_buffer("std", pooled.std((1, 2))[:, None, None])
        widths = [pooled.shape[-1]] * len(pooled)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(d, WIDTH) * d**-0.5) for d in widths)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(WIDTH)) for _ in widths)

    def forward(self, split: Split, clips: Pairs) -> AdapterOutput:
        """Tokens (B, T, 1, W) of B clips."""
        visual = len(self.backbones[0].visual.widths)
        taps = split.pooled(*self.backbones[0])
        pooled = torch.cat([taps[:visual, clips.seen], taps[visual:, clips.heard]])
        tokens = list(((pooled - self.mean) / self.std).flatten(1, 2)[:, :, None])
        weights, biases = list(self.weights), list(self.biases)
        seen, heard = (
            ops.fuse(tokens[layers], weights[layers], biases[layers], norm="layer").unflatten(0, (-1, split.segments))
            for layers in (slice(visual), slice(visual, None))
        )
        return AdapterOutput(
            seen, heard, pooled.new_zeros(()), _maps(split, clips, self.backbones[0]) if self.dense else ()
        )


class LastLayers(nn.Module):
    """What the linear probes read: the last layers, mean-pooled and standardised; for dense tasks the last map."""

    mean: Tensor
    std: Tensor

    def __init__(self, train: Split, backbones: Backbones, *, dense: bool = False) -> None:
        super().__init__()
        self.backbones, self.dense = (backbones,), dense
        pooled = self._last(train)
        self.register_buffer("mean", pooled.mean((1, 2))[:, None, None])
        self.register_buffer("std", pooled.std((1, 2))[:, None, None])

    def forward(self, split: Split, clips: Pairs) -> AdapterOutput:
        """Features (B, T, 1, D) of B clips."""
        last = torch.stack([of[which] for of, which in zip(self._last(split), clips, strict=True)])
        visual, audio = ((last - self.mean) / self.std)[..., None, :]
        return AdapterOutput(
            visual, audio, visual.new_zeros(()), _maps(split, clips, self.backbones[0]) if self.dense else ()
        )

    def _last(self, split: Split) -> Tensor:
        """(2, num_clips, T, D)."""
        backbones = self.backbones[0]
        pooled = split.pooled(*backbones)
        return pooled[[len(backbones.visual.widths) - 1, -1]]


def _maps(split: Split, clips: Pairs, backbones: Backbones) -> tuple[Tensor, ...]:
    """The visual taps as feature maps (B, T, h, w, D), as injection would find them."""
    patches = [tap[:, backbones.visual.prefix_tokens :] for tap in split.taps(clips, *backbones).visual]
    side = round(patches[0].shape[1] ** 0.5)
    return tuple(x.float().unflatten(1, (side, side)).unflatten(0, (-1, split.segments)) for x in patches)

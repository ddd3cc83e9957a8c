"""Mettle: layer-centric distillation beside two frozen backbones, and meta-token injection for dense tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.base import Adapter, Fused
from fastav.adapters.config import MettleConfig
from fastav.adapters.distillation import PoolingWeights, matrices
from fastav.adapters.groups import group_widths
from fastav.backbones import FrozenBackbone


class MettleAdapter(Adapter):
    """Distil every layer's tokens of both backbones into meta-tokens and average them over layers.

    For each tap: its tokens distilled into K meta-tokens (:class:`LayerCentricDistillation`); then token fusion,
    ``Z = mean_l (norm(T_l) U_l + b_l)``, for the visual and the audio layers each. No gradient enters the backbones.

    For dense tasks, ``inject_stages="stages"`` distils the last layers alone and injects their meta-tokens into the
    visual features of earlier stages (:class:`Injection`), which the output then holds as ``features``.

    Args:
        visual: the visual backbone: a timm or Hugging Face transformer, or a :class:`FrozenBackbone`.
        audio: the audio backbone, likewise.
        config: a :class:`MettleConfig`; None takes its defaults, which are good for any pair.

    Example:
        >>> adapter = fastav.MettleAdapter(vit, whisper_encoder)
        >>> out = adapter(frames, log_mel)  # (B, T, 3, H, W) and (B, T, mel, time)
        >>> out.visual.shape, out.audio.shape  # both (B, T, K, W)
    """

    config_class = MettleConfig
    config: MettleConfig

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        config: MettleConfig | None = None,
    ) -> None:
        super().__init__(visual, audio, config)
        sizes, width = group_widths(self.groups, self.distilled_widths), self.config.width
        self.fusion_weights = matrices(sizes, lambda d: torch.randn(d, width) * d**-0.5)
        self.fusion_biases = matrices(sizes, lambda d: torch.zeros(width))

    def _fuse(
        self, pooled: list[Tensor], taps: list[Tensor], weights: PoolingWeights, outward: list[Tensor] | None
    ) -> Fused:
        tokens = self.distillation.finish(pooled, outward)
        visual, audio = (self._mean(tokens, part) for part in (slice(self.num_visual), slice(self.num_visual, None)))
        return Fused(visual, audio, visual.new_zeros(()))

    def _mean(self, tokens: Sequence[Tensor], layers: slice) -> Tensor:
        """Some layers' tokens brought to the common width and averaged: (B, K, W)."""
        groups = self.groups[layers]
        return ops.fuse(
            tokens[layers],
            [self.fusion_weights[group] for group in groups],
            [self.fusion_biases[group] for group in groups],
            norm=self.config.norm,
            eps=self.config.eps,
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the queries, the standardisation's affine and the biases: weight decay should leave them alone."""
        kinds = ("meta_tokens", "standardization", "biases", "gates")
        return {name for name, _ in self.named_parameters() if any(kind in name for kind in kinds)}

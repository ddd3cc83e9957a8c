"""Mettle: layer-centric distillation beside two frozen backbones, for tasks that decide per segment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.base import Adapter
from fastav.adapters.config import MettleConfig
from fastav.adapters.distillation import LayerCentricDistillation
from fastav.adapters.groups import group_widths, parameter_groups
from fastav.backbones import FrozenBackbone


class MettleAdapter(Adapter):
    """Distil every layer's tokens of both backbones into meta-tokens and average them over layers.

    For each tap: its tokens distilled into K meta-tokens (:class:`LayerCentricDistillation`); then token fusion,
    ``Z = mean_l (norm(T_l) U_l + b_l)``, for the visual and the audio layers each. No gradient enters the backbones.

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
        widths = self.visual.widths + self.audio.widths
        self.groups = parameter_groups(self.config.share, self.visual, self.audio)
        self.distillation = LayerCentricDistillation(widths, self.groups, self.config)
        sizes = group_widths(self.groups, widths)
        self.fusion_weights = nn.ParameterList(nn.Parameter(torch.randn(d, self.config.width) * d**-0.5) for d in sizes)
        self.fusion_biases = nn.ParameterList(nn.Parameter(torch.zeros(self.config.width)) for _ in sizes)

    def _finish(self, pooled: list[Tensor], outward: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.distillation.finish(pooled, outward)
        layers = len(self.visual.widths)
        visual, audio = self._fuse(tokens, slice(layers)), self._fuse(tokens, slice(layers, None))
        return visual, audio, visual.new_zeros(())

    def _fuse(self, tokens: Sequence[Tensor], layers: slice) -> Tensor:
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
        kinds = ("meta_tokens", "standardization", "fusion_biases")
        return {name for name, _ in self.named_parameters() if any(kind in name for kind in kinds)}

"""MoLT: latent tokens of late layers, within each modality and across both, routed and fused token by token."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.base import Adapter, Fused
from fastav.adapters.config import MoLTConfig
from fastav.adapters.distillation import PoolingWeights, matrices
from fastav.adapters.groups import group_widths
from fastav.backbones import FrozenBackbone


class MoLTAdapter(Adapter):
    """Distil late layers' tokens into latent tokens, let each modality ask the other's layers, route and fuse.

    For each late layer l of each modality, with W the common width:

    - uni-modal tokens ``U_l``: the tap distilled into K latent tokens (:class:`LayerCentricDistillation`), and
      ``y^U_l = norm(U_l) W^U_l + b^U_l``;
    - the other modality's summary ``s``: the mean of its ``y^U`` over layers, (B, K, W);
    - cross-modal tokens ``X_l = o + act(o W^v_l) W^o_l`` with ``o = distill(x_l, c_l + norm(s) C_l)``: the queries
      differ per sample and ask this layer for what the other modality has; ``y^X_l = norm(X_l) W^X_l + b^X_l``;
    - router ``r_l = softmax([mean y^U_l; mean y^X_l] R_l)`` over the two kinds, means over the K tokens, and
      ``y_l = r_u y^U_l + r_x y^X_l``;
    - token fusion ``alpha_l = softmax_l(g . y_l / sqrt(W))`` for each token, ``Z = sum_l alpha_l y_l``.

    ``aux_loss`` is ``aux_weight`` times the orthogonality of all ``y^U_l`` and ``y^X_l``. The output's ``router`` and
    ``fusion`` show the weights. All layers of both modalities are two ``distill`` calls.

    Args:
        visual: the visual backbone: a timm or Hugging Face transformer, or a :class:`FrozenBackbone`.
        audio: the audio backbone, likewise.
        config: a :class:`MoLTConfig`; None takes its defaults, which are good for any pair.

    Example:
        >>> adapter = fastav.MoLTAdapter(vit, whisper_encoder)
        >>> out = adapter(frames, log_mel)  # (B, T, 3, H, W) and (B, T, mel, time)
        >>> out.router.shape, out.fusion[0].shape  # (B, T, L, 2) and (B, T, K, L_visual)
    """

    config_class = MoLTConfig
    config: MoLTConfig

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        config: MoLTConfig | None = None,
    ) -> None:
        super().__init__(visual, audio, config)
        k, w, r = self.config.num_tokens, self.config.width, self.config.rank
        sizes = group_widths(self.groups, self.distilled_widths)
        # Queries of unit scale, as the uni-modal ones; the condition starts at the same scale.
        self.cross_tokens = matrices(sizes, lambda d: torch.randn(k, d))
        self.cross_conditions = matrices(sizes, lambda d: torch.randn(w, d) * w**-0.5)
        self.cross_values = matrices(sizes, lambda d: torch.randn(d, r) * d**-0.5)
        self.cross_outputs = matrices(sizes, lambda d: torch.zeros(r, d))
        self.uni_weights = matrices(sizes, lambda d: torch.randn(d, w) * d**-0.5)
        self.uni_biases = matrices(sizes, lambda d: torch.zeros(w))
        self.cross_weights = matrices(sizes, lambda d: torch.randn(d, w) * d**-0.5)
        self.cross_biases = matrices(sizes, lambda d: torch.zeros(w))
        # The routers start undecided, and so do the gates: the mean over layers.
        self.routers = nn.Parameter(torch.zeros(len(self.groups), 2 * w, 2))
        self.visual_gate = nn.Parameter(torch.zeros(w))
        self.audio_gate = nn.Parameter(torch.zeros(w))

    def _fuse(
        self, pooled: list[Tensor], taps: list[Tensor], weights: PoolingWeights, outward: list[Tensor] | None
    ) -> Fused:
        config, layers, of_taps = self.config, self.num_visual, self.distillation.of_taps
        uni = self.distillation.finish(pooled, outward)
        y_uni = self._to_width(uni, self.uni_weights, self.uni_biases)  # (L, B, K, W)
        asking = self._summaries(y_uni)
        queries = ops.project(
            asking, of_taps(self.cross_conditions), norm="layer", eps=config.eps,
            residuals=of_taps(self.cross_tokens),
        )  # fmt: skip
        found = self.distillation.pool(taps, weights._replace(queries=queries))
        inner = ops.project(found, of_taps(self.cross_values), activation=config.activation)
        cross = ops.project(inner, of_taps(self.cross_outputs), residuals=found)
        y_cross = self._to_width(cross, self.cross_weights, self.cross_biases)
        both = torch.stack([y_uni, y_cross])  # (2, L, B, K, W)
        router = self._route(both)
        mixed = torch.einsum("lbk,klbtw->lbtw", router, both)
        gates = zip(mixed.split([layers, len(mixed) - layers]), (self.visual_gate, self.audio_gate), strict=True)
        (visual, visual_shares), (audio, audio_shares) = (_fuse_layers(part, gate) for part, gate in gates)
        aux_loss = config.aux_weight * ops.orthogonality(both.flatten(0, 1))
        return Fused(visual, audio, aux_loss, router.transpose(0, 1), (visual_shares, audio_shares))

    def _to_width(self, tokens: Sequence[Tensor], weights: nn.ParameterList, biases: nn.ParameterList) -> Tensor:
        of_taps = self.distillation.of_taps
        return ops.project(
            tokens,
            of_taps(weights),
            of_taps(biases),
            norm=self.config.norm,
            eps=self.config.eps,
            stack=True,
        )

    def _summaries(self, y_uni: Tensor) -> list[Tensor]:
        """For each tap, what the other modality has: (B, K, W), the mean of its layers."""
        visual, audio = (part.mean(0) for part in y_uni.split([self.num_visual, len(y_uni) - self.num_visual]))
        return [audio] * self.num_visual + [visual] * (len(y_uni) - self.num_visual)

    def _route(self, both: Tensor) -> Tensor:
        """The weights of the two kinds of tokens in each layer: (2, L, B, K, W) -> (L, B, 2)."""
        seen = torch.cat(both.mean(3).unbind(), -1)  # (L, B, 2 W)
        soft = torch.bmm(seen, self.routers).softmax(-1)
        if self.config.router == "soft":
            return soft
        # The heavier kind alone, with the gradient of the softmax.
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return hard + soft - soft.detach()

    def no_weight_decay(self) -> set[str]:
        """Names of queries, biases, gates and the standardisation's affine: weight decay should leave them alone."""
        kinds = ("meta_tokens", "standardization", "cross_tokens", "biases", "gate")
        return {name for name, _ in self.named_parameters() if any(kind in name for kind in kinds)}


def _fuse_layers(tokens: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Mix layers token by token: (L, B, K, W) and (W,) -> the mix (B, K, W) and each layer's share (B, K, L)."""
    shares = (tokens @ (gate / sqrt(len(gate)))).softmax(0)
    return (shares[..., None] * tokens).sum(0), shares.movedim(0, -1)

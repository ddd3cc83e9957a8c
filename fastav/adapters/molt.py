"""MoLT: latent tokens of late layers, within each modality and across both, routed and fused token by token."""

from collections.abc import Sequence

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
    - cross-modal tokens ``X_l = distill(x_l, c_l + norm(s) C_l)``: the queries differ per sample and ask this layer for
      what the other modality has; ``y^X_l = norm(X_l) W^X_l + b^X_l``;
    - router ``r_l = softmax([mean y^U_l; mean y^X_l] R_l)`` over the two kinds, means over the K tokens, and
      ``y_l = r_u y^U_l + r_x y^X_l``;
    - token fusion ``alpha_l = softmax_l(g . y_l / sqrt(W))`` for each token, over the layers of its modality, whose g
      is one vector, and ``Z = sum_l alpha_l y_l``.

    ``aux_loss`` is ``aux_weight`` times the orthogonality of each layer's 2 K tokens ``[y^U_l; y^X_l]``. The
    output's ``router`` and ``fusion`` show the weights. All layers of both modalities are two ``distill`` calls.

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
    pools_again = True
    config: MoLTConfig
    mean: Tensor
    apart: Tensor
    other: Tensor

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        config: MoLTConfig | None = None,
    ) -> None:
        super().__init__(visual, audio, config)
        k, w, layers = self.config.num_tokens, self.config.width, len(self.distilled_widths)
        sizes = group_widths(self.groups, self.distilled_widths)
        # Queries of unit scale, as the uni-modal ones; the condition starts at the same scale.
        self.cross_tokens = matrices(sizes, lambda d: torch.randn(k, d))
        self.cross_conditions = matrices(sizes, lambda d: torch.randn(w, d) * w**-0.5)
        self.uni_weights = matrices(sizes, lambda d: torch.randn(d, w) * d**-0.5)
        self.uni_biases = matrices(sizes, lambda d: torch.zeros(w))
        self.cross_weights = matrices(sizes, lambda d: torch.randn(d, w) * d**-0.5)
        self.cross_biases = matrices(sizes, lambda d: torch.zeros(w))
        # The routers start undecided, and so do the gates, g / sqrt(W): at the mean over layers.
        self.routers = nn.Parameter(torch.zeros(layers, 2, w, 2))
        self.gates = nn.Parameter(torch.zeros(w, 2))
        self.register_buffer("mean", torch.full((k, 1, 1), 1 / k), persistent=False)
        # Which modality each layer is of, as what is added to the logits of its fusion: (L, 1, 2).
        own = torch.tensor([[layer < self.num_visual, layer >= self.num_visual] for layer in range(layers)])
        self.register_buffer(
            "apart", torch.zeros(layers, 1, 2).masked_fill(~own[:, None], -torch.inf), persistent=False
        )
        # Row l averages the layers of the modality that layer l is not of.
        other = (own[:, :1] != own[:, 0]).float()
        self.register_buffer("other", other / other.sum(1, keepdim=True), persistent=False)

    def _fuse(
        self, pooled: list[Tensor], taps: list[Tensor], weights: PoolingWeights, outward: list[Tensor] | None
    ) -> Fused:
        uni = self.distillation.finish(pooled, outward)
        with torch.autocast(taps[0].device.type, enabled=False):  # would round what is float32 everywhere else
            y_uni = self._to_width(uni, self.uni_weights, self.uni_biases)  # (L, B, K, W)
            cross = self._ask(taps, weights, y_uni)
            y_cross = self._to_width(cross, self.cross_weights, self.cross_biases)
            both = torch.stack([y_uni, y_cross], 2)  # (L, B, 2, K, W)
            router = self._route(both)
            routed = torch.bmm(router.flatten(0, 1)[:, None], both.flatten(0, 1).flatten(2))  # (L B, 1, K W)
            tokens, shares = self._mix(routed.view(y_uni.shape))
        samples = both.flatten(2, 3).flatten(0, 1)  # of all layers, which have one size: no list of layers to put back
        aux_loss = self.config.aux_weight * ops.orthogonality([samples])
        fusion = shares[:, :, 0, : self.num_visual], shares[:, :, 1, self.num_visual :]
        visual, audio = tokens.unbind(2)
        return Fused(visual, audio, aux_loss, router.transpose(0, 1), fusion)

    def _to_width(self, tokens: Sequence[Tensor], weights: nn.ParameterList, biases: nn.ParameterList) -> Tensor:
        of_taps, config = self.distillation.of_taps, self.config
        return ops.project(tokens, of_taps(weights), of_taps(biases), norm=config.norm, eps=config.eps, stack=True)

    def _ask(self, taps: list[Tensor], weights: PoolingWeights, y_uni: Tensor) -> list[Tensor]:
        """The cross-modal tokens: every layer asked for what the other modality has, (B, K, D_l) each."""
        of_taps = self.distillation.of_taps
        summaries = (self.other @ y_uni.flatten(1)).view(y_uni.shape)  # for each layer, the other modality's
        queries = ops.project(
            summaries.unbind(),
            of_taps(self.cross_conditions),
            norm="layer",
            eps=self.config.eps,
            residuals=of_taps(self.cross_tokens),
        )
        return self.distillation.pool(taps, weights._replace(queries=queries))

    def _route(self, both: Tensor) -> Tensor:
        """The weights of the two kinds of tokens in each layer: (L, B, 2, K, W) -> (L, B, 2)."""
        # The mean over tokens is part of the product: the matrix of each kind K times, over K.
        each = (self.routers[:, :, None] * self.mean).flatten(1, 3)  # (L, 2 K W, 2)
        soft = torch.bmm(both.flatten(2), each).softmax(-1)
        return soft if self.config.router == "soft" else _Heaviest.apply(soft)

    def _mix(self, routed: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse over layers token by token.

        Args:
            routed: (L, B, K, W), the layers of both modalities.

        Returns:
            (B, K, 2, W), the visual and the audio tokens, and (B, K, 2, L), each layer's share.
        """
        layers, batch, k, w = routed.shape
        rows = routed.flatten(1, 2)  # (L, B K, W)
        logits = torch.baddbmm(self.apart, rows, self.gates.expand(layers, w, 2))
        shares = logits.softmax(0).movedim(0, -1)  # (B K, 2, L), zero for layers of the other modality
        tokens = torch.bmm(shares, rows.transpose(0, 1))
        return tokens.unflatten(0, (batch, k)), shares.unflatten(0, (batch, k))

    def no_weight_decay(self) -> set[str]:
        """Names of queries, biases, gates and the standardisation's affine: weight decay should leave them alone."""
        kinds = ("meta_tokens", "standardization", "cross_tokens", "biases", "gates")
        return {name for name, _ in self.named_parameters() if any(kind in name for kind in kinds)}


class _Heaviest(torch.autograd.Function):
    """One for the largest of the last dimension and zero for the others, with the gradient of doing nothing."""

    @staticmethod
    def forward(ctx, soft):
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx, grad):
        return grad

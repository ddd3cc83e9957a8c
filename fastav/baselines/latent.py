"""LAVISH's adapter: latent tokens carry what one modality has into the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastav.baselines.bottleneck import Bottleneck


class LatentAttention(nn.Module):
    """What the other modality adds to each token by way of K latent ones.

    ``l = tokens + softmax(tokens y^T) y`` and ``x + g softmax(x l^T) l``: one head, no projections, no scale. The gate
    g starts at zero.

    Args:
        width: C of both modalities' tokens.
        num_tokens: K.
        zeros: start the latent tokens at zero, as the peers do for segmentation and questions, where all K of them get
            the same gradient and stay one token; otherwise uniform in [0, 1), as they do for localisation.
    """

    def __init__(self, width: int, num_tokens: int, *, zeros: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(num_tokens, width) if zeros else torch.rand(num_tokens, width))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, N, C) and the other modality's (B, M, C) -> (B, N, C)."""
        latent = self.tokens + (self.tokens @ y.transpose(1, 2)).softmax(-1) @ y
        return x + self.gate * ((x @ latent.transpose(1, 2)).softmax(-1) @ latent)


class LavishAdapter(nn.Module):
    """LAVISH's adapter (Lin et al., CVPR 2023): :class:`LatentAttention`, then :class:`Bottleneck`.

    Four stand in each block, two a modality: beside the attention and beside the MLP. On AVE they have K = 2, ratio 8,
    two groups and batch norm.

    Args:
        width: C of both modalities' tokens, which one backbone makes.
        num_tokens: K; see :class:`LatentAttention`, as for ``zeros``.
        ratio: see :class:`Bottleneck`, as for the next two.
        groups: of its maps.
        batch_norm: whether it has them.
        zeros: how the latent tokens start.
    """

    def __init__(
        self,
        width: int,
        *,
        num_tokens: int = 2,
        ratio: int = 8,
        groups: int = 2,
        batch_norm: bool = True,
        zeros: bool = False,
    ) -> None:
        super().__init__()
        self.attention = LatentAttention(width, num_tokens, zeros=zeros)
        self.bottleneck = Bottleneck(width, ratio=ratio, groups=groups, batch_norm=batch_norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to (B, N, C), given the other modality's (B, M, C)."""
        return self.bottleneck(self.attention(x, y))

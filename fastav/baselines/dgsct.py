"""DG-SCT's adapter: the other modality as a prompt that weighs channels and places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastav.baselines.bottleneck import Bottleneck
from fastav.baselines.latent import LatentAttention


class DGSCTAdapter(nn.Module):
    """DG-SCT's adapter (Duan et al., NeurIPS 2023): attend to the other modality, weigh channels and places by it.

    Four stand beside each pair of blocks of the two backbones. With ``y'`` (B, N, C) the other modality after a map of
    its tokens and one of its channels, and ``s`` its mean over N::

        x  = LatentAttention(x, y')
        ch = sigmoid(Wc relu(Wb mean_n(relu(Wa1 s) relu(Wv1 x))))                  (B, 1, C)
        sp = sigmoid(e),  e = Ws (relu(Wv2 (x (1 + ch))) relu(Wa2 s))              (B, N, 1)
        x (alpha ch + beta sp + 1 - alpha)  ->  Bottleneck

    Args:
        width: C.
        tokens: N.
        other_width: D.
        other_tokens: M.
        num_tokens: K, latent tokens.
        ratio: see :class:`Bottleneck`; so are the next two.
        groups: of its maps.
        batch_norm: whether it has them.
        alpha: how much channels are weighed.
        beta: how much places are weighed.
        zeros: see :class:`LatentAttention`.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        other_width: int,
        other_tokens: int,
        *,
        num_tokens: int = 32,
        ratio: int = 8,
        groups: int = 2,
        batch_norm: bool = True,
        alpha: float = 0.3,
        beta: float = 0.05,
        zeros: bool = False,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.to_tokens = nn.Linear(other_tokens, tokens)
        self.to_width = nn.Linear(other_width, width)
        self.attention = LatentAttention(width, num_tokens, zeros=zeros)
        self.channel_prompt, self.channel_own = nn.Linear(width, width), nn.Linear(width, width)
        self.channel = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))
        self.place_prompt, self.place_own = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.place = nn.Linear(width // 2, 1)
        self.bottleneck = Bottleneck(width, ratio=ratio, groups=groups, batch_norm=batch_norm)
        # The released weights hold a scalar that nothing reads; counts are compared with theirs.
        self.unread = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) and (B, M, D) -> what is added, (B, N, C), and a distribution over places, (B, 1, N)."""
        prompt = self.to_width(self.to_tokens(y.transpose(1, 2)).transpose(1, 2))
        x = self.attention(x, prompt)
        mean = prompt.mean(1, keepdim=True)
        agreed = (self.channel_prompt(mean).relu() * self.channel_own(x).relu()).mean(1, keepdim=True)
        channels = self.channel(agreed).sigmoid()
        weighed = x * (1 + channels)
        places = self.place(self.place_own(weighed).relu() * self.place_prompt(mean).relu())  # (B, N, 1)
        x = x * (self.alpha * channels + self.beta * places.sigmoid() + 1 - self.alpha)
        return self.bottleneck(x), places.tanh().softmax(1).transpose(1, 2)

"""Injection: dense features attend to the few tokens that were distilled beside the backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.config import AdapterConfig


class Injection(nn.Module):
    """``F'_s = x_s + g_s softmax(tau norm(x_s) k_s^T) v_s`` for each stage s, beside the backbone.

    With M (B, M, W) the memory, ``k_s = norm(M) W^k_s`` and ``v_s = norm(M) W^v_s`` in the stage's width D_s,
    ``tau = D_s ** -0.5``, and g_s a learned gate. The features ``x_s`` are taps: no gradient enters the backbone.

    All stages' matrices stand side by side in one parameter each, so that no number of stages takes more launches: the
    gates, one ``project`` and one ``inject`` call.

    Args:
        widths: D_s of each stage.
        config: the width, norm and initial gate.
    """

    owns: Tensor

    def __init__(self, widths: Sequence[int], config: AdapterConfig) -> None:
        super().__init__()
        self.widths, self.norm, self.eps = tuple(widths), config.norm, config.eps
        total = sum(widths)
        self.to_keys = nn.Parameter(torch.randn(config.width, total) * config.width**-0.5)
        self.to_values = nn.Parameter(torch.randn(config.width, total) * config.width**-0.5)
        self.gates = nn.Parameter(torch.full((len(widths),), float(config.inject_gate)))
        # Ones in the columns of each stage: (S, total).
        owns = torch.eye(len(widths)).repeat_interleave(torch.tensor(widths), 1)
        self.register_buffer("owns", owns, persistent=False)

    def forward(self, features: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
        """Inject the memory (B, M, W) into features (B, N_s, D_s): as many of the same shapes and dtype."""
        gated = self.to_values * (self.gates[:, None] * self.owns).sum(0)  # not a matmul, which autocast would round
        keys, values = ops.project(
            [memory, memory], [self.to_keys, gated], norm="layer", eps=self.eps, stack=True
        ).unbind()
        return ops.inject(
            features, keys.split(self.widths, -1), values.split(self.widths, -1), norm=self.norm, eps=self.eps
        )

"""The bottleneck that the peers put at every attention and every MLP of a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastav.baselines.checkpointing import BatchNorm


class Bottleneck(nn.Module):
    """Norm, grouped map down, activation, grouped map up, norm, gate: ``x -> g LN(BN(relu(BN(LN(x) D)) U))``.

    By itself it is the naive adapter in the form that LAVISH's authors compare with, each modality for itself; where it
    stands, beside a branch or behind it as in Houlsby et al. (2019), is :class:`Naive`'s to say. It adds nothing at the
    start: the gate is zero.

    Args:
        width: C, of what goes in and comes out.
        ratio: C over the inner width.
        groups: of both maps; each of them divides its channels among so many smaller ones.
        batch_norm: whether the inner and the outer channels are batch-normalised, over B and N.
        activate: whether there is a ReLU between the maps. The naive adapter that was run on AVE had none.

    Raises:
        ValueError: a ratio or groups that do not divide the width.
    """

    def __init__(
        self, width: int, *, ratio: int = 8, groups: int = 2, batch_norm: bool = True, activate: bool = True
    ) -> None:
        super().__init__()
        if ratio < 1 or groups < 1 or width % ratio or width // ratio % groups:
            raise ValueError(f"ratio={ratio} and groups={groups} must divide the width {width} and {width}/{ratio}")
        inner = width // ratio
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.down = nn.Conv1d(width, inner, 1, groups=groups, bias=False)
        self.up = nn.Conv1d(inner, width, 1, groups=groups, bias=False)
        self.norm_down = BatchNorm(inner) if batch_norm else nn.Identity()
        self.norm_up = BatchNorm(width) if batch_norm else nn.Identity()
        self.activation = nn.ReLU() if activate else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to (B, N, C)."""
        inner = self.activation(self.norm_down(self.down(self.norm_before(x).transpose(1, 2))))
        return self.gate * self.norm_after(self.norm_up(self.up(inner)).transpose(1, 2))

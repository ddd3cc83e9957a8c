"""Standardised taps: every channel centred and scaled by statistics of the training taps, then a learned affine."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.adapters.groups import group_widths


class TapStandardization(nn.Module):
    """The affine part of the taps' norm: ``(z - mean) / std * gain + offset`` as one weight and bias a channel.

    They are ``distill``'s weight and bias, which a kernel folds into queries and outputs: no standardised tap need ever
    be written. The statistics are measured by :meth:`measure` over the first training batches and saved with the
    adapter.

    All taps' channels stand in one flat vector, tap after tap, so that no number of taps takes more launches.

    Args:
        widths: D of each tap.
        groups: for each tap, the index of the learned affine it uses; taps of one group have one width.
        norm: the taps' row norm, see :func:`fastav.ops.distill`.
        eps: its epsilon, also added to the variances.
        batches: how many batches to measure; 0 learns the affine alone, around the identity.
    """

    spread: Tensor | None
    mean: Tensor
    mean_square: Tensor
    inverse_std: Tensor
    tokens: Tensor
    measured: Tensor

    def __init__(self, widths: Sequence[int], groups: Sequence[int], norm: str, eps: float, batches: int) -> None:
        super().__init__()
        self.widths, self.norm, self.eps, self.batches = tuple(widths), norm, eps, batches
        starts = torch.tensor([0, *group_widths(groups, widths)]).cumsum(0)
        self.gain = nn.Parameter(torch.ones(int(starts[-1])))
        self.offset = nn.Parameter(torch.zeros(int(starts[-1])))
        # Where each channel of each tap finds its gain and offset; not needed where every tap has its own.
        spread = torch.cat([starts[g] + torch.arange(w) for g, w in zip(groups, widths, strict=True)])
        self.register_buffer("spread", None if len(set(groups)) == len(groups) else spread, persistent=False)
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("mean_square", torch.ones(sum(widths)))
        self.register_buffer("inverse_std", torch.ones(sum(widths)))
        self.register_buffer("tokens", torch.zeros(len(widths)))
        self.register_buffer("measured", torch.zeros((), dtype=torch.long))
        # `measuring` is `measured < batches` in Python: reading the buffer would make the host wait for the device.
        self.measuring = batches > 0
        self.register_load_state_dict_post_hook(lambda module, _: module._resume())

    def _resume(self) -> None:
        self.measuring = int(self.measured) < self.batches

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weight and bias of every tap's norm: two lists of (D_l,) tensors."""
        gain, offset = (p if self.spread is None else p[self.spread] for p in (self.gain, self.offset))
        weight = gain * self.inverse_std
        bias = torch.addcmul(offset, self.mean, weight, value=-1)
        return list(weight.split(self.widths)), list(bias.split(self.widths))

    @torch.no_grad()
    def measure(self, taps: Sequence[Tensor]) -> None:
        """Take one more batch of taps into the statistics, of all processes together where there are several.

        This is the one place that goes through the taps one by one; it runs for the first batches only.
        """
        sizes, means, squares = [], [], []
        for tap in taps:
            z = tap.to(self.mean.dtype).reshape(-1, tap.shape[-1])
            if self.norm != "none":
                z = (F.layer_norm if self.norm == "layer" else F.rms_norm)(z, z.shape[-1:], eps=self.eps)
            sizes.append(float(z.shape[0]))
            means.append(z.mean(0))
            squares.append(z.square().mean(0))
        spread = torch.tensor(self.widths, device=self.mean.device)
        size = torch.tensor(sizes, dtype=self.mean.dtype, device=self.mean.device)
        sums = torch.stack([torch.cat(means), torch.cat(squares)]) * size.repeat_interleave(spread)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(size)
        before = self.tokens.repeat_interleave(spread)
        total = (self.tokens + size).repeat_interleave(spread)
        self.mean.copy_((before * self.mean + sums[0]) / total)
        self.mean_square.copy_((before * self.mean_square + sums[1]) / total)
        variance = (self.mean_square - self.mean.square()).clamp_min(0)
        self.inverse_std.copy_(torch.rsqrt(variance + self.eps))
        self.tokens += size
        self.measured += 1
        self._resume()

"""Standardised taps: every channel centred and scaled by statistics of the training taps, then a learned affine."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class TapStandardization(nn.Module):
    """The affine part of the taps' norm: ``(z - mean) / std * gain + offset`` as one weight and bias a channel.

    They are ``distill``'s weight and bias, which a kernel folds into queries and outputs: no standardised tap need ever
    be written. The statistics are measured by :meth:`measure` over the first training batches and saved with what reads
    the taps, an adapter or a baseline's read-out.

    All taps' channels stand in one flat vector, tap after tap, so that no number of taps takes more launches.

    Args:
        widths: D of each tap.
        groups: for each tap, the index of the learned affine it uses, counted in order of first use; taps of one group
            have one width.
        norm: the taps' row norm, see :func:`fastav.ops.distill`.
        eps: its epsilon, also added to the variances.
        batches: how many batches to measure.
        follow: whether to go on measuring after these, for taps that move while they are trained: as a running mean in
            which a new batch has a share of one in so many.
    """

    spread: Tensor | None
    mean: Tensor
    variance: Tensor
    inverse_std: Tensor
    shift: Tensor
    zeros: Tensor
    tokens: Tensor
    measured: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        groups: Sequence[int],
        norm: str,
        eps: float,
        batches: int,
        *,
        follow: bool = False,
    ) -> None:
        super().__init__()
        self.widths, self.norm, self.eps, self.batches, self.follow = tuple(widths), norm, eps, batches, follow
        starts: dict[int, int] = {}
        size = 0
        for group, width in zip(groups, widths, strict=True):
            if group not in starts:
                starts[group] = size
                size += width
        self.gain = nn.Parameter(torch.ones(size))
        self.offset = nn.Parameter(torch.zeros(size))
        # Where each channel of each tap finds its gain and offset; not needed where every tap has its own.
        spread = torch.cat([starts[g] + torch.arange(w) for g, w in zip(groups, widths, strict=True)])
        self.register_buffer("spread", None if len(set(groups)) == len(groups) else spread, persistent=False)
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("variance", torch.ones(sum(widths)))
        self.register_buffer("inverse_std", torch.ones(sum(widths)))
        # -mean / std and zeros: with them weight and bias are one launch.
        self.register_buffer("shift", torch.zeros(sum(widths)), persistent=False)
        self.register_buffer("zeros", torch.zeros(sum(widths)), persistent=False)
        self.register_buffer("tokens", torch.zeros(len(widths), dtype=torch.long))
        self.register_buffer("measured", torch.zeros((), dtype=torch.long))
        # `complete` is `measured >= batches` in Python: reading the buffer would make the host wait for the device.
        self.complete = False
        self.register_load_state_dict_post_hook(_resume)

    @property
    def measuring(self) -> bool:
        """Whether the next training batch is to be measured."""
        return self.follow or not self.complete

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weight and bias of every tap's norm: two lists of (D_l,) tensors."""
        gain, offset = (p if self.spread is None else p[self.spread] for p in (self.gain, self.offset))
        inverse_std, shift = self.inverse_std, self.shift
        if self.training and self.measuring:  # the next batch writes to them, maybe before this one's backward
            inverse_std, shift = inverse_std.clone(), shift.clone()
        parts = _Affine.apply(gain, offset, inverse_std, shift, self.zeros, self.widths)
        return list(parts[: len(self.widths)]), list(parts[len(self.widths) :])

    @torch.no_grad()
    def measure(self, taps: Sequence[Tensor]) -> None:
        """Take one more batch of taps into the statistics, of all processes together where there are several.

        Means and variances are merged, never sums of squares: the channels that need standardising most have means far
        larger than their spread. This is the one place that goes through the taps one by one; all processes must take
        part. After the first batches the host does not wait for the device here.

        Raises:
            ValueError: of the first batches, a tap holds numbers that are not finite, which would stay in the
                statistics for good.
        """
        mean, variance = self._moments(taps) if taps else torch.zeros_like(self.mean, dtype=self._wide()).expand(2, -1)
        counts = [len(tap) * tap.shape[1] for tap in taps] or [0] * len(self.widths)
        if dist.is_available() and dist.is_initialized():
            mean, variance, counts = self._joint(mean, variance, counts)
        if not any(counts):
            return
        if self.complete:
            share: float | Tensor = 1 / self.batches
        else:
            size = torch.tensor(counts, device=mean.device)
            self.tokens += size
            share = (size / self.tokens).repeat_interleave(self._widths(mean.device))  # of this batch among all so far
        step = mean - self.mean
        variance = self.variance + share * (variance - self.variance + (1 - share) * step.square())
        self.mean.add_(share * step)
        self.variance.copy_(variance)
        self.inverse_std.copy_(torch.rsqrt(variance + self.eps))
        self.measured += 1
        _update(self)

    def _joint(self, mean: Tensor, variance: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Mean, variance and numbers of tokens of all processes' batches together."""
        own = torch.tensor(counts, device=mean.device)
        size = own.clone()
        dist.all_reduce(size)
        share = (own.to(mean.dtype) / size.clamp(min=1)).repeat_interleave(self._widths(mean.device))
        joint = mean * share
        dist.all_reduce(joint)
        variance = (variance + (mean - joint).square()) * share
        dist.all_reduce(variance)
        return joint, variance, size.tolist()

    def _widths(self, device: torch.device) -> Tensor:
        return torch.tensor(self.widths, device=device)

    def _moments(self, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance of all channels over a batch's tokens."""
        moments = [torch.var_mean(self._rows(tap), 0, correction=0) for tap in taps]
        variance, mean = (torch.cat(parts) for parts in zip(*moments, strict=True))
        if not self.complete and not torch.isfinite(variance).all():
            bad = next(i for i, (v, _) in enumerate(moments) if not torch.isfinite(v).all())
            raise ValueError(f"tap {bad} holds NaN or infinite numbers; look at the backbone's input and its dtype")
        return mean.to(self._wide()), variance.to(self._wide())

    def _wide(self) -> torch.dtype:
        """What moments are exchanged in: one dtype in all processes, also in those without taps."""
        return torch.promote_types(self.mean.dtype, torch.float32)

    def _rows(self, tap: Tensor) -> Tensor:
        """All of a tap's tokens, normalised, (rows, D), in float32 or wider."""
        z = tap.to(torch.promote_types(tap.dtype, torch.float32)).reshape(-1, tap.shape[-1])
        if self.norm == "none":
            return z
        return (F.layer_norm if self.norm == "layer" else F.rms_norm)(z, z.shape[-1:], eps=self.eps)


class _Affine(torch.autograd.Function):
    """``gain * inverse_std`` and ``gain * shift + offset``, cut into taps: one launch forward, three backward."""

    @staticmethod
    def forward(ctx, gain, offset, inverse_std, shift, zeros, widths):
        ctx.save_for_backward(inverse_std, shift)
        weight, bias = torch._foreach_addcmul([zeros, offset], [gain, gain], [inverse_std, shift])
        return *weight.split(widths), *bias.split(widths)

    @staticmethod
    def backward(ctx, *grads):
        inverse_std, shift = ctx.saved_tensors
        d_weight, d_bias = torch.cat(grads).view(2, -1)
        return torch.addcmul(d_weight * inverse_std, d_bias, shift), d_bias, None, None, None, None


def _update(module: TapStandardization) -> None:
    """Bring up to date what follows from the buffers, after a batch."""
    module.complete = module.complete or int(module.measured) >= module.batches
    torch.mul(module.mean, module.inverse_std, out=module.shift).neg_()


@torch.no_grad()
def _resume(module: TapStandardization, _: object) -> None:
    """The same after loading."""
    module.complete = False
    _update(module)

"""Distil: each tap's tokens pooled by attention with query rows; keys and values are the tap itself."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastav.reference._arithmetic import (
    Gradients,
    normalize,
    normalize_backward,
    outside_autocast,
    softmax_backward,
    sum_to,
    wide,
)


@outside_autocast
def distill(
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    *,
    scale: float | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
    weight: Sequence[Tensor] | None = None,
    bias: Sequence[Tensor] | None = None,
    key_mask: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """``softmax_n(scale q x_hat^T) x_hat`` for each tap, see :func:`fastav.ops.distill`."""
    return distill_forward(taps, queries, weight, bias, key_mask, scale=scale, norm=norm, eps=eps)[0]


@outside_autocast
def distill_forward(
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    weight: Sequence[Tensor] | None,
    bias: Sequence[Tensor] | None,
    key_mask: Sequence[Tensor] | None,
    *,
    scale: float | None,
    norm: str,
    eps: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of :func:`distill` and the log-sum-exp (B, R) of each tap's scores, -inf in a row without any key.

    Of the scores without what ``bias`` adds, which is the same for all keys and which the softmax does not see.
    """
    outputs, sums = [], []
    for i, (tap, query) in enumerate(zip(taps, queries, strict=True)):
        mask = None if key_mask is None else key_mask[i]
        w, b = (None if affine is None else affine[i] for affine in (weight, bias))
        x_hat = normalize(_attended(tap, mask).to(wide(tap, query)), norm, eps, w, b)  # (B, N, D)
        q = query.to(x_hat.dtype)
        scores = _scores(q, x_hat, mask, scale)  # (B, R, N)
        outputs.append((_attention(scores, mask) @ x_hat).to(query.dtype))
        constant = 0.0 if b is None else _scale(scale, tap) * (q @ b.to(q.dtype))
        sums.append(torch.logsumexp(scores, -1) - constant)
    return outputs, sums


@outside_autocast
def distill_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    weight: Sequence[Tensor] | None,
    bias: Sequence[Tensor] | None,
    key_mask: Sequence[Tensor] | None,
    *,
    scale: float | None,
    norm: str,
    eps: float,
    wanted: Collection[str],
) -> Gradients:
    """Gradients of :func:`distill` with respect to the lists ``wanted``, by name; ``kept`` is not needed here.

    The affine part ``x_hat = z w + b`` stays folded: ``b`` adds the same to every key of a row, so the softmax does not
    see it, and since the rows of ``ds``, the scores' gradient, sum to zero, ``dq = (ds z) w`` and
    ``dw = sum_r (p z)_r g_r + (ds z)_r q_r``.
    """
    found: Gradients = {name: [] for name in wanted}
    for i, (tap, query, grad) in enumerate(zip(taps, queries, grads, strict=True)):
        dtype = wide(tap, query)
        mask = None if key_mask is None else key_mask[i]
        w = tap.new_ones((), dtype=dtype) if weight is None else weight[i].to(dtype)
        x, q, g = _attended(tap, mask).to(dtype), query.to(dtype), grad.to(dtype)
        z = normalize(x, norm, eps)
        p = _attention(_scores(q * w, z, mask, scale), mask)
        ds = softmax_backward((g * w) @ z.mT, p, -1) * _scale(scale, tap)
        ds_z = ds @ z
        if "queries" in found:
            found["queries"].append(sum_to(ds_z * w, query))
        if weight is not None and "weight" in found:
            found["weight"].append(sum_to((p @ z) * g + ds_z * q, weight[i]))
        if bias is not None and "bias" in found:
            found["bias"].append(sum_to(p.sum(-1, keepdim=True) * g, bias[i]))
        if "taps" in found:
            d_z = (p.mT @ g + ds.mT @ q) * w
            found["taps"].append(_attended(normalize_backward(d_z, x, norm, eps), mask).to(tap.dtype))
    return found


def _attended(tap: Tensor, mask: Tensor | None) -> Tensor:
    """The tap with zeros for masked tokens, so that whatever a padded token holds, NaN too, has no effect."""
    return tap if mask is None else tap.masked_fill(~mask[..., None], 0.0)


def _scale(scale: float | None, tap: Tensor) -> float:
    return tap.shape[-1] ** -0.5 if scale is None else scale


def _scores(q: Tensor, x: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """``scale q x^T``, (B, R, N); -inf for masked keys."""
    # Tokens as the matrix's rows: with shared queries this is one product over the whole batch.
    scores = _scale(scale, x) * (x @ q.mT).mT
    return scores if mask is None else scores.masked_fill(~mask[:, None, :], -torch.inf)


def _attention(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys; all zeros in a row that has no key."""
    p = torch.softmax(scores, -1)
    return p if mask is None else p.masked_fill(~mask[:, None, :], 0.0)

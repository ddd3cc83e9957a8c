"""Inject: dense features attend to a few meta-tokens and add what they find."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastav.reference._arithmetic import (
    Gradients,
    normalize,
    normalize_backward,
    outside_autocast,
    softmax_backward,
    wide,
)


@outside_autocast
def inject(
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> list[Tensor]:
    """``features + softmax(scale norm(features) keys^T) values``, see :func:`fastav.ops.inject`."""
    outputs = []
    for x, k, v in zip(features, keys, values, strict=True):
        dtype = wide(x, k, v)
        tau = x.shape[-1] ** -0.5 if scale is None else scale
        p = torch.softmax(tau * normalize(x.to(dtype), norm, eps) @ k.to(dtype).mT, -1)  # (B, N, M)
        outputs.append((x + p @ v.to(dtype)).to(x.dtype))
    return outputs


@outside_autocast
def inject_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None,
    norm: str,
    eps: float,
    wanted: Collection[str],
) -> Gradients:
    """Gradients of :func:`inject` with respect to the lists ``wanted``, by name; ``kept`` is empty."""
    found: Gradients = {name: [] for name in wanted}
    for feature, key, value, grad in zip(features, keys, values, grads, strict=True):
        dtype = wide(feature, key, value)
        x, k, v, g = feature.to(dtype), key.to(dtype), value.to(dtype), grad.to(dtype)
        tau = x.shape[-1] ** -0.5 if scale is None else scale
        z = normalize(x, norm, eps)
        p = torch.softmax(tau * z @ k.mT, -1)
        ds = tau * softmax_backward(g @ v.mT, p, -1)
        if "keys" in found:
            found["keys"].append((ds.mT @ z).to(key.dtype))
        if "values" in found:
            found["values"].append((p.mT @ g).to(value.dtype))
        if "features" in found:
            found["features"].append((g + normalize_backward(ds @ k, x, norm, eps)).to(feature.dtype))
    return found

"""Project: each list entry's tokens, normalised, through its own matrix, with activation and residual."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastav.reference._arithmetic import (
    Gradients,
    flat_rows,
    normalize,
    normalize_backward,
    outside_autocast,
    sum_to,
    wide,
)


@outside_autocast
def project(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    norm: str = "none",
    eps: float = 1e-6,
    activation: str | None = None,
    residuals: Sequence[Tensor] | None = None,
    stack: bool = False,
) -> list[Tensor] | Tensor:
    """``activation(norm(tokens) weights + biases) + residuals``, see :func:`fastav.ops.project`."""
    outputs = []
    for i, (t, w) in enumerate(zip(tokens, weights, strict=True)):
        dtype = wide(t, w)
        y = normalize(t.to(dtype), norm, eps) @ w.to(dtype)
        if biases is not None:
            y = y + biases[i].to(dtype)
        if activation is not None:
            y = F.gelu(y) if activation == "gelu" else F.relu(y)
        if residuals is not None:
            y = y + residuals[i]
        outputs.append(y.to(t.dtype))
    return torch.stack(outputs) if stack else outputs


@outside_autocast
def project_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    residuals: Sequence[Tensor] | None,
    *,
    norm: str,
    eps: float,
    activation: str | None,
    stack: bool,
    wanted: Collection[str],
) -> Gradients:
    """Gradients of :func:`project` with respect to the lists ``wanted``, by name; ``kept`` is empty."""
    found: Gradients = {name: [] for name in wanted}
    for i, (t, weight, grad) in enumerate(zip(tokens, weights, grads[0] if stack else grads, strict=True)):
        dtype = wide(t, weight)
        x, w, g = t.to(dtype), weight.to(dtype), grad.to(dtype)
        z = normalize(x, norm, eps)
        if residuals is not None and "residuals" in found:
            found["residuals"].append(sum_to(g, residuals[i]))
        if activation is not None:
            y = z @ w if biases is None else z @ w + biases[i].to(dtype)
            g = g * (_gelu_slope(y) if activation == "gelu" else (y > 0))
        if biases is not None and "biases" in found:
            found["biases"].append(sum_to(g, biases[i]))
        if "weights" in found:
            found["weights"].append((flat_rows(z).mT @ flat_rows(g)).to(weight.dtype))
        if "tokens" in found:
            found["tokens"].append(normalize_backward(g @ w.mT, x, norm, eps).to(t.dtype))
    return found


def _gelu_slope(y: Tensor) -> Tensor:
    """Derivative of the exact GELU ``y Phi(y)``: ``Phi(y) + y phi(y)``, with the normal distribution and density."""
    return torch.special.ndtr(y) + y * torch.exp(-0.5 * y.square()) / (2 * torch.pi) ** 0.5

"""The five ops as people write them in PyTorch: layer by layer, everything in the first list's dtype.

And, beside them, what ``distill`` saves: attention that projects every token, see :func:`attend`.

A yardstick twice over: for time, and for accuracy, because what this loses in bf16 or fp16 is what the dtype costs.
Signatures and the results' dtypes are those of :mod:`fastav.ops`. What no benchmark asks for is left out: the rms
norm, and telling a gate's kind by its length.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(x: Tensor, norm: str, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The row norm in ``x``'s dtype."""
    if norm == "none":
        return x
    weight, bias = (None if a is None else a.to(x.dtype) for a in (weight, bias))
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


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
    """Each tap's attention, one after the other."""
    outputs = []
    for i, (x, q) in enumerate(zip(taps, queries, strict=True)):
        w, b = (None if affine is None else affine[i] for affine in (weight, bias))
        x_hat = normalize(x, norm, eps, w, b)
        scores = q.to(x.dtype) @ x_hat.mT * (x.shape[-1] ** -0.5 if scale is None else scale)
        if key_mask is None:
            p = scores.softmax(-1)
        else:
            masked = ~key_mask[i][:, None]
            p = scores.masked_fill(masked, -torch.inf).softmax(-1).masked_fill(masked, 0.0)
        outputs.append((p @ x_hat).to(q.dtype))
    return outputs


def attend(
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> list[Tensor]:
    """``softmax(scale q (x_hat W_k)^T) (x_hat W_v)``, literally: keys (E, D), values (D, E), queries (R, E)."""
    outputs = []
    for x, q, w_k, w_v in zip(taps, queries, keys, values, strict=True):
        x_hat = normalize(x, norm, eps)
        scores = q.to(x.dtype) @ F.linear(x_hat, w_k.to(x.dtype)).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append((scores.softmax(-1) @ (x_hat @ w_v.to(x.dtype))).to(q.dtype))
    return outputs


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
    """One linear map an entry."""
    outputs = []
    for i, (t, w) in enumerate(zip(tokens, weights, strict=True)):
        y = normalize(t, norm, eps) @ w
        y = y if biases is None else y + biases[i]
        if activation is not None:
            y = F.gelu(y) if activation == "gelu" else F.relu(y)
        outputs.append(y if residuals is None else y + residuals[i])
    return torch.stack(outputs) if stack else outputs


def fuse(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    norm: str = "none",
    eps: float = 1e-6,
    gate: Tensor | None = None,
    gate_kind: str | None = None,
) -> Tensor:
    """One linear map a layer, stacked and mixed."""
    y = torch.stack([normalize(t, norm, eps) @ w for t, w in zip(tokens, weights, strict=True)])
    y = y if biases is None else y + torch.stack(list(biases))[:, None, None]
    if gate is None:
        return y.mean(0)
    if gate_kind == "layer":
        return (gate.softmax(0)[:, None, None, None] * y).sum(0)
    return ((y @ gate * y.shape[-1] ** -0.5).softmax(0)[..., None] * y).sum(0)


def inject(
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> list[Tensor]:
    """Each stage's attention to the meta-tokens."""
    outputs = []
    for x, k, v in zip(features, keys, values, strict=True):
        scores = normalize(x, norm, eps) @ k.to(x.dtype).mT * (x.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append((x + scores.softmax(-1) @ v.to(x.dtype)).to(x.dtype))
    return outputs


def orthogonality(tokens: Sequence[Tensor]) -> Tensor:
    """The Gram matrix of each entry's tokens, one after the other; the mean in float32."""
    terms = []
    for t in tokens:
        unit = F.normalize(t, dim=-1)
        k = t.shape[-2]
        off = unit @ unit.mT - torch.eye(k, dtype=t.dtype, device=t.device)
        terms.append(off.square().sum((-2, -1)).float().mean() / max(k * (k - 1), 1))
    return torch.stack(terms).mean()

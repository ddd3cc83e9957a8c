"""Fuse: all layers' tokens brought to one width and mixed over layers."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastav.reference._arithmetic import (
    Gradients,
    flat_rows,
    normalize,
    normalize_backward,
    outside_autocast,
    softmax_backward,
    sum_to,
    wide,
)


@outside_autocast
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
    """``sum_l alpha_l (norm(tokens_l) weights_l + biases_l)``, see :func:`fastav.ops.fuse`."""
    return fuse_forward(tokens, weights, biases, gate, norm=norm, eps=eps, gate_kind=gate_kind)[0][0]


@outside_autocast
def fuse_forward(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The output of :func:`fuse` and, for a gate on tokens, the log-sum-exp (B, K) of each token's logits."""
    y = _mapped(tokens, weights, biases, norm, eps)  # (L, B, K, W)
    z = (_layer_weights(y, gate, gate_kind) * y).sum(0).to(tokens[0].dtype)
    if gate is None or _kind(y, gate, gate_kind) == "layer":
        return [z], []
    return [z], [torch.logsumexp(_token_logits(y, gate), 0)]


@outside_autocast
def fuse_backward(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
    wanted: Collection[str],
) -> Gradients:
    """Gradients of :func:`fuse` with respect to the arguments ``wanted``, by name; ``kept`` is not needed here."""
    y = _mapped(tokens, weights, biases, norm, eps)
    alpha = _layer_weights(y, gate, gate_kind)
    g = grads[0].to(y.dtype)
    d_y = alpha * g  # (L, B, K, W)
    found: Gradients = {name: [] for name in wanted}
    if gate is not None:
        d_alpha = (g * y).sum(-1, keepdim=True)  # (L, B, K, 1)
        if _kind(y, gate, gate_kind) == "layer":
            d_alpha = d_alpha.sum((1, 2), keepdim=True)
        d_logits = softmax_backward(d_alpha, alpha, 0)
        if _kind(y, gate, gate_kind) == "layer":
            d_gate = d_logits.flatten()
        else:
            root = gate.shape[0] ** -0.5
            d_gate = (d_logits * y).sum((0, 1, 2)) * root
            d_y = d_y + d_logits * gate.to(y.dtype) * root
        if "gate" in found:
            found["gate"].append(d_gate.to(gate.dtype))
    for i, (t, weight) in enumerate(zip(tokens, weights, strict=True)):
        x, w = t.to(y.dtype), weight.to(y.dtype)
        if biases is not None and "biases" in found:
            found["biases"].append(sum_to(d_y[i], biases[i]))
        if "weights" in found:
            found["weights"].append((flat_rows(normalize(x, norm, eps)).mT @ flat_rows(d_y[i])).to(weight.dtype))
        if "tokens" in found:
            found["tokens"].append(normalize_backward(d_y[i] @ w.mT, x, norm, eps).to(t.dtype))
    return found


def _mapped(
    tokens: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] | None, norm: str, eps: float
) -> Tensor:
    """``y_l = norm(tokens_l) weights_l + biases_l``, (L, B, K, W) in the arithmetic's dtype."""
    dtype = wide(tokens[0], weights[0])
    y = torch.stack([normalize(t.to(dtype), norm, eps) @ w.to(dtype) for t, w in zip(tokens, weights, strict=True)])
    return y if biases is None else y + torch.stack(list(biases)).to(dtype)[:, None, None, :]


def _kind(y: Tensor, gate: Tensor, gate_kind: str | None) -> str:
    return gate_kind or ("layer" if gate.shape[0] == y.shape[0] else "token")


def _layer_weights(y: Tensor, gate: Tensor | None, gate_kind: str | None) -> Tensor:
    """The weights over layers, which broadcast to ``y`` and sum to one over its first dimension."""
    if gate is None:
        return y.new_full((len(y), 1, 1, 1), 1 / len(y))
    if _kind(y, gate, gate_kind) == "layer":
        return torch.softmax(gate.to(y.dtype), 0)[:, None, None, None]
    return torch.softmax(_token_logits(y, gate), 0)[..., None]


def _token_logits(y: Tensor, gate: Tensor) -> Tensor:
    """``y . gate / sqrt(W)``, (L, B, K)."""
    return y @ gate.to(y.dtype) * gate.shape[0] ** -0.5

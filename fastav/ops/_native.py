"""The native CPU kernels as a backend: lists go to ``torch.ops.fastav_native``, results come back flat.

The library is loaded by :mod:`fastav.ops._backends` before the first call.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fastav.ops._flat import Results

__all__ = [
    "distill_backward",
    "distill_forward",
    "fuse_backward",
    "fuse_forward",
    "inject_backward",
    "inject_forward",
    "orthogonality_backward",
    "orthogonality_forward",
    "project_backward",
    "project_forward",
]

Tensors = Sequence[Tensor]


def distill_forward(
    taps: Tensors,
    queries: Tensors,
    weight: Tensors | None,
    bias: Tensors | None,
    key_mask: Tensors | None,
    **settings: Any,
) -> tuple[Results, Results]:
    """Outputs and log-sum-exps, see :func:`fastav.reference.distill_forward`."""
    return torch.ops.fastav_native.distill(taps, queries, weight or [], bias or [], key_mask or [], **settings)


def distill_backward(
    grads: Tensors,
    kept: Tensors,
    taps: Tensors,
    queries: Tensors,
    weight: Tensors | None,
    bias: Tensors | None,
    key_mask: Tensors | None,
    *,
    wanted: Collection[str],
    **settings: Any,
) -> dict[str, Results]:
    """Gradients, see :func:`fastav.reference.distill_backward`; ``kept`` is the outputs and the log-sum-exps."""
    outputs, sums = kept[: len(taps)], kept[len(taps) :]
    lists = taps, queries, weight or [], bias or [], key_mask or []
    found = torch.ops.fastav_native.distill_backward(grads, outputs, sums, *lists, **settings, wanted=list(wanted))
    return dict(zip(wanted, found, strict=True))


def project_forward(
    tokens: Tensors,
    weights: Tensors,
    biases: Tensors | None,
    residuals: Tensors | None,
    *,
    norm: str,
    eps: float,
    activation: str | None,
    stack: bool,
) -> tuple[Results, Results]:
    """Outputs, see :func:`fastav.reference.project`; flat, which the stack is too."""
    lists = tokens, weights, biases or [], residuals or []
    return torch.ops.fastav_native.project(*lists, norm, eps, activation or ""), []


def project_backward(
    grads: Tensors,
    kept: Tensors,
    tokens: Tensors,
    weights: Tensors,
    biases: Tensors | None,
    residuals: Tensors | None,
    *,
    norm: str,
    eps: float,
    activation: str | None,
    stack: bool,
    wanted: Collection[str],
) -> dict[str, Results]:
    """Gradients, see :func:`fastav.reference.project_backward`; ``kept`` is empty."""
    lists = tokens, weights, biases or [], residuals or []
    settings = norm, eps, activation or "", stack
    found = torch.ops.fastav_native.project_backward(grads, *lists, *settings, list(wanted))
    return dict(zip(wanted, found, strict=True))


def fuse_forward(
    tokens: Tensors,
    weights: Tensors,
    biases: Tensors | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
) -> tuple[Results, Results]:
    """The output and, for a gate on tokens, the log-sum-exps, see :func:`fastav.reference.fuse_forward`."""
    lists = tokens, weights, biases or [], [] if gate is None else [gate]
    output, sums = torch.ops.fastav_native.fuse(*lists, norm, eps, gate_kind or "")
    return output, sums if gate_kind == "token" else []


def fuse_backward(
    grads: Tensors,
    kept: Tensors,
    tokens: Tensors,
    weights: Tensors,
    biases: Tensors | None,
    gate: Tensor | None,
    *,
    norm: str,
    eps: float,
    gate_kind: str | None,
    wanted: Collection[str],
) -> dict[str, Results]:
    """Gradients, see :func:`fastav.reference.fuse_backward`; ``kept`` is not needed here."""
    lists = tokens, weights, biases or [], [] if gate is None else [gate]
    found = torch.ops.fastav_native.fuse_backward(grads, *lists, norm, eps, gate_kind or "", list(wanted))
    return dict(zip(wanted, found, strict=True))


def inject_forward(
    features: Tensors, keys: Tensors, values: Tensors, **settings: Any
) -> tuple[Results, Sequence[Tensor]]:
    """Outputs, and nothing kept, see :func:`fastav.reference.inject`."""
    return torch.ops.fastav_native.inject(features, keys, values, **settings), ()


def inject_backward(
    grads: Tensors,
    kept: Tensors,
    features: Tensors,
    keys: Tensors,
    values: Tensors,
    *,
    wanted: Collection[str],
    **settings: Any,
) -> dict[str, Results]:
    """Gradients, see :func:`fastav.reference.inject_backward`."""
    lists = features, keys, values
    found = torch.ops.fastav_native.inject_backward(grads, *lists, **settings, wanted=list(wanted))
    return dict(zip(wanted, found, strict=True))


def orthogonality_forward(tokens: Tensors) -> tuple[Results, Sequence[Tensor]]:
    """The penalty, as a tensor of one element, and nothing kept, see :func:`fastav.reference.orthogonality`."""
    return torch.ops.fastav_native.orthogonality(tokens), ()


def orthogonality_backward(
    grads: Tensors, kept: Tensors, tokens: Tensors, *, wanted: Collection[str]
) -> dict[str, Results]:
    """The gradient, see :func:`fastav.reference.orthogonality_backward`."""
    found = torch.ops.fastav_native.orthogonality_backward(grads, tokens, list(wanted))
    return dict(zip(wanted, found, strict=True))

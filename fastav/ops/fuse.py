"""Fuse: bring all layers' tokens to one width and mix them over layers, in one call.

``y_l = norm(t_l) W_l + b_l`` and ``Z = sum_l alpha_l y_l``, where the weights over layers are ``1 / L``, a softmax of
one learned logit a layer, or per token a softmax over layers of ``y_l . gate / sqrt(W)``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastav.ops._checks import check_choice, check_norm, check_shape, check_tensors
from fastav.ops._register import ListOp


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
    """Mix the layers' tokens: ``sum_l alpha_l (norm(tokens_l) weights_l + biases_l)``.

    Args:
        tokens: L tensors (B, K, D_l), all of one dtype.
        weights: L tensors (D_l, W).
        biases: None or L tensors (W,).
        norm: the norm of the tokens' rows before the product: ``"none"``, ``"layer"`` or ``"rms"``, no affine part.
        eps: the norm's epsilon.
        gate: None for the mean over layers; (L,) logits of a softmax over layers; or (W,), a direction whose product
            with each token, over ``sqrt(W)``, is that token's logit.
        gate_kind: ``"layer"`` or ``"token"``, which of the two a gate is; needed only where L equals W.

    Returns:
        (B, K, W) in the tokens' dtype. Dots and softmax run in float32 or wider.

    Gradients go to tokens, weights, biases and gate.

    Raises:
        TypeError: a list or dtype of the wrong kind.
        ValueError: empty lists or tensors, shapes or devices that do not fit, an unknown norm or kind of gate.
    """
    kind = _check(tokens, weights, biases, norm, eps, gate, gate_kind)
    gates = None if gate is None else [gate]
    return _fuse(tokens, weights, biases, gates, norm, eps, kind)[0]


def _check(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    norm: str,
    eps: float,
    gate: Tensor | None,
    gate_kind: str | None,
) -> str | None:
    """Check the arguments and give the kind of the gate."""
    check_tensors("fuse", "tokens", tokens, ndim=(3,))
    check_tensors("fuse", "weights", weights, ndim=(2,), like=tokens)
    check_norm("fuse", norm, eps)
    batch, rows, _ = tokens[0].shape
    width = weights[0].shape[-1]
    for i, (t, w) in enumerate(zip(tokens, weights, strict=True)):
        check_shape("fuse", "tokens", i, t, (batch, rows, t.shape[-1]), "(B, K, D) with B and K as in tokens[0]")
        check_shape("fuse", "weights", i, w, (t.shape[-1], width), f"(D, W), D of tokens[{i}] and W of weights[0]")
    if biases is not None:
        check_tensors("fuse", "biases", biases, ndim=(1,), like=tokens)
        for i, b in enumerate(biases):
            check_shape("fuse", "biases", i, b, (width,), "(W,), as weights' columns")
    return _check_gate(tokens, width, gate, gate_kind)


def _check_gate(tokens: Sequence[Tensor], width: int, gate: Tensor | None, kind: str | None) -> str | None:
    check_choice("fuse", "gate_kind", kind, (None, "layer", "token"))
    if gate is None:
        if kind is not None:
            raise ValueError(f"fuse: gate_kind is {kind!r} but gate is None; pass the gate or leave gate_kind out")
        return None
    if not isinstance(gate, Tensor):
        raise TypeError(f"fuse: gate must be a tensor, got {type(gate).__name__}")
    check_tensors("fuse", "gate", [gate], ndim=(1,), like=tokens[:1])
    sizes = {"layer": len(tokens), "token": width}
    fitting = [name for name, size in sizes.items() if gate.shape[0] == size]
    if kind is None and len(fitting) == 2:
        raise ValueError(f"fuse: a gate of size {width} fits the layers and the width; say which by gate_kind")
    if not fitting or kind not in (None, *fitting):
        wanted = f"({sizes[kind]},)" if kind else f"({len(tokens)},) for the layers or ({width},) for the tokens"
        raise ValueError(f"fuse: gate has shape {tuple(gate.shape)} and gate_kind is {kind!r}, wanted {wanted}")
    return kind or fitting[0]


def _outputs(tokens, weights, *_):
    return [(*tokens[0].shape[:-1], weights[0].shape[-1])], tokens[0].dtype


def _kept(tokens, weights, biases, gate, norm, eps, gate_kind):
    wide = torch.float64 if torch.float64 in (tokens[0].dtype, weights[0].dtype) else torch.float32
    return [tuple(tokens[0].shape[:-1])] if gate_kind == "token" else [], wide


_fuse = ListOp("fuse", ("tokens", "weights", "biases", "gate"), ("norm", "eps", "gate_kind"), _outputs, _kept)

"""Distil: pool every tap with query tokens by attention, all taps in one call.

For one tap ``x`` (N, D) with normalised rows ``x_hat`` and query rows ``q`` (R, D)::

    s = scale q x_hat^T      p = softmax over n of s      o = p x_hat

Keys and values are the tap itself: attention with learned key and value projections is this op between two small
products, ``softmax(q (x_hat W_k)^T) (x_hat W_v) = distill(x, q W_k^T) W_v``, so that no tap is ever projected. The
gradients need none with respect to ``x``: ``ds_rn = p_rn (do_r . x_hat_n - do_r . o_r)`` and
``dq_r = scale sum_n ds_rn x_hat_n``, summed over the batch where queries are shared.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastav.ops._checks import check_device, check_norm, check_number, check_shape, check_tensors
from fastav.ops._register import ListOp


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
    """Pool each tap into R rows by attention: ``softmax_n(scale q x_hat^T) x_hat``.

    Args:
        taps: G tensors (B_g, N_g, D_g), any strides, all of one dtype (float32, bfloat16, float16 or float64).
        queries: G tensors (R, D_g) shared by the batch, or (B_g, R, D_g) per sample, all of one dtype.
        scale: factor on the scores; None takes ``D_g ** -0.5``.
        norm: the norm of the tap's rows, ``"layer"``, ``"rms"`` or ``"none"``.
        eps: added to the row's variance (mean square for ``"rms"``).
        weight: the norm's affine factor, as in torch's ``layer_norm``: None or G tensors (D_g,).
        bias: the norm's affine offset: None or G tensors (D_g,).
        key_mask: None or G bool tensors (B_g, N_g), True = attend. A sample without any key gives zeros.

    Returns:
        G tensors (B_g, R, D_g) in the queries' dtype. Dots, statistics and softmax run in float32 or wider.

    Gradients go to queries, weight and bias always, to taps only if they require them.

    Raises:
        TypeError: a list, dtype or number of the wrong kind.
        ValueError: empty lists or taps, or shapes and devices that do not fit.
    """
    _check(taps, queries, scale, norm, eps, weight, bias, key_mask)
    return list(_distill(taps, queries, weight, bias, key_mask, scale, norm, eps))


def _check(
    taps: Sequence[Tensor],
    queries: Sequence[Tensor],
    scale: float | None,
    norm: str,
    eps: float,
    weight: Sequence[Tensor] | None,
    bias: Sequence[Tensor] | None,
    key_mask: Sequence[Tensor] | None,
) -> None:
    check_tensors("distill", "taps", taps, ndim=(3,))
    check_tensors("distill", "queries", queries, ndim=(2, 3), like=taps)
    check_norm("distill", norm, eps)
    if scale is not None:
        check_number("distill", "scale", scale)
    rows = queries[0].shape[-2]
    for i, (tap, query) in enumerate(zip(taps, queries, strict=True)):
        batch, _, width = tap.shape
        wanted = (rows, width) if query.ndim == 2 else (batch, rows, width)
        check_shape("distill", "queries", i, query, wanted, f"R rows of taps[{i}]'s width, R as in queries[0]")
    for name, affine in (("weight", weight), ("bias", bias)):
        if affine is not None:
            check_tensors("distill", name, affine, ndim=(1,), like=taps)
            for i, tap in enumerate(taps):
                check_shape("distill", name, i, affine[i], tap.shape[-1:], f"one number a channel of taps[{i}]")
    if key_mask is not None:
        _check_mask(taps, key_mask)


def _check_mask(taps: Sequence[Tensor], key_mask: Sequence[Tensor]) -> None:
    if not isinstance(key_mask, (list, tuple)):
        raise TypeError(f"distill: key_mask must be a list of tensors, one a tap, got {type(key_mask).__name__}")
    if len(key_mask) != len(taps):
        raise ValueError(f"distill: key_mask has {len(key_mask)} tensors, wanted {len(taps)}, as many as taps")
    for i, (tap, mask) in enumerate(zip(taps, key_mask, strict=True)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"distill: key_mask[{i}] must be a bool tensor with True for tokens to read, got {got}")
        check_device("distill", "key_mask", i, mask, taps[0])
        check_shape("distill", "key_mask", i, mask, tap.shape[:2], f"one bool a token of taps[{i}]")


def _outputs(taps, queries, *_):
    return [(len(x), q.shape[-2], x.shape[-1]) for x, q in zip(taps, queries, strict=True)], queries[0].dtype


def _kept(taps, queries, *_):
    wide = torch.float64 if torch.float64 in (taps[0].dtype, queries[0].dtype) else torch.float32
    return [(len(x), q.shape[-2]) for x, q in zip(taps, queries, strict=True)], wide


_distill = ListOp(
    "distill", ("taps", "queries", "weight", "bias", "key_mask"), ("scale", "norm", "eps"), _outputs, _kept
)

"""Orthogonality: a penalty that is zero when the K tokens of each sample point in K orthogonal directions.

With ``Tn`` a sample's tokens brought to unit length: ``||Tn Tn^T - I||_F^2 / (K (K - 1))``, averaged over taps and
samples; between 0 and 1, and 0 for a single token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastav.ops._checks import check_shape, check_tensors
from fastav.ops._register import ListOp


def orthogonality(tokens: Sequence[Tensor] | Tensor) -> Tensor:
    """Mean over taps and samples of ``||Tn Tn^T - I||_F^2 / (K (K - 1))``.

    Args:
        tokens: L tensors (B, K, D_l) of one dtype, or one tensor (L, B, K, W).

    Returns:
        A scalar in float32, or float64 for float64 tokens: it is a term of a loss.

    Gradients go to the tokens.

    Raises:
        TypeError: not tensors, or not of a floating dtype.
        ValueError: an empty list or batch, or shapes and devices that do not fit.
    """
    if isinstance(tokens, Tensor):
        if tokens.ndim != 4:
            raise ValueError(
                f"orthogonality: tokens has shape {tuple(tokens.shape)}, wanted (L, B, K, W), or a list of (B, K, D)"
            )
        tokens = tokens.unbind(0)
    check_tensors("orthogonality", "tokens", tokens, ndim=(3,))
    batch, rows, _ = tokens[0].shape
    if batch == 0:
        raise ValueError(f"orthogonality: tokens[0] has shape {tuple(tokens[0].shape)}: a mean needs a sample")
    for i, t in enumerate(tokens):
        wanted = (batch, rows, t.shape[-1])
        check_shape("orthogonality", "tokens", i, t, wanted, "(B, K, D) with B and K as in tokens[0]")
    return _orthogonality(tokens)[0]


def _outputs(tokens):
    return [()], torch.float64 if tokens[0].dtype == torch.float64 else torch.float32


_orthogonality = ListOp("orthogonality", ("tokens",), (), _outputs)

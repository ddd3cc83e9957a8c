"""Orthogonality: how far each sample's tokens are from pointing in different directions."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastav.reference._arithmetic import Gradients, outside_autocast, wide

#: Rows shorter than this are divided by it instead of by their length, as in torch's ``normalize``: a zero row has no
#: direction and stays zero.
SHORTEST = 1e-12


@outside_autocast
def orthogonality(tokens: Sequence[Tensor] | Tensor) -> Tensor:
    """Mean over taps and samples of ``||Tn Tn^T - I||_F^2 / (K (K - 1))``, see :func:`fastav.ops.orthogonality`."""
    return torch.stack([_penalty(_unit_rows(t.to(wide(t)))[0]).mean() for t in tokens]).mean()


@outside_autocast
def orthogonality_backward(
    grads: Sequence[Tensor], kept: Sequence[Tensor], tokens: Sequence[Tensor] | Tensor, *, wanted: Collection[str]
) -> Gradients:
    """Gradient of :func:`orthogonality`: ``4 (Tn Tn^T - I) Tn``, scaled, less its part along each row.

    ``kept`` is empty.
    """
    found: Gradients = {name: [] for name in wanted}
    for t in tokens if "tokens" in found else ():
        rows, length = _unit_rows(t.to(wide(t)))
        k = t.shape[-2]
        d_rows = 4 * grads[0] / (max(k * (k - 1), 1) * len(t) * len(tokens)) * (_excess(rows) @ rows)
        along = (d_rows * rows).sum(-1, keepdim=True) * (length > SHORTEST)
        found["tokens"].append(((d_rows - rows * along) / length.clamp_min(SHORTEST) * (k > 1)).to(t.dtype))
    return found


def _unit_rows(t: Tensor) -> tuple[Tensor, Tensor]:
    length = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    return t / length.clamp_min(SHORTEST), length


def _excess(rows: Tensor) -> Tensor:
    return rows @ rows.mT - torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)


def _penalty(rows: Tensor) -> Tensor:
    """(B, K, D) rows of unit length -> (B,)."""
    k = rows.shape[-2]
    return _excess(rows).square().sum((-2, -1)) / (k * (k - 1)) if k > 1 else 0.0 * rows.sum((-2, -1))

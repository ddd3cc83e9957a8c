"""The native CPU kernels as a backend: lists go to ``torch.ops.fastav_native``, results come back flat.

The library is loaded by :mod:`fastav.ops._backends` before the first call.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fastav.ops._flat import Results

__all__ = ["distill_backward", "distill_forward"]

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

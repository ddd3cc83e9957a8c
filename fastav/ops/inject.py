"""Inject: dense features attend to a few meta-tokens and add what they find, all stages in one call.

For one stage with features ``x`` (N, D), keys ``k`` and values ``v`` (M, D)::

    p = softmax over m of scale norm(x) k^T      y = x + p v
"""

from collections.abc import Sequence

from torch import Tensor

from fastav.ops._checks import check_norm, check_number, check_shape, check_tensors
from fastav.ops._register import ListOp


def inject(
    features: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    scale: float | None = None,
    norm: str = "layer",
    eps: float = 1e-6,
) -> list[Tensor]:
    """Add to each feature what it finds among the meta-tokens: ``x + softmax(scale norm(x) keys^T) values``.

    Args:
        features: S tensors (B, N_s, D_s), all of one dtype.
        keys: S tensors (B, M, D_s).
        values: S tensors (B, M, D_s).
        scale: factor on the scores; None takes ``D_s ** -0.5``.
        norm: the norm of the features' rows in the scores: ``"layer"``, ``"rms"`` or ``"none"``.
        eps: the norm's epsilon.

    Returns:
        S tensors (B, N_s, D_s) in the features' dtype. Dots, statistics and softmax run in float32 or wider.

    Gradients go to keys and values always, to features only if they require them.

    Raises:
        TypeError: a list, dtype or number of the wrong kind.
        ValueError: empty lists or tensors, or shapes and devices that do not fit.
    """
    check_tensors("inject", "features", features, ndim=(3,))
    check_norm("inject", norm, eps)
    if scale is not None:
        check_number("inject", "scale", scale)
    check_tensors("inject", "keys", keys, ndim=(3,), like=features)
    check_tensors("inject", "values", values, ndim=(3,), like=features)
    rows = keys[0].shape[1]
    for i, x in enumerate(features):
        wanted = (len(x), rows, x.shape[-1])
        check_shape("inject", "keys", i, keys[i], wanted, f"(B, M, D), B and D of features[{i}], M of keys[0]")
        check_shape("inject", "values", i, values[i], wanted, f"(B, M, D), as keys[{i}]")
    return list(_inject(features, keys, values, scale, norm, eps))


def _outputs(features, *_):
    return [tuple(x.shape) for x in features], features[0].dtype


_inject = ListOp("inject", ("features", "keys", "values"), ("scale", "norm", "eps"), _outputs)

"""Project: each list entry's tokens through its own matrix, with row norm, bias, activation and residual, in one call.

``y_l = activation(norm(t_l) W_l + b_l) + residual_l``, ragged in the number of tokens and in both widths. It carries
what attention beside a frozen backbone needs besides :func:`~fastav.ops.distill`: queries brought into tap space, value
projections of the few pooled rows, and the way back out.
"""

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from fastav.ops._checks import check_choice, check_norm, check_shape, check_tensors
from fastav.ops._register import ListOp


@overload
def project(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    norm: str = ...,
    eps: float = ...,
    activation: str | None = ...,
    residuals: Sequence[Tensor] | None = ...,
    stack: Literal[False] = ...,
) -> list[Tensor]: ...


@overload
def project(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    norm: str = ...,
    eps: float = ...,
    activation: str | None = ...,
    residuals: Sequence[Tensor] | None = ...,
    stack: Literal[True],
) -> Tensor: ...


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
    """Map each entry's tokens by its own matrix: ``activation(norm(tokens) weights + biases) + residuals``.

    Args:
        tokens: L tensors (M, D_l) or (B, M, D_l), all of one dtype; M and B may differ between entries.
        weights: L tensors (D_l, E_l).
        biases: None or L tensors (E_l,).
        norm: the norm of the tokens' rows before the product: ``"none"``, ``"layer"`` or ``"rms"``, no affine part.
        eps: the norm's epsilon.
        activation: None, ``"gelu"`` (exact) or ``"relu"``, after the bias and before the residual.
        residuals: None or L tensors that broadcast to the outputs.
        stack: give one tensor (L, ..., M, E) instead of a list; all outputs must then be of one shape.

    Returns:
        L tensors (..., M, E_l), or their stack, in the tokens' dtype. Dots run in float32 or wider.

    Gradients go to tokens, weights, biases and residuals.

    Raises:
        TypeError: a list or dtype of the wrong kind.
        ValueError: empty lists or tensors, shapes or devices that do not fit, an unknown norm or activation.
    """
    _check(tokens, weights, biases, norm, eps, activation, residuals, stack)
    outputs = _project(tokens, weights, biases, residuals, norm, eps, activation, stack)
    return outputs[0] if stack else list(outputs)


def _check(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    norm: str,
    eps: float,
    activation: str | None,
    residuals: Sequence[Tensor] | None,
    stack: bool,
) -> None:
    check_tensors("project", "tokens", tokens, ndim=(2, 3))
    check_tensors("project", "weights", weights, ndim=(2,), like=tokens)
    check_norm("project", norm, eps)
    check_choice("project", "activation", activation, (None, "gelu", "relu"))
    check_choice("project", "stack", stack, (False, True))
    for i, (t, w) in enumerate(zip(tokens, weights, strict=True)):
        check_shape("project", "weights", i, w, (t.shape[-1], w.shape[-1]), f"(D, E) with the width of tokens[{i}]")
    if biases is not None:
        check_tensors("project", "biases", biases, ndim=(1,), like=tokens)
        for i, w in enumerate(weights):
            check_shape("project", "biases", i, biases[i], w.shape[1:], f"one number a column of weights[{i}]")
    outputs = [(*t.shape[:-1], w.shape[-1]) for t, w in zip(tokens, weights, strict=True)]
    if residuals is not None:
        check_tensors("project", "residuals", residuals, ndim=(0, 1, 2, 3), like=tokens)
        for i, out in enumerate(outputs):
            if not _broadcasts(tuple(residuals[i].shape), out):
                raise ValueError(
                    f"project: residuals[{i}] has shape {tuple(residuals[i].shape)}, "
                    f"wanted one that broadcasts to the output's {out}"
                )
    if stack:
        for i, out in enumerate(outputs):
            if out != outputs[0]:
                raise ValueError(
                    f"project: stack=True wants outputs of one shape, but that of tokens[{i}] is {out} and that of "
                    f"tokens[0] {outputs[0]}; use stack=False"
                )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _outputs(tokens, weights, biases, residuals, norm, eps, activation, stack):
    shapes = [(*t.shape[:-1], w.shape[-1]) for t, w in zip(tokens, weights, strict=True)]
    return [(len(shapes), *shapes[0])] if stack else shapes, tokens[0].dtype


_project = ListOp(
    "project", ("tokens", "weights", "biases", "residuals"), ("norm", "eps", "activation", "stack"), _outputs
)

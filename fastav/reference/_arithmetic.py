"""What the five definitions share: the arithmetic's width, the row norm, and the gradients of both."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: Gradients by the name of the argument they belong to, one for each tensor of that argument's list.
Gradients: TypeAlias = dict[str, list[Tensor]]


def wide(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def outside_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run ``function``, whose first argument is a list of tensors, outside autocast, which would narrow its dots."""
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        tensors = args[0] if args else kwargs[first]
        device = tensors[0].device.type  # type: ignore[index]
        if not torch.amp.is_autocast_available(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def normalize(x: Tensor, norm: str, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Normalise the rows (last dimension) of ``x``: ``"layer"``, ``"rms"`` or ``"none"``, then the affine part."""
    weight, bias = (None if affine is None else affine.to(x.dtype) for affine in (weight, bias))
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if norm == "rms":
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def normalize_backward(grad: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Gradient of :func:`normalize` without affine part with respect to ``x``, of ``x``'s shape.

    With ``z`` the normalised row and ``s`` its divisor: ``(g - mean(g) - z mean(g z)) / s`` for ``"layer"``, and the
    same without ``mean(g)`` for ``"rms"``.
    """
    if norm == "none":
        return grad
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
        grad = grad - grad.mean(-1, keepdim=True)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    z = x * inverse
    return (grad - z * (grad * z).mean(-1, keepdim=True)) * inverse


def softmax_backward(grad: Tensor, p: Tensor, dim: int) -> Tensor:
    """Gradient with respect to the logits of a softmax along ``dim`` whose output is ``p``: ``p (g - sum(p g))``."""
    return p * (grad - (p * grad).sum(dim, keepdim=True))


def sum_to(grad: Tensor, like: Tensor) -> Tensor:
    """Sum ``grad`` over the dimensions along which ``like`` was broadcast, in ``like``'s dtype, always a new tensor."""
    total = grad.sum_to_size(like.shape).to(like.dtype)
    return total.clone() if total.data_ptr() == grad.data_ptr() else total


def flat_rows(x: Tensor) -> Tensor:
    """(..., D) -> (rows, D)."""
    return x.reshape(-1, x.shape[-1])

"""The reference as a backend: each op's outputs as a list, with what its backward pass may need beside its inputs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastav import reference
from fastav.reference import (
    distill_backward,
    distill_forward,
    fuse_backward,
    fuse_forward,
    inject_backward,
    orthogonality_backward,
    project_backward,
)

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

Result = tuple[list[Tensor], list[Tensor]]


def project_forward(
    tokens: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    residuals: Sequence[Tensor] | None,
    *,
    stack: bool,
    **settings: Any,
) -> Result:
    """:func:`fastav.reference.project`; the stack is a list of one."""
    outputs = reference.project(tokens, weights, biases, residuals=residuals, stack=stack, **settings)
    return [outputs] if isinstance(outputs, Tensor) else outputs, []


def inject_forward(
    features: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], **settings: Any
) -> Result:
    """:func:`fastav.reference.inject`."""
    return reference.inject(features, keys, values, **settings), []


def orthogonality_forward(tokens: Sequence[Tensor]) -> Result:
    """:func:`fastav.reference.orthogonality`, a list of one."""
    return [reference.orthogonality(tokens)], []

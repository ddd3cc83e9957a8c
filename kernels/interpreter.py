"""Bfloat16 in Triton's interpreter, which multiplies and sums its bit patterns: it goes through float32 there."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def with_bfloat16(function: Callable, like: str | None = None) -> Callable:
    """Run a launcher on float32 copies of bfloat16 tensors and bring its results back to bfloat16.

    Args:
        function: a forward, which gives outputs and what is kept, or a backward, which gives gradients by name.
        like: of a forward, the list whose dtype its outputs have; None for one whose outputs are float32.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*arguments: Any, **settings: Any) -> Any:
        given = signature.bind(*arguments, **settings).arguments
        found = function(**{name: _wide(value) for name, value in given.items()})
        if isinstance(found, dict):
            return {name: _as(grads, given[name]) for name, grads in found.items()}
        outputs, kept = found
        return (outputs if like is None else _as(outputs, given[like])), kept

    return run


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    return [_wide(v) for v in value] if isinstance(value, list) and value and isinstance(value[0], Tensor) else value


def _as(tensors: list[Tensor], like: list[Tensor] | Tensor) -> list[Tensor]:
    return [t.to(like.dtype if isinstance(like, Tensor) else like[0].dtype) for t in tensors]

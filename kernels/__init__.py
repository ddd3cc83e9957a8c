"""The Triton kernels of fastav, one file an op; installed as ``fastav.kernels``.

Each op has a function ``<op>_forward``, which gives its outputs and what its backward pass wants beside its inputs, and
a function ``<op>_backward``. :mod:`fastav.ops` checks arguments and calls them; nothing here knows of it.
"""

from typing import Any

import torch
from torch import Tensor

from . import inject as _inject
from . import orthogonality as _orthogonality
from .distill import distill_forward
from .distill_backward import distill_backward
from .fuse import fuse_forward
from .fuse_backward import fuse_backward
from .inject import inject_forward
from .inject_backward import inject_backward
from .launch import INTERPRETED
from .orthogonality import orthogonality_backward, orthogonality_forward
from .project import project_forward
from .project_backward import project_backward

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
    "refusal",
]


def refusal(function: str, tensors: dict[str, Any]) -> str:
    """Why ``function`` cannot serve these lists, in words, or nothing.

    Args:
        function: such as ``"inject_forward"``.
        tensors: its lists by name.
    """
    given = [
        t for value in tensors.values() if value is not None for t in ([value] if isinstance(value, Tensor) else value)
    ]
    if not INTERPRETED and any(t.dtype == torch.float64 for t in given):
        return "the Triton kernels compute in float32 and take no float64 tensors"
    if function.startswith("inject"):
        return _inject.unsupported(**tensors)
    return _orthogonality.unsupported(**tensors) if function.startswith("orthogonality") else ""


if INTERPRETED:
    from .interpreter import with_bfloat16

    distill_forward, distill_backward = with_bfloat16(distill_forward, "queries"), with_bfloat16(distill_backward)
    project_forward, project_backward = with_bfloat16(project_forward, "tokens"), with_bfloat16(project_backward)
    fuse_forward, fuse_backward = with_bfloat16(fuse_forward, "tokens"), with_bfloat16(fuse_backward)
    inject_forward, inject_backward = with_bfloat16(inject_forward, "features"), with_bfloat16(inject_backward)
    orthogonality_forward = with_bfloat16(orthogonality_forward)
    orthogonality_backward = with_bfloat16(orthogonality_backward)

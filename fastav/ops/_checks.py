"""The ops' argument checks: each error names the argument and the tap, what came, what was wanted and what to do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensors(
    op: str, name: str, value: Sequence[Tensor] | None, *, ndim: tuple[int, ...], like: Sequence[Tensor] | None = None
) -> None:
    """Check a list argument of tensors: its type, its length, dtypes, devices and numbers of dimensions.

    Args:
        op: name of the op, for the message.
        name: name of the argument.
        value: what came; the list must not be empty, and all its tensors of one floating dtype.
        ndim: the numbers of dimensions that are fine.
        like: the op's first list, whose length and device the others must share.
    """
    if not isinstance(value, (list, tuple, nn.ParameterList)):
        got = f"one tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{op}: {name} must be a list of tensors, one a tap, got {got}; wrap a single one as [{name}]")
    if not value:
        raise ValueError(f"{op}: {name} is empty; at least one tensor is wanted")
    if like is not None and len(value) != len(like):
        raise ValueError(f"{op}: {name} has {len(value)} tensors, wanted {len(like)}, as many as the first argument")
    for i, tensor in enumerate(value):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{i}] must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{op}: {name}[{i}] has dtype {tensor.dtype}, wanted one of {', '.join(map(str, FLOATING))}; "
                f"convert it with .float()"
            )
        if tensor.dtype != value[0].dtype:
            raise TypeError(
                f"{op}: {name}[{i}] has dtype {tensor.dtype}, wanted {value[0].dtype} as {name}[0]; "
                f"convert one of them with .to()"
            )
        check_device(op, name, i, tensor, (value if like is None else like)[0])
        if tensor.ndim not in ndim:
            wanted = " or ".join(map(str, ndim))
            raise ValueError(f"{op}: {name}[{i}] has shape {tuple(tensor.shape)}, wanted {wanted} dimensions")
        if 0 in tensor.shape[-2:]:
            raise ValueError(f"{op}: {name}[{i}] is empty, its shape is {tuple(tensor.shape)}; no size may be 0")


def check_device(op: str, name: str, i: int, tensor: Tensor, like: Tensor) -> None:
    """Check that ``name[i]`` lies on the device of ``like``, the op's first tensor."""
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {name}[{i}] is on {tensor.device}, wanted {like.device} as the first argument's first tensor; "
            f"move it with .to({str(like.device)!r})"
        )


def check_shape(op: str, name: str, i: int, tensor: Tensor, wanted: tuple[int, ...], why: str) -> None:
    """Check that ``name[i]`` has exactly the shape ``wanted``; ``why`` says which shape this is, in words."""
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{op}: {name}[{i}] has shape {tuple(tensor.shape)}, wanted {tuple(wanted)}: {why}")


def check_choice(op: str, name: str, value: object, choices: tuple) -> None:
    """Check that a setting is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{op}: {name} is {value!r}, wanted one of {choices}")


def check_norm(op: str, norm: str, eps: float) -> None:
    """Check the row norm's name and its ``eps``."""
    check_choice(op, "norm", norm, ("layer", "rms", "none"))
    check_number(op, "eps", eps)
    if eps < 0:
        raise ValueError(f"{op}: eps is {eps}, wanted a number of at least 0, such as 1e-6")


def check_number(op: str, name: str, value: float) -> None:
    """Check that a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}; call .item() on a tensor first")
    if not -math.inf < value < math.inf:  # not math.isfinite, which torch.compile cannot follow with a dynamic number
        raise ValueError(f"{op}: {name} is {value}, wanted a finite number")

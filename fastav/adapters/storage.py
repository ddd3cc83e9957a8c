"""Tensors in safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastav.optional import load_optional

_WHO = {"by": "saved adapters", "extra": "training"}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, over an earlier file.

    Raises:
        ImportError: safetensors is missing.
    """
    state = {name: value.detach().contiguous() for name, value in tensors.items()}
    load_optional("safetensors.torch", **_WHO).save_file(state, path, metadata={"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is damaged.
        ImportError: safetensors is missing.
    """
    try:
        return load_optional("safetensors.torch", **_WHO).load_file(path)
    except load_optional("safetensors", **_WHO).SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again, or train again") from error

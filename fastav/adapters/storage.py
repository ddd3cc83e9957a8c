"""Tensors in safetensors files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, over an earlier file.

    Raises:
        ImportError: safetensors is missing.
    """
    state = {name: value.detach().contiguous() for name, value in tensors.items()}
    _safetensors().torch.save_file(state, path, metadata={"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is damaged.
        ImportError: safetensors is missing.
    """
    safetensors = _safetensors()
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again, or train again") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('saving and loading adapters needs safetensors: pip install "fastav[training]"') from error
    return safetensors

"""Whisper for clips shorter than its 30 seconds."""

from __future__ import annotations

from typing import Any

from torch import nn

POSITIONS_PER_SECOND = 50  # 100 mel frames a second, halved by the encoder's strided convolution


def whisper_encoder(module: nn.Module) -> Any:
    """Find the ``WhisperEncoder`` that ``module`` is or holds; None if there is none."""
    return next((child for child in module.modules() if type(child).__name__ == "WhisperEncoder"), None)


def shorten_whisper(encoder: nn.Module, seconds: float) -> nn.Module:
    """Set up a Hugging Face Whisper encoder for clips of ``seconds``, in place.

    The encoder insists on as many mel frames as its position table has room for, 3000 for 30 seconds. Only the first
    50 x seconds positions are kept: the ones that the beginning of a long clip would have had, so outputs differ from
    the long encoder's only in that no padding is attended to.

    Args:
        encoder: a ``WhisperEncoder``, or a Whisper model that holds one.
        seconds: length of one clip; 50 x seconds must be a whole number, at most the positions that there are.

    Returns:
        The encoder itself. It takes (B, num_mel_bins, 100 x seconds) from now on.

    Raises:
        ValueError: no Whisper encoder, or a length that it cannot take.
    """
    found = whisper_encoder(encoder)
    if found is None:
        raise ValueError(f"{type(encoder).__name__} is not and holds no WhisperEncoder")
    table: nn.Embedding = found.embed_positions
    positions = round(POSITIONS_PER_SECOND * seconds)
    if abs(positions - POSITIONS_PER_SECOND * seconds) > 1e-6 or not 0 < positions <= table.num_embeddings:
        raise ValueError(
            f"seconds={seconds} makes {POSITIONS_PER_SECOND * seconds:g} positions: "
            f"a whole number from 1 to {table.num_embeddings} is wanted"
        )
    weight = table.weight
    table.weight = nn.Parameter(weight.detach()[:positions].clone(), requires_grad=weight.requires_grad)
    table.num_embeddings = positions
    found.max_source_positions = found.config.max_source_positions = positions
    return found

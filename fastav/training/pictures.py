"""Attention laid over frames and spectrograms, as one picture a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastav.optional import load_optional

_HEAT = "inferno"
_INCH = 1.05  # a frame's side
_MARGIN = 1.0  # for the rows' words, in frames


def draw_attention(
    path: str | Path,
    *,
    frames: Tensor,
    frame_attention: Tensor,
    frame_prefix: Tensor,
    spectrograms: Tensor,
    sound_attention: Tensor,
    sound_prefix: Tensor,
    title: str,
    columns: Sequence[str],
) -> None:
    """Draw one clip: its frames, the same under each token's attention, and so its sound.

    Each token has a row, whose colours run from nothing to the row's largest share; how many times an even share that
    is, and how much went to tokens of no place, is written beside it.

    Args:
        path: the PNG to be written.
        frames: (T, 3, H, W) uint8.
        frame_attention: (T, K, h, w).
        frame_prefix: (T, K), the shares of tokens of no place.
        spectrograms: (T, frequencies, frames).
        sound_attention: (T, K, f, t).
        sound_prefix: (T, K).
        title: above the picture.
        columns: T words above the frames.

    Raises:
        ImportError: matplotlib is missing.
    """
    figures = load_optional("matplotlib.figure", by="pictures", extra="plots")
    segments, tokens = frame_attention.shape[:2]
    heights = [1.0] * (1 + tokens) + [0.1] + [0.6] * (1 + tokens)
    width, height = segments + _MARGIN + 0.1, sum(heights) + 0.6
    figure = figures.Figure(figsize=(_INCH * width, _INCH * height), dpi=150)
    figure.suptitle(title, fontsize=9, y=1 - 0.12 / height, va="top")
    inside = {"left": _MARGIN / width, "right": 1 - 0.1 / width, "bottom": 0.1 / height, "top": 1 - 0.5 / height}
    grid = figure.subplots(
        len(heights), segments, squeeze=False, gridspec_kw={"height_ratios": heights, "wspace": 0.04, "hspace": 0.07}
    )
    figure.subplots_adjust(**inside)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_linewidth(0.4)
    for axes in grid[1 + tokens]:
        axes.set_visible(False)
    seen, heard = grid[: 1 + tokens], grid[2 + tokens :]
    _underlay(seen, heard, frames, spectrograms)
    _overlay(seen[1:], frame_attention, frames.shape[-2:], origin="upper")
    _overlay(heard[1:], sound_attention, spectrograms.shape[-2:], origin="lower")
    for axes, word in zip(seen[0], columns, strict=True):
        axes.set_title(word, fontsize=7, pad=2)
    for rows, words, attention, prefix in (
        (seen, "frames", frame_attention, frame_prefix),
        (heard, "sound", sound_attention, sound_prefix),
    ):
        labels = [words, *(_describe(token, attention, prefix) for token in range(tokens))]
        for axes, label in zip(rows[:, 0], labels, strict=True):
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6.5)
    figure.savefig(path)


def _underlay(seen: Any, heard: Any, frames: Tensor, spectrograms: Tensor) -> None:
    """Draw frames and spectrograms into each row of axes: in colour into the first, in grey into those of tokens."""
    low, high = float(spectrograms.min()), float(spectrograms.max())
    for segment, (frame, spectrogram) in enumerate(zip(frames, spectrograms.numpy(), strict=True)):
        grey = frame.float().mean(0).numpy()
        for row, axes in enumerate(seen[:, segment]):
            shown = grey if row else frame.permute(1, 2, 0).numpy()
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect="auto")
        for row, axes in enumerate(heard[:, segment]):
            colours = "gray" if row else "viridis"
            axes.imshow(spectrogram, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")


def _overlay(rows: Any, attention: Tensor, size: Sequence[int], origin: str) -> None:
    """Lay (T, K, h, w) over K rows of T axes whose pictures have ``size``."""
    smooth = F.interpolate(attention, size=tuple(size), mode="bilinear", align_corners=False)
    for token, row in enumerate(rows):
        heat = (smooth[:, token] / attention[:, token].max().clamp_min(1e-12)).clamp(0, 1).numpy()
        for strength, axes in zip(heat, row, strict=True):
            axes.imshow(strength, cmap=_HEAT, vmin=0, vmax=1, alpha=0.2 + 0.65 * strength, origin=origin, aspect="auto")


def _describe(token: int, attention: Tensor, prefix: Tensor) -> str:
    """What stands at the left of a token's row: how sharp its attention is, and how much of it is nowhere."""
    places = attention.shape[-2] * attention.shape[-1]
    words = f"token {token + 1}\nup to {places * float(attention[:, token].max()):.1f} ×"
    if prefix[:, token].any():
        words += f"\n{100 * float(prefix[:, token].mean()):.0f} % to no patch"
    return words

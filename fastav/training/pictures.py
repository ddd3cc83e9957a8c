"""Attention laid over frames and spectrograms, as one picture a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastav.data.optional import load_optional

_HEAT = "inferno"
_INCH = 1.05  # a frame's side


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
    heights = [1.0] * (1 + tokens) + [0.6] * (1 + tokens)
    figure = figures.Figure(figsize=(_INCH * (segments + 1.6), _INCH * (sum(heights) + 0.6)), dpi=150)
    figure.suptitle(title, fontsize=9, y=1 - 0.12 / (sum(heights) + 0.6), va="top")
    grid = figure.subplots(
        len(heights),
        segments,
        squeeze=False,
        gridspec_kw={
            "height_ratios": heights,
            "wspace": 0.04,
            "hspace": 0.08,
            "left": 1.5 / (segments + 1.6),
            "right": 0.99,
            "bottom": 0.01,
            "top": 1 - 0.5 / (sum(heights) + 0.6),
        },
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_linewidth(0.4)
    pictures = frames.permute(0, 2, 3, 1).numpy()
    grey = frames.float().mean(1).numpy()
    low, high = float(spectrograms.min()), float(spectrograms.max())
    for segment in range(segments):
        grid[0, segment].set_title(columns[segment], fontsize=7, pad=2)
        grid[0, segment].imshow(pictures[segment])
        for row in range(1 + tokens):
            sound = {"cmap": "viridis" if row == 0 else "gray", "vmin": low, "vmax": high}
            grid[1 + tokens + row, segment].imshow(
                spectrograms[segment].numpy(), origin="lower", aspect="auto", **sound
            )
            if row:
                grid[row, segment].imshow(grey[segment], cmap="gray", vmin=0, vmax=255)
    _overlay(grid[1 : 1 + tokens], frame_attention, frames.shape[-2:], origin="upper")
    _overlay(grid[2 + tokens :], sound_attention, spectrograms.shape[-2:], origin="lower")
    grid[0, 0].set_ylabel("frames", rotation=0, ha="right", va="center", fontsize=8)
    grid[1 + tokens, 0].set_ylabel("sound", rotation=0, ha="right", va="center", fontsize=8)
    _describe(grid[1 : 1 + tokens, 0], frame_attention, frame_prefix)
    _describe(grid[2 + tokens :, 0], sound_attention, sound_prefix)
    figure.savefig(path)


def _overlay(rows: Any, attention: Tensor, size: Sequence[int], origin: str) -> None:
    """Lay (T, K, h, w) over K rows of T axes whose pictures have ``size``."""
    smooth = F.interpolate(attention, size=tuple(size), mode="bilinear", align_corners=False)
    for token, row in enumerate(rows):
        heat = smooth[:, token] / attention[:, token].max().clamp_min(1e-12)
        for segment, axes in enumerate(row):
            strength = heat[segment].numpy()
            options = {"cmap": _HEAT, "vmin": 0, "vmax": 1, "alpha": 0.25 + 0.6 * strength.clip(0, 1)}
            axes.imshow(strength, origin=origin, aspect=axes.get_aspect(), **options)


def _describe(column: Any, attention: Tensor, prefix: Tensor) -> None:
    """Write at the left of each token's row how sharp its attention is."""
    places = attention.shape[-2] * attention.shape[-1]
    for token, axes in enumerate(column):
        words = f"token {token + 1}\nup to {places * float(attention[:, token].max()):.1f} ×"
        if prefix[:, token].max() > 0:
            words += f"\n{100 * float(prefix[:, token].mean()):.0f} % to no patch"
        axes.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=6.5)

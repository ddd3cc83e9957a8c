"""Ladder side tuning: a narrow transformer beside the backbone, which reads every block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, layer_norm, pad

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import NOTHING_KEPT, Baseline, blocks_of
from fastav.counts import check_counts

#: T of LST: a gate is sigmoid(w / T).
TEMPERATURE = 0.1


class Ladder(nn.Module):
    """The side network of one backbone: a narrow transformer layer for each of its blocks.

    ``h_i = layer_i(g_i h_{i-1} + (1 - g_i) D_i x_i)`` with the backbone's tokens ``x_i``, normalised, a linear map
    ``D_i`` down and a gate ``g_i = sigmoid(w_i / T)``; the first is ``h_1 = layer_1(D_1 x_1)``. Between stages h is
    averaged to as many places as there are and brought to the next stage's width. As many tokens as the backbone's:
    that is what a ladder costs. A layer is the identity at first.

    It attends in windows where its block does, shifted where its block's are; cut by nothing at the map's edges. A map
    whose sides the windows do not divide is padded at its end, as blocks do it, but nothing attends to the padding: the
    last windows hold fewer tokens.

    Args:
        widths: D of each block.
        tokens: N of each block.
        prefix: how many tokens stand before those of the patches.
        ratio: D over the side network's width.
        windows: of each block, the window's side and by how much it is shifted; None where it attends to all tokens, as
            it also does where these are no square map.

    Raises:
        ValueError: a ratio that does not divide a width, or patches of no square map between stages.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        tokens: tuple[int, ...],
        prefix: int,
        ratio: int,
        windows: Sequence[tuple[int, int] | None],
    ) -> None:
        super().__init__()
        if any(width % ratio for width in widths):
            raise ValueError(f"ratio={ratio} must divide the widths {sorted(set(widths))}")
        counts = [count for count, _ in groupby(tokens)]
        if len(counts) > 1 and (prefix or any(isqrt(count) ** 2 != count for count in counts)):
            raise ValueError(f"a ladder over stages of {counts} tokens wants square maps of patches")
        narrow = [width // ratio for width in widths]
        self.down = nn.ModuleList(nn.Linear(*sizes) for sizes in zip(widths, narrow, strict=True))
        self.across = nn.ModuleList(
            nn.Linear(one, other) if one != other else nn.Identity()
            for one, other in zip([narrow[0], *narrow], narrow, strict=False)
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, _heads(width), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for width in narrow
        )
        for name, parameter in self.layers.named_parameters():
            if "out_proj" in name or "linear2" in name:
                nn.init.zeros_(parameter)
        self.windows = tuple(windows)
        self.gate = nn.Parameter(torch.zeros(len(widths) - 1))  # the first layer has nothing to weigh
        self.width = narrow[-1]

    def forward(self, taps: list[Tensor]) -> Tensor:
        """All blocks' tokens, (B, N_l, D_l) each -> the side network's last, (B, N, D / r)."""
        # Later blocks put out tokens many times as large as the first ones do.
        taps = [layer_norm(tap, tap.shape[-1:]) for tap in taps]
        h = _in_windows(self.layers[0], self.down[0](taps[0]), self.windows[0])
        for i, gate in enumerate((self.gate / TEMPERATURE).sigmoid(), 1):
            x = self.down[i](taps[i])
            below = self.across[i](_resized(h, x.shape[1]))
            h = _in_windows(self.layers[i], gate * below + (1 - gate) * x, self.windows[i])
        return h


class LadderSideTuning(Baseline):
    """Ladder side tuning (Sung et al., NeurIPS 2022): a :class:`Ladder` beside each of the frozen backbones.

    No gradient enters the backbones. Its layers start as identities, not from a pruned backbone as the authors' do.

    Args:
        visual: see :class:`Baseline`.
        audio: likewise.
        ratio: D over the side networks' widths; 4 is the authors' for vision and language.
        options: see :class:`Baseline`; of ``features`` the backbone's own maps are given.

    Raises:
        ValueError: see :class:`Ladder`.
    """

    name = "ladder"
    through = False
    runs_once = NOTHING_KEPT

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        ratio: int = 4,
        **options: Any,
    ) -> None:
        check_counts("LadderSideTuning", ratio=ratio)
        self.ratio = ratio
        super().__init__(visual, audio, **options)

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        self.visual, self.audio = visual, audio
        self.beside_visual, self.beside_audio = (
            Ladder(side.widths, side.tokens, side.prefix_tokens, self.ratio, [_window(b) for b in blocks_of(side)])
            for side in (visual, audio)
        )

    @property
    def _square(self) -> bool:
        return super()._square or any(self.beside_visual.windows)

    def _read_widths(self) -> tuple[int, int]:
        return self.beside_visual.width, self.beside_audio.width

    def _see(self, visual: Tensor) -> list[Tensor]:
        taps = self.visual(visual)
        return [*taps, self.beside_visual(taps)]

    def _hear(self, audio: Tensor) -> Tensor:
        return self.beside_audio(self.audio(audio))


def _window(block: Any) -> tuple[int, int] | None:
    """The side of a block's square windows and their shift, None where it has none."""
    if not hasattr(block, "window_size"):
        return None
    side, shift = (size if isinstance(size, int) else size[0] for size in (block.window_size, block.shift_size))
    return int(side), int(shift)


def _in_windows(layer: nn.Module, tokens: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Run a layer on the tokens (B, N, D) of each window by itself."""
    across = isqrt(tokens.shape[1])
    if window is None or window[0] >= across or across**2 != tokens.shape[1]:
        return layer(tokens)
    side, shift = window
    maps = tokens.unflatten(1, (across, across)).roll((-shift, -shift), (1, 2))
    missing = -across % side
    if missing:
        maps = pad(maps, (0, 0, 0, missing, 0, missing))
    cut = _cut(maps, side)
    outside = _outside(cut, across) if missing else None
    done = layer(cut.flatten(3, 4).flatten(0, 2), src_key_padding_mask=outside).view(cut.shape)
    whole = done.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :across, :across]
    return whole.roll((shift, shift), (1, 2)).flatten(1, 2)


def _cut(maps: Tensor, side: int) -> Tensor:
    """Maps (B, H, W, D) in windows, (B, rows, columns, side, side, D)."""
    return maps.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def _outside(cut: Tensor, across: int) -> Tensor:
    """Which tokens of the windows of :func:`_cut` lie outside of maps of ``across`` x ``across``, True for these."""
    items, rows, side = cut.shape[0], cut.shape[1], cut.shape[3]
    outside = torch.arange(rows * side, device=cut.device) >= across
    places = _cut((outside[:, None] | outside)[None, ..., None], side)
    return places.expand(items, -1, -1, -1, -1, -1).reshape(-1, side * side)


def _heads(width: int) -> int:
    """Heads of about 32 channels."""
    return next(heads for heads in range(max(1, width // 32), 0, -1) if width % heads == 0)


def _resized(tokens: Tensor, count: int) -> Tensor:
    """(B, N, D) of a square map -> (B, count, D) of a smaller one."""
    if tokens.shape[1] == count:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(2, (isqrt(tokens.shape[1]), -1))
    return adaptive_avg_pool2d(maps, isqrt(count)).flatten(2).transpose(1, 2)

"""The segmentation head: a light top-down decoder whose pixels compare themselves with what is heard."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Sides of the pyramid that features of one common grid become, finest first, as multiples of it.
PYRAMID = {1: (1.0,), 2: (2.0, 1.0), 3: (4.0, 2.0, 1.0), 4: (4.0, 2.0, 1.0, 0.5)}


class SegmentationHead(nn.Module):
    """Decide for every pixel of every frame whether it is of what sounds.

    Each scale's feature map is brought to ``hidden`` channels and guided at its own grid: every pixel is compared with
    the audio tokens of its segment and of its clip, takes what it finds there, and keeps the similarities themselves.
    The guided maps are then merged from the coarsest to the finest, and one channel is left, resized to the masks'
    size. A pixel meets 3 K tokens and its neighbours, never the other pixels of the clip: memory is linear in T H W.

    Features that all have one grid, a plain ViT's, are spread over a pyramid after they are guided: the first to 4
    times the grid's sides, the last to half of them.

    Args:
        feature_widths: D of each feature map, 1 to 4 of them, finest first.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: channels of the decoder, a multiple of 8.
        heads: in how many subspaces pixels and tokens are compared; divides ``hidden``.
        dropout: of whole channels of each guided map, in training.

    Raises:
        ValueError: arguments outside of these.
    """

    def __init__(
        self,
        feature_widths: Sequence[int],
        *,
        num_tokens: int,
        width: int,
        hidden: int = 64,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(feature_widths) not in PYRAMID:
            raise ValueError(f"SegmentationHead: feature_widths are {tuple(feature_widths)}, wanted 1 to 4 of them")
        if hidden % 8 or hidden % heads:
            raise ValueError(f"SegmentationHead: hidden is {hidden}, wanted a multiple of 8 and of heads={heads}")
        self.feature_widths = tuple(feature_widths)
        self.tokens = (num_tokens, width)
        self.guides = nn.ModuleList(_Guide(d, num_tokens, width, hidden, heads) for d in feature_widths)
        self.dropout = nn.Dropout2d(dropout)
        self.merges = nn.ModuleList(_merge(hidden) for _ in feature_widths)
        self.mask = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Sequence[Tensor], visual: Tensor, audio: Tensor, size: tuple[int, int]) -> Tensor:
        """From an adapter's output to the masks' logits.

        Args:
            features: the feature maps (B, T, h, w, D), finest first.
            visual: the visual tokens, (B, T, K, W).
            audio: the audio tokens, (B, T, K, W).
            size: (H, W) of the masks, in pixels.

        Returns:
            Logits (B, T, H, W).

        Raises:
            ValueError: features or tokens of another number or shape, or feature maps not finest first.
        """
        self._check(features, visual, audio)
        sources = _sources(visual, audio)
        guided = [self.dropout(guide(x.flatten(0, 1), sources)) for guide, x in zip(self.guides, features, strict=True)]
        x: Tensor | None = None
        for merge, scale in zip(reversed(self.merges), reversed(_pyramid(guided)), strict=True):
            x = scale if x is None else scale + _resize(x, (scale.shape[-2], scale.shape[-1]))
            x = x + merge(x)
        return _resize(self.mask(x), size)[:, 0].unflatten(0, audio.shape[:2])

    def _check(self, features: Sequence[Tensor], visual: Tensor, audio: Tensor) -> None:
        if not features:
            raise ValueError(
                "SegmentationHead: there are no features; the adapter must inject tokens into feature maps, "
                "see `inject_stages` of MettleConfig"
            )
        leading = tuple(audio.shape[:2])
        if tuple(visual.shape) != (*leading, *self.tokens) or tuple(audio.shape) != (*leading, *self.tokens):
            raise ValueError(
                f"SegmentationHead: visual is {tuple(visual.shape)} and audio {tuple(audio.shape)}, "
                f"wanted (B, T, K, W) for both with (K, W) = {self.tokens}"
            )
        shapes = [tuple(x.shape) for x in features]
        if any(len(s) != 5 or s[:2] != leading for s in shapes) or self.feature_widths != tuple(s[-1] for s in shapes):
            raise ValueError(
                f"SegmentationHead: features are {shapes}, wanted (B, T, h, w, D) each with (B, T) = {leading} "
                f"and D = {self.feature_widths}"
            )
        areas = [h * w for _, _, h, w, _ in shapes]
        if areas != sorted(areas, reverse=True):
            raise ValueError(f"SegmentationHead: features are {shapes}, wanted the finest grid first")


class _Guide(nn.Module):
    """One scale: (B T, h, w, D) features and the tokens they are compared with -> (B T, hidden, h, w)."""

    def __init__(self, feature_width: int, num_tokens: int, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.lateral = nn.Sequential(nn.LayerNorm(feature_width), nn.Linear(feature_width, hidden))
        self.query = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden))
        # Of the sounds of the segment and of the clip and of the segment's sight each its own keys and values.
        self.keys_values = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * hidden)) for _ in range(3)
        )
        self.sharpness = nn.Parameter(torch.full((heads, 1, 1), 10.0).log())
        self.found = nn.Linear(hidden, hidden)
        self.similar = nn.Linear(3 * num_tokens * heads, hidden)

    def forward(self, features: Tensor, sources: Sequence[Tensor]) -> Tensor:
        x = self.lateral(features)
        query = F.normalize(self._by_head(self.query(x).flatten(1, 2)), dim=-1)  # (B T, heads, h w, d)
        pairs = [own(tokens).chunk(2, -1) for own, tokens in zip(self.keys_values, sources, strict=True)]
        keys, values = (self._by_head(torch.cat(some, 1)) for some in zip(*pairs, strict=True))
        cosine = query @ F.normalize(keys, dim=-1).mT  # (B T, heads, h w, 3 K)
        found = torch.softmax(cosine * self.sharpness.exp(), -1) @ values
        guidance = self.found(found.transpose(1, 2).flatten(2)) + self.similar(cosine.transpose(1, 2).flatten(2))
        return (x + guidance.view_as(x)).permute(0, 3, 1, 2)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _sources(visual: Tensor, audio: Tensor) -> list[Tensor]:
    """What pixels are compared with: three times (B T, K, W)."""
    clip = audio.mean(1, keepdim=True).expand_as(audio)
    return [tokens.flatten(0, 1) for tokens in (audio, clip, visual)]


def _merge(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, hidden), nn.Conv2d(hidden, hidden, 3, padding=1), nn.GELU())


def _pyramid(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps (B T, C, h, w) of several grids as they are, those of one grid at the sides that `PYRAMID` gives."""
    grids = {tuple(x.shape[-2:]) for x in maps}
    if len(grids) > 1:
        return list(maps)
    ((h, w),) = grids
    return [
        _resize(x, (max(1, int(h * side)), max(1, int(w * side))))
        for x, side in zip(maps, PYRAMID[len(maps)], strict=True)
    ]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size); averages where it shrinks."""
    if x.shape[-2:] == size:
        return x
    if size[0] <= x.shape[-2] and size[1] <= x.shape[-1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)

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
    the audio tokens of its segment and of its clip, in several subspaces, and told how similar it is to each. Nothing
    else of the sound reaches the pixels here. The guided maps are then merged from the coarsest to the finest, and one
    channel is left, resized to the masks' size. A pixel meets 2 K tokens and its neighbours, never the other pixels of
    the clip: memory is linear in T H W.

    Features that all have one grid, a plain ViT's, are spread over a pyramid after they are guided: the first to 4
    times the grid's sides, the last to half of them.

    Args:
        feature_widths: D of each feature map, 1 to 4 of them, finest first.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: channels of the decoder, a multiple of 8.
        matching: width of the space in which pixels and tokens are compared, all subspaces together.
        heads: in how many subspaces they are compared; divides ``matching``.
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
        matching: int = 256,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(feature_widths) not in PYRAMID:
            raise ValueError(f"SegmentationHead: feature_widths are {tuple(feature_widths)}, wanted 1 to 4 of them")
        if hidden % 8 or matching % heads:
            raise ValueError(
                f"SegmentationHead: hidden is {hidden} and matching {matching}, wanted multiples of 8 and of "
                f"heads={heads}"
            )
        self.feature_widths = tuple(feature_widths)
        self.tokens = (num_tokens, width)
        self.guides = nn.ModuleList(_Guide(d, num_tokens, width, hidden, matching, heads) for d in feature_widths)
        self.dropout = nn.Dropout2d(dropout)
        self.merges = nn.ModuleList(_merge(hidden) for _ in feature_widths)
        self.mask = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Sequence[Tensor], audio: Tensor, size: tuple[int, int]) -> Tensor:
        """From an adapter's output to the masks' logits.

        Args:
            features: the feature maps (B, T, h, w, D), finest first.
            audio: the audio tokens, (B, T, K, W).
            size: (H, W) of the masks, in pixels.

        Returns:
            Logits (B, T, H, W).

        Raises:
            ValueError: features or tokens of another number or shape, or feature maps not finest first.
        """
        self._check(features, audio)
        sounds = torch.stack([audio, audio.mean(1, keepdim=True).expand_as(audio)]).flatten(1, 2)
        guided = [self.dropout(guide(x.flatten(0, 1), sounds)) for guide, x in zip(self.guides, features, strict=True)]
        x: Tensor | None = None
        for merge, scale in zip(reversed(self.merges), reversed(_pyramid(guided)), strict=True):
            x = scale if x is None else scale + _resize(x, (scale.shape[-2], scale.shape[-1]))
            x = x + merge(x)
        return _resize(self.mask(x), size)[:, 0].unflatten(0, audio.shape[:2])

    def _check(self, features: Sequence[Tensor], audio: Tensor) -> None:
        if not features:
            raise ValueError(
                "SegmentationHead: there are no features; the adapter must inject tokens into feature maps, "
                "see `inject_stages` of its configuration"
            )
        if audio.ndim != 4 or tuple(audio.shape[2:]) != self.tokens:
            raise ValueError(
                f"SegmentationHead: audio is {tuple(audio.shape)}, wanted (B, T, K, W) with (K, W) = {self.tokens}"
            )
        leading = tuple(audio.shape[:2])
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
    """One scale: (B T, h, w, D) features and (2, B T, K, W) tokens to compare with -> (B T, hidden, h, w)."""

    def __init__(self, feature_width: int, num_tokens: int, width: int, hidden: int, matching: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(feature_width)
        self.lateral, self.query = nn.Linear(feature_width, hidden), nn.Linear(feature_width, matching)
        # The sounds of the segment and of the clip have each their own keys.
        self.keys = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, matching)) for _ in range(2))
        self.similar = nn.Linear(2 * num_tokens * heads, hidden)

    def forward(self, features: Tensor, sounds: Tensor) -> Tensor:
        features = self.norm(features.to(self.norm.weight.dtype))  # those of a 16-bit backbone are 16-bit
        query = self._by_head(self.query(features).flatten(1, 2))  # (B T, heads, h w, matching / heads)
        keys = self._by_head(torch.cat([key(tokens) for key, tokens in zip(self.keys, sounds, strict=True)], 1))
        cosines = (query @ keys.mT).transpose(1, 2).flatten(2)  # (B T, h w, heads 2 K)
        x = self.lateral(features)
        return (x + self.similar(cosines).view_as(x)).permute(0, 3, 1, 2)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, matching) -> (B, heads, N, matching / heads), rows of unit length."""
        return F.normalize(x.unflatten(-1, (self.heads, -1)).transpose(1, 2), dim=-1)


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

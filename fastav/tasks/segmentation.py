"""Segmentation of what sounds (AVSBench): which pixels of each frame belong to an object that is heard."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastav.output import AdapterOutput
from fastav.tasks.evidence import target
from fastav.tasks.segmentation_head import SegmentationHead
from fastav.tasks.task import Batch, Task


def segmentation_loss(
    logits: Tensor, masks: Tensor, has_mask: Tensor | None = None, *, dice_weight: float = 0.0
) -> Tensor:
    """Binary cross-entropy over the frames that have a mask, and optionally a dice loss beside it.

    Both are means over these frames: of single-source training clips over their first frames, of multi-source clips
    over all. Where no frame of a batch has a mask the loss is zero, with a gradient of zero. Computed in float32 or
    wider, under autocast too.

    Args:
        logits: (B, T, H, W), from :class:`SegmentationHead`.
        masks: (B, T, H, W) bool.
        has_mask: (B, T) bool, which frames have a mask; None: all.
        dice_weight: of the mean of ``1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)``, sums over a frame's pixels.

    Raises:
        TypeError: masks or has_mask that are not bool.
        ValueError: shapes that do not match.
    """
    has_mask = check_masks("segmentation_loss", "logits", logits, masks, has_mask)
    y = masks.to(torch.promote_types(logits.dtype, torch.float32))
    x = logits.to(y.dtype)
    losses = F.binary_cross_entropy_with_logits(x, y, reduction="none").mean((2, 3))
    if dice_weight:
        p = x.sigmoid()
        dice = 1 - (2 * (p * y).sum((2, 3)) + 1) / ((p + y).sum((2, 3)) + 1)
        losses = losses + dice_weight * dice
    # No indexing by has_mask: its result's shape would be known to the host alone, which would wait for the device.
    return torch.where(has_mask, losses, 0).sum() / has_mask.sum().clamp(min=1)


def check_masks(caller: str, name: str, values: Tensor, masks: Tensor, has_mask: Tensor | None) -> Tensor:
    """Refuse masks that do not fit ``values``, (B, T, H, W); has_mask as a tensor, all True for None."""
    if has_mask is None:
        has_mask = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
    if masks.dtype != torch.bool or has_mask.dtype != torch.bool:
        raise TypeError(
            f"{caller}: masks are {masks.dtype} and has_mask {has_mask.dtype}, wanted torch.bool for both; "
            f"a mask's pixel is True where its file holds anything but 0"
        )
    if values.ndim != 4 or masks.shape != values.shape or has_mask.shape != values.shape[:2]:
        raise ValueError(
            f"{caller}: {name} are {tuple(values.shape)}, masks {tuple(masks.shape)} and has_mask "
            f"{tuple(has_mask.shape)}, wanted (B, T, H, W) twice and (B, T); the head gives the size that it is asked "
            f"for, SegmentationTask's `size`"
        )
    return has_mask


def decode_segmentation(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The masks and how probable each pixel is: (B, T, H, W) logits -> two (B, T, H, W), bool and floating.

    A pixel is in the mask where its probability, the logit's sigmoid, is above one half.
    """
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    return probabilities > 0.5, probabilities


class SegmentationTask(Task):
    """Audio-visual segmentation behind the interface of all tasks.

    Args:
        feature_widths: D of each of the adapter's feature maps, finest first.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        size: side, or height and width, of the masks in pixels; 224 on AVSBench.
        hidden: channels of the decoder.
        dice_weight: see :func:`segmentation_loss`.
        scoring: ``"dataset"`` or ``"avsbench"``, see :class:`fastav.metrics.SegmentationScores`.
    """

    name = "segmentation"
    monitor = "miou"

    def __init__(
        self,
        feature_widths: Sequence[int],
        *,
        num_tokens: int,
        width: int,
        size: int | tuple[int, int] = 224,
        hidden: int = 64,
        dice_weight: float = 1.0,
        scoring: str = "dataset",
    ) -> None:
        super().__init__()
        self.head = SegmentationHead(feature_widths, num_tokens=num_tokens, width=width, hidden=hidden)
        self.size = (size, size) if isinstance(size, int) else size
        self.dice_weight, self.scoring = dice_weight, scoring

    def forward(self, out: AdapterOutput, batch: Batch) -> Tensor:
        """Logits (B, T, H, W)."""
        return self.head(out.features, out.audio, self.size)

    def loss(self, said: Tensor, batch: Batch) -> Tensor:
        """:func:`segmentation_loss` of the batch's ``masks`` and, where it has it, ``has_mask``.

        Raises:
            ValueError: the batch has no masks.
        """
        masks = target(batch, "masks", "segmentation is learned from them")
        return segmentation_loss(said, masks, batch.get("has_mask"), dice_weight=self.dice_weight)

    def metric(self) -> Any:
        """A new :class:`fastav.metrics.SegmentationScores`."""
        from fastav.tasks.segmentation_metric import SegmentationScores

        return SegmentationScores(self.scoring)

    def update(self, metric: Any, said: Tensor, batch: Batch) -> None:
        """Count one batch; its ``index`` (B,), where it has one, is each clip's position in the data set.

        Raises:
            ValueError: the batch has no masks.
        """
        masks = target(batch, "masks", "score a split whose frames have masks")
        _, probabilities = decode_segmentation(said)
        metric.update(probabilities, masks, batch.get("has_mask"), positions=batch.get("index"))

    def decode(self, said: Tensor) -> dict[str, Tensor]:
        """``masks`` (B, T, H, W) bool and ``probabilities`` (B, T, H, W)."""
        masks, probabilities = decode_segmentation(said)
        return {"masks": masks, "probabilities": probabilities}

"""Scores of segmentation: mIoU and F, of the whole data set or as AVSBench's own scripts have them."""

import torch
import torch.distributed as dist
from torch import Tensor

from fastav.tasks.segmentation import check_masks

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError('fastav.metrics needs torchmetrics: pip install "fastav[training]"') from error

MODES = ("dataset", "avsbench")
THRESHOLDS = 255
BETA_SQUARED = 0.3
# A video's row: the process that scored it, its position or -1, its frames with a mask, those of them whose mask is not
# empty, the sum of the frames' IoU, and the sum of the latter frames' F at each threshold.
PROCESS, POSITION, FRAMES, NON_EMPTY, IOU = range(5)
ROW = 5 + THRESHOLDS


class SegmentationScores(Metric):
    """Mean intersection over union and F of segmented frames.

    A frame's IoU is that of its mask with the pixels whose probability is above one half. Where its mask is empty it is
    the share of pixels rightly left out. A frame's F, with beta squared 0.3, is a curve over 255 thresholds from 0 to
    1; frames with an empty mask have none.

    Args:
        mode: ``"dataset"``: ``miou`` is the mean over all frames, ``f_score`` the maximum of the mean curve of all
            frames. ``"avsbench"``: both are found for every ``batch_size`` videos, in order, and averaged over these
            groups, as AVSBench's scripts do; a last, smaller group weighs as much as the others, and a group of empty
            masks alone has an F of 0.
        batch_size: videos in a group of ``"avsbench"``; the scripts have 4. The loader's own batches do not matter.

    ``update(probabilities, masks, has_mask=None, *, positions=None)`` takes (B, T, H, W) probabilities and bool masks
    and optionally ``has_mask`` (B, T) bool, the frames that have a mask: the others are not scored. ``compute()`` gives
    ``miou`` and ``f_score``, fractions; NaN where nothing was scored.

    ``positions`` (B,) are the videos' positions in the data set. They order the videos, and a video that several
    processes scored, as samplers that fill up the last batch have it, counts once. Without them videos are in order
    of arrival. Over several processes there is no such order, and ``"avsbench"`` without positions is refused there.

    Raises:
        ValueError: another mode, or a batch size below 1.
    """

    full_state_update = False
    videos: list[Tensor]

    def __init__(self, mode: str = "dataset", batch_size: int = 4) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"SegmentationScores: mode is {mode!r}, wanted one of {', '.join(MODES)}")
        if batch_size < 1:
            raise ValueError(f"SegmentationScores: batch_size is {batch_size}, wanted at least 1")
        self.mode, self.batch_size = mode, batch_size
        # Flat and float32, so that a process without a video can take part; whole numbers are exact up to 2 ** 24.
        self.add_state("videos", [], dist_reduce_fx="cat")

    def update(
        self,
        probabilities: Tensor,
        masks: Tensor,
        has_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> None:
        """Score one batch of videos.

        Raises:
            TypeError: masks or has_mask that are not bool.
            ValueError: shapes that do not match, probabilities outside 0 ... 1, or negative positions.
        """
        has_mask = check_masks("SegmentationScores", "probabilities", probabilities, masks, has_mask)
        p = probabilities.detach().flatten(2).float()  # (B, T, H W)
        y = masks.flatten(2)
        if p.numel() and not ((p >= 0) & (p <= 1)).all():
            raise ValueError(
                f"SegmentationScores: probabilities are {p.min().item():.3g} ... {p.max().item():.3g}, wanted numbers "
                f"in 0 ... 1; decode_segmentation makes them of logits"
            )
        if positions is None:
            positions = torch.full((len(p),), -1, device=p.device)
        elif positions.shape != p.shape[:1] or (positions < 0).any() or (positions >= 2**24).any():
            raise ValueError(f"SegmentationScores: positions are {positions}, wanted {len(p)} from 0 on, one a video")
        non_empty = has_mask & y.any(-1)
        rows = torch.cat(
            [
                torch.full((len(p), 1), float(_process()), device=p.device),
                torch.stack([positions, has_mask.sum(1), non_empty.sum(1)], 1).float(),
                (_iou(p, y) * has_mask).sum(1, keepdim=True),
                (_f_curves(p, y) * non_empty[..., None]).sum(1),
            ],
            1,
        )
        self.videos.append(rows[has_mask.any(1)].flatten())

    def compute(self) -> dict[str, Tensor]:
        """``miou`` and ``f_score`` of all videos so far.

        Raises:
            ValueError: positions for some videos only, or twice in one process.
            RuntimeError: ``"avsbench"`` over several processes without positions.
        """
        rows = self._in_order()
        if not len(rows):
            return {name: torch.tensor(torch.nan, device=self.device) for name in ("miou", "f_score")}
        groups = rows.split(len(rows) if self.mode == "dataset" else self.batch_size)
        miou = torch.stack([some[:, IOU].sum() / some[:, FRAMES].sum() for some in groups])
        f_score = torch.stack(
            [some[:, -THRESHOLDS:].sum(0).max() / some[:, NON_EMPTY].sum().clamp(min=1) for some in groups]
        )
        return {"miou": miou.mean(), "f_score": f_score.mean()}

    def _in_order(self) -> Tensor:
        """Each video's row once, (videos, ROW)."""
        rows = dim_zero_cat(self.videos) if len(self.videos) else torch.zeros(0, device=self.device)
        rows = rows.view(-1, ROW)
        given = rows[:, POSITION] >= 0
        if not given.any():
            if self.mode == "avsbench" and len(rows[:, PROCESS].unique()) > 1:
                raise RuntimeError(
                    "SegmentationScores: mode='avsbench' needs the videos' order, which several processes do not "
                    "keep; give update() their positions in the data set, or evaluate in one process"
                )
            return rows
        if not given.all():
            raise ValueError(
                f"SegmentationScores: {int((~given).sum())} of {len(rows)} videos came without a position; "
                f"give update() all positions or none"
            )
        _, counts = rows[:, : POSITION + 1].unique(dim=0, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                "SegmentationScores: a position came twice in one process; they must differ within a data set, and "
                "reset() must stand between two evaluations"
            )
        rows = rows[rows[:, POSITION].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        first[1:] = rows[1:, POSITION] != rows[:-1, POSITION]
        return rows[first]


def _process() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _iou(p: Tensor, y: Tensor) -> Tensor:
    """(B, T, H W) probabilities and masks -> (B, T)."""
    predicted = p > 0.5
    inter, union = (predicted & y).sum(-1), (predicted | y).sum(-1)
    spared, pixels = (~predicted & ~y).sum(-1), torch.full_like(union, p.shape[-1])
    empty = ~y.any(-1)
    return torch.where(empty, spared, inter) / (torch.where(empty, pixels, union) + 1e-7)


def _f_curves(p: Tensor, y: Tensor) -> Tensor:
    """(B, T, H W) probabilities and masks -> each frame's F at each threshold, (B, T, 255).

    A pixel is marked where it reaches the threshold. How many thresholds each pixel reaches says all there is to know:
    one histogram of a frame stands for 255 passes over it.
    """
    # Made on the CPU, as AVSBench's are, so that their last bits are the same everywhere; the last is 1 in float32.
    thresholds = torch.linspace(0, 1 - 1e-10, THRESHOLDS).to(p.device)
    bins = THRESHOLDS + 1
    reached = torch.bucketize(p, thresholds, right=True).flatten(0, 1)
    reached += bins * torch.arange(len(reached), device=p.device)[:, None]
    marked, right = (_at_least(pixels, len(reached), bins) for pixels in (reached.flatten(), reached[y.flatten(0, 1)]))
    precision = right / (marked + 1e-20)
    recall = right / (y.flatten(0, 1).sum(-1, keepdim=True) + 1e-20)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return f.nan_to_num(0.0).view(*p.shape[:2], THRESHOLDS)


def _at_least(bin_of_pixel: Tensor, frames: int, bins: int) -> Tensor:
    """Number of pixels in the bins from 1, 2, ... on, for each frame: (frames, bins - 1)."""
    histogram = torch.bincount(bin_of_pixel, minlength=frames * bins).view(frames, bins)
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]

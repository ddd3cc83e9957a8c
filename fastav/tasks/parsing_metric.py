"""Scores of video parsing: segment and event F of what is heard, what is seen, and what is both, as on LLP."""

import torch
from torch import Tensor

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError('fastav.metrics needs torchmetrics: pip install "fastav[training]"') from error


class ParsingScores(Metric):
    """The LLP benchmark's F-scores, ten of them: five of segments, five of whole events.

    Every video is scored by itself. For each class with a prediction or a truth in the video, F = 2 TP / (2 TP + FP +
    FN); the video's score is the mean over those classes, and 1 where there is none. The result is the mean over the
    videos.

    Args:
        num_classes: C.

    ``update(audio, visual, audio_events, visual_events)`` takes four (B, T, C) bool tensors: what was predicted to be
    heard and seen in each segment, and what is. ``compute()`` gives a dictionary of fractions, named
    ``"segment/..."`` where a hit is a segment, and ``"event/..."`` where it is an event: an unbroken run of segments
    whose intersection with a run of the other side is at least half of their union.

    - ``audio``, ``visual``: F of the one and of the other modality;
    - ``audio_visual``: F of what is heard and seen at once, in truth and in prediction;
    - ``type``: the mean of those three, the benchmark's Type@AV;
    - ``event``: F with the hits and misses of both modalities added up before, class by class: Event@AV.

    Without videos all are NaN. The sums add up over batches and processes.
    """

    full_state_update = False
    totals: Tensor
    videos: Tensor

    #: The scores at each of the two levels.
    names = ("audio", "visual", "audio_visual", "type", "event")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("totals", torch.zeros(2, len(self.names), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("videos", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, audio: Tensor, visual: Tensor, audio_events: Tensor, visual_events: Tensor) -> None:
        """Score one batch.

        Raises:
            TypeError: a tensor that is not bool.
            ValueError: shapes that differ, or another number of classes.
        """
        given = {"audio": audio, "visual": visual, "audio_events": audio_events, "visual_events": visual_events}
        for name, value in given.items():
            if value.dtype != torch.bool:
                raise TypeError(f"{name} is {value.dtype}, wanted bool: decide first, with decode_parsing")
            alike = value.ndim == 3 and value.shape == audio.shape
            if not alike or value.shape[1] == 0 or value.shape[2] != self.num_classes:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, wanted (B, T, {self.num_classes}), the same for all four, "
                    f"with at least one segment"
                )
        predicted = torch.stack([audio, visual, audio & visual]).mT  # (3, B, C, T)
        truth = torch.stack([audio_events, visual_events, audio_events & visual_events]).mT
        for level, count in enumerate((_segment_counts, _event_counts)):
            counts = count(predicted, truth)  # (3, B, C) each
            three = _video_scores(*counts)
            pooled = _video_scores(*(each[:2].sum(0) for each in counts))
            scores = torch.stack([*three, three.mean(0), pooled])
            self.totals[level] += (scores * _UNIT).long().sum(1)
        self.videos += len(audio)

    def compute(self) -> dict[str, Tensor]:
        """The scores over everything counted so far, by name."""
        keys = [f"{level}/{name}" for level in ("segment", "event") for name in self.names]
        return dict(zip(keys, (self.totals / _UNIT / self.videos).flatten(), strict=True))


# Scores are added up as whole numbers of 2**-32: exact in any order, for 2**31 videos, and without float64, which not
# every device has. A video's own score is a float32, right to 1e-6.
_UNIT = 2**32

Counts = tuple[Tensor, Tensor, Tensor]


def _segment_counts(predicted: Tensor, truth: Tensor) -> Counts:
    """TP, FP and FN of segments, (...) each, of maps (..., T)."""
    return (predicted & truth).sum(-1), (predicted & ~truth).sum(-1), (~predicted & truth).sum(-1)


def _event_counts(predicted: Tensor, truth: Tensor) -> Counts:
    """TP, FP and FN of events, (...) each, of maps (..., T).

    Two runs of one side have a gap between them, so at most one of them can share half of a union with a run of the
    other side: hits are pairs, and whose they are counted as makes no difference.
    """
    runs, others = _runs(predicted)[..., :, None, :], _runs(truth)[..., None, :, :]
    common = (runs & others).sum(-1)
    # In integers, intersection / union >= 1/2 is exact.
    hit = (common > 0) & (2 * common >= (runs | others).sum(-1))
    tp = hit.sum((-2, -1))
    return tp, runs.any(-1).sum((-2, -1)) - tp, others.any(-1).sum((-2, -1)) - tp


def _runs(maps: Tensor) -> Tensor:
    """The unbroken runs in maps (..., T), one a row: (..., most runs in any map, T)."""
    before = torch.nn.functional.pad(maps, (1, 0))[..., :-1]
    number = (maps & ~before).cumsum(-1)  # of the run that each segment is in, from 1
    numbers = torch.arange(1, int(number.max()) + 1 if number.numel() else 1, device=maps.device)
    return maps[..., None, :] & (number[..., None, :] == numbers[:, None])


def _video_scores(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """(..., C) counts to (...) scores, in float32: the mean F over the classes that occur."""
    occurs = (tp + fp + fn) > 0
    f = torch.where(occurs, 2 * tp.float() / (2 * tp + fp + fn).clamp(min=1), 0.0)
    return torch.where(occurs.any(-1), f.sum(-1) / occurs.sum(-1).clamp(min=1), 1.0)

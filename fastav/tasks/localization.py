"""Event localisation (AVE): which class is both seen and heard in each second, or none, the background."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalizationHead(nn.Module):
    """Decide for every segment which class is both seen and heard, or that none is.

    Each modality's K tokens become one feature a segment, which sees its neighbours in time, and the feature gives a
    score for each class: how surely it is seen, how surely it is heard. A class's logit is the log-probability of
    both, ``log sigmoid(seen) + log sigmoid(heard)``, so that neither modality can carry it alone; the background's is
    learned from both features together.

    Args:
        num_classes: C, without background.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: width of the segment features.
        dropout: on the segment features, in training.
    """

    def __init__(
        self, num_classes: int, *, num_tokens: int, width: int, hidden: int = 128, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.visual = _SegmentFeatures(num_tokens * width, hidden, dropout)
        self.audio = _SegmentFeatures(num_tokens * width, hidden, dropout)
        self.seen = nn.Linear(hidden, num_classes)
        self.heard = nn.Linear(hidden, num_classes)
        self.background = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """From an adapter's tokens (B, T, K, W) to logits (B, T, C + 1), the background's last."""
        v, a = self.visual(visual.flatten(2)), self.audio(audio.flatten(2))
        both = F.logsigmoid(self.seen(v)) + F.logsigmoid(self.heard(a))
        return torch.cat([both, self.background(torch.cat([v, a], -1))], -1)


class _SegmentFeatures(nn.Module):
    """(B, T, D) -> (B, T, hidden): a feature a segment, with a convolution over time for its context."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout))
        self.context = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        x = x + F.gelu(self.context(x.mT).mT)
        return self.dropout(self.norm(x))


def localization_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over all segments, background as a class.

    Args:
        logits: (B, T, C + 1), from :class:`LocalizationHead`.
        labels: (B, T) int64, C for background.
        label_smoothing: as in torch's ``cross_entropy``.
    """
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)


def decode_localization(logits: Tensor) -> Tensor:
    """The label of every segment: (B, T, C + 1) logits -> (B, T) int64, C for background."""
    return logits.argmax(-1)

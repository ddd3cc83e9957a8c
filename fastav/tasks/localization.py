"""Event localisation (AVE): which class is both seen and heard in each second, or none, the background."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalizationHead(nn.Module):
    """Decide for every segment which class is both seen and heard, or that none is.

    Each modality's K tokens give a score for each class: how surely it is seen, how surely it is heard. Scores see
    their neighbours in time. A class's logit is the log-probability of both, ``log sigmoid(seen) + log
    sigmoid(heard)``, and the background's is one learned number: what evidence an event must have. Neither modality
    can carry a class alone, and background is the lack of agreement, not a class with a look of its own to learn.

    Args:
        num_classes: C, without background.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: width of the segment features.
        dropout: on the tokens and on the segment features, in training.
    """

    def __init__(
        self, num_classes: int, *, num_tokens: int, width: int, hidden: int = 128, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.tokens = (num_tokens, width)
        self.seen = _ClassEvidence(num_tokens * width, hidden, num_classes, dropout)
        self.heard = _ClassEvidence(num_tokens * width, hidden, num_classes, dropout)
        self.background = nn.Parameter(torch.full((1,), -1.0))

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """From an adapter's tokens (B, T, K, W) to logits (B, T, C + 1), the background's last.

        Raises:
            ValueError: tokens of another shape.
        """
        wanted = (*visual.shape[:2], *self.tokens)
        if tuple(visual.shape) != wanted or tuple(audio.shape) != wanted:
            raise ValueError(
                f"LocalizationHead: visual is {tuple(visual.shape)} and audio {tuple(audio.shape)}, "
                f"wanted (B, T, K, W) for both with (K, W) = {self.tokens}"
            )
        both = F.logsigmoid(self.seen(visual)) + F.logsigmoid(self.heard(audio))
        return torch.cat([both, self.background.expand(*both.shape[:-1], 1)], -1)


class _ClassEvidence(nn.Module):
    """(B, T, K, W) tokens -> (B, T, C) scores; all classes' scores are smoothed over time alike."""

    def __init__(self, inputs: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.Dropout(dropout),
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        # Starts as no context: what a neighbour says counts only once that has proved right.
        self.context = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.context.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.score(tokens.flatten(2))
        series = scores.mT.flatten(0, 1)[:, None]  # (B C, 1, T)
        return scores + self.context(series).view(scores.mT.shape).mT


def localization_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over all segments, background as a class.

    Args:
        logits: (B, T, C + 1), from :class:`LocalizationHead`.
        labels: (B, T) int64, C for background.
        label_smoothing: as in torch's ``cross_entropy``.

    Raises:
        ValueError: shapes that do not match.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"localization_loss: logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}, "
            f"wanted (B, T, C + 1) and (B, T)"
        )
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)


def decode_localization(logits: Tensor) -> Tensor:
    """The label of every segment: (B, T, C + 1) logits -> (B, T) int64, C for background."""
    return logits.argmax(-1)

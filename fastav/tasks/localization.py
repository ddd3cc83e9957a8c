"""Event localisation (AVE): which class is both seen and heard in each second, or none, the background."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.output import AdapterOutput
from fastav.tasks.evidence import ClassEvidence, check_tokens, pool_evidence, target
from fastav.tasks.task import Batch, Task


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
        self.seen = ClassEvidence(num_tokens * width, hidden, num_classes, dropout)
        self.heard = ClassEvidence(num_tokens * width, hidden, num_classes, dropout)
        self.background = nn.Parameter(torch.full((1,), -1.0))

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """From an adapter's tokens (B, T, K, W) to logits (B, T, C + 1), the background's last.

        Raises:
            ValueError: tokens of another shape.
        """
        check_tokens("LocalizationHead", visual, audio, self.tokens)
        both = F.logsigmoid(self.seen(visual)) + F.logsigmoid(self.heard(audio))
        return torch.cat([both, self.background.expand(*both.shape[:-1], 1)], -1)


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


def weak_localization_loss(logits: Tensor, clip_labels: Tensor) -> Tensor:
    """Learn from what happens in a clip without being told when: multiple-instance learning over its segments.

    A segment's probability of a class is what the softmax gives it beside all others and the background. A clip's is
    the mean of its segments', each weighted by that probability itself (linear softmax), so that segments that have
    much of a class are taught more of it, and those that have less than half as much are taught less: the background.
    The loss is the binary cross-entropy of the clips' probabilities, summed over classes, the mean over clips.

    Args:
        logits: (B, T, C + 1), from :class:`LocalizationHead`.
        clip_labels: (B, C) float, 1 for each class that has an event in the clip; all 0 if there is none.

    Raises:
        ValueError: shapes that do not match.
    """
    if logits.ndim != 3 or clip_labels.shape != (len(logits), logits.shape[2] - 1):
        raise ValueError(
            f"weak_localization_loss: logits are {tuple(logits.shape)} and clip_labels {tuple(clip_labels.shape)}, "
            f"wanted (B, T, C + 1) and (B, C)"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # A class against the rest: the logit of its probability under the softmax, without rounding that to 0 or 1.
    others = torch.eye(logits.shape[2], dtype=torch.bool, device=logits.device)[:-1]
    rest = logits[..., None, :].masked_fill(others, -torch.inf).logsumexp(-1)
    margin = logits[..., :-1] - rest
    clip = pool_evidence(margin, F.logsigmoid(margin), 1)
    losses = F.binary_cross_entropy_with_logits(clip, clip_labels.to(clip.dtype), reduction="none")
    return losses.sum(1).mean()


def decode_localization(logits: Tensor) -> Tensor:
    """The label of every segment: (B, T, C + 1) logits -> (B, T) int64, C for background."""
    return logits.argmax(-1)


class LocalizationTask(Task):
    """Event localisation behind the interface of all tasks.

    Args:
        num_classes: C, without background.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: see :class:`LocalizationHead`.
        dropout: see :class:`LocalizationHead`.
        supervision: ``"full"``, from the batch's ``labels``, or ``"weak"``, from its ``clip_labels`` alone. Scores are
            of ``labels`` either way.
        label_smoothing: see :func:`localization_loss`; full supervision only.

    Raises:
        ValueError: another supervision, or label smoothing with weak supervision.
    """

    name = "localization"
    monitor = "accuracy"

    def __init__(
        self,
        num_classes: int,
        *,
        num_tokens: int,
        width: int,
        hidden: int = 128,
        dropout: float = 0.5,
        supervision: Literal["full", "weak"] = "full",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if supervision not in ("full", "weak"):
            raise ValueError(f"supervision is {supervision!r}, wanted 'full' or 'weak'")
        if supervision == "weak" and label_smoothing:
            raise ValueError(f"label_smoothing={label_smoothing} is for full supervision; leave it 0 with 'weak'")
        self.head = LocalizationHead(num_classes, num_tokens=num_tokens, width=width, hidden=hidden, dropout=dropout)
        self.num_classes, self.supervision, self.label_smoothing = num_classes, supervision, label_smoothing

    def forward(self, out: AdapterOutput, batch: Batch) -> Tensor:
        """Logits (B, T, C + 1)."""
        return self.head(out.visual, out.audio)

    def loss(self, said: Tensor, batch: Batch) -> Tensor:
        """:func:`localization_loss` of ``labels``, or :func:`weak_localization_loss` of ``clip_labels``.

        Raises:
            ValueError: the batch does not have them.
        """
        if self.supervision == "weak":
            return weak_localization_loss(said, target(batch, "clip_labels", "weak supervision needs them"))
        labels = target(batch, "labels", "use supervision='weak' for clips that have clip_labels alone")
        return localization_loss(said, labels, label_smoothing=self.label_smoothing)

    def metric(self) -> Any:
        """A new :class:`fastav.metrics.LocalizationScores`."""
        from fastav.tasks.localization_metric import LocalizationScores

        return LocalizationScores(self.num_classes)

    def update(self, metric: Any, said: Tensor, batch: Batch) -> None:
        """Count one batch, and its ``mismatched`` segments where it has them.

        Raises:
            ValueError: the batch has no ``labels``.
        """
        labels = target(batch, "labels", "scores need the label of every segment")
        metric.update(decode_localization(said), labels, batch.get("mismatched"))

    def decode(self, said: Tensor) -> dict[str, Tensor]:
        """``labels`` (B, T) int64, C for background, and ``probabilities`` (B, T, C + 1) of all of them."""
        wide = torch.promote_types(said.dtype, torch.float32)
        return {"labels": decode_localization(said), "probabilities": said.softmax(-1, dtype=wide)}

"""Video parsing (LLP): what is heard and what is seen in each second, learned from what happens in the clip at all."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.output import AdapterOutput
from fastav.tasks.evidence import ClassEvidence, check_tokens, pool_evidence, target
from fastav.tasks.task import Batch, Task


class Parsing(NamedTuple):
    """What a :class:`ParsingHead` says of B clips of T segments: logits, of which the sigmoid is the probability.

    Attributes:
        audio: (B, T, C), a class is heard in a segment.
        visual: (B, T, C), a class is seen in a segment.
        clip_audio: (B, C), a class is heard in the clip.
        clip_visual: (B, C), a class is seen in the clip.
        clip: (B, C), a class is heard or seen in the clip.
    """

    audio: Tensor
    visual: Tensor
    clip_audio: Tensor
    clip_visual: Tensor
    clip: Tensor


class ParsingHead(nn.Module):
    """Say for every segment which classes are heard and which are seen, each modality from its own tokens.

    Each modality's K tokens give a score for each class, and attention: how much the segment should count when the
    class is looked for in the clip. A clip's probability of a class is the mean of its segments' under the softmax of
    the attention: over the segments of one modality, and over those of both together. Clip labels teach all of it.

    Args:
        num_classes: C.
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
        inputs = num_tokens * width
        self.heard = ClassEvidence(inputs, hidden, num_classes, dropout)
        self.seen = ClassEvidence(inputs, hidden, num_classes, dropout)
        self.listen, self.look = (
            nn.Sequential(nn.Flatten(2), nn.LayerNorm(inputs), nn.Dropout(dropout), nn.Linear(inputs, num_classes))
            for _ in range(2)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> Parsing:
        """From an adapter's tokens (B, T, K, W) to logits.

        Raises:
            ValueError: tokens of another shape.
        """
        check_tokens("ParsingHead", visual, audio, self.tokens)
        logits = torch.stack([self.heard(audio), self.seen(visual)], 1)  # (B, 2, T, C)
        # With learned attention alone, a segment that gets none may claim any class: the clip would never tell. Half
        # the score is attention too, so that who claims a class has to answer for it.
        attention = torch.stack([self.listen(audio), self.look(visual)], 1) + logits / 2
        each = pool_evidence(logits, attention, 2)
        both = pool_evidence(logits, attention, (1, 2))
        return Parsing(logits[:, 0], logits[:, 1], each[:, 0], each[:, 1], both)


def parsing_loss(
    said: Parsing, clip_labels: Tensor, *, audio_smoothing: float = 0.0, visual_smoothing: float = 0.1
) -> Tensor:
    """Learn from clip labels alone: three binary cross-entropies, of the clip, of what is heard and of what is seen.

    A clip's label does not say whether the class is heard, seen or both. The two modalities' terms take it for both,
    which is wrong for some; label smoothing, ``(1 - s) y + s / 2``, tells a modality not to be too sure of it.

    Args:
        said: from :class:`ParsingHead`.
        clip_labels: (B, C) float, 1 for each class that is heard or seen in the clip.
        audio_smoothing: s of what is heard, 0 ... 1.
        visual_smoothing: s of what is seen, 0 ... 1.

    Returns:
        The sum of the three, each the mean over clips and classes.

    Raises:
        ValueError: a shape that does not match, or a smoothing outside 0 ... 1.
    """
    if clip_labels.shape != said.clip.shape:
        raise ValueError(
            f"parsing_loss: clip_labels are {tuple(clip_labels.shape)}, wanted {tuple(said.clip.shape)}, (B, C)"
        )
    for name, smoothing in (("audio_smoothing", audio_smoothing), ("visual_smoothing", visual_smoothing)):
        if not 0 <= smoothing <= 1:
            raise ValueError(f"parsing_loss: {name} is {smoothing}, wanted 0 ... 1")
    labels = clip_labels.to(said.clip.dtype)
    return (
        F.binary_cross_entropy_with_logits(said.clip, labels)
        + F.binary_cross_entropy_with_logits(said.clip_audio, labels * (1 - audio_smoothing) + audio_smoothing / 2)
        + F.binary_cross_entropy_with_logits(said.clip_visual, labels * (1 - visual_smoothing) + visual_smoothing / 2)
    )


def decode_parsing(said: Parsing) -> tuple[Tensor, Tensor]:
    """What is heard and what is seen in each segment: two (B, T, C) bool, audio first.

    A class is there where the segment's probability and the clip's, of the same modality, are both at least one half.
    """
    audio = (said.audio >= 0) & (said.clip_audio >= 0)[:, None]
    visual = (said.visual >= 0) & (said.clip_visual >= 0)[:, None]
    return audio, visual


class ParsingTask(Task):
    """Video parsing behind the interface of all tasks.

    Args:
        num_classes: C.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        hidden: see :class:`ParsingHead`.
        dropout: see :class:`ParsingHead`.
        audio_smoothing: see :func:`parsing_loss`.
        visual_smoothing: see :func:`parsing_loss`.
    """

    name = "parsing"
    monitor = "segment/type"

    def __init__(
        self,
        num_classes: int,
        *,
        num_tokens: int,
        width: int,
        hidden: int = 128,
        dropout: float = 0.5,
        audio_smoothing: float = 0.0,
        visual_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.head = ParsingHead(num_classes, num_tokens=num_tokens, width=width, hidden=hidden, dropout=dropout)
        self.num_classes = num_classes
        self.audio_smoothing, self.visual_smoothing = audio_smoothing, visual_smoothing

    def forward(self, out: AdapterOutput, batch: Batch) -> Parsing:
        """Logits of segments and clips."""
        return self.head(out.visual, out.audio)

    def loss(self, said: Parsing, batch: Batch) -> Tensor:
        """:func:`parsing_loss` of the batch's ``clip_labels``.

        Raises:
            ValueError: the batch does not have them.
        """
        labels = target(batch, "clip_labels", "parsing is learned from them")
        return parsing_loss(said, labels, audio_smoothing=self.audio_smoothing, visual_smoothing=self.visual_smoothing)

    def metric(self) -> Any:
        """A new :class:`fastav.metrics.ParsingScores`."""
        from fastav.tasks.parsing_metric import ParsingScores

        return ParsingScores(self.num_classes)

    def update(self, metric: Any, said: Parsing, batch: Batch) -> None:
        """Count one batch.

        Raises:
            ValueError: the batch has no ``audio_events`` or ``visual_events``.
        """
        events = [
            target(batch, name, "score a split whose events are labelled, as LLP's validation and test are")
            for name in ("audio_events", "visual_events")
        ]
        metric.update(*decode_parsing(said), *events)

    def decode(self, said: Parsing) -> dict[str, Tensor]:
        """``audio_events`` and ``visual_events``, (B, T, C) bool, and ``*_probabilities`` of both, (B, T, C)."""
        audio, visual = decode_parsing(said)
        wide = torch.promote_types(said.audio.dtype, torch.float32)
        return {
            "audio_events": audio,
            "visual_events": visual,
            "audio_probabilities": said.audio.to(wide).sigmoid(),
            "visual_probabilities": said.visual.to(wide).sigmoid(),
        }

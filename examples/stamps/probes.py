"""Linear heads in place of the tasks' own: what can be read from the last layers without learning to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.tasks import EncodedQuestions, Parsing


class LocalizationProbe(nn.Module):
    """One linear map of both modalities."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, num_classes + 1)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """(B, T, 1, D) twice -> (B, T, C + 1)."""
        return self.linear(torch.cat([visual, audio], -1)[:, :, 0])


class ParsingProbe(nn.Module):
    """A linear map of each modality; of a clip's segments the largest counts."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.heard, self.seen = nn.Linear(width, num_classes), nn.Linear(width, num_classes)

    def forward(self, visual: Tensor, audio: Tensor) -> Parsing:
        """(B, T, 1, D) twice -> logits."""
        heard, seen = self.heard(audio[:, :, 0]), self.seen(visual[:, :, 0])
        clips = heard.amax(1), seen.amax(1)
        return Parsing(heard, seen, *clips, torch.maximum(*clips))


class SegmentationProbe(nn.Module):
    """One linear map of every patch of the last feature map beside its segment's sound."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(2 * width, 1)

    def forward(self, features: Sequence[Tensor], audio: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, T, h, w, D), last of all, and (B, T, 1, D) -> (B, T, H, W)."""
        patches = self.norm(features[-1])
        sound = audio[:, :, :, None].expand_as(patches)
        return F.interpolate(self.linear(torch.cat([patches, sound], -1))[..., 0], size, mode="bilinear")


class QuestionsProbe(nn.Module):
    """One linear map of the clip's means and the question."""

    def __init__(self, width: int, question_width: int, num_answers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width + question_width, num_answers)

    def forward(self, visual: Tensor, audio: Tensor, questions: EncodedQuestions, _: Tensor) -> Tensor:
        """(B, T, 1, D) twice and B questions -> (B, num_answers); what the answers are called is not read."""
        return self.linear(torch.cat([visual.mean((1, 2)), audio.mean((1, 2)), questions.sentence], -1))

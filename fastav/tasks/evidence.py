"""What the heads of localisation and parsing share: evidence for each class, second by second, and its pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.tasks.task import Batch


class ClassEvidence(nn.Module):
    """(B, T, K, W) tokens -> (B, T, C) scores; all classes' scores are smoothed over time alike.

    Args:
        inputs: K W.
        hidden: width of the segment features.
        num_classes: C.
        dropout: on the tokens and on the segment features, in training.
    """

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
        """Score each class in each segment."""
        scores = self.score(tokens.flatten(2))
        series = scores.mT.flatten(0, 1)[:, None]  # (B C, 1, T)
        return scores + self.context(series).view(scores.mT.shape).mT


def check_tokens(caller: str, visual: Tensor, audio: Tensor, tokens: tuple[int, int]) -> None:
    """Refuse tokens that are not (B, T, K, W), both alike, with ``tokens`` = (K, W).

    Raises:
        ValueError: they are not.
    """
    wanted = (*visual.shape[:2], *tokens)
    if tuple(visual.shape) != wanted or tuple(audio.shape) != wanted:
        raise ValueError(
            f"{caller}: visual is {tuple(visual.shape)} and audio {tuple(audio.shape)}, "
            f"wanted (B, T, K, W) for both with (K, W) = {tokens}"
        )


def pool_evidence(logits: Tensor, attention: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Multiple-instance pooling: the logit of the attended mean of probabilities.

    ``logit(sum_i w_i sigmoid(logits_i))`` with ``w = softmax(attention)`` over ``dim``, in log space: exact where the
    probabilities are 0 or 1 but for rounding, with gradients that do not vanish there. In float32 or wider.

    Args:
        logits: of the instances.
        attention: what the weights are the softmax of, of the same shape.
        dim: the dimension, or dimensions, of the instances.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits, attention = logits.to(wide), attention.to(wide)
    true = torch.logsumexp(attention + F.logsigmoid(logits), dim)
    false = torch.logsumexp(attention + F.logsigmoid(-logits), dim)
    return true - false  # what the weights add up to is in both


def target(batch: Batch, name: str, remedy: str) -> Tensor:
    """What the batch holds under ``name``.

    Raises:
        ValueError: it holds none; the message ends with ``remedy``.
    """
    if name not in batch:
        raise ValueError(f"the batch has no {name!r}, only {', '.join(map(repr, batch))}; {remedy}")
    return batch[name]

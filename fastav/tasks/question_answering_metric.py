"""Scores of question answering: accuracy over all questions, over each of the nine types, and over their groups."""

import torch
from torch import Tensor

from fastav.data.question_types import QUESTION_TYPES

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError('fastav.metrics needs torchmetrics: pip install "fastav[training]"') from error


def _key(*words: str) -> str:
    return "_".join(words).lower().replace("-", "_")


class QuestionAnsweringScores(Metric):
    """Accuracy of answers, by question type: MUSIC-AVQA's scores.

    ``update(predicted, answers, question_types)`` takes three (B,) integer tensors: the answers given, the right ones,
    and the questions' indices into ``fastav.data.QUESTION_TYPES``. ``compute()`` gives a dictionary of fractions of
    questions answered right:

    - ``accuracy``: of all;
    - ``audio``, ``visual``, ``audio_visual``: of a group of types, each question counting alike;
    - ``audio_counting``, ..., ``audio_visual_temporal``: of each of the nine types.

    A fraction of nothing is NaN. Each question brings its type with it, so that neither the size nor the order of
    batches matters, and the counts add up over processes.
    """

    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("right", "total"):
            self.add_state(state, torch.zeros(len(QUESTION_TYPES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, answers: Tensor, question_types: Tensor) -> None:
        """Count one batch.

        Raises:
            TypeError: anything but integers.
            ValueError: shapes that differ or are not (B,), a negative answer, or a type outside 0 ... 8.
        """
        given = {"predicted": predicted, "answers": answers, "question_types": question_types}
        if predicted.ndim != 1 or not predicted.shape == answers.shape == question_types.shape:
            shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in given.items())
            raise ValueError(f"got the shapes {shapes}; wanted one shape (B,)")
        for name, values in given.items():
            if values.is_floating_point() or values.dtype == torch.bool:
                raise TypeError(
                    f"{name} is {values.dtype}, wanted integers; logits go through decode_question_answering"
                )
            if values.numel() and values.min() < 0:
                raise ValueError(f"{name} holds {int(values.min())}, wanted indices from 0 on")
        if question_types.numel() and question_types.max() >= len(QUESTION_TYPES):
            raise ValueError(
                f"question_types holds {int(question_types.max())}, wanted 0 ... {len(QUESTION_TYPES) - 1}"
            )
        of = question_types == torch.arange(len(QUESTION_TYPES), device=question_types.device)[:, None]
        self.right += (of & (predicted == answers)).sum(1)
        self.total += of.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """The fractions over everything counted so far, by name."""
        groups = dict.fromkeys(group for group, _ in QUESTION_TYPES)
        members = {_key(name): [i for i, (group, _) in enumerate(QUESTION_TYPES) if group == name] for name in groups}
        types = {_key(*pair): [i] for i, pair in enumerate(QUESTION_TYPES)}
        parts = {"accuracy": list(range(len(QUESTION_TYPES))), **members, **types}
        return {name: self.right[index].sum() / self.total[index].sum() for name, index in parts.items()}

"""Scores of event localisation: segment accuracy, and beside it what that alone would hide."""

import torch
from torch import Tensor

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError('fastav.metrics needs torchmetrics: pip install "fastav[training]"') from error


class LocalizationScores(Metric):
    """Segment accuracy with background as a class, foreground accuracy and background recall.

    Accuracy is the AVE benchmark's: right segments over all segments, counted, never averaged over batches. It needs
    the other two beside it: on AVE's test set whoever knows each video's class and never says background has 82.2 %.

    Args:
        num_classes: C; labels are 0 ... C - 1, and C for background.

    ``update(labels_predicted, labels)`` takes two (B, T) integer tensors, and optionally ``mismatched`` (B, T) bool,
    the segments where one class is seen and another is heard. ``compute()`` gives a dictionary of fractions:

    - ``accuracy``: of all segments, those right;
    - ``foreground_accuracy``: of the segments with an event, those given their class;
    - ``background_recall``: of the background segments, those called background;
    - ``mismatched_recall``: of the mismatched segments, those called background.

    A fraction of nothing is NaN. The counts add up over batches and processes.
    """

    full_state_update = False
    right: Tensor
    total: Tensor

    #: Which segments each fraction is of, in the order of the counts.
    names = ("accuracy", "foreground_accuracy", "background_recall", "mismatched_recall")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for state in ("right", "total"):
            self.add_state(state, torch.zeros(len(self.names), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor, mismatched: Tensor | None = None) -> None:
        """Count one batch.

        Raises:
            ValueError: shapes that differ, labels outside 0 ... C, or a mismatched segment with an event.
        """
        if mismatched is None:
            mismatched = torch.zeros_like(labels, dtype=torch.bool)
        if not predicted.shape == labels.shape == mismatched.shape:
            raise ValueError(
                f"predicted, labels and mismatched have the shapes {tuple(predicted.shape)}, {tuple(labels.shape)} and "
                f"{tuple(mismatched.shape)}, wanted one shape (B, T)"
            )
        for name, values in (("predicted", predicted), ("labels", labels)):
            if values.numel() and (values.min() < 0 or values.max() > self.num_classes):
                raise ValueError(
                    f"{name} holds {int(values.min())} ... {int(values.max())}, wanted 0 ... {self.num_classes}, "
                    f"where {self.num_classes} is background"
                )
        background = labels == self.num_classes
        if (mismatched & ~background).any():
            raise ValueError("mismatched marks segments whose label is an event; they are background by definition")
        of = torch.stack([torch.ones_like(background), ~background, background, mismatched]).flatten(1)
        self.right += (of & (predicted == labels).flatten()).sum(1)
        self.total += of.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """The fractions over everything counted so far, by name."""
        return dict(zip(self.names, self.right / self.total, strict=True))

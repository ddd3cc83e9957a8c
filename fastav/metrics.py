"""The tasks' metrics, as torchmetrics classes; needs ``pip install "fastav[training]"``."""

from fastav.tasks.localization_metric import LocalizationScores

__all__ = ["LocalizationScores"]

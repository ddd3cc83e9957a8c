"""The tasks' metrics, as torchmetrics classes; needs ``pip install "fastav[training]"``."""

from fastav.tasks.localization_metric import LocalizationScores
from fastav.tasks.parsing_metric import ParsingScores
from fastav.tasks.question_answering_metric import QuestionAnsweringScores
from fastav.tasks.segmentation_metric import SegmentationScores

__all__ = ["LocalizationScores", "ParsingScores", "QuestionAnsweringScores", "SegmentationScores"]

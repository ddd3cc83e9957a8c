"""Audio-visual tasks: head, loss and decoding of each; its metric stands beside it and in :mod:`fastav.metrics`."""

from fastav.tasks.localization import (
    LocalizationHead,
    LocalizationTask,
    decode_localization,
    localization_loss,
    weak_localization_loss,
)
from fastav.tasks.parsing import Parsing, ParsingHead, ParsingTask, decode_parsing, parsing_loss
from fastav.tasks.segmentation import SegmentationTask, decode_segmentation, segmentation_loss
from fastav.tasks.segmentation_head import SegmentationHead

__all__ = [
    "LocalizationHead",
    "LocalizationTask",
    "Parsing",
    "ParsingHead",
    "ParsingTask",
    "SegmentationHead",
    "SegmentationTask",
    "decode_localization",
    "decode_parsing",
    "decode_segmentation",
    "localization_loss",
    "parsing_loss",
    "segmentation_loss",
    "weak_localization_loss",
]

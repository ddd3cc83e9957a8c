"""Audio-visual tasks: head, loss and decoding of each; its metric stands beside it and in :mod:`fastav.metrics`."""

from fastav.tasks.localization import LocalizationHead, decode_localization, localization_loss
from fastav.tasks.segmentation import SegmentationTask, decode_segmentation, segmentation_loss
from fastav.tasks.segmentation_head import SegmentationHead

__all__ = [
    "LocalizationHead",
    "SegmentationHead",
    "SegmentationTask",
    "decode_localization",
    "decode_segmentation",
    "localization_loss",
    "segmentation_loss",
]

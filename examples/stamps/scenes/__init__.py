"""Scenes composed from pictures and sounds, with exact labels for every task."""

from examples.stamps.scenes.cast import SPLITS
from examples.stamps.scenes.clips import Clip, Clips, compose, mismatched, weak_labels
from examples.stamps.scenes.questions import Questions, ask
from examples.stamps.scenes.rendering import SEGMENTS
from examples.stamps.scenes.segmentation import SegmentationClips, compose_segmentation

__all__ = [
    "SEGMENTS",
    "SPLITS",
    "Clip",
    "Clips",
    "Questions",
    "SegmentationClips",
    "ask",
    "compose",
    "compose_segmentation",
    "mismatched",
    "weak_labels",
]

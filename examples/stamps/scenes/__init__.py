"""Ten-second scenes composed from pictures and sounds, with exact labels."""

from examples.stamps.scenes.clips import SPLITS, Clip, Clips, compose, mismatched
from examples.stamps.scenes.rendering import SEGMENTS

__all__ = ["SEGMENTS", "SPLITS", "Clip", "Clips", "compose", "mismatched"]

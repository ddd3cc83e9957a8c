"""Frozen backbones: finding their blocks, reading their taps, keeping the taps on disk."""

from fastav.backbones.frozen import FrozenBackbone
from fastav.backbones.store import TapStore
from fastav.backbones.whisper import shorten_whisper

__all__ = ["FrozenBackbone", "TapStore", "shorten_whisper"]

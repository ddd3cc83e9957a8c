"""What real and drawn material have in common, and how pictures and sounds are brought to one form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (height, width, 4) RGBA cut-outs, (height, width, 3) backgrounds
Sound = NDArray[np.float32]  # (samples,) mono

SAMPLE_RATE = 16_000
BACKGROUND_SPLITS = ("train", "validation", "test")

CUTOUT_SIDE = 200  # pixels: what most stamps have; more than a frame ever shows
BACKGROUND_SIDE = 256  # pixels of the shorter side
LOUDNESS = 0.1  # root mean square of a recording's loud frames
PEAK = 0.5  # what single spikes are bent down to
SILENCE = 0.08  # of the loud frames' level, 22 dB below: what counts as a pause
LONGEST_PAUSE = 0.2  # seconds: longer pauses inside a recording are shortened, so that a playing second is heard
FRAME = SAMPLE_RATE // 50  # samples of the 20 ms in which loudness is measured


@dataclass(frozen=True)
class Thing:
    """What one class looks and sounds like: one or more RGBA cut-outs and one or more mono 16 kHz recordings."""

    name: str
    pictures: tuple[Picture, ...]
    sounds: tuple[Sound, ...]


@dataclass(frozen=True)
class Material:
    """Everything scenes are composed from.

    Attributes:
        things: the classes, in the order of their labels.
        backgrounds: photos of each of the splits train, validation and test, no photo in two of them.
        held_out: other pictures and recordings of some classes, by label; empty where there are none.
        source: where all this comes from, in words for a report.
    """

    things: tuple[Thing, ...]
    backgrounds: dict[str, tuple[Picture, ...]]
    held_out: dict[int, Thing]
    source: str

    @property
    def num_classes(self) -> int:
        """Number of event classes; background is the label after the last of them."""
        return len(self.things)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order, without the background."""
        return tuple(thing.name for thing in self.things)


def prepare_cutout(image: Image.Image) -> Picture:
    """Crop an RGBA image to what can be seen of it and bring its longer side to at most CUTOUT_SIDE."""
    image = image.convert("RGBA")
    # Faint shadows and compression dust at the rim would otherwise decide the crop.
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 32)).getbbox())
    image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def prepare_background(image: Image.Image) -> Picture:
    """Bring the shorter side of a photo to BACKGROUND_SIDE."""
    scale = BACKGROUND_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def prepare_sound(samples: NDArray[np.floating]) -> Sound:
    """Trim a mono 16 kHz recording, shorten its pauses and bring it to one loudness.

    Raises:
        ValueError: the recording is silent, or shorter than a frame of 20 ms.
    """
    count = len(samples) // FRAME
    frames = samples[: count * FRAME].reshape(count, FRAME)
    levels = np.sqrt((frames**2).mean(axis=1))
    loud = np.percentile(levels, 90) if count else 0.0
    if loud < 1e-4:
        raise ValueError("silent recording")
    active = np.flatnonzero(levels > SILENCE * loud)
    # A pause frame stays while the last active frame is at most half the longest pause behind, or the next one ahead.
    reach = round(LONGEST_PAUSE * SAMPLE_RATE / FRAME / 2)
    index = np.arange(active[0], active[-1] + 1)
    position = np.searchsorted(active, index)
    near = (active[position] - index <= reach) | (index - active[np.maximum(position - 1, 0)] <= reach)
    kept = frames[index[near]].ravel()
    return (PEAK * np.tanh(kept * (LOUDNESS / loud / PEAK))).astype(np.float32)

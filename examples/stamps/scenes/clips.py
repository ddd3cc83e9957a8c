"""Composes 10-second clips with exact labels: who is seen and who is heard in every second, and where both are one.

A clip is planned first and rendered when it is asked for. The plan says in which seconds which class is seen and heard;
an event is where the same class is both. One class plays the event, a second is only ever seen, a third only ever
heard, and the event's class itself is seen or heard alone before and after: only eye and ear together tell an event.
Objects and sounds come and go at full seconds, so no label is a matter of taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from examples.stamps.material import Material
from examples.stamps.scenes.cast import SPLITS, choose_cast
from examples.stamps.scenes.rendering import SEGMENTS, Stage, render_sound, set_stage

EVENT, OTHER, VOICE = 0, 1, 2  # the parts in a plan: the event's class, the one only seen, the one only heard
NO_EVENT = 0.1  # share of clips without any event
LONGEST_PIECE = 5  # seconds that one situation lasts outside the event
COMPANY = 0.4  # chance that the class only seen, or only heard, also keeps company to whatever else happens

# What happens outside the event: chance, who is seen, who is heard. Seven of ten seconds are mismatched, and two
# objects or two sounds at once are about as common as during events, so that counting them says little.
SITUATIONS = (
    (0.18, (EVENT,), (VOICE,)),
    (0.10, (EVENT, OTHER), (VOICE,)),
    (0.18, (OTHER,), (EVENT,)),
    (0.10, (OTHER,), (EVENT, VOICE)),
    (0.14, (OTHER,), (VOICE,)),
    (0.06, (EVENT,), ()),
    (0.05, (OTHER,), ()),
    (0.06, (), (EVENT,)),
    (0.05, (), (VOICE,)),
    (0.08, (), ()),
)
CHANCES = [chance for chance, _, _ in SITUATIONS]

Flags = NDArray[np.bool_]


class Clip(NamedTuple):
    """Ten seconds; a default collate function stacks them into batches."""

    frames: Tensor  # (10, 3, image_size, image_size) uint8 RGB, one frame a second
    sound: Tensor  # (160000,) float32 mono at 16 kHz, within [-1, 1]
    labels: Tensor  # (10,) int64: the class that is both seen and heard, else num_classes for background
    seen: Tensor  # (10, num_classes) bool
    heard: Tensor  # (10, num_classes) bool


class Clips(Dataset[Clip]):
    """Clips of one split; see `compose`. Labels of all clips are at hand without rendering any.

    Attributes:
        labels: (num_clips, 10) int64, num_classes is background.
        seen: (num_clips, 10, num_classes) bool.
        heard: (num_clips, 10, num_classes) bool.
    """

    def __init__(self, material: Material, split: str, num_clips: int, seed: int, image_size: int) -> None:
        self.material, self.split, self.seed, self.image_size = material, split, seed, image_size
        self._cast = choose_cast(material, split)
        classes = list(self._cast.things)
        plans = [_plan(self._random(index)[0], classes, material.num_classes) for index in range(num_clips)]
        self.seen = torch.from_numpy(np.array([seen for seen, _ in plans]))
        self.heard = torch.from_numpy(np.array([heard for _, heard in plans]))
        both = self.seen & self.heard
        self.labels = torch.where(both.any(-1), both.int().argmax(-1), material.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Clip:
        stage, rng = self._set(index)
        heard = self.heard[index]
        sounds = [(self._cast.things[label].sounds, heard[:, label].numpy()) for label in _labels(heard)]
        frames = torch.from_numpy(stage.draw()).permute(0, 3, 1, 2).contiguous()
        sound = torch.from_numpy(render_sound(rng, sounds, SEGMENTS))
        return Clip(frames, sound, self.labels[index], self.seen[index], heard)

    def centres(self, index: int) -> dict[int, float]:
        """Where the things of a clip are, without drawing it.

        Returns:
            By class: the middle of the object's box from left (0) to right (1), mean over the seconds that show it.
        """
        stage, _ = self._set(index)
        return dict(zip(_labels(self.seen[index]), stage.centres(), strict=True))

    def _set(self, index: int) -> tuple[Stage, Generator]:
        """A clip's picture before it is drawn, and the generator from which its sound goes on."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        rng = self._random(index % len(self))[1]
        seen = self.seen[index]
        objects = [(self._cast.things[label].pictures, seen[:, label].numpy()) for label in _labels(seen)]
        return set_stage(rng, self._cast.backgrounds, objects, self.image_size, SEGMENTS), rng

    def _random(self, index: int) -> list[Generator]:
        """Two generators, for plan and look; they depend on seed, split and index alone."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), index)).spawn(2)


def compose(material: Material, split: str, num_clips: int, seed: int = 0, image_size: int = 126) -> Clips:
    """Compose clips, reproducibly: clip i is the same bits whatever num_clips, process or order it is asked for in.

    Args:
        material: from `load_material`.
        split: "train", "validation", "test" (same things, other backgrounds, other compositions) or "cross" (held-out
            pictures and recordings of some classes, on the test's backgrounds).
        num_clips: how many.
        seed: not negative. Splits differ even under the same seed.
        image_size: side of the square frames in pixels.

    Raises:
        ValueError: unknown split, or "cross" where the material has nothing held out.
    """
    return Clips(material, split, num_clips, seed, image_size)


def mismatched(clips: Clips) -> Tensor:
    """Seconds in which one class is seen and another is heard, but none is both: (num_clips, 10) bool."""
    background = clips.labels == clips.material.num_classes
    return background & clips.seen.any(-1) & clips.heard.any(-1)


def weak_labels(clips: Clips) -> Tensor:
    """What is seen or heard at any time, all that a parser is trained from: (num_clips, num_classes) float32."""
    return (clips.seen | clips.heard).any(1).float()


def _plan(rng: Generator, classes: Sequence[int], num_classes: int) -> tuple[Flags, Flags]:
    """Decide who is seen and who is heard: two arrays (10, num_classes)."""
    parts = rng.choice(classes, size=3, replace=False)
    seen = np.zeros((SEGMENTS, num_classes), dtype=bool)
    heard = np.zeros((SEGMENTS, num_classes), dtype=bool)
    length = 0 if rng.random() < NO_EVENT else int(rng.integers(2, SEGMENTS))
    start = int(rng.integers(SEGMENTS - length + 1)) if length else 0
    seen[start : start + length, parts[EVENT]] = True
    heard[start : start + length, parts[EVENT]] = True
    for first, last in _pieces(rng, 0, start) + _pieces(rng, start + length, SEGMENTS):
        _, who_seen, who_heard = SITUATIONS[rng.choice(len(SITUATIONS), p=CHANCES)]
        seen[first:last, parts[list(who_seen)]] = True
        heard[first:last, parts[list(who_heard)]] = True
    for flags, part in ((seen, OTHER), (heard, VOICE)):
        if rng.random() < COMPANY:
            first, last = sorted(rng.choice(SEGMENTS + 1, size=2, replace=False))
            flags[first:last, parts[part]] = True
    return seen, heard


def _pieces(rng: Generator, start: int, stop: int) -> list[tuple[int, int]]:
    """Cut the seconds from start to stop into pieces, none longer than LONGEST_PIECE."""
    if start == stop:
        return []
    if stop - start <= LONGEST_PIECE:
        return [(start, stop)]
    cut = int(rng.integers(start + 1, stop))
    return _pieces(rng, start, cut) + _pieces(rng, cut, stop)


def _labels(flags: Tensor) -> list[int]:
    """Classes that a (10, num_classes) map marks in any second."""
    return flags.any(0).nonzero().flatten().tolist()

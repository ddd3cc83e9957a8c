"""Composes five-second clips in which two or three things are seen all the time, with the exact mask of what sounds.

Clips come in twins: the second of two shows the very same frames as the first, and another of its things sounds. So
eyes alone cannot know which it is, however long they look.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from examples.stamps.material import Material
from examples.stamps.scenes.cast import SPLITS, choose_cast
from examples.stamps.scenes.rendering import Stage, render_sound, set_stage

SUBSETS = ("single", "multiple")
SECONDS = 5  # one frame each
MOST = 3  # things in a picture

THREE = 0.25  # share of pictures that show a third thing
VISIBLE = 0.95  # least share of a thing that any other leaves uncovered
# How many sound at once in a piece of a "multiple" clip: none, one, two.
CHANCES = (0.2, 0.5, 0.3)
COVERED = 0.5  # least share of a pixel that what sounds covers, for the mask to have it

Flags = NDArray[np.bool_]


class SegmentationClips(Dataset[dict[str, Any]]):
    """Clips of one split and subset; see `compose_segmentation`. What sounds is at hand without rendering any clip.

    An item is a dictionary: "id" a string; "frames" (5, 3, image_size, image_size) uint8 RGB; "sound" (80000,) float32
    mono at 16 kHz within [-1, 1]; "masks" (5, image_size, image_size) bool, where in the picture that is which sounds;
    "has_mask" (5,) bool, the frames whose mask is known.

    Attributes:
        things: (num_clips, 3) int64, classes of what is in the picture; -1 where there is no third.
        sounding: (num_clips, 5, 3) bool, which of them sounds in every second.
    """

    def __init__(self, material: Material, split: str, num_clips: int, subset: str, seed: int, image_size: int) -> None:
        if subset not in SUBSETS:
            raise ValueError(f"subset {subset!r} is not one of {', '.join(SUBSETS)}")
        self.material, self.split, self.subset = material, split, subset
        self.seed, self.image_size = seed, image_size
        self._cast = choose_cast(material, split)
        self.things = torch.full((num_clips, MOST), -1)
        self.sounding = torch.zeros(num_clips, SECONDS, MOST, dtype=torch.bool)
        for index in range(num_clips):
            rng = self._random(index)[0]
            count = 3 if rng.random() < THREE else 2
            self.things[index, :count] = torch.from_numpy(rng.choice(list(self._cast.things), count, replace=False))
            plan = _plan_single(count) if subset == "single" else _plan_multiple(rng, count)
            self.sounding[index, :, :count] = torch.from_numpy(np.roll(plan, index % 2, axis=1))

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stage = self._set(index)
        index %= len(self)
        things, sounding = self._classes(index), self.sounding[index].numpy()
        sounds = [(self._cast.things[label].sounds, sounding[:, number]) for number, label in enumerate(things)]
        # The twins differ in their sound alone.
        sound = render_sound(self._random(index)[2 + index % 2], [pair for pair in sounds if pair[1].any()], SECONDS)
        covered = (stage.coverage() * sounding[:, : len(things)].T[..., None, None]).sum(0)
        has_mask = torch.ones(SECONDS, dtype=torch.bool)
        if self.subset == "single" and self.split == "train":
            has_mask[1:] = False  # as in the benchmark that this stands for
        return {
            "id": f"{self.split}-{self.subset}-{index}",
            "frames": torch.from_numpy(stage.draw()).permute(0, 3, 1, 2).contiguous(),
            "sound": torch.from_numpy(sound),
            "masks": torch.from_numpy(covered > COVERED) & has_mask[:, None, None],
            "has_mask": has_mask,
        }

    def thing_masks(self, index: int) -> Tensor:
        """Where each thing of a clip is seen, sounding or not: (3, 5, image_size, image_size) bool."""
        coverage = self._set(index).coverage()
        masks = torch.zeros(MOST, SECONDS, self.image_size, self.image_size, dtype=torch.bool)
        masks[: len(coverage)] = torch.from_numpy(coverage > COVERED)
        return masks

    def _set(self, index: int) -> Stage:
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        index %= len(self)
        always = np.ones(SECONDS, dtype=bool)
        objects = [(self._cast.things[label].pictures, always) for label in self._classes(index)]
        rng = self._random(index)[1]
        return set_stage(rng, self._cast.backgrounds, objects, self.image_size, SECONDS, VISIBLE)

    def _classes(self, index: int) -> list[int]:
        return [label for label in self.things[index].tolist() if label >= 0]

    def _random(self, index: int) -> list[Generator]:
        """Four generators, for the twins' plan, their look, and the sound of each."""
        # The last number keeps the subsets apart from each other and from the clips of `compose`.
        key = (self.seed, SPLITS.index(self.split), index // 2, 1 + SUBSETS.index(self.subset))
        return np.random.default_rng(key).spawn(4)


def compose_segmentation(
    material: Material, split: str, num_clips: int, subset: str = "single", seed: int = 0, image_size: int = 168
) -> SegmentationClips:
    """Compose clips for segmentation, reproducibly: clip i is the same bits whatever num_clips, process or order.

    Args:
        material: from `load_material`.
        split: "train", "validation", "test" or "cross", as in `compose`.
        num_clips: how many; clips 2 i and 2 i + 1 are twins.
        subset: "single": one thing sounds all the time, and of the training clips only the first frame's mask is known.
            "multiple": none, one or two sound, that changes at full seconds, and all masks are known.
        seed: not negative. Splits and subsets differ even under the same seed.
        image_size: side of the square frames in pixels.

    Raises:
        ValueError: unknown split or subset, or "cross" where the material has nothing held out.
    """
    return SegmentationClips(material, split, num_clips, subset, seed, image_size)


def _plan_single(count: int) -> Flags:
    """The first of `count` things sounds all the time: (5, count)."""
    return np.tile(np.arange(count) == 0, (SECONDS, 1))


def _plan_multiple(rng: Generator, count: int) -> Flags:
    """Decide which of `count` things sound when: (5, count), in two or three pieces, the twin's plan another one."""
    while True:
        cuts = [0, *sorted(rng.choice(np.arange(1, SECONDS), rng.integers(1, 3), replace=False)), SECONDS]
        plan = np.zeros((SECONDS, count), dtype=bool)
        for first, last in pairwise(cuts):
            who = rng.choice(count, rng.choice(len(CHANCES), p=CHANCES), replace=False)
            plan[first:last, who] = True
        changes = np.diff(plan, axis=0).any(1).sum()
        if changes == len(cuts) - 2 and not np.array_equal(plan, np.roll(plan, 1, axis=1)):
            return plan

"""Which things and backgrounds a split's scenes are made of."""

from __future__ import annotations

from dataclasses import dataclass

from examples.stamps.material import Material, Thing
from examples.stamps.material.base import Picture

SPLITS = ("train", "validation", "test", "cross")


@dataclass(frozen=True)
class Cast:
    """What a split may show and play.

    Attributes:
        things: by class; classes that the split does not have are left out.
        backgrounds: photos that no other split shows, except "cross", which is a test and shows the test's.
    """

    things: dict[int, Thing]
    backgrounds: tuple[Picture, ...]


def choose_cast(material: Material, split: str) -> Cast:
    """Choose a split's things and backgrounds.

    Args:
        material: from `load_material`.
        split: "train", "validation", "test" (same things, other backgrounds) or "cross" (held-out pictures and
            recordings of some classes, on the test's backgrounds).

    Raises:
        ValueError: unknown split, or "cross" where the material has nothing held out.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if split != "cross":
        return Cast(dict(enumerate(material.things)), material.backgrounds[split])
    if not material.held_out:
        raise ValueError(f"there is no cross-source split: {material.source}")
    return Cast(dict(sorted(material.held_out.items())), material.backgrounds["test"])

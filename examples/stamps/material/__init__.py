"""Pictures and sounds that scenes are composed from: real ones where the packages can be had, drawn ones otherwise."""

from __future__ import annotations

from pathlib import Path

from examples.stamps.material.base import SAMPLE_RATE, Material, Thing
from examples.stamps.material.drawn import draw_backgrounds, draw_things
from examples.stamps.material.real import read_backgrounds, read_farm, read_stamps

__all__ = ["SAMPLE_RATE", "Material", "Thing", "load_material"]


def load_material(tuxpaint: Path | None, gcompris: Path | None) -> Material:
    """Gather classes, backgrounds and held-out animals; `material.source` says what they are.

    Args:
        tuxpaint: unpacked tuxpaint-stamps-default, or None where it is out of reach: then everything is drawn.
        gcompris: unpacked gcompris-qt-data, or None: then backgrounds are drawn and there is no cross-source split.

    Raises:
        ValueError: a package is there, but does not hold what it should.
    """
    if tuxpaint is None:
        source = "procedurally drawn (tuxpaint-stamps-default out of reach)"
        return Material(draw_things(), draw_backgrounds(), held_out={}, source=source)
    things = read_stamps(tuxpaint)
    if gcompris is None:
        source = "composed from real pictures and sounds on drawn backgrounds (gcompris-qt-data out of reach)"
        return Material(things, draw_backgrounds(), held_out={}, source=source)
    farm = read_farm(gcompris)
    held_out = {index: farm[thing.name] for index, thing in enumerate(things) if thing.name in farm}
    return Material(things, read_backgrounds(gcompris), held_out, source="composed from real pictures and sounds")

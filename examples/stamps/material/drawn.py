"""Drawn pictures and synthesised sounds, for where the packages are out of reach: coloured shapes with a voice each."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from examples.stamps.material.base import (
    BACKGROUND_SIDE,
    BACKGROUND_SPLITS,
    CUTOUT_SIDE,
    SAMPLE_RATE,
    Picture,
    Sound,
    Thing,
    prepare_cutout,
    prepare_sound,
)

# Every shape comes in every colour and every voice at every pitch: class = shape x colour = voice x pitch.
SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
COLOURS = {"red": (214, 58, 52), "yellow": (236, 196, 48), "green": (52, 158, 84), "blue": (54, 92, 204)}
PITCHES = (220.0, 440.0, 880.0, 1760.0)  # Hz, one a colour
BACKGROUNDS = {"train": 24, "validation": 8, "test": 8}


def draw_things() -> tuple[Thing, ...]:
    """24 classes, six shapes in four colours; each has a sound of its own, 1.5 s long."""
    return tuple(
        Thing(f"{colour} {shape}", (_draw_shape(shape, rgb),), (_play_voice(shape, pitch),))
        for shape in SHAPES
        for (colour, rgb), pitch in zip(COLOURS.items(), PITCHES, strict=True)
    )


def draw_backgrounds() -> dict[str, tuple[Picture, ...]]:
    """Cloudy textures, each drawn from a seed of its own."""
    return {
        split: tuple(_draw_texture(seed=(index, number)) for number in range(BACKGROUNDS[split]))
        for index, split in enumerate(BACKGROUND_SPLITS)
    }


def _draw_shape(shape: str, colour: tuple[int, int, int]) -> Picture:
    side = 4 * CUTOUT_SIDE  # four times too large: resizing smooths the edges
    image = Image.new("RGBA", (side, side), (*colour, 0))
    pen = ImageDraw.Draw(image)
    box = (0, 0, side - 1, side - 1)
    fill = (*colour, 255)
    if shape == "disc":
        pen.ellipse(box, fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=side // 5)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(side / 2, 0), (side, side), (0, side)], fill)
    elif shape == "cross":
        pen.rectangle((side // 3, 0, 2 * side // 3, side), fill)
        pen.rectangle((0, side // 3, side, 2 * side // 3), fill)
    else:
        turns = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.2, 0.5) * side
        pen.polygon([tuple(point) for point in np.c_[np.sin(turns), -np.cos(turns)] * radius[:, None] + side / 2], fill)
    return prepare_cutout(image)


def _play_voice(shape: str, pitch: float) -> Sound:
    time = np.arange(int(1.5 * SAMPLE_RATE)) / SAMPLE_RATE
    turns = 2 * np.pi * pitch * time
    noise = np.random.default_rng(int(pitch)).standard_normal(len(time))
    voices = {
        "disc": np.sin(turns),
        "square": np.sign(np.sin(turns)),
        "triangle": np.sin(turns * (1 + 0.3 * time)),  # rises
        "star": np.sin(turns) * (np.sin(2 * np.pi * 6 * time) > 0),  # beeps
        "ring": np.sin(turns + 5 * np.sin(2 * np.pi * 5 * time)),  # warbles
        "cross": np.sin(turns) * noise,  # hisses around its pitch
    }
    return prepare_sound(voices[shape])


def _draw_texture(seed: tuple[int, int]) -> Picture:
    """Sum noise of several scales, coarse ones strongest, around a mean colour."""
    rng = np.random.default_rng(seed)
    texture = np.broadcast_to(rng.uniform(90, 170, 3), (BACKGROUND_SIDE, BACKGROUND_SIDE, 3))
    for cells in (4, 8, 16, 64):
        # Mostly light and shade, with a little colour: the shapes should stand out.
        noise = 0.2 * rng.uniform(-1, 1, (cells, cells, 3)) + 0.8 * rng.uniform(-1, 1, (cells, cells, 1))
        small = Image.fromarray((127.5 * (noise + 1)).astype(np.uint8))
        grown = small.resize((BACKGROUND_SIDE, BACKGROUND_SIDE), Image.Resampling.BICUBIC)
        texture = texture + (np.asarray(grown, float) - 127.5) / np.sqrt(cells)
    return np.clip(texture, 0, 255).astype(np.uint8)

"""Reads the catalogue's pictures and sounds from the unpacked packages."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from examples.stamps.material.base import (
    BACKGROUND_SPLITS,
    SAMPLE_RATE,
    Picture,
    Sound,
    Thing,
    prepare_background,
    prepare_cutout,
    prepare_sound,
)
from examples.stamps.material.catalogue import (
    BACKGROUNDS,
    ENTRIES,
    FARM,
    FARM_SOUNDS,
    NO_BACKGROUND,
    OUTLINES,
)
from examples.stamps.qresource import read_qresource

STAMPS = Path("usr/share/tuxpaint/stamps")
RESOURCES = Path("usr/share/gcompris-qt/rcc")
ACTIVITIES = "gcompris/src/activities/"

SMALLEST_BACKGROUND = 400  # pixels of the shorter side
# Of every five backgrounds three are for training, one for validation and one for the test.
SPLIT_OF_FIVE = ("train", "train", "train", "validation", "test")


def read_stamps(package: Path) -> tuple[Thing, ...]:
    """Read the classes of the catalogue from unpacked tuxpaint-stamps-default.

    Raises:
        ValueError: a picture or recording is missing or cannot be read.
    """
    root = package / STAMPS
    return tuple(
        Thing(
            entry.name,
            tuple(_read_cutout(root / f"{name}.png") for name in entry.pictures.split()),
            tuple(_read_sound(root / f"{name}.ogg") for name in entry.sounds.split()),
        )
        for entry in tqdm(ENTRIES, "reading stamps", delay=1.0, leave=False)
    )


def read_backgrounds(package: Path) -> dict[str, tuple[Picture, ...]]:
    """Read the photos of at least 400 x 400 pixels from unpacked gcompris-qt-data, by split.

    Raises:
        ValueError: a resource file is missing or malformed.
    """
    photos: list[Picture] = []
    for resource, folder in tqdm(BACKGROUNDS.items(), "reading backgrounds", delay=1.0, leave=False):
        files = read_qresource(package / RESOURCES / f"{resource}.rcc")
        for name in sorted(files):
            if not name.startswith(ACTIVITIES + folder) or not name.endswith(".webp"):
                continue
            if any(word in name for word in NO_BACKGROUND):
                continue
            image = Image.open(io.BytesIO(files[name]))
            if min(image.size) >= SMALLEST_BACKGROUND and image.mode == "RGB":
                photos.append(prepare_background(image))
    return {
        split: tuple(photo for index, photo in enumerate(photos) if SPLIT_OF_FIVE[index % 5] == split)
        for split in BACKGROUND_SPLITS
    }


def read_farm(package: Path) -> dict[str, Thing]:
    """Read the held-out farm animals from unpacked gcompris-qt-data, by name.

    Raises:
        ValueError: the resource file is missing or malformed, or lacks an animal.
    """
    path = package / RESOURCES / "explore_farm_animals.rcc"
    files = read_qresource(path)
    farm = {}
    for name, outlines in OUTLINES.items():
        stem = f"{ACTIVITIES}{FARM}/"
        try:
            photo = files[f"{stem}{name}.webp"]
            recording = files[f"{stem}{FARM_SOUNDS.get(name, name)}.ogg"]
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}") from error
        image = Image.open(io.BytesIO(photo)).convert("RGB")
        pictures = tuple(_cut_out(image, outline) for outline in outlines)
        farm[name] = Thing(name, pictures, (_decode_sound(io.BytesIO(recording)),))
    return farm


def _read_cutout(path: Path) -> Picture:
    try:
        return prepare_cutout(Image.open(path))
    except OSError as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from error


def _read_sound(path: Path) -> Sound:
    try:
        return _decode_sound(path)
    except (OSError, soundfile.SoundFileError, ValueError) as error:
        raise ValueError(f"cannot read the recording {path}: {error}") from error


def _decode_sound(source: Path | io.BytesIO) -> Sound:
    """Decode any channels and rate to prepared mono 16 kHz."""
    samples, rate = soundfile.read(source, always_2d=True)
    # In float64, so that neither threads nor vector width show in the float32 that is kept.
    mono = torch.from_numpy(samples.mean(axis=1))
    return prepare_sound(torchaudio.functional.resample(mono, rate, SAMPLE_RATE).numpy())


def _cut_out(photo: Image.Image, outline: str) -> Picture:
    """Cut an animal out along its outline, with an edge as soft as the stamps have."""
    corners = np.array([point.split(",") for point in outline.split()], dtype=float) * photo.size / 100
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=255)
    # Drawn lines run along the fur's edge: step two pixels inside it, then soften.
    mask = mask.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.GaussianBlur(2))
    photo = photo.copy()
    photo.putalpha(mask)
    return prepare_cutout(photo)

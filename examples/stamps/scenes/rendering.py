"""Draws the frames and mixes the sound of one clip from its plan. All randomness comes from the generator passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from examples.stamps.material.base import SAMPLE_RATE, Picture, Sound

SEGMENTS = 10  # of one second each

VISIBLE = 0.6  # least share of an object that stays uncovered
SIZE_ALONE = (0.6, 0.9)  # square root of an object's box, as a share of the frame's side
SIZE_IN_PAIR = (0.42, 0.6)
LONGEST_SIDE = 0.95  # of an object's box, as a share of the frame's side
DRIFT = 0.12  # most that an object or the view wanders in ten seconds, as a share of the frame's side
SHRINK = 0.98  # of the object in front, for every placement that hides too much

LOUDNESS_DB = (-8.0, 4.0)  # gain of a recording
NOISE_DB = (-55.0, -38.0)  # of the background noise against full scale; recordings are at -20
STRETCH = (0.85, 1.15)  # of an object's width
LEAN = (-12.0, 12.0)  # degrees
COLOURFUL = (0.6, 1.3)  # of an object's saturation
BRIGHT = (0.8, 1.2)
SPEED = (0.88, 1.14)  # of a recording, pitch with it
TILT = (-0.2, 0.2)  # exponent of the light filter on a recording, about +-1.2 dB an octave
GAP = (0.05, 0.25)  # seconds between repetitions
FADE = np.linspace(0.0, 1.0, SAMPLE_RATE // 100, dtype=np.float32)  # 10 ms

Flags = NDArray[np.bool_]
Item = TypeVar("Item")


@dataclass(frozen=True)
class _Placed:
    """A cut-out at its final size with its top left corner in every second."""

    image: Image.Image
    corners: NDArray[np.int64]  # (10, 2)
    shown: Flags  # (10,)


def render_frames(
    rng: Generator,
    backgrounds: Sequence[Picture],
    objects: Sequence[tuple[Sequence[Picture], Flags]],
    size: int,
) -> NDArray[np.uint8]:
    """Draw one frame a second, size x size.

    Args:
        rng: source of all choices.
        backgrounds: photos to choose one from.
        objects: at most two, each with pictures to choose one from and (10,) flags, in which seconds it is there.
        size: side of a frame in pixels.

    Returns:
        (10, size, size, 3) RGB.
    """
    views = _pan(rng, Image.fromarray(_choose(rng, backgrounds)), size)
    # A photo's own brightness, and flicker on top as between the frames of a video.
    light = rng.uniform(0.8, 1.15) * rng.uniform(0.96, 1.04, SEGMENTS)
    placed = _place(rng, [(_choose(rng, pictures), shown) for pictures, shown in objects], size)
    frames = np.empty((SEGMENTS, size, size, 3), dtype=np.uint8)
    for second, view in enumerate(views):
        for item in placed:
            if item.shown[second]:
                view.paste(item.image, tuple(item.corners[second]), item.image)
        frames[second] = np.clip(np.asarray(view, dtype=np.float32) * light[second], 0, 255)
    return frames


def render_sound(rng: Generator, sounds: Sequence[tuple[Sequence[Sound], Flags]]) -> Sound:
    """Mix ten seconds at 16 kHz.

    Args:
        rng: source of all choices.
        sounds: each with recordings to choose one from and (10,) flags, in which seconds it plays.

    Returns:
        (160000,) samples within [-1, 1]; silence is never quite silent.
    """
    mix = _coloured_noise(rng, SEGMENTS * SAMPLE_RATE)
    for recordings, playing in sounds:
        recording = _tilt(_respeed(_choose(rng, recordings), rng.uniform(*SPEED)), rng.uniform(*TILT))
        gain = np.float32(10 ** (rng.uniform(*LOUDNESS_DB) / 20))
        for start, stop in _runs(playing):
            samples = _loop(rng, recording, (stop - start) * SAMPLE_RATE)
            mix[start * SAMPLE_RATE : stop * SAMPLE_RATE] += gain * samples
    return np.clip(mix, -1.0, 1.0)


def _choose(rng: Generator, options: Sequence[Item]) -> Item:
    return options[int(rng.integers(len(options)))]


def _pan(rng: Generator, photo: Image.Image, size: int) -> list[Image.Image]:
    """Ten views of a photo, through a window that wanders and zooms slowly."""
    if rng.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    short = min(photo.size)
    window = np.linspace(1.0, rng.uniform(0.92, 1.08), SEGMENTS) * rng.uniform(0.55, 0.9) * short
    room = np.array(photo.size) - window[:, None]
    corners = np.clip(_wander(rng, room[0], DRIFT * short), 0, room)
    boxes = np.concatenate([corners, corners + window[:, None]], axis=1)
    return [photo.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]


def _place(rng: Generator, objects: Sequence[tuple[Picture, Flags]], size: int) -> list[_Placed]:
    """Give every object a size and a path inside the frame, so that a later one never hides too much of an earlier."""
    share = SIZE_ALONE if len(objects) < 2 else SIZE_IN_PAIR
    looks = [(_restyle(rng, picture), shown, rng.uniform(*share)) for picture, shown in objects]
    rng.shuffle(looks)
    shrink = 1.0
    while True:
        placed = []
        for index, (image, shown, fraction) in enumerate(looks):
            scaled = _scale(image, size * fraction * (shrink if index else 1.0), size)
            room = size - np.array(scaled.size)
            corners = np.clip(_wander(rng, room, DRIFT * size), 0, room).round().astype(np.int64)
            placed.append(_Placed(scaled, corners, shown))
        if len(placed) < 2 or _least_visible(*placed) >= VISIBLE:
            return placed
        shrink *= SHRINK  # ends the search for sure: the one in front runs out of area to cover with


def _restyle(rng: Generator, picture: Picture) -> Image.Image:
    """Flip a cut-out or not, tilt it, and vary its proportions, its colours' strength and its brightness."""
    image = Image.fromarray(np.ascontiguousarray(picture[:, ::-1] if rng.random() < 0.5 else picture))
    narrower = rng.uniform(*STRETCH)
    image = image.resize((max(1, round(image.width * narrower)), image.height), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(*LEAN), Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").getbbox())
    alpha = image.getchannel("A")
    image = ImageEnhance.Color(image.convert("RGB")).enhance(rng.uniform(*COLOURFUL))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*BRIGHT))
    image.putalpha(alpha)
    return image


def _scale(image: Image.Image, side: float, frame: int) -> Image.Image:
    """Resize to a box of side x side in area, with its longer side inside the frame."""
    scale = min(side / np.sqrt(image.width * image.height), LONGEST_SIDE * frame / max(image.size))
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )


def _wander(rng: Generator, room: NDArray[np.floating], reach: float) -> NDArray[np.float64]:
    """Ten points (10, 2) on a straight way from somewhere in the room to somewhere near, maybe outside it."""
    start = rng.uniform(0, np.maximum(room, 1e-9))
    return start + np.linspace(0, 1, SEGMENTS)[:, None] * rng.uniform(-reach, reach, 2)


def _least_visible(behind: _Placed, front: _Placed) -> float:
    """Smallest share of `behind` that `front` leaves uncovered in any second that has both."""
    below = np.asarray(behind.image.getchannel("A"), dtype=np.float32) / 255
    above = np.asarray(front.image.getchannel("A"), dtype=np.float32) / 255
    least = 1.0
    for second in np.flatnonzero(behind.shown & front.shown):
        offset = front.corners[second] - behind.corners[second]
        left, top = np.maximum(offset, 0)
        right, bottom = np.minimum(offset + front.image.size, behind.image.size)
        if left < right and top < bottom:
            x, y = offset
            covered = below[top:bottom, left:right] * above[top - y : bottom - y, left - x : right - x]
            least = min(least, 1.0 - covered.sum() / below.sum())
    return least


def _coloured_noise(rng: Generator, length: int) -> Sound:
    """Noise between white and brown at a random low level."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, length)
    return (noise * 10 ** (rng.uniform(*NOISE_DB) / 20) / noise.std()).astype(np.float32)


def _respeed(recording: Sound, speed: float) -> Sound:
    """Play a recording faster or slower, as a smaller or larger animal would sound."""
    positions = np.arange(0, len(recording) - 1, speed)
    return np.interp(positions, np.arange(len(recording)), recording).astype(np.float32)


def _tilt(recording: Sound, exponent: float) -> Sound:
    """Weigh frequencies by (f / 1 kHz)^exponent and keep the loudness."""
    spectrum = np.fft.rfft(recording)
    frequency = np.fft.rfftfreq(len(recording), 1 / SAMPLE_RATE)
    tilted = np.fft.irfft(spectrum * np.maximum(frequency / 1000, 0.05) ** exponent, len(recording))
    return (tilted * (recording.std() / tilted.std())).astype(np.float32)


def _loop(rng: Generator, recording: Sound, length: int) -> Sound:
    """Play a recording for `length` samples from a random offset, repeated after short gaps if it is too short."""
    if len(recording) >= length:
        start = rng.integers(len(recording) - length + 1)
        samples = recording[start : start + length].copy()
    else:
        pieces = [recording[rng.integers(len(recording)) :]]
        while sum(map(len, pieces)) < length:
            pieces += [np.zeros(int(rng.uniform(*GAP) * SAMPLE_RATE), np.float32), recording]
        samples = np.concatenate(pieces)[:length]
    samples[: len(FADE)] *= FADE
    samples[-len(FADE) :] *= FADE[::-1]
    return samples


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """Stretches of True as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.r_[0, flags.astype(np.int8), 0]))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]

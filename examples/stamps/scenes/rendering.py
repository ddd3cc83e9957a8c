"""Draws the frames and mixes the sound of one clip from its plan. All randomness comes from the generator passed in.

A picture is made in two steps: `set_stage` decides where everything is, which costs little, and `Stage.draw` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from examples.stamps.material.base import SAMPLE_RATE, Picture, Sound

SEGMENTS = 10  # of one second each

VISIBLE = 0.6  # least share of an object that any other leaves uncovered
# Square root of an object's box, as a share of the frame's side, by how many there are.
SIZES = {0: (0.6, 0.9), 1: (0.6, 0.9), 2: (0.42, 0.6), 3: (0.34, 0.48)}
LONGEST_SIDE = 0.95  # of an object's box, as a share of the frame's side
DRIFT = 0.12  # most that an object or the view wanders in a clip, as a share of the frame's side
SHRINK = 0.98  # of the objects in front, for every placement that hides too much

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

    index: int  # among the objects that were asked for
    image: Image.Image
    corners: NDArray[np.int64]  # (T, 2)
    shown: Flags  # (T,)


@dataclass(frozen=True)
class Stage:
    """One clip's picture before it is drawn: everything has its look, its size and its place in each of T seconds."""

    photo: Image.Image
    windows: NDArray[np.float64]  # (T, 4), the part of the photo that each frame shows: left, top, right, bottom
    light: NDArray[np.float64]  # (T,), factor of brightness
    placed: tuple[_Placed, ...]  # from back to front
    size: int  # of the frames, pixels

    def draw(self) -> NDArray[np.uint8]:
        """Draw the frames: (T, size, size, 3) RGB."""
        frames = np.empty((len(self.light), self.size, self.size, 3), dtype=np.uint8)
        for second, window in enumerate(self.windows):
            view = self.photo.resize((self.size, self.size), Image.Resampling.BILINEAR, box=tuple(window))
            for item in self.placed:
                if item.shown[second]:
                    view.paste(item.image, tuple(item.corners[second]), item.image)
            frames[second] = np.clip(np.asarray(view, dtype=np.float32) * self.light[second], 0, 255)
        return frames

    def centres(self) -> list[float]:
        """Middle of each object's box from left (0) to right (1), mean over the seconds that show it."""
        places = sorted(self.placed, key=lambda item: item.index)
        return [(item.corners[item.shown, 0].mean() + item.image.width / 2) / self.size for item in places]

    def coverage(self) -> NDArray[np.float32]:
        """How much of every pixel is each object's: (objects, T, size, size), what is in front of it taken off."""
        shares = np.zeros((len(self.placed), len(self.light), self.size, self.size), dtype=np.float32)
        for number, item in enumerate(self.placed):
            alpha = np.asarray(item.image.getchannel("A"), dtype=np.float32) / 255
            for second in np.flatnonzero(item.shown):
                x, y = item.corners[second]
                spot = np.s_[second, y : y + item.image.height, x : x + item.image.width]
                for behind in self.placed[:number]:
                    shares[behind.index][spot] *= 1 - alpha
                shares[item.index][spot] = alpha
        return shares


def set_stage(
    rng: Generator,
    backgrounds: Sequence[Picture],
    objects: Sequence[tuple[Sequence[Picture], Flags]],
    size: int,
    seconds: int,
    visible: float = VISIBLE,
) -> Stage:
    """Decide what one frame a second shows, size x size.

    Args:
        rng: source of all choices.
        backgrounds: photos to choose one from.
        objects: at most three, each with pictures to choose one from and (seconds,) flags, when it is there.
        size: side of a frame in pixels.
        seconds: how many frames.
        visible: least share of an object that any other leaves uncovered.
    """
    photo, windows = _pan(rng, Image.fromarray(_choose(rng, backgrounds)), seconds)
    # A photo's own brightness, and flicker on top as between the frames of a video.
    light = rng.uniform(0.8, 1.15) * rng.uniform(0.96, 1.04, seconds)
    placed = _place(rng, [(_choose(rng, pictures), shown) for pictures, shown in objects], size, visible)
    return Stage(photo, windows, light, tuple(placed), size)


def render_sound(rng: Generator, sounds: Sequence[tuple[Sequence[Sound], Flags]], seconds: int) -> Sound:
    """Mix the sound of a clip at 16 kHz.

    Args:
        rng: source of all choices.
        sounds: each with recordings to choose one from and (seconds,) flags, when it plays.
        seconds: length of the clip.

    Returns:
        (16000 * seconds,) samples within [-1, 1]; silence is never quite silent.
    """
    mix = _coloured_noise(rng, seconds * SAMPLE_RATE)
    for recordings, playing in sounds:
        recording = _tilt(_respeed(_choose(rng, recordings), rng.uniform(*SPEED)), rng.uniform(*TILT))
        gain = np.float32(10 ** (rng.uniform(*LOUDNESS_DB) / 20))
        for start, stop in _runs(playing):
            samples = _loop(rng, recording, (stop - start) * SAMPLE_RATE)
            mix[start * SAMPLE_RATE : stop * SAMPLE_RATE] += gain * samples
    return np.clip(mix, -1.0, 1.0)


def _choose(rng: Generator, options: Sequence[Item]) -> Item:
    return options[int(rng.integers(len(options)))]


def _pan(rng: Generator, photo: Image.Image, seconds: int) -> tuple[Image.Image, NDArray[np.float64]]:
    """The photo, mirrored or not, and (seconds, 4) windows on it that wander and zoom slowly."""
    if rng.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    short = min(photo.size)
    window = np.linspace(1.0, rng.uniform(0.92, 1.08), seconds) * rng.uniform(0.55, 0.9) * short
    room = np.array(photo.size) - window[:, None]
    corners = np.clip(_wander(rng, room[0], DRIFT * short, seconds), 0, room)
    return photo, np.concatenate([corners, corners + window[:, None]], axis=1)


def _place(rng: Generator, objects: Sequence[tuple[Picture, Flags]], size: int, visible: float) -> list[_Placed]:
    """Give every object a size and a path inside the frame, so that none hides too much of another; back to front."""
    share = SIZES[len(objects)]
    looks = [(i, _restyle(rng, picture), shown, rng.uniform(*share)) for i, (picture, shown) in enumerate(objects)]
    rng.shuffle(looks)
    shrink = 1.0
    while True:
        placed: list[_Placed] = []
        for index, image, shown, fraction in looks:
            scaled = _scale(image, size * fraction * (shrink if placed else 1.0), size)
            room = size - np.array(scaled.size)
            path = _wander(rng, room, DRIFT * size, len(shown))
            placed.append(_Placed(index, scaled, np.clip(path, 0, room).round().astype(np.int64), shown))
        if all(_least_visible(*pair) >= visible for pair in combinations(placed, 2)):
            return placed
        shrink *= SHRINK  # ends the search for sure: those in front run out of area to cover with


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


def _wander(rng: Generator, room: NDArray[np.floating], reach: float, count: int) -> NDArray[np.float64]:
    """Points (count, 2) on a straight way from somewhere in the room to somewhere near, maybe outside it."""
    start = rng.uniform(0, np.maximum(room, 1e-9))
    return start + np.linspace(0, 1, count)[:, None] * rng.uniform(-reach, reach, 2)


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

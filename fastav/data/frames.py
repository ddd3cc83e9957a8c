"""Frames that were extracted into pictures, through Pillow."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastav.data.errors import MediaError, MediaWarning
from fastav.optional import load_optional

_SUFFIXES = {".jpg", ".jpeg", ".png"}


def read_frames(
    folder: str | Path,
    num_segments: int,
    *,
    seconds: float,
    image_size: int,
    frame_rates: Mapping[int, float] | None = None,
) -> Tensor:
    """Read the picture shown at the middle of each segment from a folder of numbered pictures.

    The pictures are taken to cover the clip evenly, however many there are; where the number of digits of their names
    tells their rate, at that rate. Fewer pictures than segments, or pictures that end early, are repeated with a
    :class:`MediaWarning`.

    Args:
        folder: holds 0001.jpg, 0002.jpg, ...; any number of digits, the first may be 0 or 1; jpg or png.
        num_segments: T.
        seconds: length of the clip.
        image_size: pictures are resized to this many pixels on either side, bicubic, whatever their aspect.
        frame_rates: frames a second by number of digits.

    Returns:
        (T, 3, image_size, image_size) uint8, RGB.

    Raises:
        MediaError: no such folder, no pictures in it, gaps in their numbers, a picture that does not decode, or less
            than half or more than one and a half of the pictures that the known rate makes of the clip.
        ImportError: Pillow is missing.
    """
    paths = list_frames(folder)
    count, rate = len(paths), (frame_rates or {}).get(len(paths[0].stem))
    middles = [(segment + 0.5) / num_segments for segment in range(num_segments)]
    numbers = [int(middle * (count if rate is None else seconds * rate)) for middle in middles]
    if rate is None and count < num_segments:
        _warn(f"{folder} holds {count} pictures for {num_segments} segments: some are repeated")
    if rate is not None and not 0.5 <= count / (seconds * rate) <= 1.5:
        raise MediaError(
            f"{folder} holds {count} pictures where {rate:g} a second make {seconds * rate:g} of {seconds:g} s, as in "
            'the other clips: extract them again at that rate, or leave the clip out by on_error="skip"'
        )
    if rate is not None and numbers[-1] >= count:
        _warn(f"{folder} holds {count} pictures, {count / rate:g} of {seconds:g} s: the last stands for the rest")
    return stack_pictures([open_picture(paths[min(number, count - 1)]) for number in numbers], image_size)


def confirm_rates(
    frame_rates: Mapping[int, float], folders: Sequence[Path], *, seconds: float, sample: int = 32
) -> dict[int, float]:
    """Those of the rates that the number of pictures in clips' folders speaks for.

    One folder cannot tell a short clip from a lower rate; the median of many can. A rate that it is further from than a
    tenth is left out with a :class:`MediaWarning`, and so, without one, is a rate of names that no folder has: those
    pictures then cover their clips evenly.

    Args:
        frame_rates: frames a second by number of digits.
        folders: of frames; those that cannot be read are passed over.
        seconds: length of the clips.
        sample: about so many folders, spread over all, are looked into.
    """
    counts: dict[int, list[int]] = {}
    for folder in folders[:: max(1, len(folders) // sample)] if frame_rates else ():
        with suppress(MediaError):  # said when the clip is read
            paths = list_frames(folder)
            counts.setdefault(len(paths[0].stem), []).append(len(paths))
    confirmed = {}
    for digits, rate in frame_rates.items():
        usual = median_low(counts.get(digits, [0]))
        if abs(usual / (seconds * rate) - 1) <= 0.1:
            confirmed[digits] = rate
        elif usual:
            _warn(
                f"frames in {folders[0].parent} are named %0{digits}d, as those at {rate:g} a second are, but most "
                f"clips have about {usual} in {seconds:g} s: they are taken to cover their clips evenly"
            )
    return confirmed


def list_frames(folder: str | Path) -> list[Path]:
    """The numbered pictures of a folder in order.

    Raises:
        MediaError: no such folder, no pictures in it, or gaps in their numbers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MediaError(f"{folder} is missing: a folder of frames is wanted")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.stem.isdecimal()]
    if not paths:
        raise MediaError(f"{folder} holds no frames: pictures named by number are wanted, 0001.jpg and so on")
    paths.sort(key=lambda path: int(path.stem))
    first = min(int(paths[0].stem), 1)
    for number, path in enumerate(paths, first):
        if int(path.stem) != number:
            raise MediaError(
                f"{folder}: {path.name} comes where frame number {number} is wanted: one is missing or there twice; "
                "extract the frames again"
            )
    return paths


def open_picture(path: str | Path) -> Any:
    """Open and decode a picture file.

    Returns:
        A PIL image, of the file's own mode.

    Raises:
        MediaError: missing, or does not decode.
        ImportError: Pillow is missing.
    """
    pil = load_optional("PIL.Image", by="frame readers", extra="data")
    try:
        with pil.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise MediaError(f"{path} is missing") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's own, and what its parsers let through
        raise MediaError(
            f'{path} does not decode ({error}): extract it again, or leave it out by on_error="skip"'
        ) from error


def stack_pictures(pictures: Sequence[Any], image_size: int) -> Tensor:
    """PIL images -> (T, 3, image_size, image_size) uint8, RGB, resized by bicubic interpolation."""
    bicubic = load_optional("PIL.Image", by="frame readers", extra="data").Resampling.BICUBIC
    arrays = [np.asarray(picture.convert("RGB").resize((image_size, image_size), bicubic)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _warn(message: str) -> None:
    warnings.warn(message, MediaWarning, stacklevel=3)

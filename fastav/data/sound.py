"""Sound of media files, sound files and arrays, as mono waveforms at a wanted rate."""

import io
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastav.data.errors import MediaError, MediaWarning
from fastav.data.video import SLACK, check_end, cut_short, first_stream, open_media
from fastav.optional import load_optional

#: Hz of sounds in .npy files, which do not say; DG-SCT made them so.
ARRAY_RATE = 32000
_SOUND_FILES = {".wav", ".flac", ".ogg"}
#: Bytes of sound that a .wav file's header gives where its writer could not know, as into a pipe: FFmpeg 0xFFFFFFFF,
#: SoX 0x7FFFF000 less a part of a block, and others numbers between.
_UNKNOWN_SIZE = 0x7FFF0000


def read_sound(path: str | Path, *, sampling_rate: int, seconds: float | None = None) -> Tensor:
    """Read a sound from its start; channels are averaged.

    Args:
        path: a sound file (wav, flac, ogg), an array (npy, at 32 kHz), or any media file with a sound stream.
        sampling_rate: Hz to resample to.
        seconds: how much of it is wanted; None: all. The sound of an array must be as long, as it does not tell its
            rate.

    Returns:
        (samples,) float32, on a clock that starts with the file: silence where the stream starts later. It may be a
        little longer than ``seconds``, or shorter, if the file is: see :func:`fit`.

    Raises:
        MediaError: missing, does not decode, no sound stream, an empty sound, or one that ends before its header says.
        ImportError: a package of the extra "data" is missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        waveform = array_sound(load_array(path), path, seconds=seconds)
        rate = ARRAY_RATE
    elif suffix in _SOUND_FILES:
        waveform, rate = _read_file(path, seconds)
    else:
        waveform, rate = _read_stream(path, seconds)
    if not waveform.size:
        raise MediaError(f'{path} holds an empty sound: fetch it again, or leave it out by on_error="skip"')
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path} holds NaN or infinite samples: make it again")
    return resample(torch.from_numpy(waveform), rate, sampling_rate)


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """(samples,) at ``rate`` Hz -> (samples,) at ``wanted`` Hz."""
    if rate == wanted:
        return sound
    return load_optional("torchaudio.functional", by="sound readers", extra="data").resample(sound, rate, wanted)


def fit(sound: Tensor, samples: int, sampling_rate: int, path: str | Path) -> Tensor:
    """Cut a sound to a number of samples, or fill it up with silence; a gap of more than 0.1 s with a warning."""
    if samples - len(sound) > SLACK * sampling_rate:
        warnings.warn(
            f"{path} holds {len(sound) / sampling_rate:.2f} of {samples / sampling_rate:g} s of sound: "
            "the rest is silence",
            MediaWarning,
            stacklevel=2,
        )
    return torch.nn.functional.pad(sound, (0, samples - len(sound)))  # a negative pad cuts


def spread_windows(sound: Tensor, num_segments: int, window: int) -> Tensor:
    """Take windows around the middles of equal parts of a sound, one after the other.

    Args:
        sound: (samples,).
        num_segments: T.
        window: samples of each.

    Returns:
        (T x window,). Windows that would reach past an end start or end there.
    """
    middles = [(segment + 0.5) / num_segments * len(sound) for segment in range(num_segments)]
    last = max(0, len(sound) - window)
    starts = [min(max(0, round(middle - window / 2)), last) for middle in middles]
    parts = [sound[start : start + window] for start in starts]
    return torch.cat([torch.nn.functional.pad(part, (0, window - len(part))) for part in parts])


def array_sound(array: Any, path: str | Path, *, seconds: float | None) -> np.ndarray[Any, Any]:
    """Check a sound that :func:`load_array` loaded, at 32 kHz; integers are scaled to [-1, 1).

    Raises:
        MediaError: not one sound, another length, or floats that are scaled as integers.
    """
    if not isinstance(array, np.ndarray):
        raise MediaError(f"{path} holds a pickled {type(array).__name__}: a mono sound (samples,) is wanted")
    if array.ndim != 1 or array.dtype.kind not in "fi":
        raise MediaError(f"{path} holds {array.dtype} {array.shape}: a mono sound (samples,) is wanted")
    if seconds is not None and abs(len(array) - seconds * ARRAY_RATE) > SLACK * ARRAY_RATE:
        raise MediaError(
            f"{path} holds {len(array)} samples: {seconds:g} s at {ARRAY_RATE} Hz, the rate of such arrays, are "
            f"{round(seconds * ARRAY_RATE)}; give a .wav instead, which tells its rate"
        )
    if array.dtype.kind == "i":
        return array.astype(np.float32) / (np.iinfo(array.dtype).max + 1.0)
    if array.size and np.abs(array).max() > 4:  # decoders overshoot 1 a little; 16-bit samples reach thousands
        raise MediaError(f"{path} holds samples up to {np.abs(array).max():g}: divide 16-bit samples by 32768")
    return array.astype(np.float32)


def load_array(path: str | Path) -> Any:
    """Load a .npy file, also a pickled one, of which nothing but arrays and plain containers is let in.

    Returns:
        An array, or whatever a pickled 0-d array held.

    Raises:
        MediaError: missing, broken, or a pickle that wants to run something else.
    """
    try:
        data = Path(path).read_bytes()
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
        array = _ArrayUnpickler(stream).load()
        return array.item() if array.ndim == 0 else array
    except FileNotFoundError as error:
        raise MediaError(f"{path} is missing") from error
    except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise MediaError(f"{path} does not load ({error}): make it again") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays in plain containers alone: a pickle from elsewhere could run anything."""

    _ALLOWED = frozenset({"_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are let in")


def _read_file(path: Path, seconds: float | None) -> tuple[np.ndarray[Any, Any], int]:
    soundfile = load_optional("soundfile", by="sound readers", extra="data")
    if not path.is_file():
        raise MediaError(f"{path} is missing")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            held, enough = file.frames, _enough(seconds, rate)
            samples = file.read(min(held, enough), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise MediaError(
            f'{path} does not decode ({error}): fetch it again, or leave it out by on_error="skip"'
        ) from error
    if not held:  # FFmpeg's decoder reads on where a header says 0 bytes, as old writers into a pipe left it
        return _read_stream(path, seconds)
    declared = _declared_samples(path, held)
    if held < enough and declared > held + SLACK * rate:
        raise cut_short(path, "sound", held / rate, declared / rate)
    return samples.mean(1), rate


def _declared_samples(path: Path, held: int) -> int:
    """How many samples a .wav file has by its header; as many as it holds where that does not say. So in others."""
    with path.open("rb") as file:
        riff, _, form = file.read(4), file.read(4), file.read(4)
        while (riff, form) == (b"RIFF", b"WAVE") and len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                there = path.stat().st_size - file.tell()
                return round(held * size / there) if there < size < _UNKNOWN_SIZE else held
            file.seek(size + size % 2, os.SEEK_CUR)
    return held


def _read_stream(path: Path, seconds: float | None) -> tuple[np.ndarray[Any, Any], int]:
    """Decode the first sound stream of a media file onto the file's clock, at the stream's rate."""
    av = load_optional("av", by="sound readers", extra="data")
    with open_media(path) as container:
        stream = first_stream(container, "audio", path)
        rate, zero, position = stream.rate, (container.start_time or 0) / 1e6, 0
        parts: list[np.ndarray[Any, Any]] = []
        enough = _enough(seconds, rate)
        planes = av.AudioResampler(format="fltp")  # floats, one row a channel; rate and channels stay
        try:
            for frame in container.decode(stream):
                start = position if frame.time is None else max(0, round((frame.time - zero) * rate))
                part = np.concatenate([piece.to_ndarray() for piece in planes.resample(frame)], 1).mean(0)
                # Times are rounded to the container's clock: what is nearly adjacent is adjacent.
                if abs(start - position) > SLACK * rate or (not parts and start):
                    parts, position = _move(parts, position, start), start
                parts.append(part)
                position += len(part)
                if position >= enough:
                    break
        except (av.error.FFmpegError, ValueError) as error:  # ValueError: its channels change midway
            raise MediaError(
                f'{path}: its sound does not decode ({error}): fetch it again, or leave it out by on_error="skip"'
            ) from error
        if 0 < position < enough:
            check_end(container, stream, zero + position / rate, path)
    return (np.concatenate(parts)[:enough] if parts else np.empty(0, np.float32)), rate


def _enough(seconds: float | None, rate: int) -> int:
    """How many samples are read: a little more than wanted, so that the resampling filter meets no end there."""
    return sys.maxsize if seconds is None else round((seconds + SLACK) * rate)


def _move(parts: Sequence[np.ndarray[Any, Any]], position: int, start: int) -> list[np.ndarray[Any, Any]]:
    """What was decoded so far, with silence up to sample ``start``, or cut there where times go back."""
    return [np.concatenate([*parts, np.zeros(max(0, start - position), np.float32)])[:start]]

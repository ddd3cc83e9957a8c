"""Frames of video files at given times, through PyAV."""

import math
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastav.data.errors import MediaError, MediaWarning
from fastav.data.frames import stack_pictures
from fastav.optional import load_optional

#: Seconds by which a stream may end early without a word: containers round to whole frames, of 40 to 67 ms.
SLACK = 0.1


def read_video(path: str | Path, times: Sequence[float], *, image_size: int) -> Tensor:
    """Read the frames that a player shows at given times.

    Rotation that the file asks for is applied. A video that ends before a wanted time gives its last frame there, one
    that starts after it its first, with a :class:`MediaWarning`.

    Args:
        path: a file with a video stream; the first one is taken.
        times: seconds after the file's start, ascending.
        image_size: frames are resized to this many pixels on either side, bicubic, whatever their aspect.

    Returns:
        (T, 3, image_size, image_size) uint8, RGB.

    Raises:
        MediaError: no such file, no video stream, a stream that does not decode, that ends before its header says, or
            whose frames have no times or wrong ones.
        ImportError: PyAV is missing.
    """
    try:
        pictures = _pictures(path, times, jump=True)
    except MediaError:
        # Not every key frame can be started from: in an open GOP, frames after it need frames before it. A file is
        # broken if it does not decode from its start.
        pictures = _pictures(path, times, jump=False)
    return stack_pictures(pictures, image_size)


def media_seconds(path: str | Path) -> float:
    """How long a media file says it is.

    Raises:
        MediaError: no such file, not a media file, or one that does not say.
        ImportError: PyAV is missing.
    """
    with open_media(path) as container:
        if not container.duration or container.duration < 0:
            raise MediaError(f"{path} does not say how long it is: rewrite it, ffmpeg -i OLD -c copy NEW.mp4")
        return container.duration / 1e6


def open_media(path: str | Path) -> Any:
    """Open a file for reading with PyAV; a context manager.

    Raises:
        MediaError: no such file, or not a media file.
        ImportError: PyAV is missing.
    """
    av = _av()
    try:
        return av.open(str(path))
    except FileNotFoundError as error:
        raise MediaError(f"{path} is missing") from error
    except av.error.FFmpegError as error:
        raise _broken(path, error) from error


def first_stream(container: Any, kind: str, path: str | Path) -> Any:
    """The first stream of a kind, "video" or "audio", set up to fail where it is damaged.

    Raises:
        MediaError: there is none.
    """
    streams = getattr(container.streams, kind)
    if not streams:
        remedy = {"video": "extracted frames", "audio": "a sound file"}[kind]
        raise MediaError(f'{path} has no {kind} stream: give {remedy} for it, or leave it out by on_error="skip"')
    # Decoders would rather conceal damage, and show what was never there until the next key frame.
    streams[0].codec_context.options = {"err_detect": "explode"}
    return streams[0]


def check_end(container: Any, stream: Any, end: float, path: str | Path) -> None:
    """Check that a stream, of which no more is to be had, did not end before the file's header says.

    Args:
        container: the open file.
        stream: the stream.
        end: when it ended, in seconds on the file's clock.
        path: of the file.

    Raises:
        MediaError: it did.
    """
    if container.format.name == "aac":  # bare frames; how long they are is guessed from the first ones' bit rate
        return
    declared = _declared_end(container, stream)
    if declared is None:  # Matroska without tags has one length for all streams; another one may be the longest
        declared = (container.duration or 0) / 1e6
        if declared > end + SLACK and _last_time(path) >= declared - SLACK:
            return
    if declared > end + SLACK:
        zero, kind = _zero(container), {"audio": "sound", "video": "video"}[stream.type]
        raise cut_short(path, kind, end - zero, declared - zero)


def cut_short(path: str | Path, kind: str, end: float, declared: float) -> MediaError:
    """The error for a stream that ends before its header says."""
    return MediaError(
        f"{path}: the {kind} ends after {end:.2f} s though its header says {declared:.2f} s: the file is cut short or "
        'damaged; fetch it again, or leave it out by on_error="skip"'
    )


def _pictures(path: str | Path, times: Sequence[float], *, jump: bool) -> list[Any]:
    """The pictures shown at times after the file's start; ``jump`` leaves out what lies between, where it can."""
    with open_media(path) as container:
        stream = first_stream(container, "video", path)
        zero = _zero(container)
        keys = _keyframes(container, stream) if jump else ()
        try:
            shown = _shown(container, stream, [zero + t for t in times], keys, path)
            return [_upright(frame) for frame in shown]
        except _av().error.FFmpegError as error:
            raise _broken(path, error) from error


def _shown(container: Any, stream: Any, times: Sequence[float], keys: Sequence[int], path: str | Path) -> list[Any]:
    """The frame shown at each time, on the file's clock; frames between are decoded only where they must be."""
    frames = _decode(container, stream, path)
    last, upcoming = None, next(frames, None)
    if upcoming is None:
        raise MediaError(f"{path}: its video stream holds no frame; fetch the file again")
    found = []
    for t in times:
        jump = _jump(keys, stream, upcoming, t)
        if jump is not None:
            container.seek(jump, stream=stream)
            frames = _decode(container, stream, path)
            last, upcoming = None, next(frames, None)
            if upcoming is None or upcoming.time > t:
                raise MediaError(f"{path}: its index of key frames is wrong; rewrite it, ffmpeg -i OLD -c copy NEW.mp4")
        while upcoming is not None and upcoming.time <= t:
            last, upcoming = upcoming, next(frames, None)
        frame: Any = last if last is not None else upcoming  # before the first frame, the first is shown
        if frame.is_corrupt:
            raise MediaError(f'{path}: the frame at {t:.2f} s is damaged; fetch it again, or use on_error="skip"')
        found.append(frame)
    if upcoming is None:
        _check_last(container, stream, found[-1], times[-1], path)
    _check_first(container, found[0], times[0], path)
    return found


def _check_last(container: Any, stream: Any, frame: Any, t: float, path: str | Path) -> None:
    """Raise or warn where a frame is wanted, at time ``t``, after the last one's end."""
    # Where frames stand for different times, the mean of them says nothing of the last one.
    length = float(frame.duration * frame.time_base) or (1 / float(stream.average_rate) if stream.average_rate else 0.0)
    end = frame.time + length
    if t <= end + SLACK:
        return
    check_end(container, stream, end, path)
    zero = _zero(container)
    warnings.warn(
        f"{path}: the video ends after {end - zero:.2f} s and is wanted at {t - zero:.2f} s: its last frame stands for "
        "the rest",
        MediaWarning,
        stacklevel=2,
    )


def _check_first(container: Any, frame: Any, t: float, path: str | Path) -> None:
    """Warn where a frame is wanted, at time ``t``, before the first one."""
    if frame.time <= t + SLACK:
        return
    zero = _zero(container)
    warnings.warn(
        f"{path}: the video starts after {frame.time - zero:.2f} s and is wanted at {t - zero:.2f} s: its first frame "
        "stands for what is missing",
        MediaWarning,
        stacklevel=2,
    )


def _zero(container: Any) -> float:
    """When a file starts, in seconds on its own clock."""
    return (container.start_time or 0) / 1e6


def _declared_end(container: Any, stream: Any) -> float | None:
    """When a stream ends by its header, in seconds on the file's clock; None if the header does not say."""
    if "matroska" in container.format.name:
        # It has a tag, "00:00:10.000000000": FFmpeg writes the end there, mkvmerge the length, which is no later. If
        # its streams have a duration at all, FFmpeg gave them that of the whole file.
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else None
    if stream.duration is None:
        return None
    return ((stream.start_time or 0) + stream.duration) * float(stream.time_base)


def _last_time(path: str | Path) -> float:
    """When the last packet of any stream ends, in seconds on the file's clock."""
    last = 0.0
    with open_media(path) as container:
        try:
            for packet in container.demux():
                if packet.pts is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except _av().error.FFmpegError as error:
            raise _broken(path, error) from error
    return last


def _decode(container: Any, stream: Any, path: str | Path) -> Iterator[Any]:
    """The frames from here on as they follow each other on the screen; times that do not follow are an error."""
    before = -math.inf
    for frame in container.decode(stream):
        if frame.time is None:
            raise MediaError(f"{path}: its frames have no times; rewrite it, ffmpeg -i OLD NEW.mp4")
        if frame.time < before:  # an .avi has times in the order of decoding alone, and H.264 may have another one
            raise MediaError(
                f"{path}: the times of its frames go back, from {before:.2f} to {frame.time:.2f} s; rewrite it, "
                "ffmpeg -i OLD NEW.mp4"
            )
        before = frame.time
        yield frame


def _keyframes(container: Any, stream: Any) -> Sequence[int]:
    """Decoding times of the key frames after which decoding can start, ascending, in the stream's time base."""
    if container.format.name == "avi":  # its index counts frames as they are decoded, which are no times
        return ()
    entries = getattr(stream, "index_entries", ())  # PyAV 14 has none: such files are decoded from the start
    return sorted(entry.timestamp for entry in entries if entry.is_keyframe)


def _jump(keys: Sequence[int], stream: Any, upcoming: Any, t: float) -> int | None:
    """The key frame to go on from: the last one before time ``t``, if decoding has not come that far."""
    if upcoming is None:
        return None
    # The index has decoding times; half a second covers how much later any frame is shown than decoded.
    at = bisect_right(keys, int((t - 0.5) / float(stream.time_base)))
    return keys[at - 1] if at and upcoming.pts is not None and keys[at - 1] > upcoming.pts else None


def _upright(frame: Any) -> Any:
    """The frame as a PIL image, turned as the file asks; other angles than quarters are not displayed by players."""
    image = frame.to_image()
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return image.rotate(90 * turns, expand=True) if turns else image


def _broken(path: str | Path, error: Exception) -> MediaError:
    return MediaError(
        f"{path} does not decode ({error.__class__.__name__}: {getattr(error, 'strerror', None) or error}): fetch it "
        'again, or leave it out by on_error="skip"'
    )


def _av() -> Any:
    return load_optional("av", by="video readers", extra="data")

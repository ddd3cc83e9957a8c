"""What the readers of all data sets share: reading a clip's media, the error policy, making batches."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fastav.data.errors import DataError, MediaError, MediaWarning, MissingError
from fastav.data.frames import confirm_rates, read_frames
from fastav.data.layouts import ClipFiles, find_media, name_some
from fastav.data.sound import fit, read_sound, spread_windows
from fastav.data.video import media_seconds, read_video

#: One clip: tensors and words by name, without a batch dimension.
Clip = dict[str, Any]
Row = TypeVar("Row")


class ClipDataset(Dataset[Clip | None], Generic[Row]):
    """What the readers share; each is a map-style dataset of clips, dictionaries that :func:`collate` makes batches of.

    A clip has "id" str, "frames" (T, 3, S, S) uint8 RGB, one frame a segment, "sound" (samples,) float32 mono with
    samples = T x ``seconds_per_segment`` x ``sampling_rate``, and the task's targets. With ``preprocess`` it is what
    that makes of it.

    Args:
        root: the data set's folder.
        split: one of ``splits``.
        preprocess: a function of a clip, usually a :class:`fastav.data.Preprocess`; runs where clips are read.
        on_error: "raise": clips whose files are missing are an error now, and those that do not decode when they are
            read. "skip": missing ones are left out now with one warning that names them (see ``missing``), and those
            that do not decode are given as None with a warning, for :func:`collate` to leave out.
        image_size: S.
        sampling_rate: Hz.

    Attributes:
        name: what the command line calls the data set.
        splits: their names.
        class_names: of the classes, where there are classes; ``num_classes`` counts them, background not among them.
        num_segments: T.
        seconds_per_segment: length of a segment's sound.
        frame_at: where in a segment of a video its frame lies, as a share of the segment.
        spread: whether a video's segments are spread over all of it, instead of following each other from its start.
        rows: the annotations of the clips, in order; those left out are not among them.
        indices: of each of the rows its place in the split's list, from 0; those left out are counted.
        sources: where the pictures and where the sounds are, in words.
        missing: what was left out: by name of the clips' files, what they lack, in words.
        num_left_out: how many clips that are; several can share their files, as the questions about one video do.

    Raises:
        DataError: wrong arguments, annotations that cannot be right, or missing files.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    class_names: tuple[str, ...] = ()
    num_segments: int = 10
    seconds_per_segment: float = 1.0
    frame_at: ClassVar[float] = 0.5
    spread: ClassVar[bool] = False

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        preprocess: Callable[[Clip], Clip] | None = None,
        on_error: str = "raise",
        image_size: int = 224,
        sampling_rate: int = 16000,
    ) -> None:
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}: one of {', '.join(self.splits)} is wanted")
        if on_error not in ("raise", "skip"):
            raise DataError(f'on_error={on_error!r}: "raise" or "skip" is wanted')
        self.root = Path(root).expanduser()
        self.split, self.preprocess, self.on_error = split, preprocess, on_error
        self.image_size, self.sampling_rate = image_size, sampling_rate
        self.rows: list[Row] = []
        self.indices: list[int] = []
        self.sources = ("", "")
        self.missing: dict[str, str] = {}
        self.num_left_out = 0

    @property
    def num_classes(self) -> int:
        """How many classes there are, without background."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Clip | None:
        """Read a clip; None where it does not decode and ``on_error`` is "skip".

        Raises:
            MediaError: a file does not decode and ``on_error`` is "raise".
            IndexError: there is no such clip.
        """
        row = self.rows[index]
        try:
            clip = {"id": self.id_of(row), **self.media(row), **self.targets(row)}
        except MediaError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"{self.name}: left out {self.id_of(row)}: {error}", MediaWarning, stacklevel=2)
            return None
        return clip if self.preprocess is None else self.preprocess(clip)

    def id_of(self, row: Row) -> str:
        """What the clip is called."""
        raise NotImplementedError

    def file_of(self, row: Row) -> str:
        """The name of the clip's files, where it is not the clip's."""
        return self.id_of(row)

    def media(self, row: Row) -> Clip:
        """The clip's "frames" and "sound"."""
        raise NotImplementedError

    def targets(self, row: Row) -> Clip:
        """What the task is to find, by name, and what it is asked."""
        raise NotImplementedError

    def _some(self, rows: list[Row]) -> list[Row]:
        """The rows themselves; that there are none is an error."""
        if not rows:
            raise DataError(f"{self.name} {self.split} in {self.root} has no clips: its list of them is empty")
        return rows

    def _keep(self, rows: Iterable[Row], missing: Mapping[str, str]) -> None:
        """Take the rows whose files are there; the others are an error or left out with a warning."""
        rows = list(rows)
        self.indices = [index for index, row in enumerate(rows) if self.file_of(row) not in missing]
        self.rows = [rows[index] for index in self.indices]
        self.missing = dict(missing)
        self.num_left_out = len(rows) - len(self.rows)
        if not missing:
            return
        lacking = f"{self.num_left_out} of the clips of {self.name} {self.split} in {self.root}"
        some = name_some([f"{name}: {words}" for name, words in missing.items()])
        if self.on_error == "raise" or not self.rows:
            remedy = "" if not self.rows else ', or leave them out by on_error="skip"'
            raise MissingError(f"{lacking} lack files ({some}): add them{remedy}", self.missing)
        warnings.warn(f"left out {lacking} that lack files ({some})", MediaWarning, stacklevel=3)


class MediaTreeDataset(ClipDataset[Row]):
    """A reader of a data set whose media are in one of the layouts of :mod:`fastav.data.layouts`.

    Args:
        root: the data set's folder.
        split: one of ``splits``.
        media: "auto": extracted frames and sounds, or original videos, whichever there are more of; "video": original
            videos alone; "frames": extracted files alone.
        options: as :class:`ClipDataset` has them.
    """

    #: Frames a second of extracted frames, by the number of digits of their names, where the number of pictures in most
    #: clips agrees; others cover the clip evenly.
    frame_rates: Mapping[int, float] = MappingProxyType({})

    def __init__(self, root: str | Path, split: str, *, media: str = "auto", **options: Any) -> None:
        super().__init__(root, split, **options)
        rows = self._some(self.annotations())
        self.layout = find_media(self.root, map(self.file_of, rows), media=media)
        self.sources = self.layout.pictures, self.layout.sounds
        self._keep(rows, self.layout.missing)
        folders = [files.pictures for files in self.layout.files.values() if files.pictures.is_dir()]
        seconds = self.num_segments * self.seconds_per_segment
        self.frame_rates = confirm_rates(self.frame_rates, folders, seconds=seconds)

    def annotations(self) -> list[Row]:
        """Read the annotations of the split.

        Raises:
            DataError: missing, or they cannot be right.
        """
        raise NotImplementedError

    def media(self, row: Row) -> Clip:
        """The clip's "frames" and "sound"."""
        return read_clip(
            self.layout.files[self.file_of(row)],
            num_segments=self.num_segments,
            seconds_per_segment=self.seconds_per_segment,
            image_size=self.image_size,
            sampling_rate=self.sampling_rate,
            frame_rates=self.frame_rates,
            frame_at=self.frame_at,
            spread=self.spread,
        )


def read_clip(
    files: ClipFiles | str | Path,
    *,
    num_segments: int,
    seconds_per_segment: float = 1.0,
    image_size: int = 224,
    sampling_rate: int = 16000,
    frame_rates: Mapping[int, float] | None = None,
    frame_at: float = 0.5,
    spread: bool = False,
) -> dict[str, Tensor]:
    """Read the frames and the sound of one clip.

    Args:
        files: a video file, or where pictures and sound are.
        num_segments: T.
        seconds_per_segment: length of a segment's sound.
        image_size: S.
        sampling_rate: Hz.
        frame_rates: as in :func:`fastav.data.frames.read_frames`.
        frame_at: where in a segment of a video its frame lies, as a share of the segment; of extracted frames it is
            always the middle's.
        spread: False: segments follow each other from the start, and the clip is T x ``seconds_per_segment`` long.
            True: they are T equal parts of the whole, each with a window of sound around its middle; an array (.npy)
            then holds the T windows, one after the other.

    Returns:
        "frames" (T, 3, S, S) uint8 and "sound" (samples,) float32.

    Raises:
        MediaError: a file that is missing, or does not decode.
        ImportError: a package of the extra "data" is missing.
    """
    if not isinstance(files, ClipFiles):
        files = ClipFiles(Path(files), Path(files))
    seconds, window = num_segments * seconds_per_segment, round(seconds_per_segment * sampling_rate)
    if files.pictures.is_dir():
        frames = read_frames(
            files.pictures, num_segments, seconds=seconds, image_size=image_size, frame_rates=frame_rates
        )
        whole = None
    else:
        whole = media_seconds(files.pictures) if spread else seconds
        times = [(segment + frame_at) * whole / num_segments for segment in range(num_segments)]
        frames = read_video(files.pictures, times, image_size=image_size)
    spread_sound = spread and files.sound.suffix.lower() != ".npy"
    sound = read_sound(files.sound, sampling_rate=sampling_rate, seconds=None if spread_sound else seconds)
    if spread_sound:
        if whole is not None:  # frames and windows at the same times, also where the sound ends early
            sound = fit(sound, round(whole * sampling_rate), sampling_rate, files.sound)
        sound = spread_windows(sound, num_segments, window)
    return {"frames": frames, "sound": fit(sound, num_segments * window, sampling_rate, files.sound)}


def collate(clips: Sequence[Clip | None]) -> dict[str, Any]:
    """Make a batch of clips, without those that were left out; for ``DataLoader(..., collate_fn=collate)``.

    Returns:
        Tensors with B first, numbers as tensors (B,), words as lists of B. The batch is empty, without any key, if all
        its clips were left out.

    Raises:
        DataError: tensors of one name differ in shape; names two clips.
    """
    kept = [clip for clip in clips if clip is not None]
    for clip in kept:
        _check_shapes(kept[0], clip)
    return default_collate(kept) if kept else {}


def _check_shapes(first: Clip, clip: Clip) -> None:
    """Raise DataError where two clips' tensors differ in shape: torch would say so without naming a clip."""
    for name in first.keys() & clip.keys():
        wanted, given = first[name], clip[name]
        if isinstance(wanted, Tensor) and isinstance(given, Tensor) and given.shape != wanted.shape:
            raise DataError(
                f"{name} of {clip.get('id')} are {tuple(given.shape)}, of {first.get('id')} {tuple(wanted.shape)}: "
                "clips of one shape make a batch; read them with the same options, or one a batch"
            )

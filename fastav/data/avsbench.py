"""AVSBench-object: clips of five seconds with masks of what sounds, from one source (S4) or several (MS3)."""

import csv
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastav.data.clips import Clip, ClipDataset
from fastav.data.errors import DataError, MediaError
from fastav.data.frames import open_picture, stack_pictures
from fastav.data.layouts import check_media, read_annotations
from fastav.data.sound import ARRAY_RATE, array_sound, fit, load_array, read_sound, resample
from fastav.data.video import read_video

#: The categories of the single-source subset; masks are of whatever sounds, whichever it is.
AVSBENCH_CLASSES = (
    "baby_laughter",
    "female_singing",
    "male_speech",
    "dog_barking",
    "cat_meowing",
    "lions_roaring",
    "horse_clip-clop",
    "coyote_howling",
    "mynah_bird_singing",
    "playing_acoustic_guitar",
    "playing_tabla",
    "playing_violin",
    "playing_piano",
    "playing_ukulele",
    "playing_glockenspiel",
    "helicopter",
    "race_car",
    "driving_buses",
    "ambulance_siren",
    "typing_on_computer_keyboard",
    "chainsawing_trees",
    "cap_gun_shooting",
    "lawn_mowing",
)
_SECONDS = 5
_FOLDERS = {"s4": ("Single-source", "s4"), "ms3": ("Multi-sources", "ms3")}
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AVSRow:
    """One clip; single-source clips have a category, the others none."""

    name: str
    split: str
    category: str | None = None


#: What a way of laying out files is called, and the files of a clip in it.
_Way = tuple[str, Callable[[AVSRow], list[Path]]]


def parse_avsbench(path: str | Path, subset: str) -> list[AVSRow]:
    """Read ``s4_meta_data.csv`` or ``ms3_meta_data.csv``, all splits.

    Columns are told by position, with or without a header: name, start, category and split in S4, name and split in
    MS3. Empty lines are passed over.

    Raises:
        DataError: too few columns, an unknown split or category, or one clip twice.
    """
    rows = []
    split_at, category_at = (3, 2) if subset == "s4" else (1, None)
    table = enumerate(csv.reader(StringIO(read_annotations(path))), 1)
    filled = [(number, fields) for number, fields in table if any(field.strip() for field in fields)]
    for number, fields in filled:
        where = f"{path}, line {number}"
        if len(fields) <= split_at:
            wanted = "name, start, category, split" if subset == "s4" else "name, split"
            raise DataError(f"{where} has {len(fields)} columns: {wanted} are wanted, with commas between them")
        if number == filled[0][0] and fields[split_at] not in _SPLITS:
            continue  # the header
        row = AVSRow(fields[0], fields[split_at], None if category_at is None else fields[category_at])
        if row.split not in _SPLITS:
            raise DataError(f"{where}: {row.split!r} is no split, wanted {', '.join(_SPLITS)}")
        if row.category is not None and row.category not in AVSBENCH_CLASSES:
            raise DataError(f"{where}: {row.category!r} is none of the 23 categories of AVSBench S4")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} names no clips: get it again from AVSBench")
    if len({(row.split, row.category, row.name) for row in rows}) != len(rows):
        raise DataError(f"{path} names a clip twice: get it again from AVSBench")
    return rows


def avsbench_folder(root: str | Path, subset: str) -> tuple[Path, Path]:
    """The csv and the media folder of a subset, where ``root`` is AVSBench's folder or the subset's own.

    Raises:
        DataError: an unknown subset, or no csv there.
    """
    if subset not in _FOLDERS:
        raise DataError(f'subset={subset!r}: "s4" (single source) or "ms3" (multiple sources) is wanted')
    root, (folder, short) = Path(root), _FOLDERS[subset]
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the folder that holds AVSBench")
    for place in (root / folder, root):
        if (place / f"{short}_meta_data.csv").is_file():
            return place / f"{short}_meta_data.csv", place / f"{short}_data"
    raise DataError(
        f"{root} holds neither {folder}/{short}_meta_data.csv nor {short}_meta_data.csv: give AVSBench's folder; its "
        "files are sent on request, see the AVSBench repository"
    )


def read_mask(path: str | Path) -> Tensor:
    """Read a mask: (H, W) bool, True where the file holds anything but 0.

    The files are greyscale, black and white, palette or RGB pictures, with objects as 255, 1 or a colour. The peers
    scale them by 255, which makes .88 of one object and .004 of another. In a palette whose first colour is black all
    other indices are objects, whatever their colour; in another one all pixels that are not black.

    Raises:
        MediaError: missing, or does not decode.
    """
    picture = open_picture(path)
    if picture.mode == "P" and any(picture.getpalette()[:3]):  # tools that save again may give index 0 to an object
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    colours = len(picture.getbands()) - picture.mode.endswith("A")  # that a pixel is opaque makes it no object
    mask = array > 0 if array.ndim == 2 else (array[..., :colours] > 0).any(-1)
    return torch.from_numpy(mask)


class AVSBench(ClipDataset[AVSRow]):
    """AVSBench-object, S4: 3,452 / 740 / 740 clips of five seconds with one source; MS3: 296 / 64 / 64 with several.

    The targets of a clip are "masks" (5, H, W) bool in the masks' own size, 224 x 224, and "has_mask" (5,) bool. The
    training clips of S4 have a mask of their first frame alone. Masks of another size than the first one of the split
    are a MediaError when they are read: one head makes masks of one size. Precomputed spectrograms, ``audio_log_mel``,
    are not read: they are pickles of features of one network, and sounds are beside them.

    Args:
        root: AVSBench's folder, which holds ``Single-source`` and ``Multi-sources``, or one of these.
        split: "train", "val" or "test".
        subset: "s4" or "ms3".
        media: "frames": the extracted frames and sounds; "video": ``raw_videos``; "auto": whichever there are more of.
        options: as in :class:`fastav.data.ClipDataset`.
    """

    name = "AVSBench"
    num_segments = _SECONDS
    #: Of each second 16 frames were sampled and the last one kept and annotated.
    frame_at = 15 / 16

    def __init__(
        self, root: str | Path, split: str, *, subset: str = "s4", media: str = "auto", **options: Any
    ) -> None:
        super().__init__(root, split, **options)
        check_media(media)
        self.subset = subset
        table, self.folder = avsbench_folder(self.root, subset)
        self._arrays: dict[Path, dict[str, Any]] = {}
        rows = self._some([row for row in parse_avsbench(table, subset) if row.split == split])
        frames, videos = ("frames in visual_frames", self._frames), ("videos in raw_videos", self._video)
        sounds = [(".wav sounds in audio_wav", self._wav), ("AVS.npy in wave", self._array)]
        (pictures, self._pictures), (heard, self._sound) = (
            self._choose(rows, media, ways) for ways in ([frames, videos], [*sounds, videos])
        )
        self.sources = pictures, heard
        missing = {}
        for row in rows:
            wanted = dict.fromkeys([*self._pictures(row), *self._sound(row), *self._masks(row)])
            lacks = [str(path.relative_to(self.folder)) for path in wanted if not path.is_file()]
            if lacks:
                missing[self.id_of(row)] = " and ".join(lacks) + " missing"
        self._keep(rows, missing)
        self._first_mask = self._find_mask()

    def id_of(self, row: AVSRow) -> str:
        """The clip's name, with its category where it has one: names alone are not unique."""
        return row.name if row.category is None else f"{row.category}/{row.name}"

    def media(self, row: AVSRow) -> Clip:
        """The clip's frames, the last of each second, and its sound."""
        pictures = self._pictures(row)
        if self._pictures == self._video:
            times = [second + self.frame_at for second in range(_SECONDS)]
            frames = read_video(pictures[0], times, image_size=self.image_size)
        else:
            frames = stack_pictures([open_picture(path) for path in pictures], self.image_size)
        path = self._sound(row)[0]
        if self._sound == self._array:
            sound = resample(torch.from_numpy(self._from_array(path, row)), ARRAY_RATE, self.sampling_rate)
        else:
            sound = read_sound(path, sampling_rate=self.sampling_rate, seconds=_SECONDS)
        return {"frames": frames, "sound": fit(sound, _SECONDS * self.sampling_rate, self.sampling_rate, path)}

    def targets(self, row: AVSRow) -> Clip:
        """The masks, and which frames have one.

        Raises:
            MediaError: a mask does not decode, or has another size than the first one of the split.
        """
        paths = self._masks(row)
        found = [read_mask(path) for path in paths]
        first, size = self._first_mask or (paths[0], found[0].shape)
        for path, mask in zip(paths, found, strict=True):
            if mask.shape != size:
                raise MediaError(
                    f"{path} is {tuple(mask.shape)}, {first} {tuple(size)}: the masks (H, W) of a split are wanted in "
                    'one size; resize the one that is wrong, or leave the clip out by on_error="skip"'
                )
        masks = torch.zeros(_SECONDS, *size, dtype=torch.bool)
        masks[: len(found)] = torch.stack(found)
        return {"masks": masks, "has_mask": torch.arange(_SECONDS) < len(found)}

    def _find_mask(self) -> tuple[Path, torch.Size] | None:
        """The split's first mask that decodes, and its size, by which all workers go; None if none does."""
        for row in self.rows:
            with suppress(MediaError):  # said when the clip is read
                path = self._masks(row)[0]
                return path, read_mask(path).shape
        return None

    @staticmethod
    def _choose(rows: Sequence[AVSRow], media: str, ways: Sequence[_Way]) -> _Way:
        """Of the ways in which all clips' files may lie, videos last, that which finds the first file of most."""
        if media != "auto":
            ways = ways[-1:] if media == "video" else ways[:-1]
        return max(ways, key=lambda way: sum(way[1](row)[0].is_file() for row in rows))

    def _place(self, kind: str, row: AVSRow, *, split: bool = True) -> Path:
        """A folder of clips' files: by split and category in S4; in MS3 by split where ``split``."""
        folder = self.folder / kind
        if row.category is not None:
            return folder / row.split / row.category
        return folder / row.split if split else folder

    def _frames(self, row: AVSRow) -> list[Path]:
        folder = self._place("visual_frames", row, split=False) / row.name
        stem = row.name if row.category is not None else f"{row.name}.mp4"  # so the files of MS3 are called
        return [_stored(folder / f"{stem}_{number}.png") for number in range(1, _SECONDS + 1)]

    def _video(self, row: AVSRow) -> list[Path]:
        return [_stored(self._place("raw_videos", row, split=False) / f"{row.name}.mp4")]

    def _wav(self, row: AVSRow) -> list[Path]:
        return [_stored(self._place("audio_wav", row) / f"{row.name}.wav")]

    def _array(self, row: AVSRow) -> list[Path]:
        return [_stored(self._place("wave", row) / "AVS.npy")]

    def _masks(self, row: AVSRow) -> list[Path]:
        last = 1 if row.category is not None and row.split == "train" else _SECONDS
        folder = self._place("gt_masks", row) / row.name
        return [_stored(folder / f"{row.name}_{number}.png") for number in range(1, last + 1)]

    def _from_array(self, path: Path, row: AVSRow) -> np.ndarray[Any, Any]:
        """The clip's sound out of a dictionary of many sounds; files that were read stay in memory."""
        if path not in self._arrays:
            self._arrays[path] = load_array(path)
        sounds = self._arrays[path]
        if not isinstance(sounds, dict) or f"{row.name}.wav" not in sounds:
            raise MediaError(f'{path} holds no sound "{row.name}.wav": give audio_wav/{row.split}/... instead')
        return array_sound(np.asarray(sounds[f"{row.name}.wav"]), path, seconds=_SECONDS)


def _stored(path: Path) -> Path:
    """The path, with its suffix in capitals where only a file of that name is there."""
    capitals = path.with_suffix(path.suffix.upper())
    return capitals if not path.is_file() and capitals.is_file() else path

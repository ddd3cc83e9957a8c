"""AVE: clips of ten seconds, in each of which an event is both seen and heard in some seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastav.data.clips import Clip, MediaTreeDataset
from fastav.data.errors import DataError
from fastav.data.layouts import find_file, need_file, read_annotations
from fastav.optional import load_optional

#: In the order of their first appearance in the annotations; the label of background is their number, 28.
AVE_CLASSES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
_HEADER = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
_SECONDS = 10
_SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


@dataclass(frozen=True)
class AVERow:
    """One row of the annotations: the event of class ``category`` lasts from second ``start`` up to ``end``."""

    category: int
    video: str
    start: int
    end: int


@dataclass(frozen=True)
class AVEAnnotations:
    """All rows of an annotation file, and whether a header line came before them."""

    rows: tuple[AVERow, ...]
    has_header: bool


def parse_ave(path: str | Path) -> AVEAnnotations:
    """Read ``Annotations.txt``, or one of the split files in its form.

    There are copies with a header line and copies without; it is known by what it says, so that no row is lost.

    Raises:
        DataError: a row of another form, an unknown class, or times outside of 0 to 10; names file and line. Or the
            file is no UTF-8.
    """
    lines = read_annotations(path).splitlines()
    has_header = bool(lines) and tuple(word.strip() for word in lines[0].split("&")) == _HEADER
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not (has_header and n == 1)]
    if not numbered:
        raise DataError(f"{path} holds no annotations: get it again from the AVE data set")
    return AVEAnnotations(tuple(_row(line, f"{path}, line {n}") for n, line in numbered), has_header)


def ave_split(root: str | Path, split: str) -> list[AVERow]:
    """The rows of one split, in the order of its file, ``{split}_order.h5`` or ``trainSet.txt`` and the like.

    Where there are both they must agree. ``mil_labels.h5``, where it is there, must agree with the annotations.

    Raises:
        DataError: a missing file, or files that do not belong together.
        ImportError: h5py is missing.
    """
    root = Path(root)
    listed = find_file(root, _SPLIT_FILES[split])
    if listed is not None and find_file(root, f"{split}_order.h5") is None:
        annotations = find_file(root, "Annotations.txt")
        if annotations is not None:
            _check_mil_labels(root, annotations, parse_ave(annotations).rows)
        return list(parse_ave(listed).rows)
    source = need_file(root, "Annotations.txt")
    rows = parse_ave(source).rows
    _check_mil_labels(root, source, rows)
    order_file = need_file(root, f"{split}_order.h5", _SPLIT_FILES[split])
    order = _read_order(order_file)
    check_ave_orders(source, len(rows), {name: _order(root, name) for name in _SPLIT_FILES})
    chosen = [rows[index] for index in order]
    if listed is not None:
        given = list(parse_ave(listed).rows)
        if given != chosen:
            differ = next((n for n, (a, b) in enumerate(zip(given, chosen, strict=False)) if a != b), None)
            at = f"have {len(given)} and {len(chosen)} rows" if differ is None else f"differ first in row {differ}"
            raise DataError(
                f"{listed} and {order_file} {at}: is a row of {source} lost or added? Get all three from one source"
            )
    return chosen


def check_ave_orders(source: Path, count: int, orders: dict[str, Sequence[int] | None]) -> None:
    """Raise DataError unless the splits' row numbers fit annotations of so many rows, each row in one split at most.

    Args:
        source: the annotation file.
        count: its rows.
        orders: by split, the row numbers, or None where the file is not there.
    """
    given = [index for order in orders.values() if order is not None for index in order]
    outside = [index for index in given if not 0 <= index < count]
    if outside:
        raise DataError(
            f"{source} has {count} rows, the splits' order files ask for row {max(outside)}: a row was lost, perhaps "
            "its first by reading it with a header that it does not have; get it again from the AVE data set"
        )
    if len(set(given)) != len(given):
        raise DataError(f"order files beside {source} name a row twice: get them again from the AVE repository")
    if None not in orders.values() and len(given) != count:
        raise DataError(
            f"{source} has {count} rows, the splits' order files name {len(given)}: they do not belong together; get "
            "all from the AVE repository"
        )


def ave_labels(row: AVERow) -> Tensor:
    """The label of every second, (10,) int64: the row's class from its start up to its end, else 28, background."""
    labels = torch.full((_SECONDS,), len(AVE_CLASSES), dtype=torch.int64)
    labels[row.start : row.end] = row.category
    return labels


class AVE(MediaTreeDataset[AVERow]):
    """AVE: 4,143 annotated clips of ten seconds, 28 classes; 3,339 for training, 402 each to validate and to test.

    ``root`` holds ``Annotations.txt`` and ``{train,val,test}_order.h5`` or ``{train,val,test}Set.txt``, itself or in
    its folder ``data``, and the media as docs/data.md lists them. The targets of a clip are "labels" (10,) int64, 28
    for background, and "clip_labels" (28,) float32, all that weak supervision may see: the class of the clip.

    Args:
        root: the data set's folder.
        split: "train", "val" or "test".
        media: as in :class:`fastav.data.MediaTreeDataset`.
        options: as in :class:`fastav.data.ClipDataset`.
    """

    name = "AVE"
    class_names = AVE_CLASSES
    num_segments = _SECONDS

    def annotations(self) -> list[AVERow]:
        """Read the annotations of the split."""
        return ave_split(self.root, self.split)

    def id_of(self, row: AVERow) -> str:
        """The YouTube id; some videos have several rows."""
        return row.video

    def targets(self, row: AVERow) -> Clip:
        """Labels of the seconds and of the clip."""
        clip_labels = torch.zeros(len(AVE_CLASSES))
        clip_labels[row.category] = 1
        return {"labels": ave_labels(row), "clip_labels": clip_labels}


def _row(line: str, where: str) -> AVERow:
    fields = line.strip().split("&")
    if len(fields) != len(_HEADER):
        raise DataError(f"{where} reads {line!r}: {'&'.join(_HEADER)} is wanted")
    category, video, _, start, end = fields
    if category not in AVE_CLASSES:
        raise DataError(f"{where}: {category!r} is none of AVE's 28 classes; get the file again from the AVE data set")
    if not (start.isdecimal() and end.isdecimal() and int(start) <= int(end) <= _SECONDS):
        raise DataError(f"{where}: start {start!r} and end {end!r}, wanted 0 <= start <= end <= {_SECONDS} in seconds")
    return AVERow(AVE_CLASSES.index(category), video, int(start), int(end))


def _order(root: Path, split: str) -> list[int] | None:
    path = find_file(root, f"{split}_order.h5")
    return None if path is None else _read_order(path)


def _read_order(path: Path) -> list[int]:
    """The row numbers of an order file."""
    order = _read_h5(path, "order")
    if order.ndim != 1 or (order.size and order.dtype.kind not in "iu"):  # h5py stores an empty list as floats
        raise DataError(
            f"{path}: 'order' is {order.dtype} {order.shape}, whole numbers of rows (n,) are wanted: get it again from "
            "the AVE repository"
        )
    return order.tolist()


def _check_mil_labels(root: Path, source: Path, rows: Sequence[AVERow]) -> None:
    """Raise DataError unless the classes of ``mil_labels.h5``, if it is there, are those of the annotations."""
    path = find_file(root, "mil_labels.h5")
    if path is None:
        return
    labels = _read_h5(path, "avadataset")
    if labels.shape != (len(rows), len(AVE_CLASSES) + 1):
        raise DataError(f"{path} is {labels.shape}, {source} has {len(rows)} rows of 28 classes and background")
    wrong = [n for n, (row, label) in enumerate(zip(rows, labels.argmax(1), strict=True)) if row.category != label]
    if wrong:
        raise DataError(
            f"{path} and {source} differ in the class of {len(wrong)} rows, first in row {wrong[0]}: is a row lost or "
            "added? Get both from one source"
        )


def _read_h5(path: Path, key: str) -> Any:
    """One array of an HDF5 file, of whatever type and shape."""
    h5py = load_optional("h5py", by="readers of .h5 files", extra="data")
    try:
        with h5py.File(path) as file:
            return np.asarray(file[key][()])
    except (OSError, KeyError, TypeError) as error:  # TypeError: a group, and no array
        raise DataError(f"{path} has no array {key!r} that can be read ({error}): get it again") from error

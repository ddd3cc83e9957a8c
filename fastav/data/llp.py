"""LLP: clips of ten seconds with events that are seen, heard, or both; trained on from the clips' labels alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastav.data.clips import Clip, MediaTreeDataset
from fastav.data.errors import DataError
from fastav.data.layouts import name_some, need_file, read_annotations

#: In the benchmark's order.
LLP_CLASSES = (
    "Speech",
    "Car",
    "Cheering",
    "Dog",
    "Cat",
    "Frying_(food)",
    "Basketball_bounce",
    "Fire_alarm",
    "Chainsaw",
    "Cello",
    "Banjo",
    "Singing",
    "Chicken_rooster",
    "Violin_fiddle",
    "Vacuum_cleaner",
    "Baby_laughter",
    "Accordion",
    "Lawn_mower",
    "Motorcycle",
    "Helicopter",
    "Acoustic_guitar",
    "Telephone_bell_ringing",
    "Baby_cry_infant_cry",
    "Blender",
    "Clapping",
)
_SECONDS = 10
_SPLIT_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
_EVENT_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
_FILENAME = re.compile(r".{11}_[0-9.]+_[0-9.]+")


@dataclass(frozen=True)
class LLPRow:
    """One clip: its name in the annotations, ``<video>_<start>_<end>``, and the classes that occur in it."""

    filename: str
    classes: tuple[int, ...]

    @property
    def video(self) -> str:
        """The YouTube id, which names the media files: the first eleven characters, which may be "_" or "-" too."""
        return self.filename[:11]


@dataclass(frozen=True)
class LLPEvent:
    """One event that is heard, or seen, from second ``onset`` up to ``offset``."""

    filename: str
    category: int
    onset: int
    offset: int


def parse_llp(path: str | Path) -> list[LLPRow]:
    """Read the clips' labels, ``AVVP_train.csv`` and the like.

    Raises:
        DataError: another header, a row of another form, an unknown class, a name of another form, or one name twice.
    """
    rows = []
    for (filename, labels), where in _table(path, ("filename", "event_labels")):
        if not _FILENAME.fullmatch(filename):
            raise DataError(f"{where}: {filename!r} is no name of a clip, wanted <11 characters>_<start>_<end>")
        rows.append(LLPRow(filename, tuple(_category(label, where) for label in labels.split(","))))
    twice = len(rows) - len({row.filename for row in rows})
    if twice:
        raise DataError(f"{path} names {twice} clips twice: get it again from the LLP repository")
    return rows


def parse_llp_events(path: str | Path) -> list[LLPEvent]:
    """Read the events that are heard, or those that are seen, ``AVVP_eval_audio.csv`` and ``AVVP_eval_visual.csv``.

    Rows that have no effect are read too; :func:`llp_warts` names them.

    Raises:
        DataError: another header, a row of another form, an unknown class, or times outside of 0 to 10.
    """
    events = []
    for (filename, onset, offset, label), where in _table(path, ("filename", "onset", "offset", "event_labels")):
        times = [int(time) if time.isdecimal() else -1 for time in (onset, offset)]
        if not all(0 <= time <= _SECONDS for time in times):
            raise DataError(f"{where}: onset {onset!r} and offset {offset!r}, wanted seconds from 0 to {_SECONDS}")
        events.append(LLPEvent(filename, _category(label, where), *times))
    return events


def event_map(events: Iterable[LLPEvent]) -> Tensor:
    """The seconds that events cover, (10, 25) bool; an event with ``offset <= onset`` covers none."""
    covered = torch.zeros(_SECONDS, len(LLP_CLASSES), dtype=torch.bool)
    for event in events:
        covered[event.onset : event.offset, event.category] = True
    return covered


def llp_warts(rows: Sequence[LLPRow], events: Mapping[str, Sequence[LLPEvent]]) -> list[str]:
    """What is odd in the annotations and does no more harm than that.

    Args:
        rows: all clips that have events, validation and test.
        events: of each kind, "audio" and "visual".

    Returns:
        Sentences that name rows and clips.
    """
    known, found = {row.filename for row in rows}, []
    for kind, listed in events.items():
        void = [event for event in listed if event.offset <= event.onset]
        if void:
            found.append(f"{len(void)} {kind} rows without effect, offset <= onset: {name_some(_names(void), 10)}")
    every = [event for listed in events.values() for event in listed]
    strangers = [event for event in every if event.filename not in known]
    corrupt = [event for event in strangers if event.filename in LLP_CLASSES or event.filename.endswith("`")]
    if corrupt:
        found.append(
            f"an old revision of {_EVENT_FILES['audio']} with {len(corrupt)} corrupt rows, of "
            f"{name_some(_names(corrupt))}: get the current one from the LLP repository"
        )
    lost = _names(event for event in strangers if event not in corrupt)
    if lost:
        found.append(f"{len(lost)} names of events match no clip and have no effect: {name_some(lost, 10)}")
    for kind, listed in events.items():
        without = known - {event.filename for event in listed if event.offset > event.onset}
        if without:
            found.append(f"{len(without)} clips of validation and test have no {kind} event")
    dense: dict[str, set[int]] = {}
    for event in every:
        dense.setdefault(event.filename, set()).add(event.category)
    differ = [row.filename for row in rows if set(row.classes) != dense.get(row.filename, set())]
    if differ:
        found.append(f"in {len(differ)} clips of validation and test the clip's labels are not those of its event rows")
    return found


class LLP(MediaTreeDataset[LLPRow]):
    """LLP: 11,849 clips of ten seconds, 25 classes; 10,000 for training, 649 to validate, 1,200 to test.

    ``root`` holds the annotations, ``AVVP_*.csv``, itself or in its folder ``data``, and the media as docs/data.md
    lists them, named by the first eleven characters of a clip's name. The targets of a clip are "clip_labels" (25,)
    float32; to validate and to test also "audio_events" and "visual_events", (10, 25) bool.

    Args:
        root: the data set's folder.
        split: "train", "val" or "test".
        options: "media" as in :class:`fastav.data.MediaTreeDataset`, others as in :class:`fastav.data.ClipDataset`.
    """

    name = "LLP"
    class_names = LLP_CLASSES
    num_segments = _SECONDS
    #: The official extraction; DG-SCT's one frame a second has eight digits.
    frame_rates = MappingProxyType({6: 8.0})

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, **options)
        self._events: dict[str, dict[str, list[LLPEvent]]] = {}
        if split == "train":
            return
        for kind, events in llp_events(self.root).items():
            by_clip = self._events.setdefault(kind, {})
            for event in events:
                by_clip.setdefault(event.filename, []).append(event)

    def annotations(self) -> list[LLPRow]:
        """Read the annotations of the split."""
        return llp_split(self.root, self.split)

    def id_of(self, row: LLPRow) -> str:
        """The clip's name in the annotations."""
        return row.filename

    def file_of(self, row: LLPRow) -> str:
        """The name of the clip's files, its first eleven characters."""
        return row.video

    def targets(self, row: LLPRow) -> Clip:
        """Labels of the clip, and to validate and to test the events."""
        clip_labels = torch.zeros(len(LLP_CLASSES))
        clip_labels[list(row.classes)] = 1
        events = {f"{kind}_events": event_map(of.get(row.filename, ())) for kind, of in self._events.items()}
        return {"clip_labels": clip_labels, **events}


def llp_split(root: str | Path, split: str) -> list[LLPRow]:
    """The clips of one split."""
    return parse_llp(need_file(Path(root), _SPLIT_FILES[split]))


def llp_events(root: str | Path) -> dict[str, list[LLPEvent]]:
    """The events of validation and test, "audio" and "visual"."""
    return {kind: parse_llp_events(need_file(Path(root), name)) for kind, name in _EVENT_FILES.items()}


def _table(path: str | Path, columns: tuple[str, ...]) -> list[tuple[list[str], str]]:
    """The rows of a table with tabs between columns, without empty lines, and where each stands, in words."""
    lines = [(number, line) for number, line in enumerate(read_annotations(path).splitlines(), 1) if line.strip()]
    header = lines[0][1] if lines else ""
    if tuple(header.split("\t")) != columns:
        raise DataError(
            f"{path} begins with {header!r}: the columns {', '.join(columns)} with tabs between them are wanted; get "
            "it again from the LLP repository"
        )
    rows = []
    for number, line in lines[1:]:
        fields = line.split("\t")
        where = f"{path}, line {number}"
        if len(fields) != len(columns):
            raise DataError(f"{where} has {len(fields)} columns: {', '.join(columns)} are wanted")
        rows.append((fields, where))
    return rows


def _category(label: str, where: str) -> int:
    if label not in LLP_CLASSES:
        raise DataError(f"{where}: {label!r} is none of LLP's 25 classes; get the file again from the LLP repository")
    return LLP_CLASSES.index(label)


def _names(events: Iterable[LLPEvent]) -> list[str]:
    """The different clips' names, in order."""
    return list(dict.fromkeys(event.filename for event in events))

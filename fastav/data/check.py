"""What of a data set is on disk, in which revision and layout, and what is missing or broken, by name."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastav.data.ave import AVE, ave_split, parse_ave
from fastav.data.avsbench import AVSBench, avsbench_folder, parse_avsbench
from fastav.data.clips import ClipDataset, MediaTreeDataset
from fastav.data.errors import DataError, MediaError, MediaWarning, MissingError
from fastav.data.frames import list_frames
from fastav.data.layouts import find_file, name_some
from fastav.data.llp import LLP, llp_events, llp_split, llp_warts
from fastav.data.music_avqa import REVISIONS, MusicAVQA, collect_answers, parse_music_avqa, question_file
from fastav.optional import load_optional

#: Names of data sets, as :func:`check_data` and the command line have them.
DATA_SETS = ("ave", "llp", "avsbench-s4", "avsbench-ms3", "music-avqa")
_SPLITS = ("train", "val", "test")


@dataclass
class Report:
    """What :func:`check_data` found; ``str(report)`` says it in words.

    Attributes:
        name: of the data set.
        root: its folder.
        counts: annotated clips (questions, in MUSIC-AVQA), by split.
        published: how many there should be, by split.
        found: what was recognised, such as the form of a header: pairs of a subject and what it is.
        warts: what is odd in the annotations, and no reason not to use them.
        missing: by split, for each clip's files what they lack, in words; all of them.
        filled: by split, files that are shorter than their clip, in words; of a deep check.
        broken: by split, for each clip's files why they do not decode; of a deep check, and empty folders of frames.
        errors: why a split cannot be read at all.
    """

    name: str
    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    found: list[tuple[str, str]] = field(default_factory=list)
    warts: list[str] = field(default_factory=list)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    filled: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, dict[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all annotated clips can be used, as far as was checked."""
        return not (self.errors or any(self.missing.values()) or any(self.broken.values()))

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.root}: {'ok' if self.ok else 'not all there'}"]
        for split, count in self.counts.items():
            published = self.published.get(split, count)
            lines.append(f"  {split}: {count} annotated" + (f", {published} published" if count != published else ""))
        lines += [f"  {subject}: {what}" for subject, what in self.found]
        lines += [f"  odd: {wart}" for wart in self.warts]
        lines += [f"  error: {error}" for error in self.errors]
        for title, found in (("lack files", self.missing), ("are broken", self.broken)):
            for split, clips in found.items():
                if clips:
                    listed = name_some([f"{name}: {words}" for name, words in clips.items()], 10)
                    lines.append(f"  {split}: {len(clips)} {title}: {listed}")
        for split, words in self.filled.items():
            if words:
                lines.append(f"  {split}: {len(words)} are shorter than their clip: {name_some(words, 3)}")
        return "\n".join(lines)


def check_data(
    name: str, root: str | Path, *, deep: bool = False, media: str = "auto", questions: str | None = None
) -> Report:
    """Check a data set on disk.

    Args:
        name: one of ``DATA_SETS``.
        root: its folder.
        deep: decode every clip, with a progress bar.
        media: as the readers have it: "auto", "video" or "frames".
        questions: as :class:`fastav.data.MusicAVQA` has it, for "music-avqa" alone: the folder of the questions.

    Raises:
        DataError: no such data set, or ``questions`` for one that asks none.
        ImportError: a package of the extra "data" is missing.
    """
    if name not in DATA_SETS:
        raise DataError(f"{name!r} is no data set: one of {', '.join(DATA_SETS)} is wanted")
    if questions is not None and name != "music-avqa":
        raise DataError(f"questions={questions!r} is for music-avqa alone, not for {name}: leave it out")
    report = Report(name, Path(root).expanduser())
    survey, reader = _known(name, questions)
    try:
        survey(report)
    except DataError as error:
        report.errors.append(str(error))
    for split in report.counts:
        _check_split(report, split, reader, deep=deep, media=media)
    report.errors = list(dict.fromkeys(report.errors))  # what all splits suffer from is said once
    report.found = list(dict.fromkeys(report.found))
    return report


def _known(name: str, questions: str | None) -> tuple[Callable[[Report], None], Callable[..., ClipDataset[Any]]]:
    """How to survey a data set's annotations, and its reader."""
    if name.startswith("avsbench-"):
        subset = name.removeprefix("avsbench-")

        def reader(*args: Any, **options: Any) -> AVSBench:
            return AVSBench(*args, subset=subset, **options)

        return lambda report: _survey_avsbench(report, subset), reader
    if name == "music-avqa":
        return partial(_survey_music_avqa, questions=questions), partial(MusicAVQA, questions=questions)
    return {"ave": (_survey_ave, AVE), "llp": (_survey_llp, LLP)}[name]


def _check_split(report: Report, split: str, reader: Callable[..., Any], *, deep: bool, media: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)  # that files are missing is reported
            clips = reader(report.root, split, media=media, on_error="skip")
    except MissingError as error:  # of all clips
        report.missing[split] = error.missing
        return
    except DataError as error:
        report.errors.append(str(error))
        return
    report.missing[split] = clips.missing
    report.found += zip(("pictures", "sounds"), clips.sources, strict=True)
    if isinstance(clips, MediaTreeDataset):
        folders = [files.pictures for files in clips.layout.files.values() if files.pictures.is_dir()]
        report.broken[split] = _check_frame_folders(report, split, folders)
    if deep:
        _decode_all(report, split, clips)


def _check_frame_folders(report: Report, split: str, folders: Iterable[Path]) -> dict[str, str]:
    """Count the frames of all clips and see how they are named; folders that cannot be used, by name."""
    digits: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    broken = {}
    for folder in folders:
        try:
            frames = list_frames(folder)
        except MediaError as error:
            broken[folder.name] = str(error)
            continue
        digits[len(frames[0].stem)] += 1
        counts[len(frames)] += 1
    if digits:
        named = " and ".join(f"%0{width}d" for width in sorted(digits))
        usual = counts.most_common(1)[0][0]
        report.found.append((f"frames of {split}", f"named {named}, {min(counts)} to {max(counts)}, mostly {usual}"))
    return broken


def _decode_all(report: Report, split: str, clips: ClipDataset[Any]) -> None:
    tqdm = load_optional("tqdm", by="progress bars", extra="data").tqdm
    broken, filled = report.broken.setdefault(split, {}), report.filled.setdefault(split, [])
    rows = {clips.file_of(row): row for row in clips.rows}  # one of the questions about each video
    for name, row in tqdm(rows.items(), desc=f"{report.name} {split}", unit="clip"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MediaWarning)
            try:
                clips.media(row)
                clips.targets(row)
            except MediaError as error:
                broken[name] = str(error)
        filled += [str(warning.message) for warning in caught if issubclass(warning.category, MediaWarning)]


def _survey_ave(report: Report) -> None:
    report.published = {"train": 3339, "val": 402, "test": 402}
    source = find_file(report.root, "Annotations.txt")
    if source is not None:
        header = "with" if parse_ave(source).has_header else "without"
        report.found.append(("annotations", f"{source.name} {header} a header"))
    rows = _split_rows(report, lambda split: ave_split(report.root, split))
    ids = {split: {row.video for row in rows[split]} for split in rows}
    report.found.append(("videos", f"{len(set().union(*ids.values()))}; some have several rows"))
    empty = [row.video for listed in rows.values() for row in listed if row.start == row.end]
    if empty:
        report.warts.append(f"background all through, though they have a category: {name_some(empty)}")
    for other in ("val", "test"):
        shared = sorted(ids.get("train", set()) & ids.get(other, set()))
        if shared:
            report.warts.append(f"{len(shared)} videos are in train and in {other}: {name_some(shared, 10)}")


def _survey_llp(report: Report) -> None:
    report.published = {"train": 10000, "val": 649, "test": 1200}
    rows = _split_rows(report, lambda split: llp_split(report.root, split))
    events = llp_events(report.root)
    report.found += [(f"{kind} events", f"{len(listed)} rows") for kind, listed in events.items()]
    if "val" in rows and "test" in rows:
        report.warts += llp_warts([*rows["val"], *rows["test"]], events)


def _survey_avsbench(report: Report, subset: str) -> None:
    report.published = {
        "s4": {"train": 3452, "val": 740, "test": 740},
        "ms3": {"train": 296, "val": 64, "test": 64},
    }[subset]
    table, _ = avsbench_folder(report.root, subset)
    splits = Counter(row.split for row in parse_avsbench(table, subset))
    report.counts = {split: splits[split] for split in _SPLITS}
    report.found.append(("annotations", table.name))


def _survey_music_avqa(report: Report, questions: str | None) -> None:
    rows = _split_rows(report, lambda split: parse_music_avqa(question_file(report.root, split, questions)))
    for split, listed in rows.items():
        where = question_file(report.root, split, questions).relative_to(report.root).as_posix()
        revision = REVISIONS.get(len(listed), "unknown")
        report.found.append((f"questions of {split}", f"{where}, revision {revision}"))
        report.found.append((f"answers of {split}", f"{len(collect_answers(listed))} different ones"))


def _split_rows(report: Report, read: Callable[[str], list[Any]]) -> dict[str, list[Any]]:
    """The annotations of the splits that can be read; counts them, and says why the others cannot."""
    rows = {}
    for split in _SPLITS:
        try:
            rows[split] = read(split)
        except DataError as error:
            report.errors.append(str(error))
    report.counts = {split: len(listed) for split, listed in rows.items()}
    return rows

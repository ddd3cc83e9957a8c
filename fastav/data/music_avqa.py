"""MUSIC-AVQA: questions about videos of people who make music, with one of 42 answers."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastav.data.clips import Clip, MediaTreeDataset
from fastav.data.errors import DataError
from fastav.data.layouts import name_some, read_annotations
from fastav.data.question_types import QUESTION_TYPES

#: Folders of the questions in the data set's folder, in the order in which they are looked for.
QUESTION_FOLDERS = ("json", "data/json", "json_update", "data/json_update", ".", "data")
#: Each known revision by the number of its questions.
REVISIONS = {
    32087: "json, train",
    4595: "json, val",
    9185: "json, test",
    4568: "json_update, val",
    9129: "json_update, test",
    # 7,402 + 1,783 = 9,185; json_update has fewer questions about real videos, 3,681 and 7,365.
    3698: "json, val, real videos alone",
    7402: "json, test, real videos alone",
    6233: "train, synthetic videos alone",
    1783: "json, test, synthetic videos alone",
}
_PLAIN: dict[str, tuple[type, str]] = {
    "video_id": (str, "a text"),
    "question_id": (int, "a whole number"),
    "question_content": (str, "a text"),
    "anser": (str, "a text"),
}
_LISTS = ("type", "templ_values")
_KEYS = (*_PLAIN, *_LISTS)
_MARKS = "?？"


@dataclass(frozen=True)
class QuestionRow:
    """One question: its text with the template filled in, its type's index in ``QUESTION_TYPES``, and its answer."""

    number: int
    video: str
    question: str
    question_type: int
    answer: str


def parse_music_avqa(path: str | Path) -> list[QuestionRow]:
    """Read ``avqa-train.json`` and the like; questions that are marked as deleted are left out.

    Raises:
        DataError: not such a file, a field that holds something else, an unknown type, or a template that its values
            do not fill; names the entry.
    """
    text = read_annotations(path)
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}): get it again from the MUSIC-AVQA repository") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no list of questions: get it again from the MUSIC-AVQA repository")
    rows = []
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        lacking = [key for key in _KEYS if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise DataError(f"{where} lacks {', '.join(lacking)} ('anser' is the data set's own spelling)")
        deleted = entry.get("question_deleted", 0)
        if deleted not in (0, 1):  # false and true among them
            raise DataError(f"{where} has {deleted!r} as question_deleted, wanted 0 or 1: get it again")
        if not deleted:
            rows.append(_row(entry, where))
    if len({row.number for row in rows}) != len(rows):
        raise DataError(f"{path} has a question_id twice: get it again from the MUSIC-AVQA repository")
    return rows


def fill_question(template: str, values: Sequence[str]) -> str:
    """Fill a question's template: words with "<" are replaced by the values in order.

    Spaces around it and the several forms of its question mark become one "?" at its end.

    Raises:
        DataError: more or fewer values than places.
    """
    words = template.strip().rstrip(_MARKS).split(" ")
    places = [place for place, word in enumerate(words) if "<" in word]
    if len(places) != len(values):
        raise DataError(f"{template!r} has {len(places)} places for the {len(values)} values {list(values)}")
    for place, value in zip(places, values, strict=True):
        words[place] = value
    return " ".join(words) + "?"


def collect_answers(rows: Iterable[QuestionRow]) -> tuple[str, ...]:
    """The answers of the training questions in the order in which they are first seen; 42 in the benchmark."""
    return tuple(dict.fromkeys(row.answer for row in rows))


def read_answers(path: str | Path) -> tuple[str, ...]:
    """Read a list of answers from a file: a JSON list, or one a line.

    Raises:
        DataError: missing, empty, or an answer twice.
    """
    try:
        text = read_annotations(path)
    except OSError as error:
        raise DataError(f"the list of answers {path} cannot be read: {error}") from error
    try:
        listed = json.loads(text)
    except ValueError:
        listed = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(listed, list) or not listed or not all(isinstance(answer, str) for answer in listed):
        raise DataError(f"{path} holds no answers: a JSON list of words, or one answer a line, is wanted")
    if len(set(listed)) != len(listed):
        raise DataError(f"{path} holds an answer twice")
    return tuple(listed)


def question_file(root: str | Path, split: str, folder: str | None = None) -> Path:
    """Where the questions of a split are, in ``folder`` or the first of ``QUESTION_FOLDERS`` that has them.

    Raises:
        DataError: nowhere there.
    """
    root, name = Path(root), f"avqa-{split}.json"
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the folder that holds the data set")
    folders = QUESTION_FOLDERS if folder is None else (folder,)
    for place in folders:
        if (root / place / name).is_file():
            return root / place / name
    raise DataError(f"{root} holds no {name} in {' or '.join(folders)}: get it from the MUSIC-AVQA repository")


class MusicAVQA(MediaTreeDataset[QuestionRow]):
    """MUSIC-AVQA: 45,867 questions of nine types about videos of a minute; each question is a clip.

    The frames are those at the middles of T equal parts of the video, and the sound of each is the window around it:
    "sound" is T x ``seconds_per_segment`` long, the windows one after the other. DG-SCT's arrays of sound,
    ``audio_wave/<id>.npy``, are taken as such windows of one second already.

    The targets of a clip are "question" str, "answer" int, an index into ``answers``, and "question_type" int, an
    index into ``QUESTION_TYPES``; its "id" is the question's number.

    Args:
        root: the data set's folder.
        split: "train", "val" or "test".
        num_segments: T.
        seconds_per_segment: length of the window of sound at each frame.
        answers: a file with the list of answers; by default they are those of the training questions in the order in
            which they are first seen, for which ``avqa-train.json`` must be there for every split.
        questions: folder of the questions in ``root``, to choose among revisions; by default the first of
            ``QUESTION_FOLDERS`` that has them.
        options: "media" as in :class:`fastav.data.MediaTreeDataset`, others as in :class:`fastav.data.ClipDataset`.

    Attributes:
        answers: the answers, also ``class_names``.

    Raises:
        DataError: as the other readers, an answer that the list does not hold, or segments that there cannot be.
    """

    name = "MUSIC-AVQA"
    spread = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        num_segments: int = 10,
        seconds_per_segment: float = 1.0,
        answers: str | Path | None = None,
        questions: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(num_segments, int) or num_segments < 1:
            raise DataError(f"num_segments is {num_segments!r}, wanted a whole number of at least 1")
        if not isinstance(seconds_per_segment, (int, float)) or not 0 < seconds_per_segment < math.inf:
            raise DataError(f"seconds_per_segment is {seconds_per_segment!r}, wanted a number above 0")
        self.num_segments, self.seconds_per_segment, self.questions = num_segments, seconds_per_segment, questions
        super().__init__(root, split, **options)
        self.answers = self._train_answers() if answers is None else read_answers(answers)
        self.class_names = self.answers
        self._numbers = {answer: number for number, answer in enumerate(self.answers)}
        strangers = dict.fromkeys(row.answer for row in self.rows if row.answer not in self._numbers)
        if strangers:
            raise DataError(
                f"{self.name} {split} has the answers {name_some(strangers)}, which are not among the "
                f"{len(self.answers)} of {answers or 'the training questions'}"
            )

    def annotations(self) -> list[QuestionRow]:
        """Read the questions of the split."""
        return parse_music_avqa(question_file(self.root, self.split, self.questions))

    def id_of(self, row: QuestionRow) -> str:
        """The question's number."""
        return str(row.number)

    def file_of(self, row: QuestionRow) -> str:
        """The video's id: eight digits of a real video; letters before them tell the kinds of synthetic ones."""
        return row.video

    def targets(self, row: QuestionRow) -> Clip:
        """The question, its type, and its answer."""
        return {
            "question": row.question,
            "answer": self._numbers[row.answer],
            "question_type": row.question_type,
        }

    def _train_answers(self) -> tuple[str, ...]:
        try:
            path = question_file(self.root, "train", self.questions)
        except DataError as error:
            raise DataError(f"{error}; it gives the list of answers: or give them by answers=FILE") from error
        return collect_answers(parse_music_avqa(path))


def _row(entry: dict[str, Any], where: str) -> QuestionRow:
    _check_plain(entry, where)
    kind, values = (_listed(entry[key], f"{where}: {key}") for key in _LISTS)
    if tuple(kind) not in QUESTION_TYPES:
        raise DataError(f"{where}: {kind} is none of the nine types of question")
    try:
        question = fill_question(entry["question_content"], values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return QuestionRow(
        number=entry["question_id"],
        video=entry["video_id"],
        question=question,
        question_type=QUESTION_TYPES.index(tuple(kind)),
        answer=entry["anser"],
    )


def _check_plain(entry: dict[str, Any], where: str) -> None:
    """Raise DataError unless the fields that are no lists hold what they should; an empty text says nothing."""
    for key, (kind, wanted) in _PLAIN.items():
        if type(entry[key]) is not kind or entry[key] == "":  # isinstance would take True for a number
            raise DataError(
                f"{where}: {key} is {entry[key]!r}, wanted {wanted}: get it again from the MUSIC-AVQA repository"
            )


def _listed(value: Any, where: str) -> list[str]:
    """A list of words that is written as a string of JSON in these files, or a list as it is."""
    try:
        listed = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"{where} is {value!r}, wanted a JSON list") from error
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise DataError(f"{where} is {value!r}, wanted a list of words")
    return listed

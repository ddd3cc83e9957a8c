"""Templates of questions about a ten-second clip, with exact answers from what is seen, heard and where.

They follow the nine types of MUSIC-AVQA. What could be argued about is not asked: things in the middle are neither left
nor right, and what lasts longer does so by two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUMBERS = ("zero", "one", "two", "three")
YES, NO, LEFT, RIGHT = "yes", "no", "left", "right"

MIDDLE = (0.42, 0.58)  # of a frame's width: what is in between is on no side
CLEARLY = 2  # seconds by which something is longer
LONG = 5  # seconds

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Facts:
    """What is so in one clip.

    Attributes:
        names: of the classes.
        seen: (10, num_classes) bool.
        heard: (10, num_classes) bool.
        centres: by class that is seen, where it is from left (0) to right (1).
        absent: a class that is neither seen nor heard.
    """

    names: Sequence[str]
    seen: Flags
    heard: Flags
    centres: Mapping[int, float]
    absent: int

    @property
    def in_sight(self) -> list[int]:
        """Classes that are seen at any time."""
        return np.flatnonzero(self.seen.any(0)).tolist()

    @property
    def in_sound(self) -> list[int]:
        """Classes that are heard at any time."""
        return np.flatnonzero(self.heard.any(0)).tolist()

    @property
    def asked(self) -> list[int]:
        """Classes that may be asked for, whether they are there or not."""
        return sorted({*self.in_sight, *self.in_sound, self.absent})

    @property
    def event(self) -> int | None:
        """The class that is seen and heard in the same second."""
        both = np.flatnonzero((self.seen & self.heard).any(0))
        return int(both[0]) if len(both) else None

    def side(self, label: int) -> str | None:
        """On which side a seen class is; None in the middle."""
        centre = self.centres[label]
        return LEFT if centre < MIDDLE[0] else RIGHT if centre > MIDDLE[1] else None


class Candidate(NamedTuple):
    """One question that a clip answers."""

    text: str
    answer: str
    hint: object = None  # what one sense alone knows and could guess from: with each, all answers are to be as common


class Template(NamedTuple):
    """A kind of question.

    Attributes:
        type: group and kind, as in ``fastav.data.question_types.QUESTION_TYPES``.
        candidates: all questions of this kind that a clip answers.
        answers: what is to be equally common; None where the answer is the name of a class.
    """

    type: tuple[str, str]
    candidates: Callable[[Facts], Iterator[Candidate]]
    answers: tuple[str, ...] | None


def _yes(said: bool) -> str:
    return YES if said else NO


def _count_heard(facts: Facts) -> Iterator[Candidate]:
    yield Candidate("How many different things are heard?", NUMBERS[len(facts.in_sound)])


def _is_heard(facts: Facts) -> Iterator[Candidate]:
    for label in facts.asked:
        answer = _yes(label in facts.in_sound)
        yield Candidate(f"Is the {facts.names[label]} heard?", answer, label in facts.in_sight)


def _is_heard_longer(facts: Facts) -> Iterator[Candidate]:
    lengths = facts.heard.sum(0)
    for one in facts.in_sound:
        for other in facts.in_sound:
            if abs(lengths[one] - lengths[other]) >= CLEARLY:
                text = f"Is the {facts.names[one]} heard for longer than the {facts.names[other]}?"
                yield Candidate(text, _yes(lengths[one] > lengths[other]))


def _count_seen(facts: Facts) -> Iterator[Candidate]:
    yield Candidate("How many different things are seen?", NUMBERS[len(facts.in_sight)])


def _is_seen(facts: Facts) -> Iterator[Candidate]:
    for label in facts.asked:
        answer = _yes(label in facts.in_sight)
        yield Candidate(f"Is the {facts.names[label]} seen?", answer, label in facts.in_sound)


def _where_is(facts: Facts) -> Iterator[Candidate]:
    for label in facts.in_sight:
        if (side := facts.side(label)) is not None:
            yield Candidate(f"Is the {facts.names[label]} on the left or on the right?", side, len(facts.in_sight))


def _is_seen_one_heard(facts: Facts) -> Iterator[Candidate]:
    for label in facts.in_sight:
        text = f"Is the {facts.names[label]} that is seen also heard?"
        yield Candidate(text, _yes(label in facts.in_sound), facts.seen[:, label].sum() > LONG)


def _is_heard_one_seen(facts: Facts) -> Iterator[Candidate]:
    for label in facts.in_sound:
        text = f"Is the {facts.names[label]} that is heard also seen?"
        yield Candidate(text, _yes(label in facts.in_sight), facts.heard[:, label].sum() > LONG)


def _count_seen_during(facts: Facts) -> Iterator[Candidate]:
    for label in facts.in_sound:
        count = facts.seen[facts.heard[:, label]].any(0).sum()
        yield Candidate(
            f"How many things are seen while the {facts.names[label]} is heard?", NUMBERS[count], len(facts.in_sight)
        )


def _count_heard_during(facts: Facts) -> Iterator[Candidate]:
    for label in facts.in_sight:
        count = facts.heard[facts.seen[:, label]].any(0).sum()
        yield Candidate(
            f"How many things are heard while the {facts.names[label]} is seen?", NUMBERS[count], len(facts.in_sound)
        )


def _count_all(facts: Facts) -> Iterator[Candidate]:
    count = len({*facts.in_sound, *facts.in_sight})
    yield Candidate("How many different things are seen or heard in all?", NUMBERS[count], len(facts.in_sight))


def _where_is_sounding(facts: Facts) -> Iterator[Candidate]:
    sides = {label: facts.side(label) for label in facts.in_sight}
    if facts.event is None or set(sides.values()) != {LEFT, RIGHT}:
        return  # eyes alone must not do
    longest = max(sides, key=lambda label: facts.seen[:, label].sum())
    side = sides[facts.event]
    assert side is not None
    yield Candidate("Is the sounding thing on the left or on the right?", side, sides[longest])


def _is_heard_on_side(facts: Facts) -> Iterator[Candidate]:
    sides = [facts.side(label) for label in facts.in_sight]
    for label, side in zip(facts.in_sight, sides, strict=True):
        if side is not None and sides.count(side) == 1:
            text = f"Is the thing on the {side} heard?"
            yield Candidate(text, _yes(label in facts.in_sound), facts.seen[:, label].sum() > LONG)


def _is_seen_longer_than_heard(facts: Facts) -> Iterator[Candidate]:
    for one in facts.in_sight:
        for other in facts.in_sound:
            seen, heard = facts.seen[:, one].sum(), facts.heard[:, other].sum()
            if abs(seen - heard) >= CLEARLY:
                text = f"Is the {facts.names[one]} seen for longer than the {facts.names[other]} is heard?"
                yield Candidate(text, _yes(seen > heard), seen > LONG)


def _is_seen_before_heard(facts: Facts) -> Iterator[Candidate]:
    for one in facts.in_sight:
        for other in facts.in_sound:
            seen, heard = int(facts.seen[:, one].argmax()), int(facts.heard[:, other].argmax())
            if seen != heard and min(seen, heard) > 0:  # what is there from the start would be first for sure
                text = f"Is the {facts.names[one]} seen before the {facts.names[other]} is heard?"
                yield Candidate(text, _yes(seen < heard), seen > LONG)


def _what_is_both(facts: Facts) -> Iterator[Candidate]:
    if facts.event is not None:
        yield Candidate("What is seen and heard at the same time?", facts.names[facts.event])


TEMPLATES = (
    Template(("Audio", "Counting"), _count_heard, NUMBERS[1:3]),
    Template(("Audio", "Counting"), _is_heard, (YES, NO)),
    Template(("Audio", "Comparative"), _is_heard_longer, (YES, NO)),
    Template(("Visual", "Counting"), _count_seen, NUMBERS[1:3]),
    Template(("Visual", "Counting"), _is_seen, (YES, NO)),
    Template(("Visual", "Location"), _where_is, (LEFT, RIGHT)),
    Template(("Audio-Visual", "Existential"), _is_seen_one_heard, (YES, NO)),
    Template(("Audio-Visual", "Existential"), _is_heard_one_seen, (YES, NO)),
    Template(("Audio-Visual", "Counting"), _count_all, NUMBERS[2:]),
    Template(("Audio-Visual", "Counting"), _count_seen_during, NUMBERS[1:3]),
    Template(("Audio-Visual", "Counting"), _count_heard_during, NUMBERS[1:3]),
    Template(("Audio-Visual", "Location"), _where_is_sounding, (LEFT, RIGHT)),
    Template(("Audio-Visual", "Location"), _is_heard_on_side, (YES, NO)),
    Template(("Audio-Visual", "Comparative"), _is_seen_longer_than_heard, (YES, NO)),
    Template(("Audio-Visual", "Temporal"), _is_seen_before_heard, (YES, NO)),
    Template(("Audio-Visual", "Temporal"), _what_is_both, None),
)

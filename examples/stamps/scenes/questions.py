"""Questions about the clips of a split, chosen so that guessing without looking and listening leads nowhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch.utils.data import Dataset
from tqdm import tqdm

from examples.stamps.material import Material
from examples.stamps.scenes.cast import SPLITS
from examples.stamps.scenes.clips import Clips
from examples.stamps.scenes.templates import LEFT, NO, NUMBERS, RIGHT, TEMPLATES, YES, Candidate, Facts, Template
from fastav.data.question_types import QUESTION_TYPES


class _Asked(NamedTuple):
    """A candidate and the clip that it is about."""

    clip: int
    template: int
    candidate: Candidate


class Questions(Dataset[dict[str, Any]]):
    """Questions about some clips; see `ask`. Everything but frames and sound is at hand without rendering any clip.

    An item is a dictionary: "id" a string; "frames" and "sound" as a `Clip` has them; "question" a string; "answer" and
    "question_type" scalar int64.

    Attributes:
        clips: the clips.
        clip: (n,) int64, which clip each question is about, ascending.
        text: n questions.
        answer: (n,) int64, index into `answers`.
        type: (n,) int64, index into ``fastav.data.question_types.QUESTION_TYPES``.
        template: (n,) int64, index into ``examples.stamps.scenes.templates.TEMPLATES``.
        answers: all answers that there may be, the same for every split of a material.
    """

    def __init__(self, clips: Clips, seed: int, most: int) -> None:
        self.clips, self.answers = clips, answer_list(clips.material)
        rng = np.random.default_rng((seed, SPLITS.index(clips.split), len(clips)))
        facts = [_facts(clips, index, rng) for index in tqdm(range(len(clips)), "asking", delay=1.0, leave=False)]
        asked = [question for number in range(len(TEMPLATES)) for question in _choose(number, facts, rng, most)]
        asked.sort(key=lambda question: question[:2])
        self.clip = torch.tensor([question.clip for question in asked], dtype=torch.int64)
        self.template = torch.tensor([question.template for question in asked], dtype=torch.int64)
        self.text = tuple(question.candidate.text for question in asked)
        index = {name: number for number, name in enumerate(self.answers)}
        self.answer = torch.tensor([index[question.candidate.answer] for question in asked], dtype=torch.int64)
        self.type = torch.tensor([QUESTION_TYPES.index(template.type) for template in TEMPLATES])[self.template]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"question {index} of {len(self)}")
        index %= len(self)
        clip = self.clips[int(self.clip[index])]
        return {
            "id": f"{self.clips.split}-{index}",
            "frames": clip.frames,
            "sound": clip.sound,
            "question": self.text[index],
            "answer": self.answer[index],
            "question_type": self.type[index],
        }


def ask(clips: Clips, seed: int = 0, most: int = 1) -> Questions:
    """Ask several questions about each of some clips, reproducibly.

    Every template's answers are equally common, also among clips that look alike to one sense alone, where the
    template says what that could guess from. To get there questions are left out, so that what is asked of a clip
    depends on the other clips.

    Args:
        clips: from `compose`; where things are depends on their `image_size`.
        seed: not negative, of the choice among all questions that could be asked.
        most: questions of one template about the same clip.
    """
    return Questions(clips, seed, most)


def answer_list(material: Material) -> tuple[str, ...]:
    """All answers that questions about a material's clips have."""
    return (*NUMBERS, YES, NO, LEFT, RIGHT, *material.class_names)


def _facts(clips: Clips, index: int, rng: Generator) -> Facts:
    seen, heard = clips.seen[index].numpy(), clips.heard[index].numpy()
    # One that the split has elsewhere, so that a name's presence among the questions tells nothing.
    elsewhere = (clips.seen | clips.heard).any(0).any(0).numpy() & ~(seen | heard).any(0)
    absent = int(rng.choice(np.flatnonzero(elsewhere if elsewhere.any() else ~(seen | heard).any(0))))
    return Facts(clips.material.class_names, seen, heard, clips.centres(index), absent)


def _choose(number: int, facts: list[Facts], rng: Generator, most: int) -> list[_Asked]:
    """Questions of one template, at most so many a clip, its answers equally common under every hint."""
    template: Template = TEMPLATES[number]
    bins: defaultdict[tuple[object, str], list[_Asked]] = defaultdict(list)
    filled: Counter[tuple[object, str]] = Counter()
    for clip in rng.permutation(len(facts)).tolist():
        candidates = list(template.candidates(facts[clip]))
        rng.shuffle(candidates)
        wanted = [one for one in candidates if template.answers is None or one.answer in template.answers]
        for _ in range(min(most, len(wanted))):
            one = min(wanted, key=lambda one: filled[one.hint, one.answer])
            wanted.remove(one)
            filled[one.hint, one.answer] += 1
            bins[one.hint, one.answer].append(_Asked(clip, number, one))
    if template.answers is None:
        return [question for some in bins.values() for question in some]
    kept = []
    for hint in {hint: None for hint, _ in bins}:
        some = [bins[hint, answer] for answer in template.answers]
        kept += [question for questions in some for question in questions[: min(map(len, some))]]
    return kept

"""The words that questions are made of, numbered as MUSIC-AVQA numbers them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_QUESTION_MARKS = "?？"  # the benchmark has both


class Vocabulary:
    """Words and their numbers: 0 is padding, then the words in the order given, and last what is unknown.

    As in the benchmark, a question is split at spaces, its question mark is dropped and nothing else is changed: "Is"
    and "is" are two words. Questions come with their templates filled in.

    Args:
        words: each once, the padding and the unknown not among them. From questions: :meth:`from_questions`.

    Attributes:
        words: tuple of str; word i has the number i + 1. JSON keeps it as a list, of which ``Vocabulary(words)`` makes
            the same vocabulary again.
        unknown: the number of every other word, ``len(words) + 1``.

    Raises:
        TypeError: words in one string.
        ValueError: no words, a word twice, or one that no question could hold.
    """

    padding = 0

    def __init__(self, words: Iterable[str]) -> None:
        if isinstance(words, str):
            raise TypeError("words must be a list of words, got one string; for questions: Vocabulary.from_questions")
        self.words = tuple(words)
        self.unknown = len(self.words) + 1
        self._numbers = {word: number for number, word in enumerate(self.words, 1)}
        self._reported: set[str] = set()
        wrong = [word for word in self.words if split_question(word) != [word]]
        if not self.words or wrong or len(self._numbers) < len(self.words):
            found = f"{wrong[:5]} among them" if wrong else f"{len(self._numbers)} different words in {len(self.words)}"
            raise ValueError(f"a vocabulary wants single words, each once, without question marks; got {found}")

    @classmethod
    def from_questions(cls, questions: Iterable[str]) -> Vocabulary:
        """Collect the words of the training questions in the order in which they are first seen."""
        return cls(dict.fromkeys(word for question in questions for word in split_question(question)))

    def extended(self, texts: Iterable[str]) -> Vocabulary:
        """This vocabulary and behind it the other words of some texts, answers for example: no number changes."""
        return Vocabulary(dict.fromkeys((*self.words, *(word for text in texts for word in split_question(text)))))

    def __len__(self) -> int:
        """How many numbers there are: all words, padding and the unknown."""
        return len(self.words) + 2

    @property
    def fingerprint(self) -> int:
        """A number below 2^63 that differs between any two vocabularies."""
        return fingerprint_of(self.words)

    def encode(self, questions: Sequence[str], length: int | None = None) -> Tensor:
        """Number the words of B questions.

        A word that is not in the vocabulary becomes ``unknown``; the first time, a UserWarning names it.

        Args:
            questions: B questions, filled in.
            length: words that each is padded to, 14 in the benchmark; None for those of the longest.

        Returns:
            (B, length) int64, 0 after a question's last word.

        Raises:
            TypeError: one string in place of a list.
            ValueError: no questions, a question without words, with an unfilled template, or of more than ``length``.
        """
        split = [split_question(question) for question in check_questions(questions)]
        longest = max(map(len, split))
        if length is not None and longest > length:
            question = next(q for q, words in zip(questions, split, strict=True) if len(words) == longest)
            raise ValueError(f"question {question!r} has {longest} words, more than length={length}")
        numbers = torch.full((len(split), length or longest), self.padding)
        for row, words in zip(numbers, split, strict=True):
            row[: len(words)] = torch.tensor([self._number(word) for word in words])
        return numbers

    def _number(self, word: str) -> int:
        number = self._numbers.get(word, self.unknown)
        if number == self.unknown and word not in self._reported:
            self._reported.add(word)
            warnings.warn(
                f"{word!r} is not among the vocabulary's {len(self.words)} words and is read as unknown; "
                "was the vocabulary made of these questions' training split?",
                UserWarning,
                stacklevel=3,
            )
        return number


def split_question(question: str) -> list[str]:
    """The words of a question: split at spaces, without the question mark at its end."""
    return question.rstrip().rstrip(_QUESTION_MARKS).split()


def check_questions(questions: Sequence[str]) -> Sequence[str]:
    """Return the questions if they are B strings.

    Raises:
        TypeError: one string in place of a list, or what is no string.
        ValueError: no questions, one without words, or with a template that is not filled in.
    """
    if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
        raise TypeError(f"questions must be a list of strings, one a clip, got {type(questions).__name__}")
    if not questions:
        raise ValueError("questions is empty, wanted one a clip")
    for question in questions:
        if not split_question(question):
            raise ValueError(f"question {question!r} has no words")
        if "<" in question:
            raise ValueError(f"question {question!r} holds a template: fill in its templ_values first")
    return questions


def fingerprint_of(texts: Sequence[str]) -> int:
    """A number below 2^63 that differs between any two lists of texts without line breaks, in their order."""
    return int.from_bytes(hashlib.sha256("\n".join(texts).encode()).digest()[:8], "big") >> 1

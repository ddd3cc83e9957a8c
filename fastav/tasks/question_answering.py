"""Audio-visual question answering (MUSIC-AVQA): one of a list of answers to a question about a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.output import AdapterOutput
from fastav.tasks.evidence import check_tokens, target
from fastav.tasks.questions import EncodedQuestions, FrozenTextEncoder, QuestionLSTM
from fastav.tasks.swap import swap_unasked
from fastav.tasks.task import Batch, Task
from fastav.tasks.vocabulary import Vocabulary, fingerprint_of

_WAVES = 8  # cosines over the clip that tell when a segment is


class QuestionAnsweringHead(nn.Module):
    """Look and listen for what the question names, second by second, and answer from what was found when.

    Every segment is described three times: what is seen, what is heard, and their product, what both agree on. Names
    live in the same space as descriptions, whether a question mentions them or an answer is one: what "dog" looks and
    sounds like is learned from every question that it occurs in and every question that it answers.

    Slots gather the names that a question is about, each by its own attention over the words, and are matched with
    every segment's three descriptions. From these matches and from the descriptions as the question filters them comes
    the evidence of every segment. It is pooled over time in three ways: the mean (how long), the largest (whether at
    all, how many), and under learned attention that knows when a segment is (which first, what meanwhile). From the
    pools comes one part of the logits. The other says which answer's name matches the segments that the evidence
    chooses, and, as the question weighs it, the clip in the mean and at its best. Mathematics:
    docs/tasks/question_answering.md.

    Args:
        num_answers: how many answers to choose from.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        question_width: Q of the question encoder.
        hidden: width of descriptions and names; the evidence is twice as wide.
        slots: how many names of one question are looked for at a time.
        heads: of the attention over time; they divide 2 x ``hidden``.
        dropout: on the tokens, the evidence and before the answer, in training.

    Raises:
        ValueError: heads that do not divide 2 x ``hidden``.
    """

    def __init__(
        self,
        num_answers: int = 42,
        *,
        num_tokens: int,
        width: int,
        question_width: int = 128,
        hidden: int = 128,
        slots: int = 4,
        heads: int = 4,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if 2 * hidden % heads:
            raise ValueError(f"heads={heads} must divide 2 x hidden = {2 * hidden}")
        self.tokens, self.num_answers, self.heads = (num_tokens, width), num_answers, heads
        self.seen = _describe(num_tokens * width, hidden, dropout)
        self.heard = _describe(num_tokens * width, hidden, dropout)
        self.name = nn.Linear(question_width, hidden)
        self.pick = nn.Linear(question_width, slots)
        self.ask = nn.Linear(question_width, hidden)
        self.when = nn.Linear(_WAVES, hidden)
        self.evidence = nn.Sequential(nn.Linear(3 * slots + 3 * hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout))
        self.attend = nn.Linear(2 * hidden, heads)
        self.choose = nn.Linear(2 * hidden, 3)
        # Starts as nothing: that a name is somewhere in the clip counts only once a question wants it.
        self.weigh = nn.Linear(hidden, 6)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)
        self.answer = nn.Sequential(
            nn.LayerNorm(7 * hidden),
            nn.Linear(7 * hidden, 2 * hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * hidden, num_answers),
        )

    def forward(self, visual: Tensor, audio: Tensor, questions: EncodedQuestions, answers: Tensor) -> Tensor:
        """Answer one question a clip.

        Args:
            visual: (B, T, K, W), from an adapter.
            audio: (B, T, K, W).
            questions: B questions, from the question encoder.
            answers: (num_answers, Q), the names of the answers: ``encoder(texts).mean()``.

        Returns:
            (B, num_answers) logits.

        Raises:
            ValueError: tokens of another shape, or another number of questions or answers.
        """
        check_tokens("QuestionAnsweringHead", visual, audio, self.tokens)
        if len(questions.sentence) != len(visual) or len(answers) != self.num_answers:
            raise ValueError(
                f"QuestionAnsweringHead: {len(questions.sentence)} questions and {len(answers)} answers for "
                f"{len(visual)} clips, wanted one question a clip, the clip's tokens repeated where it is asked "
                f"several, and {self.num_answers} answers"
            )
        seen, heard = self.seen(visual.flatten(2)), self.heard(audio.flatten(2))
        described = torch.stack([seen, heard, seen * heard], 2)  # (B, T, 3, hidden)
        unit = seen.shape[-1] ** -0.5
        matches = torch.einsum("bsd,btmd->btsm", self._slots(questions), described).flatten(2) * unit

        question = self.ask(questions.sentence)
        filtered = question[:, None] + self.when(_waves(seen))
        evidence = self.evidence(torch.cat([matches, seen * filtered, heard * filtered, filtered], -1))
        weights = self.attend(evidence).softmax(1)  # (B, T, heads)
        attended = torch.einsum("bth,bthd->bhd", weights, evidence.unflatten(-1, (self.heads, -1))).flatten(1)
        reasoned = self.answer(torch.cat([evidence.mean(1), evidence.amax(1), attended, question], -1))

        named = torch.einsum("btmd,ad->btma", described, self.name(answers)) * unit
        chosen = torch.einsum("btm,btma->ba", self.choose(evidence).softmax(1), named)
        wanted = self.weigh(question).unflatten(-1, (2, 3))
        pooled = torch.stack([named.mean(1), named.amax(1)], 1)  # (B, 2, 3, num_answers)
        return reasoned + chosen + torch.einsum("bpm,bpma->ba", wanted, pooled)

    def _slots(self, questions: EncodedQuestions) -> Tensor:
        """The names that the questions are about, (B, slots, hidden)."""
        scores = self.pick(questions.words).masked_fill(~questions.mask[..., None], -torch.inf)
        return torch.einsum("bls,bld->bsd", scores.softmax(1), self.name(questions.words))


def _describe(inputs: int, hidden: int, dropout: float) -> nn.Sequential:
    """A segment's K tokens side by side, (..., K W) -> (..., hidden)."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Dropout(dropout), nn.Linear(inputs, hidden))


def _waves(segments: Tensor) -> Tensor:
    """(B, T, ...) -> (T, waves): half a period of a cosine over the clip, a whole one, ..., so that T is free."""
    middle = (torch.arange(segments.shape[1], device=segments.device) + 0.5) / segments.shape[1]
    periods = torch.arange(1, _WAVES + 1, device=segments.device)
    return torch.cos(math.pi * middle[:, None] * periods).to(segments.dtype)


def question_answering_loss(logits: Tensor, answers: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the answers, the mean over questions.

    Args:
        logits: (B, num_answers), from :class:`QuestionAnsweringHead`.
        answers: (B,) int64, the right answers.
        label_smoothing: as in torch's ``cross_entropy``.

    Raises:
        ValueError: shapes that do not match.
    """
    if logits.ndim != 2 or answers.shape != logits.shape[:1]:
        raise ValueError(
            f"question_answering_loss: logits are {tuple(logits.shape)} and answers {tuple(answers.shape)}, "
            f"wanted (B, num_answers) and (B,)"
        )
    return F.cross_entropy(logits, answers, label_smoothing=label_smoothing)


def decode_question_answering(logits: Tensor) -> Tensor:
    """The answer to every question: (B, num_answers) logits -> (B,) int64."""
    return logits.argmax(-1)


class QuestionAnsweringTask(Task):
    """Question answering behind the interface of all tasks.

    Args:
        vocabulary: the words of the training questions, as :attr:`Vocabulary.words` has them, for a
            :class:`QuestionLSTM`; those of the answers are added behind them. Not read with a ``text_model``.
        answers: the texts of the answers to choose from, in the order of the batches' ``answer``.
        num_tokens: K of the adapter's output.
        width: W of the adapter's output.
        text_model: name or folder of a frozen Hugging Face text transformer that reads the questions in place of the
            LSTM; see :meth:`FrozenTextEncoder.from_pretrained`.
        hidden: see :class:`QuestionAnsweringHead`.
        dropout: see :class:`QuestionAnsweringHead`.
        label_smoothing: see :func:`question_answering_loss`.
        swap_unasked: in training, how likely two clips swap what a question does not ask about, 0 ... 1; see
            :func:`fastav.tasks.swap_unasked`. The batches need a ``question_type`` then.

    Raises:
        TypeError: answers in one string.
        ValueError: no answers, an answer twice, a share outside 0 ... 1, a vocabulary that :class:`Vocabulary` refuses,
            or a text transformer that cannot be loaded.
    """

    name = "question_answering"
    monitor = "accuracy"
    fingerprint: Tensor

    def __init__(
        self,
        vocabulary: Sequence[str],
        answers: Sequence[str],
        *,
        num_tokens: int,
        width: int,
        text_model: str | None = None,
        hidden: int = 128,
        dropout: float = 0.3,
        label_smoothing: float = 0.0,
        swap_unasked: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= swap_unasked <= 1:
            raise ValueError(f"swap_unasked is {swap_unasked}, wanted a share of the clips, 0 ... 1")
        if isinstance(answers, str):
            raise TypeError("answers must be a list of texts, got one string")
        if not answers or len(set(answers)) < len(answers):
            raise ValueError(f"answers must be different texts, at least one, got {list(answers)}")
        self.question_encoder: QuestionLSTM | FrozenTextEncoder
        if text_model is None:
            self.question_encoder = QuestionLSTM(Vocabulary(vocabulary).extended(answers))
        else:
            self.question_encoder = FrozenTextEncoder.from_pretrained(text_model)
        self.head = QuestionAnsweringHead(
            len(answers),
            num_tokens=num_tokens,
            width=width,
            question_width=self.question_encoder.width,
            hidden=hidden,
            dropout=dropout,
        )
        self.answers, self.label_smoothing, self.swap_unasked = tuple(answers), label_smoothing, swap_unasked
        self.register_buffer("fingerprint", torch.tensor([fingerprint_of(self.answers)]))
        self.register_load_state_dict_pre_hook(_check_answers)

    def pairing(self, batch: Batch, clips: Tensor) -> tuple[Tensor, Tensor]:
        """In training, another clip's sound or sight for a share of the questions that do not ask about it.

        Raises:
            ValueError: the batch has no ``question_type``, and ``swap_unasked`` is not zero.
        """
        if not (self.training and self.swap_unasked):
            return clips, clips
        types = target(batch, "question_type", "give each question its type, or leave swap_unasked at 0")
        return swap_unasked(types, clips, self.swap_unasked)

    def forward(self, out: AdapterOutput, batch: Batch) -> Tensor:
        """Logits (B, num_answers), of the batch's ``question``, a list of B strings.

        Raises:
            ValueError: the batch has none.
        """
        questions = target(batch, "question", "question answering reads one question a clip")
        answers = self.question_encoder(self.answers).mean()
        return self.head(out.visual, out.audio, self.question_encoder(questions), answers)

    def loss(self, said: Tensor, batch: Batch) -> Tensor:
        """:func:`question_answering_loss` of the batch's ``answer`` (B,).

        Raises:
            ValueError: the batch has none.
        """
        answers = target(batch, "answer", "question answering is learned from it")
        return question_answering_loss(said, answers, label_smoothing=self.label_smoothing)

    def metric(self) -> Any:
        """A new :class:`fastav.metrics.QuestionAnsweringScores`."""
        from fastav.tasks.question_answering_metric import QuestionAnsweringScores

        return QuestionAnsweringScores()

    def update(self, metric: Any, said: Tensor, batch: Batch) -> None:
        """Count one batch by its ``answer`` and ``question_type``, (B,) each.

        Raises:
            ValueError: the batch lacks one of them.
        """
        answers = target(batch, "answer", "score a split whose questions have answers")
        types = target(batch, "question_type", "scores are by type: indices into fastav.data.QUESTION_TYPES")
        metric.update(decode_question_answering(said), answers, types)

    def decode(self, said: Tensor) -> dict[str, Tensor]:
        """``answers`` (B,) int64 and ``probabilities`` (B, num_answers)."""
        wide = torch.promote_types(said.dtype, torch.float32)
        return {"answers": decode_question_answering(said), "probabilities": said.softmax(-1, dtype=wide)}


def _check_answers(task: QuestionAnsweringTask, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: refuse weights whose logits mean other answers, or the same in another order."""
    saved = state_dict.get(f"{prefix}fingerprint")
    if saved is not None and saved.item() != task.fingerprint.item():
        raise ValueError(
            "these weights belong to other answers, or to the same in another order: build QuestionAnsweringTask with "
            "the list that it was trained with, whose texts are task.answers"
        )

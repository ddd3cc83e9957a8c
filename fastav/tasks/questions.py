"""Question encoders: an LSTM over the training questions' words, or a frozen text transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from fastav.backbones.identity import fingerprint
from fastav.optional import load_optional
from fastav.tasks.vocabulary import Vocabulary, check_questions

_REMEMBERED = 4096  # texts; of 14 tokens and 768 channels they are 176 MB


class EncodedQuestions(NamedTuple):
    """B questions, or answers, as vectors of the encoder's ``width`` Q."""

    sentence: Tensor  # (B, Q)
    words: Tensor  # (B, L, Q), zeros where there is no word
    mask: Tensor  # (B, L) bool, True where there is a word

    def mean(self) -> Tensor:
        """The mean over each text's words, (B, Q): what an answer of one word or more is named by."""
        return self.words.sum(1) / self.mask.sum(1, keepdim=True)


class QuestionLSTM(nn.Module):
    """Read questions word by word.

    Every word is embedded, one LSTM runs over them, and a linear map brings its states to ``width``. The sentence is
    the state after the last word; a word is its embedding plus the state after it. Padding is never read: a question
    gives the same whatever it is batched with.

    Args:
        vocabulary: of the training questions. It is not in ``state_dict()``, only its fingerprint is: weights are not
            loaded onto other words.
        width: Q, of the embedding and of what comes out.
        hidden: units of the LSTM, 512 in the benchmark.
        forget: chance in training that a word is read as unknown, so that the unknown has a meaning in evaluation.
    """

    fingerprint: Tensor

    def __init__(self, vocabulary: Vocabulary, *, width: int = 128, hidden: int = 512, forget: float = 0.01) -> None:
        super().__init__()
        self.vocabulary, self.width, self.forget = vocabulary, width, forget
        self.embedding = nn.Embedding(len(vocabulary), width, padding_idx=vocabulary.padding)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.project = nn.Linear(hidden, width)
        self.register_buffer("fingerprint", torch.tensor([vocabulary.fingerprint]))
        self.register_load_state_dict_pre_hook(_check_fingerprint)

    def forward(self, questions: Sequence[str]) -> EncodedQuestions:
        """Encode B questions.

        Raises:
            TypeError, ValueError: as :meth:`Vocabulary.encode`.
        """
        numbers = self.vocabulary.encode(questions).to(self.embedding.weight.device)
        mask = numbers != self.vocabulary.padding
        if self.training:
            forgotten = mask & (torch.rand(numbers.shape, device=numbers.device) < self.forget)
            numbers = numbers.masked_fill(forgotten, self.vocabulary.unknown)
        lengths, embedded = mask.sum(1), self.embedding(numbers)
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        states = self.project(states)
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        # A word is itself and what the words before it make of it: "violin" is the same thing in every question.
        return EncodedQuestions(last, (embedded + states) * mask[..., None], mask)


class FrozenTextEncoder(nn.Module):
    """Read questions by a frozen Hugging Face text transformer (BERT, MiniLM, ...).

    Its last states are layer-normalised and brought to ``width`` by a learned linear map; the sentence is the same of
    their mean over the question's tokens. The transformer is frozen, stays in eval mode whatever ``train()`` is called
    on, runs without gradient and stays out of ``state_dict()``, which holds its fingerprint: weights are not loaded
    beside another one. It reads each text once and by itself, so that what it makes of a text depends on nothing else;
    its states are remembered, as the same questions are asked of many clips (MUSIC-AVQA's 9,129 test questions are
    1,298 different ones).

    Args:
        model: from ``transformers.AutoModel``, an encoder.
        tokenizer: its own, from ``transformers.AutoTokenizer``.
        width: Q.
    """

    fingerprint: Tensor

    def __init__(self, model: nn.Module, tokenizer: Any, *, width: int = 128) -> None:
        super().__init__()
        self.model, self.tokenizer, self.width = model, tokenizer, width
        size: int = model.config.hidden_size  # type: ignore[union-attr, assignment]
        self.project = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width))
        self.model.requires_grad_(False)
        self.model.eval()
        self.register_buffer("fingerprint", torch.tensor([int(fingerprint(model)[:15], 16)]))
        self._states: dict[str, Tensor] = {}  # (L, hidden size) of each text
        self.register_state_dict_post_hook(_leave_out_model)
        self.register_load_state_dict_pre_hook(_supply_model)

    @classmethod
    def from_pretrained(cls, name: str, *, width: int = 128) -> FrozenTextEncoder:
        """Load transformer and tokenizer by their name on the Hugging Face hub, or from a folder.

        Raises:
            ValueError: they cannot be loaded, or weights are missing.
            ImportError: transformers is missing.
        """
        transformers = load_optional("transformers", by="text transformers", extra="backbones")
        try:
            model, found = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the text transformer {name!r} cannot be loaded: give its name on the Hugging Face hub, or, without "
                "a connection, a folder with its config.json, its weights and its tokenizer's files"
            ) from error
        # transformers draws what a checkpoint lacks at random, with no more than a warning. The pooler is not read.
        lacks = sorted(key for key in found["missing_keys"] if "pooler" not in key)
        if lacks:
            raise ValueError(f"the text transformer {name!r} holds no {lacks[0]} and {len(lacks) - 1} more weights")
        return cls(model, tokenizer, width=width)

    def forward(self, questions: Sequence[str]) -> EncodedQuestions:
        """Encode B questions; L counts the tokenizer's tokens, special ones included.

        Raises:
            TypeError, ValueError: as :meth:`Vocabulary.encode`, and for questions longer than the transformer takes.
        """
        states = [self._states[text] for text in self._remember(check_questions(questions))]
        padded = pad_sequence(states, batch_first=True).to(next(self.project.parameters()).dtype)
        mask = pad_sequence([one.new_ones(len(one), dtype=torch.bool) for one in states], batch_first=True)
        mean = torch.stack([one.mean(0) for one in states]).to(padded.dtype)
        return EncodedQuestions(self.project(mean), self.project(padded) * mask[..., None], mask)

    def _remember(self, texts: Sequence[str]) -> Sequence[str]:
        """Run the transformer over the texts whose states are not known yet; returns the texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._states]
        if len(self._states) + len(new) > _REMEMBERED:
            self._states.clear()
            new = list(dict.fromkeys(texts))
        longest = getattr(self.model.config, "max_position_embeddings", None)
        for text in new:
            tokens = self.tokenizer(text, return_tensors="pt")
            length = tokens["input_ids"].shape[1]
            if longest is not None and length > longest:
                raise ValueError(f"question {text!r} has {length} tokens, the transformer takes {longest}")
            with torch.no_grad():
                states = self.model(**tokens.to(next(self.project.parameters()).device)).last_hidden_state
            self._states[text] = states[0]
        return texts

    def _apply(self, *args: Any, **kwargs: Any) -> FrozenTextEncoder:
        self._states.clear()  # they are of the old device and dtype
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> FrozenTextEncoder:
        """Set the mode of the learned map; the transformer stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self


def _check_fingerprint(encoder: QuestionLSTM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: refuse weights that were trained on other words, or the same in another order."""
    saved = state_dict.get(f"{prefix}fingerprint")
    if saved is not None and saved.item() != encoder.vocabulary.fingerprint:
        raise ValueError(
            "these weights belong to another vocabulary: build QuestionLSTM with the one it was trained with, "
            "whose words are vocabulary.words"
        )


def _leave_out_model(encoder: FrozenTextEncoder, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """After collecting a state: drop the transformer's own tensors."""
    for name in encoder.model.state_dict():
        del state_dict[f"{prefix}model.{name}"]


def _supply_model(encoder: FrozenTextEncoder, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: refuse weights learned beside another transformer, and let this one's tensors stand in."""
    saved = state_dict.get(f"{prefix}fingerprint")
    if saved is not None and not torch.equal(saved.cpu(), encoder.fingerprint.cpu()):
        raise ValueError(
            "these weights were trained beside a text transformer with other weights: give the one that was used then"
        )
    for name, value in encoder.model.state_dict().items():
        state_dict.setdefault(f"{prefix}model.{name}", value)

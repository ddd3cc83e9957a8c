"""DG-SCT: two backbones that go side by side, with adapters between pairs of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import Baseline, Seen, blocks_of
from fastav.baselines.checkpointing import run_twice
from fastav.baselines.dgsct import DGSCTAdapter
from fastav.baselines.lockstep import in_step
from fastav.baselines.sites import blocks_with_branches, check_runs_once, inserted, inserted_around
from fastav.counts import check_counts
from fastav.optional import load_optional


def pair_blocks(visual: Sequence[int], audio: Sequence[int]) -> list[tuple[int, int]]:
    """Which block of one backbone goes with which of the other: evenly within each stage, the last with the last.

    Args:
        visual: the stage of each visual block.
        audio: the stage of each audio block. Where the numbers of stages differ all blocks count as one.

    Returns:
        Pairs of block numbers in order, as many in each stage as the backbone with fewer blocks there has.
    """
    if len(set(visual)) != len(set(audio)):
        visual, audio = [0] * len(visual), [0] * len(audio)
    pairs: list[tuple[int, int]] = []
    seen, heard = 0, 0  # blocks of earlier stages
    for of_visual, of_audio in zip(_run_lengths(visual), _run_lengths(audio), strict=True):
        fewer = min(of_visual, of_audio)
        for i in range(1, fewer + 1):
            pairs.append((seen + of_visual * i // fewer - 1, heard + of_audio * i // fewer - 1))
        seen, heard = seen + of_visual, heard + of_audio
    return pairs


def _run_lengths(stages: Sequence[int]) -> list[int]:
    return [len(list(run)) for _, run in groupby(stages)]


class DGSCT(Baseline):
    """DG-SCT (Duan et al., NeurIPS 2023): four :class:`DGSCTAdapter` for each pair of blocks of the two backbones.

    The first two are given both modalities' tokens as they come into the pair, and stand beside the visual attention
    and beside the whole audio block; the second two are given what came of that, and stand beside the visual MLP and
    beside nothing, as the audio block has no second part for them. Where the last pair's adapters look is how much
    each of the last tokens counts in the read-out.

    With ``gradient_checkpointing`` the adapters and the blocks that are not paired run again in backward. Paired ones
    do not: in the middle of a block they wait for the other backbone's.

    Args:
        visual: see :class:`Baseline`.
        audio: likewise.
        num_segments: T, for ``audio_layout="clip"``: how many spans a clip's tokens are cut into.
        num_tokens: K; see :class:`DGSCTAdapter`, as for all that follow.
        ratio: of its bottleneck.
        groups: of its maps.
        batch_norm: whether it has them.
        alpha: how much channels are weighed.
        beta: how much places are weighed.
        zeros: how the latent tokens start.
        options: see :class:`Baseline`.

    Raises:
        ValueError: one backbone for both, a block whose branches are not known, a ratio or
            groups that do not divide its width, or tokens that do not divide into ``num_segments``; when called, inputs
            that give other numbers of tokens than the backbones' ``example_input``.
        ImportError: greenlet is missing, which lets the backbones wait for each other.
    """

    name = "dg-sct"

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        num_segments: int | None = None,
        num_tokens: int = 32,
        ratio: int = 8,
        groups: int = 2,
        batch_norm: bool = True,
        alpha: float = 0.3,
        beta: float = 0.05,
        zeros: bool = False,
        **options: Any,
    ) -> None:
        check_counts("DGSCT", num_tokens=num_tokens, ratio=ratio, groups=groups)
        self.num_segments = num_segments
        self.settings: dict[str, Any] = {
            "num_tokens": num_tokens,
            "ratio": ratio,
            "groups": groups,
            "batch_norm": batch_norm,
            "alpha": alpha,
            "beta": beta,
            "zeros": zeros,
        }
        super().__init__(visual, audio, **options)

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        load_optional("greenlet", by="adapters between two backbones", extra="baselines")  # now, not in the first step
        if visual.module is audio.module:
            raise ValueError("DGSCT wants two backbones that go side by side, was given one for both; copy it")
        super()._build(visual, audio)
        check_runs_once(audio)
        self.pairs = pair_blocks(visual.stages, audio.stages)
        seeing, hearing = blocks_with_branches(visual), blocks_of(audio)
        self._blocks = [seeing[i] for i, _ in self.pairs], [hearing[j] for _, j in self.pairs]
        spans = self._spans(audio.tokens)
        self.adapters = nn.ModuleList()
        self._tokens: list[tuple[int, int]] = []  # of both modalities, for which each of these is built
        for i, j in self.pairs:
            seen = visual.widths[i], visual.tokens[i]
            heard = audio.widths[j], audio.tokens[j] // spans
            for _ in ("first", "second"):
                self._tokens.append((seen[1], heard[1]))
                self.adapters.append(
                    nn.ModuleDict(
                        {
                            "visual": DGSCTAdapter(*seen, *heard, **self.settings),
                            "audio": DGSCTAdapter(*heard, *seen, **self.settings),
                        }
                    )
                )

    def _again(self, modality: str, whole: FrozenBackbone) -> list[str]:
        paired = {pair[("visual", "audio").index(modality)] for pair in self.pairs}
        return [name for number, name in enumerate(whole.tap_names) if number not in paired]

    def _spans(self, tokens: Sequence[int]) -> int:
        if self.audio_layout == "segment":
            return 1
        if (
            not isinstance(self.num_segments, int)
            or self.num_segments < 1
            or any(count % self.num_segments for count in tokens)
        ):
            raise ValueError(
                f"DGSCT: num_segments is {self.num_segments!r}, wanted the number of segments of a clip, which divides "
                f"its {tokens[-1]} audio tokens: the adapters mix all tokens of a segment"
            )
        return self.num_segments

    def _check_tokens(self, came: tuple[int, int], built_for: tuple[int, int]) -> None:
        """Raise ValueError for other numbers of visual and audio tokens a segment than the adapters mix."""
        for modality, count, wanted in zip(("visual", "audio"), came, built_for, strict=True):
            if count != wanted:
                example = getattr(self, modality).example_input
                raise ValueError(
                    f"DGSCT: a block of the {modality} backbone puts out {count} tokens a segment, but the adapters "
                    f"beside it were built for {wanted}, as inputs of shape {tuple(example.shape[1:])} give them; for "
                    f"other inputs build it on FrozenBackbone(..., example_input=one of them)"
                )

    def _run(self, visual: Tensor, audio: Tensor, segments: int) -> Seen:
        if self.audio_layout == "clip" and segments != self.num_segments:
            raise ValueError(f"visual_input has {segments} segments a clip, num_segments is {self.num_segments}")
        stations: Iterator[Any] = zip(self.adapters, self._tokens, strict=True)
        places: list[Tensor] = []
        twice = self.gradient_checkpointing and torch.is_grad_enabled()

        def adapted(adapter: nn.Module, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
            return run_twice(adapter, own, other) if twice else adapter(own, other)

        def exchange(brought: Sequence[Tensor]) -> list[Tensor]:
            seen, heard = brought[0], self._cut(brought[1], segments)
            beside, built_for = next(stations)
            self._check_tokens((seen.shape[1], heard.shape[1]), built_for)
            more_seen, places_seen = adapted(beside["visual"], seen, heard)
            more_heard, places_heard = adapted(beside["audio"], heard, seen)
            places[:] = places_seen, places_heard
            return [more_seen, more_heard.reshape(brought[1].shape)]

        def see(meet: Callable[[Tensor], Tensor]) -> list[Tensor]:
            with inserted(self._blocks[0], lambda number, which, tokens: meet(tokens)):
                return self.visual(visual)

        def hear(meet: Callable[[Tensor], Tensor]) -> list[Tensor]:
            with inserted_around(self._blocks[1], meet):
                return self.audio(audio)

        taps, heard = in_step(exchange, see, hear)
        return Seen(taps, heard[-1], (places[0], places[1]))

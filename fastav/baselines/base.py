"""What every peer is: two backbones, what it puts beside or into them, and one way to read them out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.backbones.blocks import find_blocks
from fastav.backbones.layout import check_audio_layout, cut_spans, flat_inputs, patch_map, stage_ends
from fastav.backbones.streams import SideStreams
from fastav.backbones.whisper import whisper_encoder
from fastav.baselines.live import LiveBackbone
from fastav.counts import check_counts
from fastav.output import AdapterOutput
from fastav.standardization import TapStandardization

EPS = 1e-5  # of the read-out's norms


class ReadOut(nn.Module):
    """One token a segment: the last block's tokens normalised, averaged, standardised, and brought to the common width.

    Standardised as adapters standardise their taps: a few channels of a transformer are far larger than the others and
    nearly constant, and a head that reads them as they are learns slowly.

    Args:
        width: D of the last block.
        out: W.
        batches: how many first training batches the statistics are measured over.
        follow: whether they go on being measured, as what is read moves with what is trained.
    """

    def __init__(self, width: int, out: int, batches: int, *, follow: bool) -> None:
        super().__init__()
        self.standardization = TapStandardization([width], [0], "none", EPS, batches, follow=follow)
        self.to_width = nn.Linear(width, out)

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """(B, N, D), and how much each token counts (B, 1, N) or None for all alike -> (B, 1, W)."""
        with torch.autocast(tokens.device.type, enabled=False):  # in its own dtype, as adapters' side branches are
            tokens = F.layer_norm(tokens.to(self.to_width.weight.dtype), tokens.shape[-1:], eps=EPS)
            pooled = tokens.mean(1, keepdim=True) if places is None else places.to(tokens.dtype) @ tokens
            if self.training and self.standardization.measuring:
                self.standardization.measure([pooled])
            (weight,), (bias,) = self.standardization()
            return self.to_width(pooled * weight + bias)


class Seen(NamedTuple):
    """What a method makes of B clips of T segments with its backbones.

    Attributes:
        visual: the visual backbone's taps, (B * T, N, D) each.
        audio: the last audio tokens, (B * T, M, E), or (B, T * M, E) for whole clips.
        places: how much each of the last tokens counts, (B * T, 1, N) and (B * T, 1, M), or None for all alike.
    """

    visual: list[Tensor]
    audio: Tensor
    places: tuple[Tensor, Tensor] | None = None


#: Why a method has no use for gradient checkpointing whose backbones are frozen for good.
NOTHING_KEPT = "no gradients run through the backbones, so that nothing of theirs is kept for backward"


class Baseline(nn.Module):
    """A peer's method over two backbones, called as an adapter is: the same inputs, the same output.

    Its output holds K = 1 token a segment and modality, so that the tasks' heads read it as they read an adapter's.
    The backbones' own weights stay frozen but where a method trains them; what is put beside or into them has their
    dtype, the output is float32. They stay in eval mode, all of them: the
    peers' own code trains with drop path and moving batch statistics instead.

    Args:
        visual: the visual backbone, bare or a :class:`FrozenBackbone`. Of the latter the taps count where its blocks
            are of no known family; otherwise a method works on all blocks.
        audio: the audio backbone, likewise.
        width: W of the output.
        audio_layout: ``"segment"`` or ``"clip"``, see :class:`fastav.MettleConfig`.
        dense: whether the output's ``features`` are wanted: the maps of the last visual block of each stage, or of each
            quarter of a backbone with a single one.
        standardize_batches: over how many first training batches the read-outs measure their statistics; where what is
            read moves with what is trained, they follow it as a running mean over as many.
        gradient_checkpointing: whether the backbones' blocks, with what stands in them, keep what goes into them alone
            and run again in backward; where gradients run through them.

    Attributes:
        visual: the visual backbone as it runs.
        audio: the audio backbone as it runs, if it does.
        through: whether gradients run through the backbones.
        runs_once: why blocks cannot run again in backward; empty where they can.
        moves: whether what is read out moves in training.
        copies: whether they are copied, so that those that were given stay as they are.
        num_tokens: K = 1.

    Raises:
        ValueError: an audio layout that the audio backbone does not allow, backbones of two dtypes, a backbone with a
            ``chunk`` where gradients run through it or with ``in_state_dict``, ``gradient_checkpointing`` where blocks
            run once, or a count that is no integer of at least 1.
    """

    name: ClassVar[str]
    through: ClassVar[bool] = True
    runs_once: ClassVar[str] = ""
    moves: ClassVar[bool] = True
    copies: ClassVar[bool] = False
    num_tokens: ClassVar[int] = 1
    visual: FrozenBackbone
    audio: FrozenBackbone

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        width: int = 128,
        audio_layout: str = "segment",
        dense: bool = False,
        standardize_batches: int = 8,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_counts(type(self).__name__, width=width, standardize_batches=standardize_batches)
        if gradient_checkpointing and self.runs_once:
            raise ValueError(f"{type(self).__name__}: gradient_checkpointing=True, but {self.runs_once}; leave it out")
        self.gradient_checkpointing = gradient_checkpointing
        self.width, self.audio_layout, self.dense = width, audio_layout, dense
        whole = {"visual": self._whole(visual), "audio": self._whole(audio)}
        check_audio_layout(audio_layout, whole["audio"], by=type(self).__name__)
        self.stages = stage_ends(whole["visual"]) if dense else ()
        if whole["visual"].dtype != whole["audio"].dtype:
            raise ValueError(
                f"{type(self).__name__}: the visual backbone is of {whole['visual'].dtype}, the audio backbone of "
                f"{whole['audio'].dtype}; bring one to the other's dtype, what stands in both must have one"
            )
        self._build(whole["visual"], whole["audio"])
        if gradient_checkpointing:
            for modality, backbone in whole.items():
                if hasattr(self, modality):
                    getattr(self, modality).run_again = self._again(modality, backbone)
        for child in self.children():
            if not isinstance(child, FrozenBackbone):
                child.to(whole["visual"].dtype)
        self.read_visual, self.read_audio = (
            ReadOut(found, width, standardize_batches, follow=self.moves) for found in self._read_widths()
        )

    def _whole(self, given: nn.Module | FrozenBackbone) -> FrozenBackbone:
        """A backbone with all its blocks tapped, or, if they are of no known family, those that were named."""
        settings: dict[str, Any] = {}
        taps: str | tuple[str, ...] = "all"
        if isinstance(given, FrozenBackbone):
            if given.in_state_dict:
                raise ValueError(
                    f"{type(self).__name__}: a FrozenBackbone with in_state_dict=True, but a method's state holds what "
                    "it trains alone; give one without, or the bare backbone"
                )
            settings = {"example_input": given.example_input, "chunk": given.chunk}
            taps = "all" if find_blocks(given.module) else given.tap_names
            given = given.module
        if isinstance(given, nn.Module):  # else FrozenBackbone says what it wants
            given = whisper_encoder(given) or given
        return FrozenBackbone(copy.deepcopy(given) if self.copies else given, taps, **settings)

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        """Make ``visual`` and ``audio``, and what the method adds; given both backbones with all blocks tapped."""
        self.visual = self._tapped(visual, self._visual_taps(visual))
        self.audio = self._tapped(audio, audio.tap_names[-1:])

    def _tapped(self, whole: FrozenBackbone, taps: Sequence[str], **settings: Any) -> FrozenBackbone:
        """The backbone as it runs: with gradients, or without."""
        kind = LiveBackbone if self.through else FrozenBackbone
        return kind(whole.module, taps, example_input=whole.example_input, chunk=whole.chunk, **settings)

    def _again(self, modality: str, whole: FrozenBackbone) -> list[str]:
        """Names of the blocks that can run again in backward, one by one: all."""
        return list(whole.tap_names)

    def _visual_taps(self, visual: FrozenBackbone) -> list[str]:
        """The last block, and what ``features`` are made of."""
        return [*self.stages, visual.tap_names[-1]]

    def _read_widths(self) -> tuple[int, int]:
        return self.visual.widths[-1], self.audio.widths[-1]

    def forward(self, visual_input: Tensor, audio_input: Tensor) -> AdapterOutput:
        """Run the backbones with all that belongs to the method.

        Args:
            visual_input: (B, T, 3, H, W).
            audio_input: (B, T, ...) for ``audio_layout="segment"``, (B, ...) for ``"clip"``.

        Returns:
            An :class:`AdapterOutput` with visual and audio tokens (B, T, 1, W).

        Raises:
            TypeError: an input that is not a tensor.
            ValueError: inputs whose clips or segments do not match.
        """
        inputs, segments = flat_inputs(visual_input, audio_input, self.audio_layout, square=self._square)
        seen = self._run(inputs["visual"], inputs["audio"], segments)
        heard = self._cut(seen.audio, segments)
        seen_places, heard_places = seen.places or (None, None)
        visual = self.read_visual(seen.visual[-1], seen_places)
        audio = self.read_audio(heard, heard_places)
        number = self.visual.tap_names.index
        maps = [patch_map(seen.visual[number(name)], self.visual, f"what {name} puts out") for name in self.stages]
        return AdapterOutput(
            visual.unflatten(0, (-1, segments)),
            audio.unflatten(0, (-1, segments)),
            visual.new_zeros(()),
            tuple(found.unflatten(0, (-1, segments)) for found in maps),
        )

    @property
    def _square(self) -> bool:
        """Whether frames must be square."""
        return bool(self.stages)

    def _run(self, visual: Tensor, audio: Tensor, segments: int) -> Seen:
        """Run both backbones on what they take; on a GPU beside each other, as neither needs what the other makes.

        Autograd takes each step back on the stream of its step forward, so that backward runs beside each other too.
        """
        with SideStreams(visual.device) as side:
            with side.fork("audio", [audio]):
                heard = self._hear(audio)
                side.hand_back([heard])
            seen = self._see(visual)
        return Seen(seen, heard)

    def _see(self, visual: Tensor) -> list[Tensor]:
        """The visual backbone's taps, or what stands for them."""
        return self.visual(visual)

    def _hear(self, audio: Tensor) -> Tensor:
        """The last audio tokens."""
        return self.audio(audio)[-1]

    def _cut(self, tokens: Tensor, segments: int) -> Tensor:
        """Audio tokens with one row a segment, whatever the layout."""
        if self.audio_layout == "segment":
            return tokens
        return cut_spans(tokens, segments, "what the last audio block puts out")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        return {name for name, _ in self.named_parameters() if name.endswith(("attention.tokens", "gate"))}


def blocks_of(backbone: FrozenBackbone) -> list[nn.Module]:
    """The tapped blocks."""
    return [backbone.module.get_submodule(name) for name in backbone.tap_names]


def trial_input(backbone: FrozenBackbone) -> Tensor:
    """One item of zeros that the backbone takes, that asks for a gradient."""
    item = torch.zeros_like(backbone.example_input, device=backbone.device, dtype=backbone.dtype)
    return item.requires_grad_()

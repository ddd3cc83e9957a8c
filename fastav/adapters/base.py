"""What every adapter is: two frozen backbones, a side branch beside them, and a directory to be saved in."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastav.adapters.config import AdapterConfig, read_config
from fastav.adapters.distillation import LayerCentricDistillation, PoolingWeights
from fastav.adapters.groups import parameter_groups
from fastav.adapters.injection import Injection
from fastav.adapters.storage import load_tensors, save_tensors
from fastav.adapters.taps import check_taps, choose_taps
from fastav.backbones import FrozenBackbone
from fastav.backbones.layout import check_audio_layout, cut_spans, flat_inputs, patch_map
from fastav.backbones.streams import SideStreams
from fastav.output import AdapterOutput

WEIGHTS_NAME = "adapter_model.safetensors"

AdapterT = TypeVar("AdapterT", bound="Adapter")


class Fused(NamedTuple):
    """What a method makes of all distilled taps of B segments; as in :class:`AdapterOutput`, clips not yet apart.

    Attributes:
        visual: (B, K, W).
        audio: (B, K, W).
        aux_loss: scalar.
        router: (B, L, 2), or None.
        fusion: (B, K, L_visual) and (B, K, L_audio), or None.
    """

    visual: Tensor
    audio: Tensor
    aux_loss: Tensor
    router: Tensor | None = None
    fusion: tuple[Tensor, Tensor] | None = None


class Adapter(nn.Module):
    """A side branch over two frozen backbones; the methods derive from it.

    Args:
        visual: the visual backbone, a module that :class:`FrozenBackbone` understands or one already.
        audio: the audio backbone, likewise.
        config: the method's configuration; None takes its defaults.

    The backbones are frozen in place, stay in eval mode under ``train()``, get no gradient, move with ``.to()`` and are
    not part of ``state_dict()``.

    Attributes:
        distilled: numbers of the taps that are distilled, by modality.
        injected: numbers of the visual taps that tokens are injected into.
        groups: for each distilled tap, visual ones first, the number of the parameters it uses.
    """

    config_class: ClassVar[type[AdapterConfig]]
    #: Whether the method pools the taps a second time, with queries of its own.
    pools_again: ClassVar[bool] = False

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        config: AdapterConfig | None = None,
    ) -> None:
        super().__init__()
        if config is None:
            config = self.config_class()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__}: config must be a {self.config_class.__name__}, got {type(config).__name__}"
            )
        self.config = config
        self.visual, seen, self.injected = choose_taps(visual, config, "visual")
        self.audio, heard, _ = choose_taps(audio, config, "audio")
        self.distilled = {"visual": seen, "audio": heard}
        check_audio_layout(config.audio_layout, self.audio, by=type(self).__name__)
        self.num_visual = len(seen)
        self.distilled_widths = [self.visual.widths[i] for i in seen] + [self.audio.widths[i] for i in heard]
        self.groups = parameter_groups(config.share, (self.visual, seen), (self.audio, heard))
        self.distillation = LayerCentricDistillation(self.distilled_widths, self.groups, config)
        self.injection: Injection | None = None
        if self.injected:
            self.injection = Injection([self.visual.widths[i] for i in self.injected], config)

    def forward(self, visual_input: Tensor, audio_input: Tensor) -> AdapterOutput:
        """Run both frozen backbones and the side branch.

        Args:
            visual_input: (B, T, 3, H, W), one normalised frame per segment, as the visual backbone wants them.
            audio_input: (B, T, ...) for ``audio_layout="segment"``, (B, ...) for ``"clip"``, where ... is what the
                audio backbone takes for one item.

        Returns:
            An :class:`AdapterOutput` with visual and audio tokens (B, T, K, W).

        Raises:
            TypeError: an input that is not a tensor.
            ValueError: inputs whose clips or segments do not match.
        """
        inputs, segments = flat_inputs(
            visual_input, audio_input, self.config.audio_layout, square=self.injection is not None
        )
        if self.config.schedule == "streamed" and not self.distillation.measuring:
            return self._forward_streamed(inputs, segments)
        with SideStreams(None if self.config.schedule == "serial" else visual_input.device) as side:
            taps = self._run_backbones(inputs, side)
        return self.forward_taps(taps["visual"], taps["audio"], num_segments=segments)

    def _run_backbones(
        self,
        inputs: dict[str, Tensor],
        side: SideStreams,
        ready: Callable[[str, list[Tensor]], None] | None = None,
    ) -> dict[str, list[Tensor]]:
        """The taps of each modality, computed on a side stream of its own; ``ready`` gets them portion by portion."""
        taps = {}
        for modality, x in inputs.items():
            with side.fork(modality, [x]):
                taps[modality] = getattr(self, modality)(x, ready and partial(ready, modality))
                side.hand_back(taps[modality])
        return taps

    def _forward_streamed(self, inputs: dict[str, Tensor], segments: int) -> AdapterOutput:
        """Pool portions of taps while the backbones go on; the rest is done at the end."""
        dtype = torch.promote_types(self.visual.dtype, self.audio.dtype)
        weights, outward = self.distillation.prepare()
        weights, again = weights.for_two() if self.pools_again else (weights, weights)
        pooled: list[Tensor] = []
        distilled: list[Tensor] = []
        read = {"visual": 0, "audio": 0}

        def pool(modality: str, taps: list[Tensor]) -> None:
            first = read[modality]
            read[modality] += len(taps)
            if modality == "audio":
                taps = self._per_segment(taps, segments, first=first)
            taps = [tap.to(dtype) for i, tap in enumerate(taps, first) if i in self.distilled[modality]]
            if not taps:
                return
            own = weights.of(len(pooled), len(taps))
            with side.fork("distil", [*taps, *own.tensors()]):
                rows = self.distillation.pool(taps, own)
                side.hand_back(rows)
            pooled.extend(rows)
            distilled.extend(taps)

        with SideStreams(inputs["visual"].device) as side:
            taps = self._run_backbones(inputs, side, pool)
        return self._output(self._fuse(pooled, distilled, again, outward), taps["visual"], segments)

    def forward_taps(
        self, visual_taps: Sequence[Tensor], audio_taps: Sequence[Tensor], *, num_segments: int
    ) -> AdapterOutput:
        """Run the side branch on taps already in hand; the same result as :meth:`forward`.

        Args:
            visual_taps: the visual backbone's taps in order, each (B * T, N_l, D_l).
            audio_taps: the audio backbone's taps in order, each (B * T, N_l, D_l), or (B, N_l, D_l) for
                ``audio_layout="clip"``. Taps of another dtype than the visual ones' are brought to a common one.
            num_segments: T.

        Raises:
            TypeError: taps that are not floating tensors.
            ValueError: another number of taps, other widths or devices, or clips and segments that do not match.
        """
        check_taps("visual_taps", visual_taps, self.visual)
        check_taps("audio_taps", audio_taps, self.audio)
        rows = len(visual_taps[0])
        if not isinstance(num_segments, int) or num_segments < 1 or rows % num_segments:
            raise ValueError(f"visual_taps hold {rows} segments, which num_segments={num_segments!r} does not divide")
        audio_taps = self._per_segment(audio_taps, num_segments)
        if len(audio_taps[0]) != rows:
            raise ValueError(
                f"audio_taps hold {len(audio_taps[0])} segments and visual_taps {rows}; "
                f"audio_layout is {self.config.audio_layout!r}"
            )
        dtype = torch.promote_types(visual_taps[0].dtype, audio_taps[0].dtype)
        taps = [visual_taps[i].to(dtype) for i in self.distilled["visual"]]
        taps += [audio_taps[i].to(dtype) for i in self.distilled["audio"]]
        self.distillation.measure(taps)
        weights, outward = self.distillation.prepare()
        weights, again = weights.for_two() if self.pools_again else (weights, weights)
        pooled = self.distillation.pool(taps, weights)
        return self._output(self._fuse(pooled, taps, again, outward), visual_taps, num_segments)

    def _per_segment(self, audio_taps: Sequence[Tensor], segments: int, first: int = 0) -> list[Tensor]:
        """Consecutive audio taps, from number ``first`` on, with one row a segment whatever the layout."""
        if self.config.audio_layout == "segment":
            return list(audio_taps)
        return [cut_spans(tap, segments, f"audio_taps[{i}]") for i, tap in enumerate(audio_taps, first)]

    def _output(self, fused: Fused, visual_taps: Sequence[Tensor], segments: int) -> AdapterOutput:
        def apart(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, segments))

        features: tuple[Tensor, ...] = ()
        if self.injection is not None:
            sources = {"audio": [fused.audio], "visual": [fused.visual], "both": [fused.audio, fused.visual]}
            maps = [patch_map(visual_taps[i], self.visual, f"visual_taps[{i}]") for i in self.injected]
            injected = self.injection([x.flatten(1, 2) for x in maps], torch.cat(sources[self.config.inject_source], 1))
            features = tuple(apart(x.view(shaped.shape)) for x, shaped in zip(injected, maps, strict=True))
        return AdapterOutput(
            apart(fused.visual),
            apart(fused.audio),
            fused.aux_loss,
            features,
            None if fused.router is None else apart(fused.router),
            None if fused.fusion is None else (apart(fused.fusion[0]), apart(fused.fusion[1])),
        )

    def _fuse(
        self, pooled: list[Tensor], taps: list[Tensor], weights: PoolingWeights, outward: list[Tensor] | None
    ) -> Fused:
        """From all distilled taps' pooled rows to each modality's tokens.

        Args:
            pooled: (B, R, D_l) for each distilled tap, visual ones first, B segments of all clips.
            taps: these taps, (B, N_l, D_l).
            weights: what they were pooled with, for another time.
            outward: what ``distillation.prepare()`` made beside it.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone, as timm's optimizers ask for them."""
        raise NotImplementedError

    def get_base_model(self) -> tuple[nn.Module, nn.Module]:
        """The visual and the audio backbone that run; of a whole Whisper model that is its encoder."""
        return self.visual.module, self.audio.module

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable parameters and of all parameters, the backbones' included."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return trainable, sum(p.numel() for p in self.parameters())

    def print_trainable_parameters(self) -> None:
        """Print one line: how many parameters train, how many there are, and the share."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def merge_and_unload(self) -> nn.Module:
        """Not possible: a side branch stands beside the backbones, there is no weight of theirs to merge it into."""
        raise NotImplementedError(
            f"{type(self).__name__} reads the backbones from the side and cannot be merged into them; "
            f"get_base_model() gives the backbones, which it has not changed"
        )

    merge_adapter = merge_and_unload

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Accepted for trainers that call it; the frozen backbones keep no activations that could be recomputed."""

    def save_pretrained(self, directory: str | os.PathLike, *, is_main_process: bool = True) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``: the adapter alone, not the backbones.

        Args:
            directory: made if it is not there.
            is_main_process: False writes nothing; for all but one process of several.
        """
        if not is_main_process:
            return
        from fastav import __version__

        chosen = {
            modality: {
                **_described(backbone),
                "distilled": [backbone.tap_names[i] for i in self.distilled[modality]],
                "injected": [backbone.tap_names[i] for i in injected],
            }
            for modality, backbone, injected in (("visual", self.visual, self.injected), ("audio", self.audio, ()))
        }
        self.config.save_pretrained(directory, fastav_version=__version__, **chosen)
        own = {name: x for name, x in self.state_dict().items() if not name.startswith(("visual.", "audio."))}
        save_tensors(own, Path(directory) / WEIGHTS_NAME)

    @classmethod
    def from_pretrained(
        cls: type[AdapterT],
        directory: str | os.PathLike,
        *,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
    ) -> AdapterT:
        """Read what :meth:`save_pretrained` wrote, onto backbones of the same kind; in float32 and in eval mode.

        Args:
            directory: where ``adapter_config.json`` and ``adapter_model.safetensors`` are.
            visual: the visual backbone; of a bare module, the blocks that were tapped before are tapped again.
            audio: the audio backbone, likewise.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: the backbones' taps are not those that the adapter was trained on, or a file is damaged.
        """
        saved = read_config(directory)
        wanted = {"taps", "widths", "distilled", "injected"}
        if not all(wanted <= set(saved.get(modality, ())) for modality in ("visual", "audio")):
            raise ValueError(
                f"{directory} holds no adapter's configuration; wanted what an adapter's save_pretrained wrote"
            )
        config = cls.config_class.from_pretrained(directory)
        backbones = {}
        for modality, module in (("visual", visual), ("audio", audio)):
            if not isinstance(module, FrozenBackbone):
                module = FrozenBackbone(module, saved[modality]["taps"])
            trained_on = {name: saved[modality][name] for name in ("taps", "widths")}
            if _described(module) != trained_on:
                raise ValueError(
                    f"the {modality} backbone has the taps {_described(module)}, "
                    f"the adapter in {directory} was trained on {trained_on}"
                )
            backbones[modality] = module
        # By name: what "stages" or None mean depends on all blocks, of which only those that were tapped are here.
        layers = {modality: saved[modality]["distilled"] for modality in backbones}
        explicit = replace(config, layers=layers, inject_stages=saved["visual"]["injected"] or None)
        adapter = cls(**backbones, config=explicit)
        adapter.config = config
        path = Path(directory) / WEIGHTS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; wanted a directory that save_pretrained wrote")
        adapter.load_state_dict(load_tensors(path))
        return adapter.eval()


def _described(backbone: FrozenBackbone) -> dict[str, list]:
    return {"taps": list(backbone.tap_names), "widths": list(backbone.widths)}

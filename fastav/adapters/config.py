"""What an adapter is built from: dataclasses that go to JSON and back."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from fastav.counts import check_counts

CONFIG_NAME = "adapter_config.json"

Config = TypeVar("Config", bound="AdapterConfig")

#: Which blocks to tap, as :class:`fastav.FrozenBackbone` understands it.
Layers: TypeAlias = int | str | Sequence[int] | Sequence[str]


@dataclass
class AdapterConfig:
    """What all methods have in common.

    Attributes:
        num_tokens: K, learned query tokens a tap.
        width: W, the common width that token fusion brings all layers to.
        rank: r, inner width of the adaptation branch's low-rank projections, all heads together.
        heads: H, heads of the adaptation branch; must divide ``rank``.
        activation: ``"gelu"``, ``"relu"`` or None, between the adaptation branch's two value projections.
        norm: the norm of tap rows and of the tokens before fusion: ``"layer"``, ``"rms"`` or ``"none"``.
        eps: that norm's epsilon.
        standardize: centre and scale every channel of the normalised taps by statistics of the training taps, followed
            by a learned affine. A frozen transformer has a few huge channels, which would own the attention.
        standardize_batches: over how many first training batches these statistics are measured.
        share: what shares one set of parameters: ``"layer"`` nothing, ``"stage"`` consecutive layers alike in width
            and number of tokens, ``"width"`` all layers of one width; never across modalities.
        layers: the blocks to distil, for both modalities or as ``{"visual": ..., "audio": ...}``: ``"all"``, the last
            n, indices or names; None is what the method does by itself. For backbones that are already a
            ``FrozenBackbone`` their own taps count, and None takes all of them.
        audio_layout: ``"segment"``, one audio input per segment, or ``"clip"``, one per clip, whose tokens are cut
            into equal spans of time.
        schedule: how a forward's work is laid on the streams of a CUDA or ROCm device; the results are the same bits.
            ``"fused"``: each backbone on a stream of its own, then all taps pooled in one launch. ``"streamed"``:
            likewise, but taps are pooled on a third stream as the backbones' stages finish. ``"serial"``: everything on
            the current stream, where the others stay too on other devices and under CUDA graph capture.
        branches: how a tap is distilled, in parallel: by ``"preservation"``, a convex mix of the frozen tokens, by
            ``"adaptation"``, low-rank attention with learned projections, or by both.
        residual: add the learned query tokens themselves to what the branches give: ``T = m + P + A``. Off by default:
            queries of unit scale are the same for all clips and larger than what they distil, so that after the norm of
            token fusion little would be left of it.
        inject_stages: for dense tasks, the visual blocks whose features learned tokens are injected into, as in
            ``layers``; ``"stages"`` takes the last block of each stage, or of each quarter of a backbone with a single
            one. None injects nothing.
        inject_source: whose tokens are injected: ``"audio"``, ``"visual"`` or ``"both"``.
        inject_gate: the gates' value at the start, one gate a stage.
    """

    method: ClassVar[str]

    num_tokens: int = 4
    width: int = 128
    rank: int = 16
    heads: int = 2
    activation: str | None = "gelu"
    norm: str = "layer"
    eps: float = 1e-6
    standardize: bool = True
    standardize_batches: int = 8
    share: str = "layer"
    layers: Layers | Mapping[str, Layers | None] | None = None
    audio_layout: str = "segment"
    schedule: str = "fused"
    branches: Sequence[str] = ("preservation", "adaptation")
    residual: bool = False
    inject_stages: Layers | None = None
    inject_source: str = "both"
    inject_gate: float = 0.1

    def __post_init__(self) -> None:
        counts = ("num_tokens", "width", "rank", "heads", "standardize_batches")
        check_counts(type(self).__name__, **{name: getattr(self, name) for name in counts})
        if self.rank % self.heads:
            raise ValueError(
                f"{type(self).__name__}: rank {self.rank} does not divide into {self.heads} heads; "
                f"choose a rank that is a multiple of heads"
            )
        check_number(self, "eps", least=0)
        check_number(self, "inject_gate")
        for name, choices in {
            "standardize": (True, False),
            "residual": (True, False),
            "activation": ("gelu", "relu", None),
            "norm": ("layer", "rms", "none"),
            "share": ("layer", "stage", "width"),
            "audio_layout": ("segment", "clip"),
            "schedule": ("fused", "streamed", "serial"),
            "inject_source": ("audio", "visual", "both"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}, wanted one of {choices}")
        known = {"preservation", "adaptation"}
        if (
            isinstance(self.branches, str)
            or sorted(set(self.branches) & known) != sorted(self.branches)
            or not self.branches
        ):
            raise ValueError(
                f"{type(self).__name__}: branches is {self.branches!r}, wanted one or both of {sorted(known)}"
            )
        self.branches = tuple(self.branches)
        if isinstance(self.layers, Mapping):
            self.layers = {modality: _plain(layers) for modality, layers in self.layers.items()}
        else:
            self.layers = _plain(self.layers)
        if isinstance(self.layers, Mapping) and set(self.layers) != {"visual", "audio"}:
            raise ValueError(
                f"{type(self).__name__}: layers has the keys {sorted(self.layers)}, wanted 'visual' and 'audio'"
            )
        self.inject_stages = _plain(self.inject_stages, "inject_stages")

    def layers_of(self, modality: str) -> Layers | None:
        """The blocks to distil of ``"visual"`` or ``"audio"``; None for :meth:`default_layers`."""
        return self.layers[modality] if isinstance(self.layers, Mapping) else self.layers

    def default_layers(self, num_blocks: int) -> Layers:
        """The blocks that the method distils by itself of a backbone with so many."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, with the method's name."""
        return {"method": self.method, **asdict(self)}

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from :meth:`to_dict`'s values; keys that this version does not know are dropped with a warning.

        Raises:
            ValueError: the values are another method's.
        """
        values = dict(values)
        method = values.pop("method", cls.method)
        if method != cls.method:
            raise ValueError(f"this configuration is of the method {method!r}, {cls.__name__} is {cls.method!r}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(f"{cls.__name__}: dropping unknown keys {unknown}; a newer fastav wrote them?", stacklevel=2)
        return cls(**{name: value for name, value in values.items() if name in known})

    def save_pretrained(self, directory: str | os.PathLike, **more: Any) -> None:
        """Write ``adapter_config.json`` into ``directory``, with ``more`` entries beside the configuration's."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_NAME).write_text(json.dumps({**self.to_dict(), **more}, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls: type[Config], directory: str | os.PathLike) -> Config:
        """Read the configuration from a directory that ``save_pretrained`` wrote, an adapter's too."""
        values = read_config(directory)
        for name in ADAPTER_KEYS:
            values.pop(name, None)
        return cls.from_dict(values)


def check_number(config: AdapterConfig, name: str, least: float = -math.inf) -> None:
    """Check that a field holds a finite number of at least ``least``."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        bound = f" of at least {least}" if least > -math.inf else ""
        raise ValueError(f"{type(config).__name__}: {name} is {value!r}, wanted a number{bound}")


def _plain(layers: Layers | None, name: str = "layers") -> Layers | None:
    """Ranges and tuples as lists, which is what JSON gives back."""
    if layers is None or isinstance(layers, (str, int)):
        return layers
    if not isinstance(layers, Sequence):
        raise ValueError(f"{name} is {layers!r}, wanted 'all', a number of last blocks, indices or names")
    return list(layers)  # type: ignore[return-value]


#: What an adapter's ``save_pretrained`` writes beside its configuration.
ADAPTER_KEYS = ("fastav_version", "visual", "audio")


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The content of ``adapter_config.json`` in ``directory``.

    Raises:
        FileNotFoundError: the directory holds no such file.
    """
    path = Path(directory) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; wanted a directory that save_pretrained wrote")
    return json.loads(path.read_text())


@dataclass
class MettleConfig(AdapterConfig):
    """Mettle: layer-centric distillation of every layer's tokens into meta-tokens.

    By itself it distils all blocks; for dense tasks, with ``inject_stages``, the last block alone.
    """

    method: ClassVar[str] = "mettle"

    def default_layers(self, num_blocks: int) -> Layers:
        """All blocks; with injection, the last one."""
        return "all" if self.inject_stages is None else 1


@dataclass
class MoLTConfig(AdapterConfig):
    """MoLT: uni-modal and cross-modal latent tokens of late layers, routed, and fused over layers token by token.

    By itself it distils the last quarter of the blocks, but never fewer than 4 of them: a speech encoder's last layer
    alone knows little of other sounds.

    Attributes:
        router: how a layer weighs its uni-modal against its cross-modal tokens: ``"soft"``, by a softmax, or
            ``"hard"``, taking the heavier kind alone, with the softmax's gradient.
        aux_weight: factor of the token orthogonality in ``aux_loss``.
    """

    method: ClassVar[str] = "molt"

    router: str = "soft"
    aux_weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.router not in ("soft", "hard"):
            raise ValueError(f"MoLTConfig: router is {self.router!r}, wanted 'soft' or 'hard'")
        check_number(self, "aux_weight", least=0)

    def default_layers(self, num_blocks: int) -> Layers:
        """The last quarter of the blocks, at least 4 of them."""
        return min(num_blocks, max(4, math.ceil(num_blocks / 4)))

"""What an adapter is built from: dataclasses that go to JSON and back."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

CONFIG_NAME = "adapter_config.json"

Config = TypeVar("Config", bound="AdapterConfig")

#: Which blocks to tap, as :class:`fastav.FrozenBackbone` understands it.
Layers: TypeAlias = str | int | Sequence[int] | Sequence[str]


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
        layers: the blocks to tap, for both modalities or as ``{"visual": ..., "audio": ...}``: ``"all"``, the last n,
            indices or names. For backbones that are already a ``FrozenBackbone`` their own taps count.
        audio_layout: ``"segment"``, one audio input per segment, or ``"clip"``, one per clip, whose tokens are cut
            into equal spans of time.
        schedule: how a forward's work is laid on the streams of a CUDA or ROCm device; the results are the same bits.
            ``"fused"``: each backbone on a stream of its own, then all taps pooled in one launch. ``"streamed"``:
            likewise, but taps are pooled on a third stream as the backbones' stages finish. ``"serial"``: everything on
            the current stream, where the others stay too on other devices and under CUDA graph capture.
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
    layers: Layers | Mapping[str, Layers] = "all"
    audio_layout: str = "segment"
    schedule: str = "fused"

    def __post_init__(self) -> None:
        for name in ("num_tokens", "width", "rank", "heads", "standardize_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name} is {value!r}, wanted an integer of at least 1")
        if self.rank % self.heads:
            raise ValueError(
                f"{type(self).__name__}: rank {self.rank} does not divide into {self.heads} heads; "
                f"choose a rank that is a multiple of heads"
            )
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float)) or not 0 <= self.eps < float("inf"):
            raise ValueError(f"{type(self).__name__}: eps is {self.eps!r}, wanted a number of at least 0")
        for name, choices in {
            "standardize": (True, False),
            "activation": ("gelu", "relu", None),
            "norm": ("layer", "rms", "none"),
            "share": ("layer", "stage", "width"),
            "audio_layout": ("segment", "clip"),
            "schedule": ("fused", "streamed", "serial"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}, wanted one of {choices}")
        if isinstance(self.layers, Mapping):
            self.layers = {modality: _plain(layers) for modality, layers in self.layers.items()}
        else:
            self.layers = _plain(self.layers)
        if isinstance(self.layers, Mapping) and set(self.layers) != {"visual", "audio"}:
            raise ValueError(
                f"{type(self).__name__}: layers has the keys {sorted(self.layers)}, wanted 'visual' and 'audio'"
            )

    def layers_of(self, modality: str) -> Layers:
        """The blocks to tap of ``"visual"`` or ``"audio"``."""
        return self.layers[modality] if isinstance(self.layers, Mapping) else self.layers

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


def _plain(layers: Layers) -> Layers:
    """Ranges and tuples as lists, which is what JSON gives back."""
    if isinstance(layers, (str, int)):
        return layers
    if not isinstance(layers, Sequence):
        raise ValueError(f"layers is {layers!r}, wanted 'all', a number of last blocks, indices or names")
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

    Attributes:
        branches: which branches run, in parallel: ``"preservation"``, a convex mix of the frozen tokens, and
            ``"adaptation"``, low-rank attention with learned projections.
        residual: add the meta-tokens themselves to what the branches give: ``T = m + P + A``. Off by default: queries
            of unit scale are the same for all clips and larger than what they distil, so that after the norm of token
            fusion little would be left of it.
    """

    method: ClassVar[str] = "mettle"

    branches: Sequence[str] = ("preservation", "adaptation")
    residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"preservation", "adaptation"}
        if (
            isinstance(self.branches, str)
            or sorted(set(self.branches) & known) != sorted(self.branches)
            or not self.branches
        ):
            raise ValueError(f"MettleConfig: branches is {self.branches!r}, wanted one or both of {sorted(known)}")
        if self.residual not in (True, False):
            raise ValueError(f"MettleConfig: residual is {self.residual!r}, wanted True or False")
        self.branches = tuple(self.branches)

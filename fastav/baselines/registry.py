"""The peers' methods by name."""

from typing import Any

from torch import nn

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import Baseline
from fastav.baselines.ladder import LadderSideTuning
from fastav.baselines.lavish import Lavish
from fastav.baselines.lora import Lora
from fastav.baselines.naive import Naive
from fastav.baselines.paired import DGSCT
from fastav.baselines.whole import FrozenFeatures, FullFineTuning

BASELINES: dict[str, type[Baseline]] = {
    method.name: method for method in (FrozenFeatures, LadderSideTuning, Lora, Naive, Lavish, DGSCT, FullFineTuning)
}


def create_baseline(
    name: str, *, visual: nn.Module | FrozenBackbone, audio: nn.Module | FrozenBackbone, **options: Any
) -> Baseline:
    """Build a peer's method by its name.

    Args:
        name: ``"frozen"``, ``"ladder"``, ``"lora"``, ``"naive"``, ``"lavish"``, ``"dg-sct"`` or ``"full"``.
        visual: the visual backbone.
        audio: the audio backbone.
        options: the method's, such as ``width=128``.

    Raises:
        ValueError: there is no such method.
        TypeError: the method has no such option.
    """
    if name not in BASELINES:
        raise ValueError(f"there is no baseline {name!r}; choose one of {sorted(BASELINES)}")
    return BASELINES[name](visual, audio, **options)

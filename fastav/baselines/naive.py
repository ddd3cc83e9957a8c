"""The naive adapters: a bottleneck behind or beside every attention and every MLP, each modality for itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import Baseline
from fastav.baselines.bottleneck import Bottleneck
from fastav.baselines.sites import blocks_with_branches, inserted
from fastav.counts import check_counts

#: Where a bottleneck stands: on what comes out of a branch, or parallel to it.
PLACEMENTS = ("behind", "beside")


class Naive(Baseline):
    """A :class:`Bottleneck` at the attention and at the MLP of every block of both backbones.

    With ``s = branch(x)`` of either, the block goes on with ``x + s + A(s)`` where A stands behind it, sequential
    (Houlsby et al., 2019), and with ``x + s + A(x)`` where A stands beside it, parallel, as LAVISH's authors have the
    ones that they compare with.

    Args:
        visual: see :class:`Baseline`.
        audio: likewise.
        placement: ``"behind"`` or ``"beside"``.
        ratio: see :class:`Bottleneck`, as for the next three.
        groups: of its maps.
        batch_norm: whether it has them.
        activate: whether there is a ReLU.
        options: see :class:`Baseline`.

    Raises:
        ValueError: another placement, a block whose branches are not known, or a ratio or groups that do not divide its
            width.
    """

    name = "naive"

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        placement: str = "behind",
        ratio: int = 8,
        groups: int = 2,
        batch_norm: bool = True,
        activate: bool = True,
        **options: Any,
    ) -> None:
        if placement not in PLACEMENTS:
            raise ValueError(f"Naive: placement is {placement!r}, wanted one of {PLACEMENTS}")
        check_counts("Naive", ratio=ratio, groups=groups)
        self.placement = placement
        self.settings: dict[str, Any] = {
            "ratio": ratio,
            "groups": groups,
            "batch_norm": batch_norm,
            "activate": activate,
        }
        super().__init__(visual, audio, **options)

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        super()._build(visual, audio)
        self._blocks = {"visual": blocks_with_branches(visual), "audio": blocks_with_branches(audio)}
        self.adapters = nn.ModuleDict(
            {
                modality: nn.ModuleList(
                    nn.ModuleList(Bottleneck(width, **self.settings) for _ in ("attention", "mlp"))
                    for width in backbone.widths
                )
                for modality, backbone in (("visual", visual), ("audio", audio))
            }
        )

    def _see(self, visual: Tensor) -> list[Tensor]:
        return self._taps("visual", visual)

    def _hear(self, audio: Tensor) -> Tensor:
        return self._taps("audio", audio)[-1]

    def _taps(self, modality: str, x: Tensor) -> list[Tensor]:
        adapters: Any = self.adapters[modality]

        def added(number: int, which: int, tokens: Tensor) -> Tensor:
            return adapters[number][which](tokens)

        inside = partial(inserted, self._blocks[modality], added, behind=self.placement == "behind")
        return getattr(self, modality)(x, inside=inside)

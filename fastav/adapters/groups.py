"""Which layers share one set of parameters."""

from collections.abc import Sequence

from fastav.backbones import FrozenBackbone


def parameter_groups(share: str, *sides: tuple[FrozenBackbone, Sequence[int]]) -> tuple[int, ...]:
    """For each distilled tap of all backbones, the number of the parameters it uses, counted in order of first use.

    Args:
        share: ``"layer"``, ``"stage"`` or ``"width"``, see :class:`AdapterConfig`.
        sides: a backbone and the numbers of its taps that are distilled, for each modality; they never share.
    """
    numbers: dict[tuple[int, int], int] = {}
    groups = []
    for modality, (backbone, layers) in enumerate(sides):
        for layer in layers:
            stage, width = backbone.stages[layer], backbone.widths[layer]
            key = (modality, {"layer": layer, "stage": stage, "width": width}[share])
            groups.append(numbers.setdefault(key, len(numbers)))
    return tuple(groups)


def group_widths(groups: Sequence[int], widths: Sequence[int]) -> list[int]:
    """The width of each group, from each tap's group and width."""
    width_of = dict(zip(groups, widths, strict=True))
    return [width_of[group] for group in sorted(width_of)]

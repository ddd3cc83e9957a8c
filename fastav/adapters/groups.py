"""Which layers share one set of parameters."""

from collections.abc import Sequence

from fastav.backbones import FrozenBackbone


def parameter_groups(share: str, *backbones: FrozenBackbone) -> tuple[int, ...]:
    """For each tap of all backbones, the number of the parameters it uses, counted in order of first use.

    Args:
        share: ``"layer"``, ``"stage"`` or ``"width"``, see :class:`AdapterConfig`.
        backbones: one a modality; they never share.
    """
    numbers: dict[tuple[int, int], int] = {}
    groups = []
    for modality, backbone in enumerate(backbones):
        for layer, (stage, width) in enumerate(zip(backbone.stages, backbone.widths, strict=True)):
            key = (modality, {"layer": layer, "stage": stage, "width": width}[share])
            groups.append(numbers.setdefault(key, len(numbers)))
    return tuple(groups)


def group_widths(groups: Sequence[int], widths: Sequence[int]) -> list[int]:
    """The width of each group, from each tap's group and width."""
    width_of = dict(zip(groups, widths, strict=True))
    return [width_of[group] for group in sorted(width_of)]

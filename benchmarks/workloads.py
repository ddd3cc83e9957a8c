"""What is timed: calls of the five ops at full size on a GPU and at a small one on a CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import (
    SIDES,
    SMALL,
    SMALL_SIDE,
    SWIN_STAGES,
    Case,
    Side,
    Sizes,
    distill,
    fuse,
    inject,
    mettle,
    orthogonality,
)
from benchmarks.contenders import Contender, definition
from benchmarks.correctness import Truth, as_list
from benchmarks.layouts import random
from benchmarks.timing import copies
from benchmarks.volume import needed, size

DIRECTIONS = ("forward", "forward + backward")


@dataclass(frozen=True)
class Sizing:
    """How large the workloads are.

    Attributes:
        clips: how many clips of 10 segments.
        sides: the side branches by name.
        stages: (N, D) of the features to inject into.
        dtypes: of taps and of learned tensors.
    """

    clips: int
    sides: dict[str, Side]
    stages: Sizes
    taps: torch.dtype
    learned: torch.dtype


FULL = Sizing(8, SIDES, SWIN_STAGES, torch.bfloat16, torch.float32)
#: What a CPU does in a moment and its caches do not hold: one tap of each of Swin's stages, ten segments.
STAGES = Sizing(1, {"stages": Side(SWIN_STAGES[:2], SWIN_STAGES[2:])}, SWIN_STAGES, torch.float32, torch.float32)
TINY = Sizing(1, {"small": SMALL_SIDE}, SMALL[:2], torch.float32, torch.float32)


def sizing_for(device: torch.device) -> Sizing:
    """Full on a GPU, a tap of each stage elsewhere."""
    return FULL if device.type == "cuda" else STAGES


def cases(sizing: Sizing) -> Iterator[Case]:
    """Distill on every side branch, each other op as the first one uses it."""
    first = next(iter(sizing.sides.values()))
    for name, side in sizing.sides.items():
        batch = side.segments * sizing.clips
        yield _typed(
            replace(distill(side.shapes, batch, rows=side.tokens * (1 + side.heads)), name=f"distill {name}"), sizing
        )
    widths, batch, k = [d for _, d in first.shapes], first.segments * sizing.clips, first.tokens
    for case in mettle(replace(first, segments=batch)):
        if case.name in ("project values", "project outputs"):
            yield _typed(case, sizing)
    yield _typed(replace(fuse(widths, batch, tokens=k, width=first.width), name="fuse mean"), sizing)
    yield _typed(replace(fuse(widths, batch, tokens=k, width=first.width, gate="token"), name="fuse by token"), sizing)
    yield _typed(inject(sizing.stages, batch), sizing)
    yield _typed(orthogonality(widths, batch, tokens=k), sizing)


def _typed(case: Case, sizing: Sizing) -> Case:
    return replace(case, taps=sizing.taps, learned=sizing.learned)


@dataclass(eq=False)
class Workload:
    """A case on a device, with as many clones of its arguments as outlast the caches.

    Attributes:
        case: what is timed.
        checked: the same on one clip, which is what contenders must get right first.
        device: where.
        clones_at_most: fewer clones than outlast the caches.
    """

    case: Case
    checked: Case
    device: torch.device
    clones_at_most: int | None = None

    @cached_property
    def truth(self) -> Truth:
        """What is right, found once."""
        return Truth.of(self.checked, self.device)

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Its results without their numbers."""
        arguments = self.case.tensors(lambda numel, dtype, scale: torch.empty(numel, dtype=dtype, device="meta"))
        return as_list(definition(self.case.op)(**arguments, **self.case.settings))

    @cached_property
    def clones(self) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Arguments, the wanted ones as leaves, and gradients of a loss for the results."""
        made = []
        count = copies(self.bytes("forward"), self.device)
        for seed in range(min(count, self.clones_at_most or count)):
            new = random(self.device, seed)
            arguments = self.case.tensors(new)
            for name in self.case.wanted:
                value = arguments[name]
                leaves = [t.detach().requires_grad_() for t in as_list(value)]
                arguments[name] = leaves[0] if isinstance(value, Tensor) else leaves
            made.append((arguments, self.case.upstream(self.outputs, new)))
        return made

    def bytes(self, direction: str) -> int:
        """What any contender must move: every argument read once, every result written once, in each direction."""
        results = size(self.outputs)
        forward = needed(self.case, "forward", results, 0)
        return forward if direction == "forward" else forward + needed(self.case, "backward", results, 0)

    def calls(self, contender: Contender, direction: str) -> list[Callable[[], Any]]:
        """One call for each clone."""

        def forward(arguments: dict[str, Any], upstream: list[Tensor]) -> Any:
            with torch.no_grad():
                return contender(**arguments, **self.case.settings)

        def both(arguments: dict[str, Any], upstream: list[Tensor]) -> Any:
            outputs = as_list(contender(**arguments, **self.case.settings))
            leaves = [t for name in self.case.wanted for t in as_list(arguments[name])]
            return torch.autograd.grad(outputs, leaves, upstream)

        function = forward if direction == "forward" else both
        return [partial(function, *pair) for pair in self.clones]

    def release(self) -> None:
        """Let go of all tensors."""
        for name in ("truth", "clones"):
            self.__dict__.pop(name, None)


def workloads(sizing: Sizing, device: torch.device) -> list[Workload]:
    """Everything that is timed."""
    pairs = zip(cases(sizing), cases(replace(sizing, clips=1)), strict=True)
    return [Workload(case, checked, device) for case, checked in pairs]

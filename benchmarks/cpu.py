"""What is raced on a CPU, and whose memory is measured: the AVE step of one clip, and the demo's training step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.cases import AVE, SEGMENTS, SIDES, SMALL, SMALL_SIDE, STAMPS_SIDE, SWIN_STAGES, Case, attend, distill
from benchmarks.layouts import short
from benchmarks.workloads import Sizing, Workload, cases

CPU = torch.device("cpu")

#: One clip, taps and learned tensors in float32.
STEP = Sizing(1, {"AVE": SIDES["AVE"]}, SWIN_STAGES, torch.float32, torch.float32)
SMOKE = Sizing(1, {"small": SMALL_SIDE}, SMALL[:2], torch.float32, torch.float32)

#: (N, D) of taps of so many tokens that one number kept for each would show, and how often the tokens are doubled.
LONG = ((32768, 96), (8192, 384))


@dataclass(frozen=True)
class Heat:
    """A workload, and another of which ours runs along, out of the competition."""

    workload: Workload
    beside: Workload | None = None


def heats(*, smoke: bool = False) -> Iterator[Heat]:
    """All races but the side branch's."""
    first, *others = cases(SMOKE if smoke else STEP)
    step, narrow = _workload(first), _workload(replace(first, taps=torch.bfloat16))
    yield Heat(step)
    yield Heat(narrow)
    if not smoke:
        side = STAMPS_SIDE
        demo = distill(side.shapes, side.segments, rows=side.tokens * (1 + side.heads))
        yield Heat(_workload(replace(demo, name="distill stamps", taps=torch.float16)))
    shapes, batch = (SMALL, 2) if smoke else (AVE, SEGMENTS)
    rows = step.case.lists["queries"].shapes[0][-2]  # type: ignore[union-attr]
    for beside in (step, narrow):
        yield Heat(
            _workload(replace(attend(shapes, batch, rows=rows), name="attend D x D", taps=beside.case.taps)), beside
        )
    yield Heat(_workload(replace(attend(shapes, batch, rows=rows, rank=16), name="attend D x 16")), step)
    yield from (Heat(_workload(case)) for case in others)


def growing(*, smoke: bool = False) -> Iterator[Case]:
    """One call on some tokens and on twice as many; their batch and rows are the AVE step's."""
    for times in (1, 2):
        shapes = [(n * times, d) for n, d in (SMALL if smoke else LONG)]
        yield replace(distill(shapes, SEGMENTS), name=f"distill, tokens x {times}")


def _workload(case: Case) -> Workload:
    """What is timed is what is checked."""
    named = replace(case, name=f"{case.name} {short(case.taps)}")
    return Workload(named, named, CPU)

"""Count the bytes that the launches move, from their own geometry: ``python -m benchmarks.traffic``.

The budget stands for distill in one training step of the AVE step (Swin-V2-L and HTS-AT, all blocks tapped, R = 16
query rows): forward it may move 1.15 times the taps' bytes, forward and backward 2.3 times. The exit status follows it
at the reference setting, 8 clips with taps and queries in 16 bits; the other settings are shown beside it.

What a call must move, every argument read once and every result written once, is counted here from the tensors
themselves. What its launches count beyond that are partial sums, written by one program and read by another.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.cases import SIDES, Case, mettle
from benchmarks.layouts import short
from benchmarks.recording import Recorded, record
from benchmarks.volume import needed, size
from fastav.cost.tables import aligned

#: Of the taps' bytes.
BUDGETS = {"forward": 1.15, "forward + backward": 2.3}

#: The chip whose block sizes are counted: how a tap is cut into programs decides how many partial sums there are.
CHIP = "sm_90"

CLIPS = (1, 8)
DTYPES = ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32))
REFERENCE = (8, torch.bfloat16, torch.bfloat16)


@dataclass(frozen=True)
class Count:
    """Bytes of one call in one direction, or in both.

    Attributes:
        moved: what its launches count, read and written.
        needed: its arguments read once and its results written once.
        first: its first list: for distill, the taps.
    """

    moved: int
    needed: int
    first: int

    def __add__(self, other: "Count") -> "Count":
        return Count(self.moved + other.moved, self.needed + other.needed, self.first)

    @property
    def partial(self) -> int:
        """Bytes of partial sums."""
        return self.moved - self.needed


def counts(case: Case, recorded: Iterable[Recorded]) -> dict[str, Count]:
    """Bytes of a case's recorded launches by direction: forward, backward and both."""
    recorded = list(recorded)
    found = {}
    for direction in ("forward", "backward"):
        launches = [r for r in recorded if r.direction == direction]
        moved = sum(r.launch.traffic.read + r.launch.traffic.written for r in launches)
        outputs, kept = size(launches[0].results.outputs), size(launches[0].results.kept)
        found[direction] = Count(moved, needed(case, direction, outputs, kept), case.first_bytes)
    return found | {"forward + backward": found["forward"] + found["backward"]}


def step(clips: int, taps: torch.dtype, learned: torch.dtype) -> list[Case]:
    """The calls of one Mettle step on so many clips."""
    side = replace(SIDES["AVE"], segments=SIDES["AVE"].segments * clips)
    return [replace(case, taps=taps, learned=learned) for case in mettle(side)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts; 1 if the reference setting is over its budget or a count is less than what must be moved."""
    argparse.ArgumentParser("python -m benchmarks.traffic", description=__doc__.splitlines()[0]).parse_args(arguments)
    rows: list[tuple] = []
    faults = []
    others: list[tuple] = []
    for clips in CLIPS:
        for dtypes in DTYPES:
            setting = f"{clips} clip{'s' * (clips > 1)}, taps {short(dtypes[0])}, queries {short(dtypes[1])}"
            for case in step(clips, *dtypes):
                found = counts(case, record([case], CHIP))
                if case.op == "distill":
                    rows += [_row(setting, direction, found[direction]) for direction in BUDGETS]
                    faults += _faults(setting, found, strict=(clips, *dtypes) == REFERENCE)
                elif (clips, *dtypes) == REFERENCE:
                    numbers = (found["forward"].moved, found["backward"].moved, found["forward + backward"].partial)
                    others.append((case.name, *(f"{number / 1e6:.2f}" for number in numbers)))
    head = ("distill, AVE step, R = 16", "direction", "MB", "of the taps", "budget", "needed", "partial sums", "")
    print("Bytes counted from the launches, not measured; fractions are of the taps' bytes.\n")
    print(aligned(head, rows))
    print("\nThe other calls of the step at the reference setting, in MB:\n")
    print(aligned(("call", "forward", "backward", "partial sums"), others))
    print("\n" + ("\n".join(faults) or "The reference setting, 8 clips in 16 bits, is within its budget."))
    return int(bool(faults))


def _row(setting: str, direction: str, count: Count) -> tuple:
    ratios = [f"{number / count.first:.3f}" for number in (count.moved, count.needed, count.partial)]
    over = "over budget" if count.moved > BUDGETS[direction] * count.first else ""
    return setting, direction, f"{count.moved / 1e6:.1f}", ratios[0], f"{BUDGETS[direction]:.2f}", *ratios[1:], over


def _faults(setting: str, found: dict[str, Count], *, strict: bool) -> list[str]:
    """What makes the count fail: more than the budget where that binds, and less than must be moved anywhere."""
    faults = []
    for direction, budget in BUDGETS.items():
        count = found[direction]
        if strict and count.moved > budget * count.first:
            share = count.moved / count.first
            faults.append(f"{setting}: distill {direction} moves {share:.3f} of the taps' bytes, over {budget}")
        if count.partial < 0:
            faults.append(f"{setting}: distill {direction} counts {-count.partial} bytes less than it must move")
    return faults


if __name__ == "__main__":
    sys.exit(main())

"""Check a contender, then time it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, Contender, UnavailableError
from benchmarks.workloads import DIRECTIONS, Workload
from fastav.cost.timing import Spread, measure

#: The peers round more often than same-dtype PyTorch does (a probability in 16 bits, an affine part folded otherwise);
#: what is fastav's own gets no such allowance.
SLACK = 4.0


@dataclass(frozen=True)
class Figure:
    """One timing.

    Attributes:
        case: what was called.
        contender: by whom.
        direction: ``"forward"`` or ``"forward + backward"``.
        spread: the device's time.
        bytes: what must be moved at least.
        share: of the copy bandwidth of the same run.
    """

    case: str
    contender: str
    direction: str
    spread: Spread
    bytes: int
    share: float

    @property
    def gigabytes(self) -> float:
        """GB/s: bytes that must be moved at least, over the median time."""
        return self.bytes / self.spread.median / 1e9

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"gigabytes": self.gigabytes}


@dataclass(frozen=True)
class Absence:
    """A contender that was not timed, and why: it cannot serve here, or what it computes is wrong."""

    case: str
    contender: str
    reason: str


@functools.lru_cache(maxsize=1)
def checked(workload: Workload, name: str) -> Contender:
    """The contender, once it has proved right on this workload.

    Raises:
        UnavailableError: it cannot serve.
        WrongError: it serves and is wrong.
    """
    torch._dynamo.reset()  # a function is compiled for a few workloads at most
    contender = CONTENDERS[workload.case.op][name](workload.case.op)
    workload.truth.check(contender, slack=1.0 if name == "ours" else SLACK)
    return contender


def figures(workload: Workload, name: str, bandwidth: float, rounds: int) -> list[Figure]:
    """Check one contender and time it in both directions.

    Raises:
        UnavailableError: it cannot serve.
        WrongError: it serves and is wrong.
    """
    contender, found = checked(workload, name), []
    for direction in DIRECTIONS:
        spread = measure(workload.calls(contender, direction), workload.device, rounds)
        moved = workload.bytes(direction)
        share = moved / spread.median / bandwidth
        found.append(Figure(workload.case.name, name, direction, spread, moved, share))
    return found


def survey(
    workloads: Sequence[Workload], bandwidth: float, rounds: int, tell: Callable[[str], None] = print
) -> tuple[list[Figure], list[Absence]]:
    """Check and time every contender on every workload; what cannot be timed is told with its reason."""
    found: list[Figure] = []
    absent: list[Absence] = []
    for workload in workloads:
        for name in CONTENDERS[workload.case.op]:
            try:
                found += figures(workload, name, bandwidth, rounds)
            except UnavailableError as error:
                absent.append(Absence(workload.case.name, name, str(error)))
            except (AssertionError, RuntimeError) as error:  # wrong, out of memory, or a compiler's refusal
                absent.append(
                    Absence(workload.case.name, name, f"{type(error).__name__}: {str(error).splitlines()[0]}")
                )
            if workload.device.type == "cuda":
                torch.cuda.empty_cache()
            tell(f"{workload.case.name}: {name}")
        workload.release()
    return found, absent

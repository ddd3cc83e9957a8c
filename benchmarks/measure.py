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

#: How much more ours may lose on other vector paths than the fastest: narrower vectors add up in fewer, longer chains.
LONGER_CHAINS = 2.0

#: How much more PyTorch compiled for float32 may: its vectors' exp is within 20 units in the last place, not one.
LOOSE_EXP = 20.0

try:
    from triton.errors import TritonError
except ImportError:  # where it cannot be installed nothing raises it
    TritonError = UnavailableError

#: What says that a contender cannot be timed: it cannot serve, is wrong, out of memory, or a compiler refuses it.
OBSTACLES = (UnavailableError, AssertionError, RuntimeError, TritonError)


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

    @classmethod
    def of(cls, case: str, contender: str, error: Exception) -> "Absence":
        """Why: what was raised, in a line."""
        said = (str(error).strip().splitlines() or [""])[0]
        return cls(case, contender, said if isinstance(error, UnavailableError) else f"{type(error).__name__}: {said}")


def slack(name: str, taps: torch.dtype) -> float:
    """How many times what ours may lose a contender may, with taps of a dtype."""
    if name == "ours":
        return 1.0
    if name.startswith("ours, "):
        return LONGER_CHAINS
    wide = taps.itemsize > 2 or name.endswith("in float32")
    return LOOSE_EXP if wide and "compile" in name else SLACK


@functools.lru_cache(maxsize=1)
def checked(workload: Workload, name: str) -> Contender:
    """The contender, once it has proved right on this workload.

    Raises:
        UnavailableError: it cannot serve.
        WrongError: it serves and is wrong.
    """
    torch._dynamo.reset()  # a function is compiled for a few workloads at most
    contender = CONTENDERS[workload.case.op][name](workload.case.op)
    workload.truth.check(contender, slack=slack(name, workload.case.taps))
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
            except OBSTACLES as error:
                absent.append(Absence.of(workload.case.name, name, error))
            if workload.device.type == "cuda":
                torch.cuda.empty_cache()
            tell(f"{workload.case.name}: {name}")
        workload.release()
    return found, absent

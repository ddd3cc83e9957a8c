"""What the launchers really launch for a case, noted and not run; and a count of launches that do run."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.layouts import empty
from fastav import kernels
from fastav.kernels import launch
from fastav.kernels.launch import Launch, recording


@dataclass(frozen=True)
class Results:
    """What a case's forward pass hands out, untouched memory: its outputs and what it keeps for its backward pass."""

    outputs: list[Tensor]
    kept: list[Tensor]


@dataclass(frozen=True)
class Recorded:
    """A launch and where it comes from: the case, its results, and ``"forward"`` or ``"backward"``."""

    launch: Launch
    case: Case
    results: Results
    direction: str


def record(cases: Iterable[Case], chip: str) -> list[Recorded]:
    """Note every launch of the cases with ``chip``'s block sizes. Nothing runs, and no memory is touched."""
    return [recorded for case in cases for recorded in _record(case, chip)]


def _record(case: Case, chip: str) -> list[Recorded]:
    arguments = case.tensors(empty).values()
    with recording(chip) as forward:
        outputs, kept = getattr(kernels, f"{case.op}_forward")(*arguments, **case.settings)
    grads = case.upstream(outputs, empty)
    saved: list[Tensor] = [*outputs, *kept] if kept else []
    with recording(chip) as backward:
        getattr(kernels, f"{case.op}_backward")(grads, saved, *arguments, **case.settings, wanted=case.wanted)
    return [
        Recorded(found, case, Results(outputs, kept), direction)
        for direction, launches in (("forward", forward), ("backward", backward))
        for found in launches
    ]


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the launches inside the ``with`` block by kernel name.

    Example:
        >>> with counting() as launches:
        ...     fastav.ops.distill(taps, queries)
        >>> launches
        Counter({'distill_fwd_kernel': 1})
    """
    counter: Counter[str] = Counter()

    def note(launched: Launch) -> None:
        counter[launched.name] += 1

    launch.hooks.append(note)
    try:
        yield counter
    finally:
        launch.hooks.remove(note)

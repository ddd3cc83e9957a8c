"""Who is how fast beside whom: contenders in turn, round after round, so that a drift of the machine hits all alike."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, WIDENED, Contender, forced, vector_path
from benchmarks.measure import OBSTACLES, Absence, slack
from benchmarks.volume import operations, read
from benchmarks.workloads import DIRECTIONS, Workload
from fastav.cost.timing import Spread

#: How long the rounds of one race may take; at least :data:`FEWEST` are run all the same.
BUDGET_S, FEWEST = 40.0, 5

PATHS = ("avx512", "avx2", "portable")


@dataclass(frozen=True)
class Entrant:
    """One contender in a race.

    Attributes:
        name: what the report calls it.
        calls: what is timed, one call after the other in turn.
        context: what must hold while it is called.
        operations, read, error: see :class:`Lap`.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    context: Callable[[], AbstractContextManager] = nullcontext
    operations: int | None = None
    read: int | None = None
    error: float | None = None


@dataclass(frozen=True)
class Lap:
    """What came of one entrant.

    Attributes:
        race: what was called.
        by: by whom.
        direction: ``"forward"`` or ``"forward + backward"``.
        threads: how many.
        times: seconds of each round.
        read: bytes of taps or features that must be read, once in each direction; None for other ops.
        operations: floating-point operations of the products, None where nobody counts them.
        error: the largest error of its values and gradients, in units of what ours may lose; None if not measured.
    """

    race: str
    by: str
    direction: str
    threads: int
    times: tuple[float, ...]
    read: int | None = None
    operations: int | None = None
    error: float | None = None

    @property
    def spread(self) -> Spread:
        """Median and quartiles of the times."""
        return Spread.of(self.times)

    def ratio(self, other: "Lap") -> Spread:
        """Median and quartiles of how many times as long as another entrant of the race it took in the same round."""
        return Spread.of([a / b for a, b in zip(self.times, other.times, strict=True)])

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"spread": asdict(self.spread)}


def race(name: str, direction: str, entrants: Sequence[Entrant], rounds: int, *, warm: int = 2) -> list[Lap]:
    """Let each entrant run once a round, for so many rounds or as many as there is time for."""
    times: list[list[float]] = [[] for _ in entrants]
    for entrant in entrants:
        with entrant.context():
            for i in range(warm):
                entrant.calls[i % len(entrant.calls)]()
    began = time.perf_counter()
    with _no_collection():
        for i in range(rounds):
            if i >= FEWEST and time.perf_counter() - began > BUDGET_S:
                break
            for entrant, taken in zip(entrants, times, strict=True):
                call = entrant.calls[i % len(entrant.calls)]
                with entrant.context():
                    start = time.perf_counter()
                    call()
                    taken.append(time.perf_counter() - start)
    return [
        Lap(name, e.name, direction, torch.get_num_threads(), tuple(taken), e.read, e.operations, e.error)
        for e, taken in zip(entrants, times, strict=True)
    ]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the times."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


Made = tuple[Contender, Callable[[], AbstractContextManager]]

#: What is right, with its largest error in units of what ours may lose.
Proved = tuple[Contender, Callable[[], AbstractContextManager], float]


def contenders(workload: Workload) -> dict[str, Callable[[], Made]]:
    """Who can run on a CPU, by name: fastav on the fastest vector path and on the others, and the peers."""
    op = workload.case.op
    peers = CONTENDERS[op] | (WIDENED.get(op, {}) if workload.case.taps.itemsize == 2 else {})
    found: dict[str, Callable[[], Made]] = {
        name: partial(_plainly, make, op) for name, make in peers.items() if name != "xformers"
    }
    if fastest := vector_path():
        for path in PATHS[PATHS.index(fastest) + 1 :]:
            found[f"ours, {path}"] = partial(_forcing, CONTENDERS[op]["ours"], op, path)
    return found


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch run, and generate code for, so many threads."""
    from torch._inductor import config

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with config.patch({"cpp.threads": count}):
            yield
    finally:
        torch.set_num_threads(before)


def _plainly(make: Callable[[str], Contender], op: str) -> Made:
    return make(op), nullcontext


def _forcing(make: Callable[[str], Contender], op: str, path: str) -> Made:
    return make(op), partial(forced, path)


def prepared(workload: Workload, only: Sequence[str] | None = None) -> tuple[dict[str, Proved], list[Absence]]:
    """Everybody who computes what is right here, and who does not, with the reason."""
    torch._dynamo.reset()  # a function is compiled for a few workloads at most, and for each number of threads
    made: dict[str, Proved] = {}
    absent = []
    for name, make in contenders(workload).items():
        if only is not None and name not in only:
            continue
        try:
            function, context = make()
            with context():
                more = slack(name, workload.case.taps)
                error = more * workload.truth.check(function, slack=more)
            made[name] = function, context, error
        except OBSTACLES as why:
            absent.append(Absence.of(workload.case.name, name, why))
    return made, absent


def entrants(workload: Workload, made: dict[str, Proved], direction: str) -> list[Entrant]:
    """Those who are prepared, with their calls over clones that outlast the caches."""
    taken = read(workload.case, direction) if {"taps", "features"} & workload.case.lists.keys() else None
    return [
        Entrant(name, workload.calls(function, direction), context, operations(workload.case, direction), taken, error)
        for name, (function, context, error) in made.items()
    ]


def compete(
    workload: Workload, rounds: int, *, beside: Workload | None = None, tell: Callable[[str], None] = print
) -> tuple[list[Lap], list[Absence]]:
    """Check everybody, then race forward and forward + backward, with as many threads as PyTorch now has.

    Args:
        workload: what is called.
        rounds: at most.
        beside: another workload, of which ours runs along, out of the competition.
        tell: gets a line for each race.
    """
    guest = prepared(beside, ["ours"])[0] if beside else {}
    made, absent = prepared(workload)
    laps = []
    for direction in DIRECTIONS:
        line = entrants(workload, made, direction)
        if beside:
            name = f"(ours, {beside.case.name} alone)"
            line += [replace(e, name=name) for e in entrants(beside, guest, direction)]
        tell(f"{workload.case.name}, {direction}, {torch.get_num_threads()} threads: {len(line)} contenders")
        laps += race(workload.case.name, direction, line, rounds)
    return laps, absent

"""The five ops against their peers: ``pytest benchmarks``. On a CPU a few taps; no time ever fails.

Every contender proves right before it is timed. pytest-benchmark's own times hold the host's share; what the report
shows of a GPU is the device's alone.
"""

from dataclasses import asdict

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.environment import DEVICE
from benchmarks.measure import OBSTACLES, Absence, checked
from benchmarks.volume import operations
from benchmarks.workloads import DIRECTIONS, sizing_for, workloads
from fastav.cost.timing import Spread, clock, measure

WORKLOADS = {w.case.name: w for w in workloads(sizing_for(DEVICE), DEVICE)}
PAIRS = [(name, contender) for name, w in WORKLOADS.items() for contender in CONTENDERS[w.case.op]]
ROUNDS = 20 if DEVICE.type == "cuda" else 5


@pytest.fixture(scope="module", autouse=True)
def released():
    """Let go of all workloads in the end: on a GPU they are gigabytes, which other tests need."""
    yield
    for workload in WORKLOADS.values():
        workload.release()


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("case", "contender"), PAIRS, ids=[f"{case}-{contender}" for case, contender in PAIRS])
def test_op(benchmark, machine, absent, case, contender, direction):
    """Check one contender, time it over clones that outlast the caches, and note what it moves."""
    workload = WORKLOADS[case]
    benchmark.group = f"{case}, {direction}"
    try:  # the check is of one clip, what is timed of more: it may be too much for who passed
        spread = _timed(benchmark, workload.calls(checked(workload, contender), direction))
    except OBSTACLES as error:
        if contender == "ours":
            raise
        absent(Absence.of(case, contender, error).reason, case=case, by=contender)
    if spread is not None:
        moved, median = workload.bytes(direction), spread.median
        benchmark.extra_info |= {
            "kind": "op",
            "case": case,
            "by": contender,
            "dtype": str(workload.case.taps).removeprefix("torch."),
            "direction": direction,
            "spread": asdict(spread),
            "bytes": moved,
            "operations": operations(workload.case, "forward" if direction == "forward" else "both"),
            "GB/s": moved / median / 1e9,
            "share of copy bandwidth": moved / median / machine["copy bandwidth"],
        }


def _timed(benchmark, calls):
    """The spread of the calls in turn, None under --benchmark-disable."""
    turns = iter(range(10**9))
    benchmark.pedantic(
        lambda call: call(),
        setup=lambda: ((calls[next(turns) % len(calls)],), {}),
        rounds=ROUNDS,
        warmup_rounds=min(len(calls), ROUNDS),
    )
    if benchmark.stats is None or DEVICE.type == "cuda":
        return benchmark.stats and measure(calls, DEVICE, ROUNDS)
    stats = benchmark.stats.stats
    return Spread(stats.median, stats.q1, stats.q3, ROUNDS)

"""How Mettle's step grows with clips, segments, query tokens and taps; and LAVISH's, where that has a meaning."""

import pytest
import torch

from benchmarks.pairs import half_of_memory, inputs
from fastav.cost import OURS, Step, build_step, frozen_forward
from fastav.cost.room import lacks_room
from fastav.cost.timing import Spread, clock, timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 5
AXES = {
    "clips": (1, 2, 4),
    "segments": (1, 5, 10),
    "query tokens": (1, 4, 16),
    "last blocks of each backbone": (1, 4, 12),
}
BOTH = ("clips", "segments")
CHANGES = {
    "query tokens": lambda count: {"num_tokens": count},
    "last blocks of each backbone": lambda count: {"layers": count},
}
POINTS = [(method, axis, n) for axis in AXES for method in ("mettle", *["lavish"][: axis in BOTH]) for n in AXES[axis]]


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize(("method", "axis", "value"), POINTS, ids=[f"{m}-{a}-{n}" for m, a, n in POINTS])
def test_scaling(benchmark, size, pair, absent, method, axis, value):
    """Weigh and time one training step; what :mod:`benchmarks.test_methods` checks is not checked again."""
    clips, segments = (value if axis == name else start for name, start in (("clips", 1), ("segments", size.segments)))
    options = {**(size.ours if method in OURS else {}), **CHANGES.get(axis, lambda _: {})(value)}

    def make(clips: int, segments: int) -> Step:
        return build_step(method, pair[0], pair[1], inputs(pair, clips, segments), **options)

    least = clips * segments * sum(make(1, 1).saved().values())
    if DEVICE.type == "cpu" and least > half_of_memory():  # a system out of memory ends everything
        absent(f"it would keep {least / 2**30:.1f} GiB for backward", method=method, batch=f"{value} {axis}")
    try:
        step = make(clips, segments)
        frozen = frozen_forward(pair[0], pair[1], step.inputs)
        for call in (step, frozen, step):
            call()
        pairs = [(timed(step, DEVICE), timed(frozen, DEVICE)) for _ in range(ROUNDS)]
        benchmark.pedantic(step)
        found = {"saved": sum(step.saved().values()), "peak": step.peak().bytes}
    except Exception as error:
        if not lacks_room(error):
            raise
        found = {}
    if not found:  # here nothing holds the step any more
        absent("it does not fit into the device's memory", method=method, batch=f"{value} {axis}")
    ratio = Spread.of([a / b for a, b in pairs])
    benchmark.group = f"scaling with {axis}"
    benchmark.extra_info |= {
        "kind": "scaling",
        "size": size.name,
        "method": method,
        "axis": axis,
        "value": value,
        **found,
        "step": Spread.of([a for a, _ in pairs]).median,
        "over frozen": ratio.median,
        "quartiles": (ratio.low, ratio.high),
    }

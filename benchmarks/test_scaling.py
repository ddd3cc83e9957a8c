"""How Mettle's step grows with clips, segments, query tokens and taps; and LAVISH's, where that has a meaning."""

import pytest

from benchmarks.environment import DEVICE
from benchmarks.pairs import inputs
from fastav.cost import OURS, Step, build_step, check, frozen_forward
from fastav.cost.profile import CHECKED_SEGMENTS
from fastav.cost.room import memory_of_machine, unless_too_large
from fastav.cost.timing import Spread, clock, timed

ROUNDS = 3
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
def test_scaling(benchmark, size, pair, absent, failing, method, axis, value):
    """Check what :mod:`benchmarks.test_methods` does not, which are other options; weigh and time one training step."""
    clips, segments = (value if axis == name else start for name, start in (("clips", 1), ("segments", size.segments)))
    told = {"method": method, "batch": f"{value} {axis}"}
    options = {**(size.ours if method in OURS else {}), **CHANGES.get(axis, lambda _: {})(value)}

    def make(clips: int, segments: int) -> Step:
        return build_step(method, pair[0], pair[1], inputs(pair, clips, segments), **options)

    least = clips * segments * sum(make(1, 1).saved().values())
    if DEVICE.type == "cpu" and least > memory_of_machine() // 2:  # a system out of memory ends everything
        absent(f"it would keep {least / 2**30:.1f} GiB for backward", **told)
    found = {}
    with failing(**told), unless_too_large():
        if axis in CHANGES:
            check(make(1, CHECKED_SEGMENTS))
        found = _grown(benchmark, make(clips, segments), *pair)
    if not found:
        absent("it does not fit into the device's memory", **told)
    benchmark.group = f"scaling with {axis}"
    benchmark.extra_info |= {"kind": "scaling", "size": size.name, "axis": axis, "value": value, **told, **found}


def _grown(benchmark, step, visual, audio):
    """What a step costs now."""
    frozen = frozen_forward(visual, audio, step.inputs)
    steps, others = [], []
    benchmark.pedantic(
        lambda: steps.append(timed(step, DEVICE)),
        setup=lambda: others.append(timed(frozen, DEVICE)),
        rounds=ROUNDS,
        warmup_rounds=2,  # in the first one adapters measure their taps' statistics
    )
    pairs = list(zip(steps, others, strict=True))[2:]
    ratio = Spread.of([a / b for a, b in pairs])
    return {
        "saved": sum(step.saved().values()),
        "peak": step.peak().bytes,
        "step": Spread.of([a for a, _ in pairs]).median,
        "over frozen": ratio.median,
        "quartiles": (ratio.low, ratio.high),
    }

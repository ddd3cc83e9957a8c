"""How Mettle's step grows with clips, segments, query tokens and taps; and LAVISH's, where that has a meaning."""

import gc

import pytest
import torch

from benchmarks.pairs import inputs
from fastav.cost import Step, build_step, frozen_forward
from fastav.cost.timing import Spread, timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 3
AXES = {
    "clips": (1, 2, 4),
    "segments": (1, 3, 6),
    "query tokens": (1, 4, 16),
    "taps": (1, 4, 12),  # the last so many of each backbone
}
BOTH = ("clips", "segments")
POINTS = [(method, axis, n) for axis in AXES for method in ("mettle", *["lavish"][: axis in BOTH]) for n in AXES[axis]]


@pytest.mark.parametrize(("method", "axis", "value"), POINTS, ids=[f"{m}-{a}-{n}" for m, a, n in POINTS])
def test_scaling(benchmark, size, pair, method, axis, value):
    """Weigh and time one training step; what :mod:`benchmarks.test_methods` checks is not checked again."""
    clips, segments = (value if axis == name else start for name, start in (("clips", 1), ("segments", size.segments)))
    options = {"query tokens": {"num_tokens": value}, "taps": {"layers": value}}.get(axis, {})
    given = inputs(pair, clips, segments)
    step: Step = build_step(method, pair[0], pair[1], given, **options)
    frozen = frozen_forward(pair[0], pair[1], given)
    for call in (step, frozen, step):
        call()
    pairs = [(timed(step, DEVICE), timed(frozen, DEVICE)) for _ in range(ROUNDS)]
    benchmark.group = f"scaling with {axis}"
    benchmark.extra_info |= {
        "kind": "scaling",
        "size": size.name,
        "method": method,
        "axis": axis,
        "value": value,
        "saved": sum(step.saved().values()),
        "peak": step.peak().bytes,
        "step": Spread.of([a for a, _ in pairs]).median,
        "over frozen": Spread.of([a / b for a, b in pairs]).median,
    }
    benchmark.pedantic(step)
    gc.collect()

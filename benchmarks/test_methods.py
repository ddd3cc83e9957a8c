"""Every method on one pair of backbones: ``pytest benchmarks``, on a CPU small, with ``--full`` at the AVE step.

Each proves first that its gradients are right, and whether they run through the backbones. Then a training step is
timed part by part, forward by itself too, and memory, what is kept for backward and energy are counted: with one clip
and with the largest batch. What takes how long never fails.
"""

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.pairs import inputs
from fastav.cost import METHODS, OURS, Step, build_step, check, frozen_forward, measure_cost
from fastav.cost.largest import largest_batch
from fastav.cost.timing import clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = {"one clip": 5, "largest": 3}
CHECKED_SEGMENTS = 2


@pytest.fixture(scope="session")
def reached():
    """Of methods that were checked: how many blocks gradients run through."""
    return {}


@pytest.fixture(scope="session")
def measured():
    """What methods cost by number of clips: the largest batch may be one clip."""
    return {}


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", ROUNDS)
@pytest.mark.parametrize("method", METHODS)
def test_method(benchmark, size, pair, reached, measured, absent, method, batch):
    """Check a method, then weigh and time it."""
    options = size.ours if method in OURS else {}
    make: Callable[..., Step] = partial(build_step, method, *pair, **options)
    if method not in reached:
        reached[method] = check(make(inputs(pair, 1, CHECKED_SEGMENTS)))
    try:
        clips = 1
        if batch == "largest":
            clips = largest_batch(lambda count: make(inputs(pair, count, size.segments)), DEVICE, size.memory)
            if not clips:
                absent(method, batch, "not even one clip fits")
        given = inputs(pair, clips, size.segments)
        step = make(given)
        if (method, clips) not in measured:
            frozen = frozen_forward(pair[0], pair[1], given)
            measured[method, clips] = measure_cost(method, step, frozen, reached=reached[method], rounds=ROUNDS[batch])
        benchmark.pedantic(step)
    except torch.cuda.OutOfMemoryError:
        absent(method, batch, "one clip does not fit into the device's memory")
    benchmark.group = f"training step, {size.name}, {batch}"
    benchmark.extra_info |= {
        "kind": "method",
        "size": size.name,
        "batch": batch,
        "memory": size.memory,
        **measured[method, clips].as_dict(),
    }
    gc.collect()

"""Every method on one pair of backbones: ``pytest benchmarks``, on a CPU small, with ``--full`` at the AVE step.

Each proves first that its gradients are right, and whether they run through the backbones. Then a training step is
timed part by part, forward by itself too, and memory, what is kept for backward and energy are counted: with one clip,
with the largest batch, and on a GPU with eight clips, because one does not keep it busy. No time ever fails.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from benchmarks.pairs import inputs
from fastav.cost import METHODS, OURS, Step, WrongError, build_step, check, frozen_forward, measure_cost
from fastav.cost.largest import fewer, largest_batch
from fastav.cost.room import give_back, lacks_room
from fastav.cost.timing import clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = {"one clip": 5, "8 clips": 5, "largest": 3}
CLIPS = {"one clip": 1, "8 clips": 8}
BATCHES = [batch for batch in ROUNDS if DEVICE.type == "cuda" or batch != "8 clips"]
CHECKED_SEGMENTS = 2


@pytest.fixture(scope="session")
def reached():
    """Of methods that were checked: how many blocks gradients run through."""
    return {}


@pytest.fixture(scope="session")
def measured():
    """What methods cost by number of clips: the largest batch may be one clip."""
    return {}


@contextmanager
def unless_too_large():
    """End the block where memory is exhausted."""
    try:
        yield
    except Exception as error:
        if not lacks_room(error):
            raise


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_method(benchmark, size, pair, reached, measured, absence, absent, method, batch):
    """Check a method, then weigh and time it."""
    options = size.ours if method in OURS else {}
    make: Callable[..., Step] = partial(build_step, method, *pair, **options)
    skip = partial(absent, method=method, batch=batch)
    try:
        if method not in reached:
            with unless_too_large():
                reached[method] = check(make(inputs(pair, 1, CHECKED_SEGMENTS)))
    except ImportError as error:
        skip(str(error))
    except WrongError as error:
        absence(f"it is not what it claims to be: {error}", method=method, batch=batch)
        raise
    if method not in reached:
        skip(f"its check in float64, of {CHECKED_SEGMENTS} segments, does not fit into the device's memory")
    clips = CLIPS.get(batch)
    largest = clips or largest_batch(lambda count: make(inputs(pair, count, size.segments)), DEVICE, size.memory)
    for count in [clips] if clips else fewer(largest):
        given, step = inputs(pair, count, size.segments), None
        with unless_too_large():
            step = make(given)
            if (method, count) not in measured:
                measured[method, count] = measure_cost(
                    method, step, frozen_forward(pair[0], pair[1], given), reached=reached[method], rounds=ROUNDS[batch]
                )
            break
        step = None
        give_back()
    else:
        skip(f"{batch} does not fit" if clips else "not even one clip fits")
    with unless_too_large():
        benchmark.pedantic(step, rounds=ROUNDS[batch], warmup_rounds=1)
    benchmark.group = f"training step, {size.name}, {batch}"
    benchmark.extra_info |= {
        "kind": "method",
        "size": size.name,
        "batch": batch,
        "memory": size.memory,
        **measured[method, count].as_dict(),
    }

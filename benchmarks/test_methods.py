"""Every method on one pair of backbones: ``pytest benchmarks``, on a CPU small, with ``--full`` at the AVE step.

Each proves first that its gradients are right, and whether they run through the backbones. Then a training step is
timed part by part, forward by itself too, and memory, what is kept for backward and energy are counted: with one clip
and with the largest batch. What takes how long never fails.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.pairs import inputs
from fastav.cost import METHODS, OURS, Step, WrongError, build_step, check, frozen_forward, measure_cost
from fastav.cost.largest import largest_batch
from fastav.cost.room import give_back
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


def fewer(clips):
    """So many clips, then an eighth fewer each time: one step may fit where many with what is between them do not."""
    while clips:
        yield clips
        clips -= max(1, clips // 8)


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", ROUNDS)
@pytest.mark.parametrize("method", METHODS)
def test_method(benchmark, size, pair, reached, measured, absence, absent, method, batch):
    """Check a method, then weigh and time it."""
    options = size.ours if method in OURS else {}
    make: Callable[..., Step] = partial(build_step, method, *pair, **options)
    skip = partial(absent, method=method, batch=batch)
    try:
        if method not in reached:
            reached[method] = check(make(inputs(pair, 1, CHECKED_SEGMENTS)))
    except torch.cuda.OutOfMemoryError:
        skip(f"its check in float64, of {CHECKED_SEGMENTS} segments, does not fit into the device's memory")
    except ImportError as error:
        skip(str(error))
    except WrongError as error:
        absence(f"it is not what it claims to be: {error}", method=method, batch=batch)
        raise
    clips = 1
    if batch == "largest":
        clips = largest_batch(lambda count: make(inputs(pair, count, size.segments)), DEVICE, size.memory)
    for count in fewer(clips):
        given = inputs(pair, count, size.segments)
        step = None
        try:
            step = make(given)
            if (method, count) not in measured:
                measured[method, count] = measure_cost(
                    method, step, frozen_forward(pair[0], pair[1], given), reached=reached[method], rounds=ROUNDS[batch]
                )
            benchmark.pedantic(step, rounds=ROUNDS[batch], warmup_rounds=1)
            break
        except torch.cuda.OutOfMemoryError:
            continue
        finally:
            del step
            give_back()
    else:
        skip("not even one clip fits")
    benchmark.group = f"training step, {size.name}, {batch}"
    benchmark.extra_info |= {
        "kind": "method",
        "size": size.name,
        "batch": batch,
        "memory": size.memory,
        **measured[method, count].as_dict(),
    }

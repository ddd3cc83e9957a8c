"""Every method on one pair of backbones: ``pytest benchmarks``, on a CPU small, with ``--full`` at the AVE step.

Each proves first that its gradients are right, and whether they run through the backbones. Then a training step is
timed part by part, forward by itself too, and memory, what is kept for backward and energy are counted: with one clip,
with the largest batch, and on a GPU with eight clips, because one does not keep it busy. Peers whose blocks can run
again in backward are measured with gradient checkpointing too, beside ours, which have no use for it. No time ever
fails.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from benchmarks.pairs import inputs
from fastav.cost import METHODS, OURS, Cost, Step, WrongError, build_step, check, frozen_forward, measure_cost
from fastav.cost.largest import fewer, largest_batch
from fastav.cost.room import give_back, lacks_room
from fastav.cost.timing import clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = {"one clip": 5, "8 clips": 5, "largest": 3}
CLIPS = {"one clip": 1, "8 clips": 8}
BATCHES = [batch for batch in ROUNDS if DEVICE.type == "cuda" or batch != "8 clips"]
CHECKED_SEGMENTS = 2
#: Peers that can.
CHECKPOINTED = ("lora", "naive", "lavish", "full")


@dataclass
class Known:
    """What is known of methods, by name and by whether their blocks run again: ours are met twice.

    Attributes:
        reached: of those that were checked, how many blocks gradients run through.
        largest: how many clips fit.
        costs: what a step costs, by number of clips too: the largest batch may be one clip.
    """

    reached: dict[tuple[str, bool], dict[str, int]] = field(default_factory=dict)
    largest: dict[tuple[str, bool], int] = field(default_factory=dict)
    costs: dict[tuple[str, bool, int], Cost] = field(default_factory=dict)


@pytest.fixture(scope="session")
def known():
    """What earlier tests have found."""
    return Known()


@contextmanager
def unless_too_large():
    """End the block where memory is exhausted."""
    try:
        yield
    except Exception as error:
        if not lacks_room(error):
            raise


@pytest.fixture
def weigh(benchmark, size, pair, known, absence, absent):
    """Check a method, then weigh and time it."""
    return partial(_weigh, benchmark, size, pair, known, absence, absent)


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_method(weigh, method, batch):
    """As it is."""
    weigh(method, batch)


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", [*OURS, *CHECKPOINTED])
def test_checkpointed(weigh, method, batch):
    """With blocks that run again."""
    weigh(method, batch, checkpointed=True)


def _weigh(benchmark, size, pair, known, absence, absent, method, batch, *, checkpointed=False):
    key = method, checkpointed and method in CHECKPOINTED
    options = size.ours if method in OURS else {"gradient_checkpointing": True} if key[1] else {}
    make: Callable[..., Step] = partial(build_step, method, *pair, **options)
    told = {"method": method, "batch": f"{batch}, checkpointed" if checkpointed else batch}
    skip = partial(absent, **told)
    try:
        if key not in known.reached:
            with unless_too_large():
                known.reached[key] = check(make(inputs(pair, 1, CHECKED_SEGMENTS)))
    except ImportError as error:
        skip(str(error))
    except WrongError as error:
        absence(f"it is not what it claims to be: {error}", **told)
        raise
    if key not in known.reached:
        skip(f"its check in float64, of {CHECKED_SEGMENTS} segments, does not fit into the device's memory")
    clips = CLIPS.get(batch)
    if clips is None and key not in known.largest:
        known.largest[key] = largest_batch(lambda n: make(inputs(pair, n, size.segments)), DEVICE, size.memory)
    for count in [clips] if clips else fewer(known.largest[key]):
        given, step = inputs(pair, count, size.segments), None
        with unless_too_large():
            step = make(given)
            if (*key, count) not in known.costs:
                frozen = frozen_forward(pair[0], pair[1], given)
                known.costs[*key, count] = measure_cost(
                    method, step, frozen, reached=known.reached[key], rounds=ROUNDS[batch]
                )
            break
        step = None
        give_back()
    else:
        skip(f"{batch} does not fit" if clips else "not even one clip fits")
    with unless_too_large():
        benchmark.pedantic(step, rounds=ROUNDS[batch], warmup_rounds=1)
    benchmark.group = f"training step, {size.name}, {told['batch']}"
    benchmark.extra_info |= {
        "kind": "method",
        "size": size.name,
        "memory": size.memory,
        **told,
        **known.costs[*key, count].as_dict(),
    }

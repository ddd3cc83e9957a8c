"""Every method on one pair of backbones: ``pytest benchmarks``, on a CPU small, with ``--full`` at the AVE step.

Each proves first that its gradients are right, and whether they run through the backbones. Then a training step is
timed part by part, forward by itself too, and memory, what is kept for backward and energy are counted: with one clip,
with the largest batch, and on a GPU with eight clips, because one does not keep it busy. Peers whose blocks can run
again in backward are measured with gradient checkpointing too, beside ours, which have no use for it. No time ever
fails.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from benchmarks.environment import DEVICE
from benchmarks.pairs import inputs
from fastav.baselines import BASELINES
from fastav.cost import METHODS, OURS, Cost, Step, build_step, check, frozen_forward, measure_cost
from fastav.cost.largest import fewer, largest_batch
from fastav.cost.profile import CHECKED_SEGMENTS
from fastav.cost.room import give_back, unless_too_large
from fastav.cost.timing import clock

ROUNDS = {"one clip": 5, "8 clips": 5, "largest": 3}
CLIPS = {"one clip": 1, "8 clips": 8}
BATCHES = [batch for batch in ROUNDS if DEVICE.type == "cuda" or batch != "8 clips"]
#: What is measured with blocks that run again: on a CPU the largest batch would take a minute and a half more.
AGAIN = [batch for batch in BATCHES if DEVICE.type == "cuda" or batch == "one clip"]
#: Peers whose blocks can run again in backward.
CHECKPOINTED = [name for name, method in BASELINES.items() if not method.runs_once]


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


@pytest.fixture
def weigh(benchmark, size, pair, known, absent, failing):
    """Check a method, then weigh and time it."""
    return partial(_weigh, benchmark, size, pair, known, absent, failing)


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_method(weigh, method, batch):
    """As it is."""
    weigh(method, batch)


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("batch", AGAIN)
@pytest.mark.parametrize("method", [*OURS, *CHECKPOINTED])
def test_checkpointed(weigh, method, batch):
    """With blocks that run again."""
    weigh(method, batch, checkpointed=True)


def _weigh(benchmark, size, pair, known, absent, failing, method, batch, *, checkpointed=False):
    told = {"method": method, "batch": f"{batch}, checkpointed" if checkpointed else batch}
    key = method, checkpointed and method in CHECKPOINTED
    with failing(**told):
        _measured(benchmark, size, pair, known, partial(absent, **told), key, batch)
    benchmark.extra_info |= told
    benchmark.group = f"training step, {size.name}, {told['batch']}"


def _measured(benchmark, size, pair, known, skip, key, batch):
    method, again = key
    options = size.ours if method in OURS else {"gradient_checkpointing": True} if again else {}
    make: Callable[..., Step] = partial(build_step, method, *pair, **options)
    if key not in known.reached:
        try:
            with unless_too_large():
                known.reached[key] = check(make(inputs(pair, 1, CHECKED_SEGMENTS)))
        except ImportError as error:
            skip(str(error))
    if key not in known.reached:
        skip(f"its check in float64, of {CHECKED_SEGMENTS} segments, does not fit into the device's memory")
    clips = CLIPS.get(batch)
    if clips is None and key not in known.largest:
        known.largest[key] = largest_batch(lambda n: make(inputs(pair, n, size.segments)), DEVICE, size.memory)
    for count in [clips] if clips else fewer(known.largest[key]):
        given = inputs(pair, count, size.segments)
        frozen = frozen_forward(pair[0], pair[1], given)
        if step := _rehearsed(make, given, frozen):
            break
        give_back()
    else:
        skip(f"{batch} does not fit" if clips else "not even one clip fits")
        return
    with unless_too_large():
        if (*key, count) in known.costs:
            benchmark.pedantic(step, rounds=ROUNDS[batch])
        else:
            known.costs[*key, count] = measure_cost(
                method, step, frozen, reached=known.reached[key], rounds=ROUNDS[batch], repeat=benchmark.pedantic
            )
        cost = known.costs[*key, count].as_dict()
        benchmark.extra_info |= {"kind": "method", "size": size.name, "memory": size.memory, **cost}
        return
    skip("it ran once, and found no room when it was timed")


def _rehearsed(make, given, frozen):
    """A step that has run once and fits; pytest-benchmark times once and no more."""
    with unless_too_large():
        step = make(given)
        for call in (frozen, step):
            call()
        return step
    return None

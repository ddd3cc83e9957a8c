"""What ``pytest benchmarks`` does where a method does not fit, is wrong or breaks; on stand-ins that know when to."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.cost.test_measure import GIVEN

methods = pytest.importorskip("benchmarks.test_methods")

ABSENT = pytest.skip.Exception
SIZE = SimpleNamespace(name="small pair", segments=2, memory=None, ours={})


def skip(reason, **what):
    pytest.skip(reason)


class Benchmark:
    """pytest-benchmark's fixture, which has no room from so many clips on."""

    def __init__(self, too_many=99):
        self.extra_info, self.group, self.timed, self.too_many = {}, None, [], too_many

    def pedantic(self, step, *, rounds, setup=None, warmup_rounds=0):
        assert self.timed == [], "pytest-benchmark times once"
        self.timed.append(step)
        if step >= self.too_many:
            raise torch.OutOfMemoryError


class Clips(int):
    """A step of so many clips, which runs if as many fit."""

    fit = 99

    def __call__(self):
        if self > self.fit:
            raise torch.OutOfMemoryError


@pytest.fixture
def told():
    return []


@pytest.fixture
def weigh(monkeypatch, told):
    """Weigh methods of which so many clips fit; a step is its number of clips."""

    @contextmanager
    def failing(**what):
        try:
            yield
        except Exception as error:
            told.append((what, type(error).__name__))
            raise

    def build(benchmark, *, fit=99, found=5, checked=lambda step: {"reached": 3, "blocks": 4}):
        def measure_cost(method, step, frozen, *, reached, rounds, repeat):
            repeat(step, setup=frozen, rounds=rounds, warmup_rounds=1)
            return replace(GIVEN, method=method, clips=step, **reached)

        monkeypatch.setattr(Clips, "fit", fit)
        monkeypatch.setattr(methods, "inputs", lambda pair, clips, segments: Clips(clips))
        monkeypatch.setattr(methods, "build_step", lambda method, visual, audio, given, **options: given)
        monkeypatch.setattr(methods, "frozen_forward", lambda *arguments: lambda: None)
        monkeypatch.setattr(methods, "check", checked)
        monkeypatch.setattr(methods, "largest_batch", lambda make, device, memory: found)
        monkeypatch.setattr(methods, "measure_cost", measure_cost)
        known = methods.Known()
        return partial(methods._weigh, benchmark, SIZE, (0, 0), known, skip, failing)

    return build


def test_what_is_measured_is_told(weigh):
    benchmark = Benchmark()
    run = weigh(benchmark)
    run("lora", "one clip", checkpointed=True)
    assert benchmark.group == "training step, small pair, one clip, checkpointed"
    info = benchmark.extra_info
    assert (info["method"], info["batch"], info["clips"]) == ("lora", "one clip, checkpointed", 1)
    assert (info["reached"], info["blocks"], info["kind"]) == (3, 4, "method")


def test_the_largest_batch_has_fewer_clips_where_one_step_found_no_room(weigh):
    benchmark = Benchmark()
    weigh(benchmark, found=20, fit=15)("mettle", "largest")
    assert benchmark.extra_info["clips"] == 14  # 20, 18, 16, 14
    assert benchmark.timed == [14]


@pytest.mark.parametrize(
    ("batch", "given", "said"),
    [
        ("one clip", {"fit": 0}, "one clip does not fit"),
        ("largest", {"found": 0}, "not even one clip fits"),
        ("largest", {"fit": 0, "found": 2}, "not even one clip fits"),
    ],
)
def test_what_does_not_fit_is_absent(weigh, batch, given, said):
    with pytest.raises(ABSENT, match=f"^{said}$"):
        weigh(Benchmark(), **given)("lavish", batch)


def test_a_check_without_room_or_package_is_absent_and_one_that_fails_is_told(weigh, told):
    def exhausted(step):
        raise torch.OutOfMemoryError

    def missing(step):
        raise ImportError("peft is missing")

    def wrong(step):
        raise RuntimeError("gradients differ")

    for checked, said in ((exhausted, "its check in float64, of 2 segments, does not fit"), (missing, "peft is miss")):
        with pytest.raises(ABSENT, match=f"^{said}"):
            weigh(Benchmark(), checked=checked)("lora", "one clip")
    assert told == []
    with pytest.raises(RuntimeError, match="differ"):
        weigh(Benchmark(), checked=wrong)("lora", "one clip")
    assert told == [({"method": "lora", "batch": "one clip"}, "RuntimeError")]


def test_what_finds_no_room_when_it_is_timed_is_absent(weigh):
    with pytest.raises(ABSENT, match="it ran once, and found no room when it was timed"):
        weigh(Benchmark(too_many=1))("full", "one clip")


def test_a_method_is_checked_once_and_costs_of_so_many_clips_are_found_once(weigh, monkeypatch):
    checks = []
    benchmark = Benchmark()
    run = weigh(benchmark, found=1, checked=lambda step: checks.append(step) or {"reached": 0, "blocks": 4})
    run("mettle", "one clip")
    monkeypatch.setattr(methods, "measure_cost", None)
    # And once more as the largest batch, and beside peers whose blocks run again, where it is the same step.
    for told in ({"batch": "largest"}, {"batch": "one clip", "checkpointed": True}):
        assert benchmark.timed == [1]
        benchmark.timed.clear()
        run("mettle", **told)
    assert benchmark.timed == [1]
    assert checks == [1]

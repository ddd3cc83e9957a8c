"""Methods one after the other: what becomes of those that fail, and of what they were given."""

import statistics

import pytest
import torch

from fastav.cost import profile, random_inputs
from fastav.cost.profile import Absence, profile_largest, write_snapshot
from fastav.cost.profile import profile as profile_methods
from tests.cost.test_largest import CPU_MESSAGES
from tests.cost.test_measure import GIVEN

pytest.importorskip("timm")


@pytest.fixture
def inputs(pair):
    return random_inputs(*pair, clips=1, segments=2)


def failing(monkeypatch, place, error):
    """Let one place of the profile fail for the frozen features; nothing is measured for others."""

    def check(step):
        if place == "check" and type(step.method).__name__ == "FrozenFeatures":
            raise error
        return {"reached": 0, "blocks": 5}

    def measure_cost(name, step, frozen, **options):
        if place == "measure_cost" and name == "frozen":
            raise error
        return GIVEN

    monkeypatch.setattr(profile, "check", check)
    monkeypatch.setattr(profile, "measure_cost", measure_cost)


@pytest.mark.parametrize("place", ["check", "measure_cost"])
@pytest.mark.parametrize(
    "error",
    [
        TypeError("broken"),
        KeyError("broken"),
        OSError("broken"),
        ValueError("taps[3] holds NaN"),
        statistics.StatisticsError("broken"),
    ],
)
def test_whatever_breaks_once_a_method_is_built_is_its_failure_and_the_others_go_on(
    pair, inputs, monkeypatch, place, error
):
    failing(monkeypatch, place, error)
    found = list(profile_methods(["frozen", "mettle"], *pair, inputs))
    assert found == [Absence("frozen", f"{type(error).__name__}: {error}", failed=True), GIVEN]


@pytest.mark.parametrize("place", ["check", "measure_cost"])
@pytest.mark.parametrize("message", CPU_MESSAGES)
def test_memory_that_a_cpu_lacks_is_no_failure(pair, inputs, monkeypatch, place, message):
    failing(monkeypatch, place, RuntimeError(message))
    absent, cost = profile_methods(["frozen", "mettle"], *pair, inputs)
    assert cost == GIVEN
    what = {"check": "its check in float64, of 2 segments, does", "measure_cost": "1 clip(s) do"}[place]
    assert absent == Absence("frozen", f"{what} not fit into the device's memory")


def test_a_package_that_is_missing_when_it_is_wanted_is_no_failure(pair, inputs, monkeypatch):
    failing(monkeypatch, "check", ImportError("LoRA needs peft"))
    assert list(profile_methods(["frozen"], *pair, inputs)) == [Absence("frozen", "LoRA needs peft")]


def test_what_follows_a_measurement_costs_it_nothing(pair, inputs, monkeypatch):
    failing(monkeypatch, None, None)

    def then(name, step):
        raise OSError("no space left")

    found = profile_methods(["frozen"], *pair, inputs, then=then)
    assert next(found) == GIVEN
    with pytest.raises(OSError, match="no space left"):
        next(found)


def test_backbones_of_no_known_family_are_refused_before_anything_is_measured(tiny):
    timm = pytest.importorskip("timm")
    eyes, ears = timm.create_model("resnet18", num_classes=0), tiny.vit(in_chans=1)
    inputs = random_inputs(eyes, ears, clips=1, segments=1)
    with pytest.raises(ValueError, match="ResNet holds no transformer block of a known timm or transformers family"):
        profile_methods(["frozen"], eyes, ears, inputs)


def test_methods_have_options_of_their_own_alone(pair, inputs, monkeypatch):
    failing(monkeypatch, None, None)
    steps = {}

    def then(name, step):
        steps[name] = step

    own = {"mettle": {"num_tokens": 8}}
    assert list(profile_methods(["frozen", "mettle"], *pair, inputs, own=own, then=then)) == [GIVEN, GIVEN]
    assert steps["mettle"].method.config.num_tokens == 8


def test_so_they_have_with_the_largest_batch(pair, monkeypatch):
    """Which by peaks that are given is one clip."""
    seen = []

    def measure_cost(name, step, frozen, **options):
        seen.append((name, step.method.config.num_tokens))
        return GIVEN

    monkeypatch.setattr(profile, "measure_cost", measure_cost)
    monkeypatch.setattr("fastav.cost.largest._peak", lambda step, clips, device: clips if clips == 1 else None)

    def make(clips):
        return random_inputs(*pair, clips=clips, segments=2)

    assert list(profile_largest([GIVEN], *pair, make, None, own={"mettle": {"num_tokens": 8}})) == [GIVEN]
    assert seen == [("mettle", 8)]


def test_a_largest_batch_that_does_not_fit_once_more_is_measured_smaller(pair, monkeypatch):
    tried = []

    def measure_cost(name, step, frozen, **options):
        tried.append(step.clips)
        if step.clips > 2:
            raise torch.OutOfMemoryError
        return GIVEN

    monkeypatch.setattr(profile, "measure_cost", measure_cost)
    monkeypatch.setattr("fastav.cost.largest._peak", lambda step, clips, device: clips if clips <= 4 else None)

    def make(clips):
        return random_inputs(*pair, clips=clips, segments=2)

    assert list(profile_largest([GIVEN], *pair, make, None)) == [GIVEN]
    assert tried == [4, 3, 2]


def test_half_a_snapshot_is_no_file(tmp_path, monkeypatch):
    path = tmp_path / "memory.pickle"

    def dump(name):
        path.write_bytes(b"half")
        raise OSError("no space left")

    class Step:
        device = torch.device("cuda", 0)

        def __call__(self):
            pass

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: None)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    with pytest.raises(OSError, match="no space left"):
        write_snapshot(Step(), path)
    assert not path.exists()

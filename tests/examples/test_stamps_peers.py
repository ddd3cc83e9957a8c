"""Accuracy beside cost at a toy size: drawn scenes, random weights; runs are kept, the rate is chosen on validation."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.report import ACCURACY
from examples.stamps import peers, splits
from examples.stamps.exercises import METTLE, MOLT, POOLED
from examples.stamps.peers_report import Outcome, Runs, write_accuracy
from examples.stamps.training import LEARNING_RATE, _parameter_groups
from fastav.baselines import Naive
from fastav.cost import METHODS
from fastav.cost.profile import Absence
from tests.cost.test_measure import GIVEN, cells

for module in ("greenlet", "peft"):
    pytest.importorskip(module)

SIZES = {"train": 4, "validation": 2, "test": 3}
SCORES = {"accuracy": 40.0, "foreground_accuracy": 30.0, "mismatched_recall": 10.0}
NOTHING = "always background", {"accuracy": 51.5, "foreground_accuracy": 0.0, "mismatched_recall": 100.0}
RUN = Outcome(
    "naive",
    1e-3,
    0,
    [45.0, 50.0, 40.0],
    SCORES,
    [40.0] * 3,
    900,
    100,
    [2.0, 0.5, 0.25],
    1.0,
    "here, commit 1a2b3c4d5e6f",
)


@pytest.fixture
def exercise(monkeypatch, tmp_path):
    monkeypatch.setattr(splits, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(peers, "EPOCHS", 1)
    monkeypatch.setattr(peers, "BATCH", 2)
    return peers.localization(SIZES, 42, {})


@pytest.mark.parametrize("method", ["naive", METTLE])
def test_a_run_is_kept_and_not_run_again(exercise, tmp_path, monkeypatch, method):
    assert set(peers.RATES) <= set(exercise.methods)
    rate, folder = peers.RATES[method], tmp_path / "out"
    found = peers.outcome(exercise, method, rate, 0, folder=folder)
    assert (found.method, found.rate, found.seed) == (method, rate, 0)
    assert len(found.of_clips) == 3
    assert sum(found.of_clips) / 3 == pytest.approx(found.test["accuracy"])
    assert found.trainable > 0
    assert found.head > 0
    monkeypatch.setattr(peers, "train", None)
    assert peers.outcome(exercise, method, rate, 0, folder=folder) == found
    monkeypatch.setattr(peers, "EPOCHS", 2)
    with pytest.raises(ValueError, match=r"was run with .*'epochs': 1.*, wanted .*'epochs': 2"):
        peers.outcome(exercise, method, rate, 0, folder=folder)


@pytest.mark.parametrize("method", ["frozen", "naive"])
def test_every_learning_rate_makes_a_difference(exercise, method):
    """Of methods that have a read-out alone, it is the read-out's."""
    model = exercise.methods[method]()
    small, large = (_parameter_groups(model, 0.1, rate) for rate in (1e-3, 3e-3))
    differing = [sum(p.numel() for p in a["params"]) for a, b in zip(small, large, strict=True) if a["lr"] != b["lr"]]
    wanted = model.source.adapter if method == "frozen" else model.source.adapter.adapters
    assert sum(differing) == sum(p.numel() for p in wanted.parameters() if p.requires_grad)
    assert {group["lr"] for group in small} == {1e-3, LEARNING_RATE}


@pytest.mark.parametrize(
    ("validation", "tried", "best"),
    [
        ({1.0: 50, 3.0: 60, 9.0: 55}, [1, 3, 9], 3),
        ({1.0: 50, 3.0: 60, 9.0: 65, 27.0: 65}, [1, 3, 9, 27], 9),
        ({1.0: 50, 3.0: 40, 1 / 3: 45}, [1, 3, 1 / 3], 1),
        ({1.0: 50, 3.0: 50, 1 / 3: 55, 1 / 9: 56, 1 / 27: 50}, [1, 3, 1 / 3, 1 / 9, 1 / 27], 1 / 9),
    ],
)
def test_validation_chooses_the_rate_and_other_seeds_follow(validation, tried, best):
    """Whatever the test split says, which is best at the worst rate."""
    asked = []

    def run(rate, seed):
        asked.append((rate, seed))
        return replace(RUN, rate=rate, seed=seed, monitored=[validation[rate]], test={"accuracy": -validation[rate]})

    found = peers.outcomes(run, 1.0, 3)
    assert asked == [*((rate, 0) for rate in tried), (best, 1), (best, 2)]
    assert [(one.rate, one.seed) for one in found] == [(best, 0), (best, 1), (best, 2)]


def test_methods_whose_search_is_not_complete_are_left_out(tmp_path):
    """Of naive there are two seeds, of LAVISH one, of MoLT a rate is missing."""
    (tmp_path / "runs").mkdir()
    first = peers.RATES["naive"]
    assert first == peers.RATES["lavish"]
    there = {"naive": [*((rate, 0) for rate in (first, 3 * first, first / 3)), (first, 1)]}
    there |= {"lavish": there["naive"][:3], MOLT: [(peers.RATES[MOLT], 0)]}
    for method, runs in there.items():
        for rate, seed in runs:
            run = replace(RUN, method=method, rate=rate, seed=seed, monitored=[float(rate == first)])
            path = peers.path_of(tmp_path, method, rate, seed)
            path.write_text(json.dumps({**asdict(run), "settings": peers.settings(method)}))
    found = peers.kept(tmp_path)
    assert {method: [run.seed for run in runs.chosen] for method, runs in found.items()} == {
        "naive": [0, 1],
        "lavish": [0],
    }
    assert [run.rate for run in found["naive"].tried] == [first / 3, first, 3 * first]


def test_a_run_of_a_method_with_other_options_is_refused(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    path = peers.path_of(tmp_path, "naive", 1e-3, 0)
    path.write_text(json.dumps({**asdict(RUN), "settings": peers.settings("naive")}))
    assert peers.read("naive", 1e-3, 0, folder=tmp_path) == RUN
    monkeypatch.setitem(Naive.__init__.__kwdefaults__, "placement", "beside")
    with pytest.raises(ValueError, match=r"was run with .*'placement': 'behind'.*, wanted .*'placement': 'beside'"):
        peers.read("naive", 1e-3, 0, folder=tmp_path)


def test_runs_that_are_committed_are_of_todays_methods():
    paths = sorted((ACCURACY.parent / "runs").glob("*.json"))
    assert paths
    for path in paths:
        one = json.loads(path.read_text())
        run = peers.read(one["method"], one["rate"], one["seed"], folder=ACCURACY.parent)
        assert path == peers.path_of(ACCURACY.parent, run.method, run.rate, run.seed)


def test_what_a_method_costs_or_why_that_is_not_known(monkeypatch):
    asked = {}

    def measured(names, visual, audio, inputs, *, audio_layout, own):
        asked[names[0]] = own
        return [GIVEN if names[0] == "mettle" else Absence(names[0], "it does not fit")]

    monkeypatch.setattr(peers, "random_inputs", lambda *backbones, **sizes: ())
    monkeypatch.setattr(peers, "profile", measured)
    found, reasons = peers.costs([POOLED, peers.METTLE_ONE, "naive"], None, None)
    assert found == {peers.METTLE_ONE: GIVEN}
    assert reasons == ["The cost of naive was not measured: it does not fit."]
    assert asked == {"mettle": {"mettle": peers.ADAPTERS[peers.METTLE_ONE][1]}, "naive": {"naive": {}}}


def test_every_method_with_a_cost_has_a_rate():
    assert {peers.ADAPTERS.get(method, (method, {}))[0] for method in peers.RATES} - {POOLED} == set(METHODS)


def test_tables_and_points_hold_what_they_were_given(tmp_path):
    pytest.importorskip("matplotlib")
    there = replace(RUN, test={**RUN.test, "accuracy": 44.0}, where="there, commit 1a2b3c4d5e6f", seconds_per_epoch=4.0)
    slow = replace(RUN, rate=3e-3, monitored=[20.0])
    pooled = replace(RUN, of_clips=[40.0, 10.0, 40.0])
    runs = {METTLE: Runs([RUN, there], [RUN, slow]), POOLED: Runs([pooled], [pooled])}
    cost = replace(GIVEN, trainable=RUN.trainable)
    table, points, picture = write_accuracy(tmp_path, runs, {METTLE: cost}, NOTHING, "Somewhere.")
    text = table.read_text()
    assert cells(text, "always background") == ["always background", "-", "51.5", "0.0", "100.0", *"------"]
    assert cells(text, "Mettle", "2") == [
        "Mettle", "2", "42.0 ± 2.8", "30.0 ± 0.0", "10.0 ± 0.0", "900", "5.0", "12.3", "100", "2.00", "2",
    ]  # fmt: skip
    assert cells(text, POOLED, "1") == [POOLED, "1", "40.0", "30.0", "10.0", "900", *"----", "1"]
    # 0, 30 and 0 more: 10 on average, with a standard deviation of 300 ** 0.5, over 3 ** 0.5.
    assert cells(text, POOLED, "0.001") == [
        POOLED, "0.001", "0.001: 50.0", "2", "0.25", "100", "+10.0 ± 10.0", "-"]  # fmt: skip
    assert cells(text, "Mettle", "0.001") == [
        "Mettle", "0.001", "0.001: 50.0, 0.003: 20.0", "2, 2", "0.25", "100", "-", "-10.0 ± 10.0"]  # fmt: skip
    assert "Somewhere.\n\nTrained on here, commit 1a2b3c4d5e6f; there, commit 1a2b3c4d5e6f." in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(points.read_text())
    (point,) = told["methods"]
    assert told["without cost"] == [
        {"title": "always background", "accuracy": 51.5},
        {"title": POOLED, "accuracy": 40.0},
    ]
    assert point == {"method": "mettle", "title": "Mettle", "accuracy": 42.0, "deviation": pytest.approx(8**0.5),
                     "saved": 5_000_000}  # fmt: skip


def test_the_cost_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="naive: a model of 900 parameters was trained, and the cost is of one of 901"):
        write_accuracy(tmp_path, {"naive": Runs([RUN], [RUN])}, {"naive": replace(GIVEN, trainable=901)}, NOTHING, "")

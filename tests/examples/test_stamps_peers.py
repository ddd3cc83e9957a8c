"""Accuracy beside cost at a toy size: drawn scenes, random weights; runs are kept, the rate is chosen on validation."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.report import ACCURACY
from examples.stamps import peers, splits
from examples.stamps.exercises import METTLE, POOLED
from examples.stamps.peers_report import Outcome, write_accuracy
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
    wanted = model.source.adapter if method == "frozen" else model.source.adapter.beside
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


def test_methods_of_which_runs_are_missing_are_left_out(tmp_path):
    (tmp_path / "runs").mkdir()
    first = peers.RATES["naive"]
    assert first == peers.RATES["lavish"]
    for rate, seed in ((first, 0), (3 * first, 0), (first / 3, 0), (first, 1)):
        for method in ("naive", "lavish") if seed == 0 else ("naive",):
            run = replace(RUN, method=method, rate=rate, seed=seed, monitored=[float(rate == first)])
            path = peers.path_of(tmp_path, method, rate, seed)
            path.write_text(json.dumps({**asdict(run), "settings": peers.settings(method)}))
    found = peers.kept(tmp_path, 2)
    assert list(found) == ["naive"]
    assert [run.seed for run in found["naive"]] == [0, 1]


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


def test_table_and_points_hold_what_they_were_given(tmp_path):
    there = replace(RUN, test={**RUN.test, "accuracy": 44.0}, where="there, commit 1a2b3c4d5e6f")
    pooled = replace(RUN, of_clips=[40.0, 10.0, 40.0])
    runs = {METTLE: [RUN, there], POOLED: [pooled, pooled]}
    table, points = write_accuracy(tmp_path, runs, {METTLE: GIVEN}, NOTHING, "Somewhere.")
    text = table.read_text()
    assert cells(text, "always background") == ["always background", "51.5", "0.0", "100.0", *["-"] * 11]
    assert cells(text, "Mettle") == [
        "Mettle", "42.0 ± 2.8", "30.0 ± 0.0", "10.0 ± 0.0", "-", "-", "0.001", "2, 2", "0.25", "900", "100",
        "5.0", "12", "100", "2.00",
    ]  # fmt: skip
    # 0, 30 and 0 more: 10 on average, with a standard deviation of 300 ** 0.5, over 3 ** 0.5.
    assert cells(text, POOLED) == [
        POOLED, "40.0 ± 0.0", "30.0 ± 0.0", "10.0 ± 0.0", "+10.0 ± 10.0", "-", "0.001", "2, 2", "0.25", "900", "100",
        *["-"] * 4,
    ]  # fmt: skip
    assert "mean ± standard deviation over 2 seeds;" in text
    assert "Somewhere. Trained on here, commit 1a2b3c4d5e6f; there, commit 1a2b3c4d5e6f." in text
    told = json.loads(points.read_text())
    (point,) = told["methods"]
    assert told["without cost"] == [
        {"title": "always background", "accuracy": 51.5},
        {"title": POOLED, "accuracy": 40.0},
    ]
    assert point == {"method": "mettle", "title": "Mettle", "accuracy": 42.0, "deviation": pytest.approx(8**0.5),
                     "saved": 5_000_000}  # fmt: skip


def test_of_a_single_run_there_is_no_spread(tmp_path):
    table, _ = write_accuracy(tmp_path, {"naive": [RUN]}, {}, NOTHING, "")
    text = table.read_text()
    assert cells(text, "naive adapters")[1:4] == ["40.0", "30.0", "10.0"]
    assert "Percent, of one run of each method;" in text
    assert "±" not in text

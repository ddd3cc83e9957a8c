"""Accuracy beside cost at a toy size: drawn scenes, random weights; runs are kept, the rate is chosen on validation."""

import json
from dataclasses import asdict, replace

import pytest

from examples.stamps import peers, splits
from examples.stamps.exercises import METTLE, POOLED
from examples.stamps.peers_report import Outcome, write_accuracy
from fastav.cost import METHODS
from tests.cost.test_measure import GIVEN, cells

for module in ("greenlet", "peft"):
    pytest.importorskip(module)

SIZES = {"train": 4, "validation": 2, "test": 3}
RUN = Outcome("naive", 3e-4, 0, 50.0, {"accuracy": 40.0, "mismatched_recall": 10.0}, [40.0] * 3, 900, 1.0)


@pytest.fixture
def exercise(monkeypatch, tmp_path):
    monkeypatch.setattr(splits, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(peers, "fetch_all", lambda packages: ({}, []))
    monkeypatch.setattr(peers, "EPOCHS", 1)
    monkeypatch.setattr(peers, "BATCH", 2)
    return peers.localization(SIZES, 42)


@pytest.mark.parametrize("method", ["naive", METTLE])
def test_a_run_is_kept_and_not_run_again(exercise, tmp_path, monkeypatch, method):
    assert set(peers.RATES) <= set(exercise.methods)
    rate = peers.RATES[method][0]
    found = peers.outcome(exercise, method, rate, 0, tmp_path / "out")
    assert (found.method, found.rate, found.seed) == (method, rate, 0)
    assert len(found.of_clips) == 3
    assert sum(found.of_clips) / 3 == pytest.approx(found.test["accuracy"])
    monkeypatch.setattr(peers, "train", None)
    assert peers.outcome(exercise, method, rate, 0, tmp_path / "out") == found


def keep(folder, run):
    path = folder / "runs" / f"{run.method}-{run.rate:g}-{run.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run)))


def test_validation_chooses_the_rate_and_other_seeds_follow(tmp_path):
    first, second = peers.RATES["naive"]
    better = replace(RUN, rate=second, validation=60.0, test={**RUN.test, "accuracy": 1.0})  # whatever the test says
    for run in (replace(RUN, rate=first), better, replace(better, seed=1), replace(better, seed=2)):
        keep(tmp_path, run)
    assert [(run.rate, run.seed) for run in peers.outcomes(None, "naive", 3, tmp_path)] == [
        (second, 0),
        (second, 1),
        (second, 2),
    ]


def test_every_method_with_a_cost_has_a_rate():
    assert {method.lower() for method in peers.RATES} - {POOLED.lower()} == set(METHODS)


def test_table_and_points_hold_what_they_were_given(tmp_path):
    runs = {METTLE: [RUN, replace(RUN, test={**RUN.test, "accuracy": 44.0})], POOLED: [RUN, RUN]}
    table, points = write_accuracy(tmp_path, runs, {METTLE: GIVEN}, "Somewhere.")
    text = table.read_text()
    assert cells(text, "Mettle") == [
        "Mettle", "42.0 ± 2.8", "10.0 ± 0.0", "0.0003", "900", "5.0", "12", "100", "2.00",
    ]  # fmt: skip
    assert cells(text, POOLED)[-4:] == ["-", "-", "-", "-"]
    assert "over 2 seed(s). Somewhere." in text
    (point,) = json.loads(points.read_text())["methods"]
    assert point == {"method": "mettle", "title": "Mettle", "accuracy": 42.0, "deviation": pytest.approx(8**0.5),
                     "saved": 5_000_000}  # fmt: skip

"""Predictions in words."""

import json

import numpy as np
import pytest
import torch

from fastav.training.predictions import PredictionFiles, plain

NAMES = ("bark", "bell", "cat")


def test_labels_become_spans():
    labels = torch.tensor([3, 1, 1, 3, 0, 1])
    assert plain(labels, NAMES, 1.0) == [
        {"event": "bark", "start": 4.0, "end": 5.0},
        {"event": "bell", "start": 1.0, "end": 3.0},
        {"event": "bell", "start": 5.0, "end": 6.0},
    ]
    assert plain(torch.full((6,), 3), NAMES, 1.0) == []


def test_events_that_overlap_become_spans():
    events = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    assert plain(events, NAMES, 0.5) == [
        {"event": "bark", "start": 0.0, "end": 1.0},
        {"event": "cat", "start": 0.0, "end": 1.5},
    ]


def test_an_answer_becomes_its_name():
    assert plain(torch.tensor(2), NAMES, 1.0) == "cat"


def test_files_of_two_batches(tmp_path):
    files = PredictionFiles(tmp_path / "out", NAMES, 1.0)
    chances = torch.rand(3, 2, 4)
    files.write({"id": ["a", "b"]}, {"labels": torch.tensor([[0, 3], [3, 3]]), "chances": chances[:2]})
    files.write({"id": ["c"]}, {"labels": torch.tensor([[1, 1]]), "chances": chances[2:]})
    assert files.close() == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert [[event["event"] for event in line["events"]] for line in lines] == [["bark"], [], ["bell"]]
    kept = np.load(tmp_path / "out" / "probabilities.npz")
    assert np.array_equal(kept["chances"], chances.numpy())
    assert list(kept["id"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="holds predictions already"):
        PredictionFiles(tmp_path / "out", NAMES, 1.0)


def test_clips_of_one_id_are_told_by_their_index(tmp_path):
    """In the split's list, of which the third and fourth rows were left out here."""
    files = PredictionFiles(tmp_path, NAMES, 1.0, indices=[0, 1, 4])
    labels, chances = torch.tensor([[0], [1]]), torch.rand(2, 1, 4)
    batch = {"id": ["a", "a"], "index": torch.tensor([1, 2])}
    files.write(batch, {"labels": labels, "chances": chances})
    assert files.close() == 2
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [["id", "index", "events"]] * 2
    assert [(line["id"], line["index"], line["events"][0]["event"]) for line in lines] == [
        ("a", 1, "bark"),
        ("a", 4, "bell"),
    ]
    kept = np.load(tmp_path / "probabilities.npz")
    assert (kept["id"].tolist(), kept["index"].tolist()) == (["a", "a"], [1, 4])


def test_a_try_that_broke_off_is_written_over(tmp_path):
    broken = PredictionFiles(tmp_path, NAMES, 1.0)
    broken.write({"id": ["a"]}, {"labels": torch.tensor([[0]])})
    assert not (tmp_path / "predictions.jsonl").exists()
    again = PredictionFiles(tmp_path, NAMES, 1.0)
    again.write({"id": ["b"]}, {"labels": torch.tensor([[1]])})
    assert again.close() == 1
    (line,) = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "b"
    assert not (tmp_path / "predictions.jsonl.part").exists()

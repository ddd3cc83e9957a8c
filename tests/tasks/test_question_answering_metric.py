import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fastav.data.question_types import QUESTION_TYPES
from fastav.metrics import QuestionAnsweringScores

SHARED = Path(__file__).parents[3] / "shared" / "data" / "music_avqa"
PUBLISHED = torch.tensor([1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824])  # of the test file of 9,185 questions
NAMES = [
    "audio_counting",
    "audio_comparative",
    "visual_counting",
    "visual_location",
    "audio_visual_existential",
    "audio_visual_counting",
    "audio_visual_location",
    "audio_visual_comparative",
    "audio_visual_temporal",
]


def test_scores_by_hand():
    scores = QuestionAnsweringScores()
    scores.update(torch.tensor([3, 1, 0, 2]), torch.tensor([3, 0, 0, 2]), torch.tensor([0, 0, 1, 8]))
    scores.update(torch.tensor([5, 5]), torch.tensor([5, 4]), torch.tensor([8, 3]))
    found = {name: value.item() for name, value in scores.compute().items()}
    assert list(found) == ["accuracy", "audio", "visual", "audio_visual", *NAMES]
    expected = {
        "accuracy": 4 / 6,
        "audio": 2 / 3,
        "visual": 0 / 1,
        "audio_visual": 2 / 2,
        "audio_counting": 1 / 2,
        "audio_comparative": 1,
        "visual_location": 0,
        "audio_visual_temporal": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert all(math.isnan(found[name]) for name in found.keys() - expected.keys())


def test_groups_count_questions_and_not_types():
    """All counting questions right, all others wrong, on the test file of 9,185 questions."""
    types = torch.repeat_interleave(torch.arange(9), PUBLISHED)
    counting = torch.tensor([kind == "Counting" for _, kind in QUESTION_TYPES])[types]
    scores = QuestionAnsweringScores()
    scores.update(counting.long(), torch.ones_like(types), types)
    found = scores.compute()
    assert scores.total.tolist() == PUBLISHED.tolist()
    assert found["accuracy"].item() == pytest.approx((1022 + 1199 + 1274) / 9185)
    assert found["audio"].item() == pytest.approx(1022 / 1623)
    assert found["visual"].item() == pytest.approx(1199 / 2427)
    assert found["audio_visual"].item() == pytest.approx(1274 / 5135)
    assert [found[name].item() for name in NAMES] == [kind == "Counting" for _, kind in QUESTION_TYPES]


@pytest.mark.skipif(not SHARED.exists(), reason="MUSIC-AVQA's annotation files are not at ../shared/data/music_avqa")
@pytest.mark.parametrize("batch", [1, 7, 64, 9129])
def test_always_yes_on_the_real_test_file(batch):
    items = json.loads((SHARED / "avqa-test.json").read_text())
    pairs = [tuple(json.loads(item["type"])) for item in items]
    answers = list(dict.fromkeys(item["anser"] for item in items))
    total, yes = Counter(pairs), Counter(p for p, item in zip(pairs, items, strict=True) if item["anser"] == "yes")
    scores = QuestionAnsweringScores()
    types = torch.tensor([QUESTION_TYPES.index(pair) for pair in pairs])
    right = torch.tensor([answers.index(item["anser"]) for item in items])
    for some, kinds in zip(right.split(batch), types.split(batch), strict=True):
        scores.update(torch.full_like(some, answers.index("yes")), some, kinds)
    found = scores.compute()
    assert found["accuracy"].item() == pytest.approx(2387 / 9129)
    for name, pair in zip(NAMES, QUESTION_TYPES, strict=True):
        assert found[name].item() == pytest.approx(yes[pair] / total[pair]), name
    for name in ("Audio", "Visual", "Audio-Visual"):
        of = [pair for pair in QUESTION_TYPES if pair[0] == name]
        share = sum(yes[pair] for pair in of) / sum(total[pair] for pair in of)
        assert found[name.lower().replace("-", "_")].item() == pytest.approx(share)


def count_a_part(rank, folder, predicted, answers, types):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    scores = QuestionAnsweringScores()
    part = slice(0, 31) if rank == 0 else slice(31, None)  # not of one size
    scores.update(predicted[part], answers[part], types[part])
    torch.save(scores.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_score_as_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    predicted, answers = torch.randint(3, (2, 100), generator=generator)
    types = torch.randint(8, (100,), generator=generator)  # none of the ninth type
    mp.spawn(count_a_part, (str(tmp_path), predicted, answers, types), nprocs=2)
    scores = QuestionAnsweringScores()
    scores.update(predicted, answers, types)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, scores.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("predicted", "answers", "types", "error", "message"),
    [
        ([0, 1], [0], [0, 1], ValueError, r"predicted \(2,\), answers \(1,\), question_types \(2,\)"),
        ([[0]], [[0]], [[0]], ValueError, r"wanted one shape \(B,\)"),
        ([0.5], [0], [0], TypeError, "predicted is torch.float32, wanted integers"),
        ([0], [-1], [0], ValueError, "answers holds -1"),
        ([0], [0], [9], ValueError, r"question_types holds 9, wanted 0 \.\.\. 8"),
    ],
)
def test_wrong_values_are_named(predicted, answers, types, error, message):
    with pytest.raises(error, match=message):
        QuestionAnsweringScores().update(torch.tensor(predicted), torch.tensor(answers), torch.tensor(types))

"""Whose sight and whose sound a question is asked with in training."""

import pytest
import torch

from fastav.data import QUESTION_TYPES
from fastav.tasks import QuestionAnsweringTask, swap_unasked

_GROUPS = [group for group, _ in QUESTION_TYPES]
ABOUT_SOUND, ABOUT_SIGHT, ABOUT_BOTH = (
    torch.tensor([i for i, group in enumerate(_GROUPS) if group == wanted])
    for wanted in ("Audio", "Visual", "Audio-Visual")
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def asked(clips, types):
    """Every type about every clip."""
    clips = torch.tensor(clips)
    return types.repeat(len(clips)), clips.repeat_interleave(len(types))


def test_only_what_is_not_asked_about_is_another_clips():
    types, clips = asked([3, 5, 8, 9], torch.arange(9))
    seen, heard = swap_unasked(types, clips, 1.0)
    torch.testing.assert_close(heard != clips, torch.isin(types, ABOUT_SIGHT))
    torch.testing.assert_close(seen != clips, torch.isin(types, ABOUT_SOUND))
    assert ABOUT_BOTH.tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("count", "alone"), [(6, 0), (7, 1), (1, 1)])
def test_clips_swap_in_pairs(count, alone):
    types, clips = asked(range(10, 10 + count), torch.arange(9))
    seen, heard = swap_unasked(types, clips, 1.0)
    partner = dict(zip(clips[types == 2].tolist(), heard[types == 2].tolist(), strict=True))
    assert all(partner[other] == clip for clip, other in partner.items())
    assert sum(clip == other for clip, other in partner.items()) == alone
    assert partner == dict(zip(clips[types == 0].tolist(), seen[types == 0].tolist(), strict=True))
    assert len({*zip(seen.tolist(), heard.tolist(), strict=True)}) == 2 * count - alone


def test_pairs_are_drawn_anew():
    types, clips = asked(range(6), ABOUT_SIGHT[:1])
    others = {tuple(swap_unasked(types, clips, 1.0)[1].tolist()) for _ in range(200)}
    assert len(others) == 15  # all ways to pair six; one is missed in 200 draws once in 60,000 times


def test_the_share_is_of_the_clips():
    types, clips = asked(range(8000), torch.arange(9))
    seen, heard = swap_unasked(types, clips, 0.3)
    swapped = heard[types == 2] != clips[types == 2]
    assert swapped.float().mean().item() == pytest.approx(0.3, abs=0.03)  # four standard errors of 4,000 draws
    for part, of in ((ABOUT_SOUND, seen), (ABOUT_SIGHT, heard)):  # every question of a clip that can
        for number in part.tolist():
            assert torch.equal(of[types == number] != clips[types == number], swapped)
    seen, heard = swap_unasked(types, clips, 0.0)
    assert torch.equal(seen, clips)
    assert torch.equal(heard, clips)


def test_task_swaps_in_training_alone():
    types, clips = asked([3, 5], torch.arange(9))
    task = QuestionAnsweringTask(["Is"], ["yes", "no"], num_tokens=2, width=16, swap_unasked=1.0)
    seen, heard = task.pairing({"question_type": types}, clips)
    assert (seen != clips).sum() == len(ABOUT_SOUND) * 2
    assert (heard != clips).sum() == len(ABOUT_SIGHT) * 2
    with pytest.raises(ValueError, match=r"no 'question_type', .*leave swap_unasked at 0"):
        task.pairing({"question": ["Is?"]}, clips)
    assert all(source is clips for source in task.eval().pairing({"question_type": types}, clips))
    usual = QuestionAnsweringTask(["Is"], ["yes", "no"], num_tokens=2, width=16)
    assert all(source is clips for source in usual.pairing({}, clips))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_task_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match=rf"swap_unasked is {share}, wanted a share of the clips, 0 \.\.\. 1"):
        QuestionAnsweringTask(["Is"], ["yes", "no"], num_tokens=2, width=16, swap_unasked=share)


@pytest.mark.parametrize(
    ("types", "clips", "share", "message"),
    [
        ([0, 1], [0], 0.5, r"question_types are \(2,\) and clips \(1,\), wanted \(B,\) each"),
        ([[0]], [[0]], 0.5, r"wanted \(B,\) each"),
        ([0], [0], 5.0, r"share is 5\.0, wanted 0 \.\.\. 1"),
        ([0, -1], [0, 1], 0.5, r"question_types hold -1 \.\.\. 0, wanted 0 \.\.\. 8"),
        ([0, 9], [0, 1], 0.5, r"question_types hold 0 \.\.\. 9, wanted 0 \.\.\. 8"),
    ],
)
def test_what_cannot_be_swapped_is_named(types, clips, share, message):
    with pytest.raises(ValueError, match=message):
        swap_unasked(torch.tensor(types), torch.tensor(clips), share)

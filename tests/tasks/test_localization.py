import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastav.metrics import LocalizationScores
from fastav.tasks import LocalizationHead, decode_localization, localization_loss


def test_head_learns_what_is_both_seen_and_heard():
    """Class c is an event only where both modalities carry it; every other pair is background."""
    torch.manual_seed(0)
    directions = torch.randn(3, 2, 8)
    seen, heard = torch.randint(3, (2, 64, 10))
    visual, audio = directions[seen], directions.flip(0)[heard]
    labels = torch.where(seen == heard, seen, 3)
    head = LocalizationHead(3, num_tokens=2, width=8)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(60):
        loss = localization_loss(head(visual, audio), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    assert (decode_localization(head(visual, audio)) == labels).float().mean() > 0.98


def test_head_sees_its_neighbours_in_time_and_no_further_than_them():
    torch.manual_seed(0)
    head = LocalizationHead(3, num_tokens=2, width=8).eval()
    visual, audio = torch.randn(2, 1, 10, 2, 8)
    other = visual.clone()
    other[:, 4] = torch.randn(2, 8)
    assert reached(head, visual, other, audio) == [4]  # context starts as none
    nn.init.constant_(head.seen.context.weight, 0.3)
    assert reached(head, visual, other, audio) == [3, 4, 5]


def reached(head, visual, other, audio):
    changed = (head(visual, audio) != head(other, audio)).any(-1)[0]
    return changed.nonzero().flatten().tolist()


def test_head_by_hand():
    """A class's logit is log P(seen) + log P(heard), the background's one learned number."""
    torch.manual_seed(0)
    head = LocalizationHead(3, num_tokens=2, width=8).eval()
    nn.init.normal_(head.seen.context.weight)
    visual, audio = torch.randn(2, 2, 5, 2, 8)
    seen, heard = head.seen.score(visual.flatten(2)), head.heard.score(audio.flatten(2))
    weights = [*head.seen.context.weight.flatten()]
    padded = F.pad(seen, (0, 0, 1, 1))
    seen = seen + sum(w * padded[:, i : i + 5] for i, w in enumerate(weights))
    expected = torch.log(torch.sigmoid(seen) * torch.sigmoid(heard))
    logits = head(visual, audio)
    torch.testing.assert_close(logits[..., :3], expected)
    assert (logits[..., 3] == head.background).all()


def test_loss_is_the_mean_over_all_segments():
    logits = torch.randn(2, 5, 4)
    labels = torch.randint(4, (2, 5))
    by_hand = -torch.stack([logits[b, t].log_softmax(-1)[labels[b, t]] for b in range(2) for t in range(5)]).mean()
    torch.testing.assert_close(localization_loss(logits, labels), by_hand)
    smooth = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(localization_loss(logits, labels, label_smoothing=0.1), smooth)


def test_scores_by_hand():
    labels = torch.tensor([[0, 0, 3, 3, 1], [3, 3, 2, 2, 2]])
    predicted = torch.tensor([[0, 3, 3, 1, 1], [3, 3, 2, 0, 2]])
    mismatched = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    scores = LocalizationScores(3)
    scores.update(predicted[:1], labels[:1], mismatched[:1])
    scores.update(predicted[1:], labels[1:], mismatched[1:])
    assert {name: pytest.approx(value.item()) for name, value in scores.compute().items()} == {
        "accuracy": 7 / 10,
        "foreground_accuracy": 4 / 6,
        "background_recall": 3 / 4,
        "mismatched_recall": 2 / 3,
    }


def test_scores_do_not_depend_on_the_batches():
    """The peers average accuracies of batches: 402 clips in batches of 8 weigh the last two fourfold."""
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(29, (2, 402, 10), generator=generator)
    whole, parts = LocalizationScores(28), LocalizationScores(28)
    whole.update(predicted, labels)
    for p, y in zip(predicted.split(8), labels.split(8), strict=True):
        parts.update(p, y)
    one, many = whole.compute(), parts.compute()
    assert one["accuracy"] == many["accuracy"] == (predicted == labels).double().mean().float()
    assert math.isnan(many["mismatched_recall"])


@pytest.mark.parametrize(
    ("predicted", "labels", "mismatched", "message"),
    [
        ([[0, 1]], [[0, 4]], None, r"labels holds 0 \.\.\. 4, wanted 0 \.\.\. 3"),
        ([[0, -1]], [[0, 3]], None, r"predicted holds -1 \.\.\. 0"),
        ([[0]], [[0, 3]], None, "wanted one shape"),
        ([[0, 0]], [[0, 3]], [[True, True]], "mismatched marks segments whose label is an event"),
    ],
)
def test_wrong_labels_are_named(predicted, labels, mismatched, message):
    mask = None if mismatched is None else torch.tensor(mismatched)
    with pytest.raises(ValueError, match=message):
        LocalizationScores(3).update(torch.tensor(predicted), torch.tensor(labels), mask)

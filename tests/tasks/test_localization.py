import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastav.adapters import AdapterOutput
from fastav.metrics import LocalizationScores
from fastav.tasks import (
    LocalizationHead,
    LocalizationTask,
    decode_localization,
    localization_loss,
    weak_localization_loss,
)


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


def test_weak_loss_by_hand():
    """Linear softmax pooling of what the softmax gives each class, background counted but not pooled."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, dtype=torch.float64)
    clip_labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]], dtype=torch.float64)
    p = logits.softmax(-1)
    total = 0.0
    for b in range(2):
        for c in range(3):
            clip = sum(p[b, t, c] ** 2 for t in range(5)) / sum(p[b, t, c] for t in range(5))
            total -= math.log(clip if clip_labels[b, c] else 1 - clip)
    assert weak_localization_loss(logits, clip_labels).item() == pytest.approx(total / 2, rel=1e-12)


def test_weak_loss_teaches_seconds_apart():
    """In a clip with the event, seconds with much of it are to have more and those with little less of it."""
    logits = torch.tensor([2.0, 0.0, -1.0, -3.0])[None, :, None] * torch.tensor([1.0, 0.0])  # one class, background
    logits = logits.requires_grad_()
    weak_localization_loss(logits, torch.ones(1, 1)).backward()
    p = logits.detach().softmax(-1)[0, :, 0]
    half = (p * p).sum() / p.sum() / 2  # where the pooling's derivative changes its sign
    assert ((logits.grad[0, :, 0] < 0) == (p > half)).all()
    assert (p > half).tolist() == [True, True, False, False]


def test_weak_loss_stays_right_where_probabilities_are_rounded():
    """Of a class that is wrong beyond doubt the probability is 1 in float32, and 1 - p has no digit left."""
    logits = torch.tensor([[[60.0, 0.0, -60.0]] * 3], requires_grad=True)
    loss = weak_localization_loss(logits, torch.tensor([[0.0, 1.0]]))
    assert loss.item() == pytest.approx(60 + 60, rel=1e-6)
    loss.backward()
    assert logits.grad[..., 0].sum().item() == pytest.approx(2.0, rel=1e-5)


def test_task_learns_when_from_what_happens_in_the_clip():
    """Class c is an event where it is both seen and heard; no second is labelled and background is never named."""
    torch.manual_seed(0)
    directions = torch.randn(3, 2, 8)
    seen, heard = torch.randint(3, (2, 128, 1)).expand(2, 128, 10).clone()
    for part in (seen, heard):
        start = torch.randint(8, (128, 1))
        away = (torch.arange(10) >= start) & (torch.arange(10) < start + 3)
        part[away] = (part[away] + torch.randint(1, 3, part[away].shape)) % 3
    labels = torch.where(seen == heard, seen, 3)
    clip_labels = F.one_hot(labels, 4)[..., :3].amax(1).float()
    out = AdapterOutput(directions[seen], directions.flip(0)[heard], torch.zeros(()))
    task = LocalizationTask(3, num_tokens=2, width=8, supervision="weak")
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    for _ in range(100):
        loss = task.loss(task(out, {}), {"clip_labels": clip_labels})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.eval()
    metric = task.metric()
    said = task(out, {})
    task.update(metric, said, {"labels": labels})
    found = metric.compute()
    assert found["accuracy"] > 0.95
    assert found["background_recall"] > 0.95
    decoded = task.decode(said)
    assert torch.equal(decoded["labels"], decoded["probabilities"].argmax(-1))
    # Sums of four float32.
    torch.testing.assert_close(decoded["probabilities"].sum(-1), torch.ones(128, 10))


def test_task_of_full_supervision():
    torch.manual_seed(0)
    task = LocalizationTask(3, num_tokens=2, width=8, label_smoothing=0.1).eval()
    visual, audio = torch.randn(2, 2, 5, 2, 8)
    batch = {"labels": torch.tensor([[0, 1, 2, 3, 3]] * 2), "mismatched": torch.tensor([[0, 0, 0, 1, 0]] * 2).bool()}
    said = task(AdapterOutput(visual, audio, torch.zeros(())), batch)
    assert torch.equal(said, task.head(visual, audio))
    assert task.loss(said, batch) == localization_loss(said, batch["labels"], label_smoothing=0.1)
    metric, by_hand = task.metric(), LocalizationScores(3)
    task.update(metric, said, batch)
    by_hand.update(decode_localization(said), batch["labels"], batch["mismatched"])
    assert metric.compute() == by_hand.compute()
    assert task.monitor in metric.compute()


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, {"clip_labels": 0}, "no 'labels', only 'clip_labels'; use supervision='weak'"),
        ({"supervision": "weak"}, {"labels": 0}, "no 'clip_labels', only 'labels'; weak supervision needs them"),
    ],
)
def test_targets_that_are_not_there_are_named(options, batch, message):
    task = LocalizationTask(3, num_tokens=2, width=8, **options)
    with pytest.raises(ValueError, match=message):
        task.loss(torch.zeros(2, 5, 4), batch)


def test_wrong_options_and_shapes_are_named():
    with pytest.raises(ValueError, match="supervision is 'half', wanted 'full' or 'weak'"):
        LocalizationTask(3, num_tokens=2, width=8, supervision="half")
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is for full supervision"):
        LocalizationTask(3, num_tokens=2, width=8, supervision="weak", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"logits are \(2, 5, 4\) and clip_labels \(2, 4\)"):
        weak_localization_loss(torch.zeros(2, 5, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"LocalizationHead: visual is \(2, 5, 2, 8\) and audio \(2, 4, 2, 8\)"):
        LocalizationHead(3, num_tokens=2, width=8)(torch.zeros(2, 5, 2, 8), torch.zeros(2, 4, 2, 8))


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

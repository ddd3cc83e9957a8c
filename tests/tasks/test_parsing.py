import math

import pytest
import torch
import torch.nn.functional as F

from fastav.adapters import AdapterOutput
from fastav.metrics import ParsingScores
from fastav.tasks import Parsing, ParsingHead, ParsingTask, decode_parsing, parsing_loss
from fastav.tasks.evidence import pool_evidence


def head_for(num_classes=3, **options):
    torch.manual_seed(0)
    return ParsingHead(num_classes, num_tokens=2, width=8, **options).eval()


def test_clips_are_attended_means_of_segments():
    """Probabilities by hand, in float64: of each modality over time, of the clip over both modalities and time."""
    head = head_for().double()
    visual, audio = torch.randn(2, 2, 5, 2, 8, dtype=torch.float64)
    said = head(visual, audio)
    torch.testing.assert_close(said.audio, head.heard(audio))
    torch.testing.assert_close(said.visual, head.seen(visual))
    for b in range(2):
        for c in range(3):
            parts = {}
            for name, score, p in (
                ("audio", head.listen(audio), said.audio),
                ("visual", head.look(visual), said.visual),
            ):
                weights, p = (score + p / 2)[b, :, c].exp(), p[b, :, c].sigmoid()
                parts[name] = (weights * p).sum(), weights.sum()
            for name, clip in (("audio", said.clip_audio), ("visual", said.clip_visual)):
                torch.testing.assert_close(clip[b, c].sigmoid(), parts[name][0] / parts[name][1])
            both = sum(part[0] for part in parts.values()) / sum(part[1] for part in parts.values())
            torch.testing.assert_close(said.clip[b, c].sigmoid(), both)


def test_each_modality_is_parsed_from_its_own_tokens():
    head = head_for()
    visual, audio, other = torch.randn(3, 2, 5, 2, 8)
    said, changed = head(visual, audio), head(other, audio)
    for name in Parsing._fields:
        same = torch.equal(getattr(said, name), getattr(changed, name))
        assert same == (name in ("audio", "clip_audio")), name


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_pooling_is_exact_where_probabilities_are_rounded(size):
    """float32 against probabilities in float64 where those suffice; at 300 neither p nor 1 - p has any digit left."""
    torch.manual_seed(0)
    logits, attention = size * torch.randn(4, 6), torch.randn(4, 6)
    found = pool_evidence(logits.requires_grad_(), attention, 1)
    if size < 300:
        weights = attention.double().softmax(1)
        p, q = ((weights * (sign * logits.double()).sigmoid()).sum(1) for sign in (1, -1))
        # One rounding of a float32 near 30 is 2e-6.
        torch.testing.assert_close(found.double(), p.log() - q.log(), rtol=1e-6, atol=4e-6)
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().sum(1) > 0).all()


def test_pooling_of_equal_segments_is_what_each_says():
    logits = torch.tensor([-200.0, -1.0, 0.0, 3.0, 200.0])[:, None].expand(5, 7)
    # Sums of logarithms near 200 in float32.
    torch.testing.assert_close(pool_evidence(logits, torch.randn(5, 7), 1), logits[:, 0], rtol=0, atol=3e-5)


def test_pooling_of_half_precision_is_in_float32():
    """Adding up logarithms in float16 would lose what float32 keeps."""
    torch.manual_seed(0)
    logits, attention = torch.randn(2, 4, 50).half()
    found = pool_evidence(logits, attention, 1)
    assert found.dtype == torch.float32
    assert torch.equal(found, pool_evidence(logits.float(), attention.float(), 1))


def said_of(*numbers, segments=2):
    """One clip, one class: logits of audio, visual, clip_audio, clip_visual and clip."""
    audio, visual, *clips = (torch.tensor([[float(n)]]) for n in numbers)
    return Parsing(audio[:, None].expand(1, segments, 1), visual[:, None].expand(1, segments, 1), *clips)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_loss_by_hand(label):
    said = said_of(9.0, 9.0, 0.5, -1.5, 2.0)  # what segments say counts through the clips alone
    expected = 0.0
    for logit, smoothing in ((2.0, 0.0), (0.5, 0.2), (-1.5, 0.1)):
        y, p = (1 - smoothing) * label + smoothing / 2, 1 / (1 + math.exp(-logit))
        expected -= y * math.log(p) + (1 - y) * math.log(1 - p)
    loss = parsing_loss(said, torch.full((1, 1), label), audio_smoothing=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_visual_labels_are_smoothed_unless_told_otherwise():
    """As in the peers' recipe: what is seen is taught .95 and .05, what is heard 1 and 0."""
    torch.manual_seed(0)
    y = torch.randint(2, (4, 3)).float()
    said = Parsing(torch.randn(4, 5, 3), torch.randn(4, 5, 3), *torch.randn(3, 4, 3))
    visual, audio, clip = (
        F.binary_cross_entropy_with_logits(logits, labels)
        for logits, labels in ((said.clip_visual, 0.9 * y + 0.05), (said.clip_audio, y), (said.clip, y))
    )
    torch.testing.assert_close(parsing_loss(said, y), visual + audio + clip)


def test_loss_is_the_same_under_autocast():
    """The head's products are in bfloat16 then; pooling and loss are not, nor is the loss not finite."""
    head = head_for()
    visual, audio = torch.randn(2, 2, 5, 2, 8)
    y = torch.randint(2, (2, 3)).float()
    with torch.autocast("cpu", torch.bfloat16):
        said = head(visual, audio)
        loss = parsing_loss(said, y)
    assert said.audio.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, parsing_loss(said, y))
    # bfloat16 has 8 bits: two products of logits of about 1.
    torch.testing.assert_close(loss, parsing_loss(head(visual, audio), y), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("segment", "clip", "there"),
    [(0.0, 0.0, True), (0.1, 2.0, True), (-0.1, 2.0, False), (2.0, -0.1, False), (-1.0, -1.0, False)],
)
def test_decoding_wants_half_of_the_segment_and_of_its_clip(segment, clip, there):
    audio, visual = decode_parsing(said_of(segment, -segment - 1, clip, 5.0, 5.0))
    assert audio.tolist() == [[[there], [there]]]
    audio, visual = decode_parsing(said_of(5.0, segment, 5.0, clip, -5.0))  # what both say together is not asked
    assert visual.tolist() == [[[there], [there]]]
    assert audio.all()


def toy_clips(clips=200, num_classes=4, seconds=10):
    """Each class is heard, or seen, by itself in a few seconds of some clips: tokens, and the truth of both."""
    torch.manual_seed(0)
    directions = torch.randn(2, num_classes, 2 * 8)
    events = torch.zeros(2, clips, seconds, num_classes, dtype=torch.bool)
    for modality in events:
        for clip in modality:
            for c in torch.randperm(num_classes)[:1]:
                start = torch.randint(7, ())
                clip[start : start + 4, c] = True
    tokens = torch.einsum("mbtc,mcd->mbtd", events.float(), directions) + 0.3 * torch.randn(2, clips, seconds, 16)
    audio, visual = tokens.unflatten(-1, (2, 8))
    return visual, audio, *events


def test_task_learns_seconds_and_modalities_from_clip_labels_alone():
    """No second and no modality is ever labelled, and still both are found."""
    visual, audio, heard, seen = toy_clips()
    batch = {"clip_labels": (heard | seen).any(1).float(), "audio_events": heard, "visual_events": seen}
    task = ParsingTask(4, num_tokens=2, width=8, hidden=32)
    out = AdapterOutput(visual, audio, torch.zeros(()))
    optimizer = torch.optim.AdamW(task.parameters(), 5e-3)
    for _ in range(100):
        loss = task.loss(task(out, {}), {"clip_labels": batch["clip_labels"]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.eval()
    metric = task.metric()
    assert isinstance(metric, ParsingScores)
    said = task(out, {})
    task.update(metric, said, batch)
    scores = metric.compute()
    # Without the score's share in the attention it is 0.74 and 0.67: what gets no attention claims anything.
    assert scores["segment/audio"] > 0.85
    assert scores["segment/visual"] > 0.82
    decoded = task.decode(said)
    assert (decoded["audio_events"] & (decoded["audio_probabilities"] < 0.5)).sum() == 0
    torch.testing.assert_close(decoded["visual_probabilities"], 1 / (1 + torch.exp(-said.visual)))
    again = task.metric()
    again.update(decoded["audio_events"], decoded["visual_events"], heard, seen)
    assert again.compute() == scores


def test_what_is_monitored_is_a_score():
    assert ParsingTask.name == "parsing"
    metric = ParsingTask(3, num_tokens=2, width=8).metric()
    metric.update(*torch.zeros(4, 1, 10, 3, dtype=torch.bool))
    assert ParsingTask.monitor in metric.compute()


def test_clips_without_events_by_the_second_cannot_be_scored():
    task = ParsingTask(3, num_tokens=2, width=8)
    said = task.head(*torch.randn(2, 1, 5, 2, 8))
    batch = {"id": ["a"], "clip_labels": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match="no 'audio_events', only 'id', 'clip_labels'; score a split whose events"):
        task.update(task.metric(), said, batch)
    with pytest.raises(ValueError, match="no 'clip_labels', only 'id'; parsing is learned from them"):
        task.loss(said, {"id": ["a"]})


def test_smoothing_reaches_the_loss():
    task = ParsingTask(3, num_tokens=2, width=8, audio_smoothing=0.3, visual_smoothing=0.4)
    said = task.head(*torch.randn(2, 1, 5, 2, 8))
    y = torch.tensor([[0.0, 1.0, 1.0]])
    assert task.loss(said, {"clip_labels": y}) == parsing_loss(said, y, audio_smoothing=0.3, visual_smoothing=0.4)


@pytest.mark.parametrize(
    ("visual", "audio"), [((2, 5, 2, 8), (2, 4, 2, 8)), ((2, 5, 2, 7), (2, 5, 2, 7)), ((2, 5, 16), (2, 5, 16))]
)
def test_wrong_tokens_are_named(visual, audio):
    with pytest.raises(ValueError, match=r"ParsingHead: visual is .*wanted \(B, T, K, W\) for both with .*\(2, 8\)"):
        head_for()(torch.randn(visual), torch.randn(audio))


def test_wrong_labels_and_smoothings_are_named():
    said = Parsing(torch.randn(4, 5, 3), torch.randn(4, 5, 3), *torch.randn(3, 4, 3))
    with pytest.raises(ValueError, match=r"clip_labels are \(4, 2\), wanted \(4, 3\)"):
        parsing_loss(said, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"visual_smoothing is 1\.1"):
        parsing_loss(said, torch.zeros(4, 3), visual_smoothing=1.1)

"""The LLP scorer against its fixtures on the real annotations, and against a slow, literal second one."""

import csv
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from fastav.metrics import ParsingScores

LLP = Path(__file__).parents[3] / "shared" / "data" / "llp"
NAMES = [f"{level}/{name}" for level in ("segment", "event") for name in ParsingScores.names]


def rows(name):
    with open(LLP / f"AVVP_{name}.csv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def llp():
    """Of the 1,200 test videos: weak labels (1200, 25), and what is heard and seen (1200, 10, 25)."""
    if not LLP.is_dir():
        pytest.skip(f"LLP's annotation files are not at {LLP}")
    videos = rows("test_pd")
    classes = sorted({label for row in videos for label in row["event_labels"].split(",")})  # scores know no order
    assert len(classes) == 25
    number = {row["filename"]: i for i, row in enumerate(videos)}
    weak = torch.zeros(len(videos), 25, dtype=torch.bool)
    for i, row in enumerate(videos):
        weak[i, [classes.index(label) for label in row["event_labels"].split(",")]] = True
    events = []
    for modality in ("audio", "visual"):
        maps = torch.zeros(len(videos), 10, 25, dtype=torch.bool)
        for row in rows(f"eval_{modality}"):
            if row["filename"] in number:  # the file is validation's too, and names some videos that nobody has
                seconds = slice(int(row["onset"]), int(row["offset"]))  # nothing where offset <= onset
                maps[number[row["filename"]], seconds, classes.index(row["event_labels"])] = True
        events.append(maps)
    return weak, *events


ALL_ZERO = (0.50, 10.08, 14.50, 8.36, 0.00)
WEAK_SEGMENT, WEAK_EVENT = (76.12, 60.35, 52.61, 63.03, 71.73), (63.03, 55.75, 44.69, 54.49, 61.60)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("all zero", ALL_ZERO + ALL_ZERO), ("weak labels on all seconds", WEAK_SEGMENT + WEAK_EVENT)],
)
def test_what_the_official_scorer_gives_on_the_test_videos(llp, prediction, expected):
    weak, audio_events, visual_events = llp
    assert len(weak) == 1200
    said = weak[:, None].expand(audio_events.shape) & (prediction != "all zero")
    scores = ParsingScores(25)
    scores.update(said, said, audio_events, visual_events)
    # The fixtures have two decimals.
    assert {name: round(100 * value.item(), 2) for name, value in scores.compute().items()} == dict(
        zip(NAMES, expected, strict=True)
    )


def test_scoring_whoever_is_right_gives_one(llp):
    _, audio_events, visual_events = llp
    scores = ParsingScores(25)
    for a, v in zip(audio_events.split(7), visual_events.split(7), strict=True):
        scores.update(a, v, a, v)
    assert scores.videos == 1200
    assert {value.item() for value in scores.compute().values()} == {1.0}


def literal(audio, visual, audio_events, visual_events):
    """The rules word by word, in loops over videos, classes and runs: ten means over the videos."""
    table = []
    for video in zip(audio.tolist(), visual.tolist(), audio_events.tolist(), visual_events.tolist(), strict=True):
        a, v, ga, gv = ([list(one) for one in zip(*each, strict=True)] for each in video)  # class by class
        av, gav = both(a, v), both(ga, gv)
        row = []
        for counter in (count_segments, count_events):
            f = [
                mean_f([counter(p, g) for p, g in zip(said, true, strict=True)])
                for said, true in ((a, ga), (v, gv), (av, gav))
            ]
            pooled = [
                tuple(x + y for x, y in zip(counter(p, g), counter(q, h), strict=True))
                for p, g, q, h in zip(a, ga, v, gv, strict=True)
            ]
            row += [*f, sum(f) / 3, mean_f(pooled)]
        table.append(row)
    return [sum(column) / len(table) for column in zip(*table, strict=True)]


def both(one, other):
    return [[x and y for x, y in zip(p, q, strict=True)] for p, q in zip(one, other, strict=True)]


def mean_f(counts):
    f = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in counts if tp + fp + fn]
    return sum(f) / len(f) if f else 1.0


def count_segments(said, true):
    pairs = list(zip(said, true, strict=True))
    return tuple(pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))


def count_events(said, true):
    said, true = runs(said), runs(true)
    tp = sum(any(iou(p, g) >= 0.5 for g in true) for p in said)
    fn = sum(not any(iou(p, g) >= 0.5 for p in said) for g in true)
    return tp, len(said) - tp, fn


def runs(seconds):
    found = []
    for t, there in enumerate(seconds):
        if there and t and seconds[t - 1]:
            found[-1].add(t)
        elif there:
            found.append({t})
    return found


def iou(one, other):
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("segments", [1, 7, 10])
def test_scores_are_those_of_the_literal_scorer(density, segments):
    """Truth is the prediction with every fourth decision drawn anew, so that there are hits and near misses."""
    generator = torch.Generator().manual_seed(segments)
    said = torch.rand(2, 60, segments, 6, generator=generator) < density
    new = torch.rand(2, 60, segments, 6, generator=generator) < 0.25
    true = torch.where(new, torch.rand(2, 60, segments, 6, generator=generator) < 0.5, said)
    scores = ParsingScores(6)
    scores.update(*said, *true)
    # A video's score is a float32 of up to 1, a mean of at most six: roundings of 6e-8 each.
    assert [v.item() for v in scores.compute().values()] == pytest.approx(literal(*said, *true), abs=5e-7)


def seconds(*lines):
    """One class a line, "#" where it is: (1, T, C) bool."""
    return torch.tensor([[letter == "#" for letter in line] for line in lines]).T[None]


@pytest.mark.parametrize(
    ("said", "true", "expected"),
    [
        ("##........", "####......", 1.0),  # IoU 2/4: half is enough
        ("##........", "#####.....", 0.0),  # 2/5
        ("####..####", "##########", 0.0),  # two of 4/10
        ("#####.####", "##########", 2 / 3),  # 5/10 hits, 4/10 does not
        ("##########", "#####.####", 2 / 3),  # and the other way round: one truth is missed
        (".#.#.#.#.#", ".#.#.#.#.#", 1.0),
        ("#.........", ".#........", 0.0),  # neighbours, nothing in common
    ],
)
def test_event_hits_by_hand(said, true, expected):
    scores = ParsingScores(1)
    scores.update(seconds(said), seconds("." * 10), seconds(true), seconds("." * 10))
    found = scores.compute()
    assert found["event/audio"] == found["event/event"] == pytest.approx(expected, abs=1e-7)  # of float32
    assert found["event/visual"] == found["event/audio_visual"] == 1  # no class occurs
    assert found["event/type"] == pytest.approx((expected + 2) / 3, abs=2e-7)


def test_segment_scores_by_hand():
    """Two classes of three occur among audio's predictions or truths, one each among the others'."""
    audio, audio_events = seconds("####", "#...", "...."), seconds("##..", ".#..", "....")
    visual, visual_events = seconds("....", "##..", "...."), seconds("....", "####", "....")
    scores = ParsingScores(3)
    scores.update(audio, visual, audio_events, visual_events)
    found = {name: value.item() for name, value in scores.compute().items()}
    a, v = (2 * 2 / 6 + 0) / 2, 2 * 2 / 6  # TP FP FN: 2 2 0 and 0 1 1; 2 0 2
    av = 0.0  # said in the first second, true in the second: 0 1 1
    assert found["segment/audio"] == pytest.approx(a)
    assert found["segment/visual"] == pytest.approx(v)
    assert found["segment/audio_visual"] == av
    assert found["segment/type"] == pytest.approx((a + v + av) / 3)
    assert found["segment/event"] == pytest.approx((2 * 2 / 6 + 2 * 2 / 8) / 2)  # 2 2 0 and 2 1 3


def test_scores_do_not_depend_on_the_batches():
    maps = torch.rand(4, 103, 10, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    whole, parts = ParsingScores(5), ParsingScores(5)
    whole.update(*maps)
    for batch in zip(*(one.split(8) for one in maps), strict=True):
        parts.update(*batch)
    # The sums are exact; a video's float32 mean over five classes may be taken in another order.
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=0, atol=2e-7)


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as Apple's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(one, torch.Tensor) or one.dtype != torch.float64, f"{function} gives float64"
        return out


def test_nothing_is_float64():
    maps = torch.rand(4, 3, 10, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    with NoFloat64():
        scores = ParsingScores(5)
        scores.update(*maps)
        scores.compute()


def test_many_videos_add_up_without_loss():
    """A float32 sum of these is off by 9e-7, and one video at a time by 5e-4."""
    said, true = seconds("##........").expand(500, -1, -1), seconds("####......").expand(500, -1, -1)
    scores = ParsingScores(1)
    for _ in range(200):
        scores.update(said, said, true, true)
    assert scores.videos == 100_000
    assert scores.compute()["segment/audio"].item() == pytest.approx(2 / 3, abs=1e-7)


def test_nothing_scored_is_nan():
    scores = ParsingScores(5)
    scores.update(*torch.zeros(4, 0, 10, 5, dtype=torch.bool))
    assert all(value.isnan() for value in scores.compute().values())


def score_part(rank, path, maps, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    scores = ParsingScores(5)
    part = slice(3) if rank else slice(3, None)  # parts of unequal size
    scores.update(*maps[:, part])
    queue.put((rank, {name: value.item() for name, value in scores.compute().items()}))
    dist.destroy_process_group()


def test_two_processes_score_what_one_does(tmp_path):
    maps = torch.rand(4, 11, 10, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(score_part, (str(tmp_path / "meet"), maps, queue), nprocs=2)
    scores = ParsingScores(5)
    scores.update(*maps)
    # As above, the sums are exact and the videos' own scores float32.
    alone = {name: pytest.approx(value.item(), abs=2e-7) for name, value in scores.compute().items()}
    assert [queue.get()[1] for _ in range(2)] == [alone, alone]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.float(), TypeError, "visual is torch.float32, wanted bool"),
        (lambda x: x[:, :9], ValueError, r"visual has shape \(2, 9, 5\), wanted \(B, T, 5\)"),
        (lambda x: x[..., :4], ValueError, r"visual has shape \(2, 10, 4\)"),
        (lambda x: x[0], ValueError, r"visual has shape \(10, 5\)"),
    ],
)
def test_wrong_maps_are_named(change, error, message):
    maps = list(torch.zeros(4, 2, 10, 5, dtype=torch.bool))
    maps[1] = change(maps[1])
    with pytest.raises(error, match=message):
        ParsingScores(5).update(*maps)

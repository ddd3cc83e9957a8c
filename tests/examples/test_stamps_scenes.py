"""Scenes composed from drawn material: exact labels, the same bits every time, honest fractions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from examples.stamps.material import SAMPLE_RATE, load_material
from examples.stamps.scenes import SEGMENTS, SPLITS, compose, mismatched, rendering

MANY = 500


@pytest.fixture(scope="module")
def material():
    drawn = load_material(None, None)
    return replace(drawn, held_out={index: drawn.things[index] for index in (1, 4, 7, 11)})


@pytest.fixture(scope="module")
def clips(material):
    return compose(material, "train", MANY, seed=3)


def same(clip, other):
    return all(torch.equal(a, b) for a, b in zip(clip, other, strict=True))


def test_shapes_and_types(material):
    clip = compose(material, "test", 1, image_size=70)[0]
    assert (clip.frames.shape, clip.frames.dtype) == ((SEGMENTS, 3, 70, 70), torch.uint8)
    assert (clip.sound.shape, clip.sound.dtype) == ((SEGMENTS * SAMPLE_RATE,), torch.float32)
    assert (clip.labels.shape, clip.labels.dtype) == ((SEGMENTS,), torch.int64)
    assert clip.seen.shape == clip.heard.shape == (SEGMENTS, material.num_classes)
    assert clip.sound.abs().max() <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_where_the_same_class_is_seen_and_heard(material, split):
    clips = compose(material, split, MANY, seed=1)
    both = clips.seen & clips.heard
    assert both.sum(-1).max() == 1
    assert torch.equal(both.any(-1), clips.labels < material.num_classes)
    clip, second, label = both.nonzero(as_tuple=True)
    assert torch.equal(clips.labels[clip, second], label)
    # One event class a clip, at most two objects and two sounds at once.
    assert both.any(1).sum(-1).max() == 1
    assert clips.seen.sum(-1).max() <= 2
    assert clips.heard.sum(-1).max() <= 2
    if split == "cross":
        assert set(clips.labels.unique().tolist()) == {1, 4, 7, 11, material.num_classes}
        assert (clips.seen | clips.heard).any(0).any(0).nonzero().flatten().tolist() == [1, 4, 7, 11]


@pytest.mark.parametrize("split", SPLITS)
def test_fractions(material, split):
    clips = compose(material, split, MANY, seed=2)
    background = (clips.labels == material.num_classes).float().mean()
    empty = ~(clips.seen.any(-1) | clips.heard.any(-1))
    assert 0.4 < background < 0.6
    assert mismatched(clips).float().mean() >= 0.25
    assert empty.float().mean() < 0.1


def test_same_seed_same_bits(material, clips):
    again = compose(material, "train", 5, seed=3)  # fewer clips
    assert all(same(clips[index], again[index]) for index in (4, 0, 2))  # in another order
    assert same(clips[-1], clips[MANY - 1])


def test_other_seed_or_split_is_another_clip(material, clips):
    assert not torch.equal(clips.labels, compose(material, "train", MANY, seed=4).labels)
    assert not torch.equal(clips.labels, compose(material, "validation", MANY, seed=3).labels)
    assert not same(clips[0], compose(material, "train", 1, seed=4)[0])


def test_workers_make_the_same_bits(material):
    clips = compose(material, "validation", 4, seed=5)
    for batch, start in zip(DataLoader(clips, batch_size=2, num_workers=2), (0, 2), strict=True):
        for offset in range(2):
            assert same(clips[start + offset], [field[offset] for field in batch])


def test_splits_use_their_own_backgrounds(material):
    grey = {
        name: (np.full((256, 300, 3), level, np.uint8),) for name, level in zip(SPLITS, (40, 90, 160), strict=False)
    }
    plain = replace(material, backgrounds=grey)
    means = {}
    for split in SPLITS:
        clips = compose(plain, split, 30, seed=0, image_size=28)
        empty = ~clips.seen.any(-1)
        means[split] = np.mean([clips[i].frames[empty[i]].float().mean() for i in range(30) if empty[i].any()])
    assert means["train"] < means["validation"] < means["test"]
    assert means["cross"] == pytest.approx(means["test"], rel=0.2)


def test_a_heard_second_is_louder_than_a_silent_one(clips):
    for index in range(30):
        clip = clips[index]
        level = clip.sound.reshape(SEGMENTS, -1).std(-1)
        heard = clip.heard.any(-1)
        if heard.any() and not heard.all():
            assert level[heard].min() > level[~heard].max()
        assert level.min() > 0  # silence is not digital


def test_a_seen_second_shows_the_object(material):
    black = replace(material, backgrounds={"train": (np.zeros((256, 256, 3), np.uint8),)})
    clips = compose(black, "train", 30, seed=0)
    for index in range(30):
        clip = clips[index]
        shown = clip.frames.amax(1).gt(30).float().mean((1, 2))
        assert torch.equal(shown > 0, clip.seen.any(-1))
        assert (shown[clip.seen.any(-1)] > 0.04).all()


def test_covered_objects_stay_visible(material):
    always = np.ones(SEGMENTS, dtype=bool)
    wide, tall = np.full((20, 200, 4), 255, np.uint8), np.full((200, 20, 4), 255, np.uint8)
    square = np.full((200, 200, 4), 255, np.uint8)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pair = [((wide, square)[seed % 2], always), ((tall, square)[seed % 2], always)]
        placed = rendering._place(rng, pair, 126, rendering.VISIBLE)
        assert rendering._least_visible(*placed) >= rendering.VISIBLE
        for item in placed:
            assert (item.corners >= 0).all()
            assert (item.corners + item.image.size <= 126).all()


def test_least_visible_counts_alpha():
    from PIL import Image

    solid = Image.fromarray(np.full((10, 10, 4), 255, np.uint8))
    seconds = np.arange(SEGMENTS)
    still = rendering._Placed(0, solid, np.zeros((SEGMENTS, 2), np.int64), seconds < 6)
    passing = rendering._Placed(1, solid, np.stack([10 - seconds, 0 * seconds], axis=1), seconds < 9)
    assert rendering._least_visible(still, passing) == pytest.approx(0.5)  # in second 5; later it is not there


def test_loops_fill_the_run():
    rng = np.random.default_rng(0)
    for length in (0.3, 0.9, 4.0, 12.0):
        recording = np.ones(int(length * SAMPLE_RATE), np.float32)
        samples = rendering._loop(rng, recording, 5 * SAMPLE_RATE)
        assert samples.shape == (5 * SAMPLE_RATE,)
        assert samples[0] == samples[-1] == 0
        assert (samples.reshape(5, -1).mean(-1) > 0.5).all()
        assert (recording == 1).all()


def test_refusals(material):
    with pytest.raises(ValueError, match="'dev' is not one of train"):
        compose(material, "dev", 1)
    with pytest.raises(ValueError, match=r"no cross-source split: procedurally drawn"):
        compose(load_material(None, None), "cross", 1)
    with pytest.raises(IndexError, match="clip 2 of 2"):
        compose(material, "train", 2)[2]

"""Segmentation scenes from drawn material: exact masks, twins that only the ear can tell apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from examples.stamps.material import SAMPLE_RATE, load_material
from examples.stamps.scenes import compose_segmentation
from examples.stamps.scenes.segmentation import SECONDS, SUBSETS

MANY = 400


@pytest.fixture(scope="module")
def material():
    drawn = load_material(None, None)
    return replace(drawn, held_out={index: drawn.things[index] for index in (1, 4, 7, 11)})


def repaint(stage, index, level):
    """The stage with one of its objects in plain grey, everything else as it was."""
    placed = []
    for item in stage.placed:
        if item.index == index:
            image = Image.new("RGBA", item.image.size, (level, level, level, 255))
            image.putalpha(item.image.getchannel("A"))
            item = replace(item, image=image)
        placed.append(item)
    return replace(stage, placed=tuple(placed), light=np.ones_like(stage.light))


@pytest.mark.parametrize("subset", SUBSETS)
def test_shapes_and_types(material, subset):
    item = compose_segmentation(material, "test", 1, subset, image_size=70)[0]
    assert item["id"] == f"test-{subset}-0"
    assert (item["frames"].shape, item["frames"].dtype) == ((SECONDS, 3, 70, 70), torch.uint8)
    assert (item["sound"].shape, item["sound"].dtype) == ((SECONDS * SAMPLE_RATE,), torch.float32)
    assert item["sound"].abs().max() <= 1
    assert (item["masks"].shape, item["masks"].dtype) == ((SECONDS, 70, 70), torch.bool)
    assert item["has_mask"].tolist() == [True] * SECONDS


@pytest.mark.parametrize("subset", SUBSETS)
def test_masks_are_the_pixels_that_change_with_what_sounds(material, subset):
    scenes = compose_segmentation(material, "validation", 12, subset, seed=1)
    for index in range(12):
        stage, masks = scenes._set(index), scenes[index]["masks"].numpy()
        # A pixel that an object covers by the share c changes by 255 c when the object turns from black to white.
        shares = np.zeros((len(stage.placed), *masks.shape))
        for thing in range(len(stage.placed)):
            black, white = (repaint(stage, thing, level).draw()[..., 0].astype(float) for level in (0, 255))
            shares[thing] = (white - black) / 255
        sounding = scenes.sounding[index, :, : len(shares)].numpy()
        covered = np.einsum("ntyx,tn->tyx", shares, sounding)
        # Each paste rounds to whole levels, so what lies within two of 255 of the edge may fall on either side.
        clear = np.abs(covered - 0.5) > 2 / 255
        assert np.array_equal(masks[clear], covered[clear] > 0.5)
        assert clear.mean() > 0.99
        assert np.array_equal(masks.any((1, 2)), sounding.any(1))


def test_masks_of_things_make_up_the_mask(material):
    scenes = compose_segmentation(material, "train", 20, "multiple")
    for index in range(20):
        each, sounding = scenes.thing_masks(index), scenes.sounding[index].T[..., None, None]
        assert torch.equal(each.any(1).any(1).any(1), scenes.things[index] >= 0)
        assert each.int().sum(0).max() == 1
        masks = scenes[index]["masks"]
        # Where two that sound touch, both together may cover a pixel that neither covers by half.
        assert ((each & sounding).any(0) & ~masks).sum() == 0
        assert (masks & ~(each & sounding).any(0)).float().mean() < 0.002


def test_only_the_first_mask_of_single_source_training_is_known(material):
    for split, known in (("train", [True, False, False, False, False]), ("test", [True] * SECONDS)):
        item = compose_segmentation(material, split, 1)[0]
        assert item["has_mask"].tolist() == known
        assert item["masks"].any(2).any(1).tolist() == known
    assert compose_segmentation(material, "train", 1, "multiple")[0]["has_mask"].all()


@pytest.mark.parametrize("subset", SUBSETS)
def test_twins_differ_in_sound_alone(material, subset):
    scenes = compose_segmentation(material, "test", 6, subset)
    for first in range(0, 6, 2):
        one, two = scenes[first], scenes[first + 1]
        assert torch.equal(one["frames"], two["frames"])
        assert torch.equal(scenes.things[first], scenes.things[first + 1])
        assert not torch.equal(one["sound"], two["sound"])
        assert not torch.equal(one["masks"], two["masks"])


def test_single_source_twins_swap_who_sounds(material):
    scenes = compose_segmentation(material, "train", MANY)
    assert torch.equal(scenes.sounding.sum(-1), torch.ones(MANY, SECONDS, dtype=torch.int64))
    assert scenes.sounding[::2, :, 0].all()
    assert scenes.sounding[1::2, :, 1].all()
    # Of the pictures with two things, either sounds in exactly half of the clips: eyes alone are at chance.
    pairs = scenes.things[:, 2] < 0
    assert torch.equal(pairs[::2], pairs[1::2])
    who = scenes.things.gather(1, scenes.sounding[:, 0].int().argmax(1, keepdim=True))[:, 0]
    sounds = torch.bincount(who[pairs], minlength=24)
    shown = torch.bincount(scenes.things[pairs][:, :2].flatten(), minlength=24)
    assert torch.equal(2 * sounds, shown)
    assert 0.15 < (~pairs).float().mean() < 0.35


def test_multiple_sources_change_and_pause(material):
    scenes = compose_segmentation(material, "train", MANY, "multiple")
    counts = scenes.sounding.sum(-1)
    shares = torch.bincount(counts.flatten(), minlength=3) / counts.numel()
    assert len(shares) == 3
    assert (shares > torch.tensor([0.1, 0.4, 0.2])).all()
    changes = (scenes.sounding[:, 1:] != scenes.sounding[:, :-1]).any(-1).sum(-1)
    assert set(changes.tolist()) == {1, 2}
    assert not (scenes.sounding & (scenes.things < 0)[:, None]).any()
    # Every thing's times are its twin's another thing's times.
    pairs = scenes.things[::2, 2] < 0
    assert torch.equal(scenes.sounding[::2][pairs], scenes.sounding[1::2][pairs][..., [1, 0, 2]])


def test_a_sounding_second_is_louder_than_a_silent_one(material):
    scenes = compose_segmentation(material, "test", 30, "multiple")
    silent = 0
    for index in range(30):
        level = scenes[index]["sound"].reshape(SECONDS, -1).std(-1)
        sounds = scenes.sounding[index].any(-1)
        if not sounds.all():
            silent += 1
            assert level[sounds].min() > level[~sounds].max()
    assert silent > 5


def test_things_are_clearly_visible(material):
    scenes = compose_segmentation(material, "train", 40, "multiple")
    sizes = torch.cat([scenes.thing_masks(i).float().mean((2, 3))[scenes.things[i] >= 0].flatten() for i in range(40)])
    assert sizes.min() > 0.01  # one and a half of the 12 x 12 patches
    assert sizes.median() > 0.05


def test_same_bits_whatever_the_number_and_order(material):
    few, many = (compose_segmentation(material, "test", count, "multiple", seed=3) for count in (4, 30))
    for index in (3, 0):
        one, other = few[index], many[index]
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] if key == "id" else torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(few[-1]["sound"], few[3]["sound"])


def test_other_seed_subset_or_split_is_another_clip(material):
    base = compose_segmentation(material, "train", MANY)
    others = [
        compose_segmentation(material, "train", MANY, seed=1),
        compose_segmentation(material, "train", MANY, "multiple"),
        compose_segmentation(material, "test", MANY),
    ]
    assert not any(torch.equal(base.things, other.things) for other in others)
    held_out = compose_segmentation(material, "cross", MANY)
    assert set(held_out.things.flatten().tolist()) == {-1, 1, 4, 7, 11}


def test_refusals(material):
    with pytest.raises(ValueError, match="'dev' is not one of train"):
        compose_segmentation(material, "dev", 1)
    with pytest.raises(ValueError, match="'both' is not one of single, multiple"):
        compose_segmentation(material, "train", 1, "both")
    with pytest.raises(ValueError, match=r"no cross-source split: procedurally drawn"):
        compose_segmentation(load_material(None, None), "cross", 1)
    with pytest.raises(IndexError, match="clip 2 of 2"):
        compose_segmentation(material, "train", 2)[2]

"""Preparing pictures and sounds, and the drawn stand-ins."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from examples.stamps.material import base, catalogue, load_material

RATE = base.SAMPLE_RATE


def tone(seconds, level=0.3):
    return level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)


def test_sound_is_trimmed_and_levelled():
    sound = base.prepare_sound(np.concatenate([np.zeros(RATE), tone(0.5), np.zeros(2 * RATE)]))
    assert sound.dtype == np.float32
    assert len(sound) == pytest.approx(RATE / 2, abs=2 * base.FRAME)
    assert np.sqrt((sound**2).mean()) == pytest.approx(base.LOUDNESS, rel=0.1)
    quiet = base.prepare_sound(tone(0.5, level=0.003))
    assert np.sqrt((quiet**2).mean()) == pytest.approx(base.LOUDNESS, rel=0.1)


def test_long_pauses_are_shortened_and_short_ones_kept():
    def gap(seconds):
        return base.prepare_sound(np.concatenate([tone(0.5), np.zeros(int(seconds * RATE)), tone(0.5)]))

    assert len(gap(3.0)) == pytest.approx((1.0 + base.LONGEST_PAUSE) * RATE, abs=2 * base.FRAME)
    assert len(gap(0.1)) == pytest.approx(1.1 * RATE, abs=2 * base.FRAME)


def test_spikes_are_bent():
    spiky = tone(1.0, level=0.01)
    spiky[5000:5010] = 1.0
    assert np.abs(base.prepare_sound(spiky)).max() <= base.PEAK


@pytest.mark.parametrize("samples", [np.zeros(RATE), np.zeros(0), tone(0.001)])
def test_silence_is_refused(samples):
    with pytest.raises(ValueError, match="silent"):
        base.prepare_sound(samples)


def test_cutout_is_cropped_to_what_shows():
    image = Image.new("RGBA", (900, 900), (9, 9, 9, 10))  # dust all over
    ImageDraw.Draw(image).rectangle((100, 200, 699, 499), (250, 0, 0, 255))
    cutout = base.prepare_cutout(image)
    assert cutout.shape == (base.CUTOUT_SIDE // 2, base.CUTOUT_SIDE, 4)
    assert (cutout[..., 3] > 200).mean() > 0.95


def test_drawn_material():
    material = load_material(None, None)
    assert material.source == "procedurally drawn (tuxpaint-stamps-default out of reach)"
    assert material.num_classes == len(set(material.class_names)) == 24
    for thing in material.things:
        assert all(picture.shape[2] == 4 and picture[..., 3].any() for picture in thing.pictures)
        assert all(sound.ndim == 1 and np.abs(sound).max() > 0.05 for sound in thing.sounds)
    sounds = [thing.sounds[0].tobytes() for thing in material.things]
    assert len(set(sounds)) == len(sounds)


def test_backgrounds_are_disjoint():
    backgrounds = load_material(None, None).backgrounds
    assert set(backgrounds) == {"train", "validation", "test"}
    photos = [photo.tobytes() for split in backgrounds.values() for photo in split]
    assert len(set(photos)) == len(photos)


def test_catalogue():
    names = [entry.name for entry in catalogue.ENTRIES]
    assert len(names) == len(set(names)) == 28
    assert set(catalogue.OUTLINES) < set(names)
    sounds = [sound for entry in catalogue.ENTRIES for sound in entry.sounds.split()]
    assert len(sounds) == len(set(sounds))
    for outline in (outline for outlines in catalogue.OUTLINES.values() for outline in outlines):
        points = np.array([point.split(",") for point in outline.split()], dtype=float)
        assert points.min() >= 0
        assert points.max() <= 100


def test_package_without_its_files(tmp_path):
    with pytest.raises(ValueError, match=r"hen\.png"):
        load_material(tmp_path, None)

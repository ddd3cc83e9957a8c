"""Extracted frames: which of them stand for which second, and what is wrong with folders of them."""

import pytest
import torch

from fastav.data import MediaError, MediaWarning
from fastav.data.frames import list_frames, open_picture, read_frames


def greys(frames):
    return frames[:, 1, 8, 8].tolist()


def read(folder, seconds=10, **options):
    return read_frames(folder, 10, seconds=seconds, image_size=16, **options)


@pytest.mark.parametrize(("fps", "digits"), [(1, 8), (3, 4), (8, 6), (2, 1)])
def test_any_rate_and_any_number_of_digits(tmp_path, media, fps, digits):
    frames = read(media.frames(tmp_path / "a", fps=fps, digits=digits))
    assert frames.shape == (10, 3, 16, 16)
    assert frames.dtype == torch.uint8
    assert greys(frames) == [media.grey(second) for second in range(10)]


def test_the_picture_at_the_middle_of_each_second(tmp_path, media):
    for number in range(80):
        media.picture(tmp_path / "a" / f"{number:03d}.png", number)
    assert greys(read(tmp_path / "a")) == [8 * second + 4 for second in range(10)]


def test_a_known_rate_keeps_time_where_pictures_end_early(tmp_path, media):
    media.frames(tmp_path / "a", seconds=8, fps=8, digits=6)
    assert greys(read(tmp_path / "a"))[:4] != [media.grey(second) for second in range(4)]  # stretched over 10 seconds
    with pytest.warns(MediaWarning, match=r"a holds 64 pictures, 8 of 10 s: the last stands for the rest"):
        frames = read(tmp_path / "a", frame_rates={6: 8.0})
    assert greys(frames) == [media.grey(second) for second in (*range(8), 7, 7)]


def test_too_few_pictures_are_repeated_and_told(tmp_path, media):
    media.frames(tmp_path / "a", seconds=5)
    with pytest.warns(MediaWarning, match=r"a holds 5 pictures for 10 segments: some are repeated"):
        assert greys(read(tmp_path / "a")) == [media.grey(second // 2) for second in range(10)]


@pytest.mark.parametrize(("mode", "wanted"), [("L", 77), ("RGB", 77), ("P", 77), ("RGBA", 77)])
def test_modes(tmp_path, media, mode, wanted):
    media.picture(tmp_path / "a" / "1.png", wanted, mode=mode)
    with pytest.warns(MediaWarning, match="1 pictures for 10 segments"):
        assert greys(read(tmp_path / "a")) == [wanted] * 10


def test_order_is_by_number_and_other_files_do_not_count(tmp_path, media):
    for number in range(1, 12):
        media.picture(tmp_path / f"{number}.png", number)
    (tmp_path / "list.txt").write_text("1")
    media.picture(tmp_path / "cover.jpg", 0)
    assert [path.name for path in list_frames(tmp_path)] == [f"{number}.png" for number in range(1, 12)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"holds no frames: pictures named by number"),
        (("0001.jpg", "0003.jpg"), r"0003\.jpg comes where frame number 2 is wanted"),
        (("0002.jpg", "0003.jpg"), r"0002\.jpg comes where frame number 1 is wanted"),
        (
            ("0001.jpg", "00000001.jpg"),
            r"0001\.jpg comes where frame number 2 is wanted: one is missing or there twice",
        ),
    ],
)
def test_folders_that_cannot_be_right(tmp_path, media, names, message):
    for name in names:
        media.picture(tmp_path / name, 0)
    with pytest.raises(MediaError, match=message):
        list_frames(tmp_path)


def test_missing_and_broken_pictures_are_named(tmp_path, media):
    with pytest.raises(MediaError, match=r"nowhere is missing: a folder of frames is wanted"):
        list_frames(tmp_path / "nowhere")
    with pytest.raises(MediaError, match=r"a\.jpg is missing"):
        open_picture(tmp_path / "a.jpg")
    data = media.picture(tmp_path / "a.png", 9, size=(64, 64), mode="RGB").read_bytes()
    for content in (data[: len(data) // 2], b"", b"<html>"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(MediaError, match=r'a\.png does not decode .*on_error="skip"'):
            open_picture(tmp_path / "a.png")

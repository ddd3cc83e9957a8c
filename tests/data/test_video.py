"""Frames of videos at given times, against videos whose every second is one grey."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fastav.data import MediaError, MediaWarning, read_clip
from fastav.data.video import media_seconds, read_video

MIDDLES = [second + 0.5 for second in range(10)]
CODEC = 2  # grey levels that the codec and the change from limited to full range lose


def greys(frames):
    return frames[:, 1, 8, 8].tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("gop", [1, 12, 50])
def test_the_frame_at_the_middle_of_each_second(tmp_path, media, suffix, gop):
    frames = read_video(media.video(tmp_path / f"a{suffix}", gop=gop), MIDDLES, image_size=16)
    assert frames.shape == (10, 3, 16, 16)
    assert frames.dtype == torch.uint8
    assert greys(frames) == pytest.approx([media.grey(second) for second in range(10)], abs=CODEC)


def test_a_frame_is_shown_until_the_next_one(tmp_path, media):
    path = media.video(tmp_path / "a.mp4", fps=5)
    shown = greys(read_video(path, [0.0, 0.999, 1.0, 1.19, 1.999, 2.0], image_size=16))
    assert shown == pytest.approx([media.grey(second) for second in (0, 0, 1, 1, 1, 2)], abs=CODEC)


@pytest.mark.parametrize("times", [[8.5], [0.5, 8.5], [2.1, 2.3, 7.0, 9.9], [4.81, 4.99], [5.2]])
def test_jumps_find_the_same_frames(tmp_path, media, times):
    path = media.video(tmp_path / "a.mp4", gop=5)
    every = read_video(path, [0.1 * tenth for tenth in range(100)], image_size=16)
    wanted = every[[int(10 * time + 1e-6) for time in times]]
    assert torch.equal(read_video(path, times, image_size=16), wanted)


def test_what_lies_between_is_not_decoded(tmp_path, media, monkeypatch):
    from fastav.data import video

    path, decoded = media.video(tmp_path / "a.mp4", gop=5), []
    decode = video._decode

    def counted(*args):
        for frame in decode(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "_decode", counted)
    read_video(path, [0.5, 9.5], image_size=16)
    assert len(set(decoded)) < 15  # of 50


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_videos_are_turned_upright(tmp_path, media, rotation):
    frame = read_video(media.video(tmp_path / "a.mp4", rotation=rotation), [0.5], image_size=16)[0, 0].int()
    edges = {"left": frame[:, 0], "bottom": frame[-1], "right": frame[:, -1], "top": frame[0]}
    white = [name for name, edge in edges.items() if edge.min() > 200]
    # The edge that was coded on the left, after so many quarters counter-clockwise.
    assert white == [{0: "left", 90: "bottom", 180: "right", -90: "top"}[rotation]]


def test_aspect_is_ignored_and_colours_are_rgb(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 16, "yuv444p"
        array = torch.zeros(16, 64, 3, dtype=torch.uint8)
        array[:, :32, 0], array[:, 32:, 2] = 200, 100  # red, then blue
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array.numpy())))
        container.mux(stream.encode())
    frame = read_video(tmp_path / "a.mp4", [0.5], image_size=16)[0].int()
    assert frame[:, 8, 2].tolist() == pytest.approx([200, 0, 0], abs=4)  # colours lose more than greys
    assert frame[:, 8, 13].tolist() == pytest.approx([0, 0, 100], abs=4)


def test_a_video_that_ends_early_keeps_its_last_frame_and_says_so(tmp_path, media):
    path = media.video(tmp_path / "a.mp4", seconds=8)
    with pytest.warns(MediaWarning, match=r"a\.mp4: the video ends after 8\.00 s and is wanted at 9\.50 s: its last"):
        frames = read_video(path, MIDDLES, image_size=16)
    assert greys(frames)[7:] == pytest.approx([media.grey(7)] * 3, abs=CODEC)


def test_a_video_that_starts_late_shows_its_first_frame_before_and_says_so(tmp_path, media):
    path = media.video(tmp_path / "a.mp4", greys=[media.grey(3 + frame // 5) for frame in range(35)], late=3)
    starts = r"a\.mp4: the video starts after 3\.00 s and is wanted at 0\.50 s: its first frame stands for what is miss"
    with pytest.warns(MediaWarning, match=starts):
        frames = read_video(path, MIDDLES, image_size=16)
    assert greys(frames) == pytest.approx([media.grey(max(3, second)) for second in range(10)], abs=CODEC)
    assert greys(read_video(path, [2.95], image_size=16)) == pytest.approx([media.grey(3)], abs=CODEC)  # a little


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_last_frame_may_stand_long(tmp_path, media, suffix):
    starts = [0, 1, 1.1, 1.2, 2, 3, 3.1, 4, 5, 6]  # seconds; the last one stands for four
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for start in starts:
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), media.grey(int(start)), np.uint8))
            frame.pts, frame.time_base = round(1000 * start), Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet, start, stop in zip(packets, starts, [*starts[1:], 10], strict=True):
            packet.duration = round(1000 * (stop - start))
            container.mux(packet)
    shown = greys(read_video(tmp_path / f"a{suffix}", MIDDLES, image_size=16))  # without a warning
    assert shown == pytest.approx([media.grey(min(6, second)) for second in range(10)], abs=CODEC)


def test_videos_with_open_gops_are_read(tmp_path, media):
    params = "open-gop=1:bframes=3:keyint=15:min-keyint=15:scenecut=0"
    path = media.video(tmp_path / "a.mp4", fps=30, gop=15, options={"preset": "fast", "x264-params": params})
    shown = greys(read_video(path, MIDDLES, image_size=16))
    assert shown == pytest.approx([media.grey(second) for second in range(10)], abs=CODEC)
    assert greys(read_video(path, [5.5], image_size=16)) == pytest.approx([media.grey(5)], abs=CODEC)


def test_avi_is_read_by_its_frames_and_not_by_its_index(tmp_path, media):
    path = media.video(tmp_path / "a.avi", sound=False, codec="mpeg4", options={"bf": "2"})
    shown = greys(read_video(path, MIDDLES, image_size=16))
    assert shown == pytest.approx([media.grey(second) for second in range(10)], abs=CODEC)


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize(("pictures", "sounds"), [(8, 10), (10, 6)])
def test_a_stream_of_matroska_may_be_shorter_than_the_file(tmp_path, media, tags, pictures, sounds):
    shades = [media.grey(frame // 5) for frame in range(5 * pictures)]
    path = media.video(tmp_path / "a.mkv", seconds=sounds, greys=shades)
    if not tags:
        without_tags(path)
    with pytest.warns(MediaWarning) as caught:
        clip = read_clip(path, num_segments=10, image_size=16)
    wanted = r"a.mkv: the video ends after 8.00 s" if pictures == 8 else "a.mkv holds 6.00 of 10 s of sound"
    assert [wanted in str(warning.message) for warning in caught] == [True]
    shown = [media.grey(min(pictures - 1, second)) for second in range(10)]
    assert greys(clip["frames"]) == pytest.approx(shown, abs=CODEC)
    heard = torch.from_numpy(media.samples(sounds, 16000))
    assert torch.equal(clip["sound"], torch.nn.functional.pad(heard, (0, 160000 - len(heard))))


def test_a_stream_of_matroska_may_start_late_and_end_early(tmp_path, media):
    path = media.video(tmp_path / "a.mkv", greys=[media.grey(7)] * 5 + [media.grey(8)] * 5, late=7)
    with pytest.warns(MediaWarning) as caught:
        frames = read_video(path, MIDDLES, image_size=16)
    said = sorted(str(warning.message).partition(": ")[2].partition(" and ")[0] for warning in caught)
    assert said == ["the video ends after 9.00 s", "the video starts after 7.00 s"]
    assert greys(frames) == pytest.approx([media.grey(max(7, min(8, second))) for second in range(10)], abs=CODEC)


def without_tags(path):
    """Take from a Matroska file what its streams' tags say of their length, as in files of other writers."""
    data = path.read_bytes()
    assert b"DURATION" in data
    path.write_bytes(data.replace(b"DURATION", b"DURATIOM"))


def test_lengths(tmp_path, media):
    assert media_seconds(media.video(tmp_path / "a.mp4", seconds=3)) == pytest.approx(3, abs=0.1)


def test_a_clip_of_one_video(tmp_path, media):
    path = media.video(tmp_path / "a.mkv")  # its sound is not compressed
    clip = read_clip(path, num_segments=5, image_size=16)
    assert greys(clip["frames"]) == pytest.approx([media.grey(second) for second in range(5)], abs=CODEC)
    assert torch.equal(clip["sound"], torch.from_numpy(media.samples(5, 16000)))
    longer = read_clip(path, num_segments=5, seconds_per_segment=2, image_size=16)
    assert greys(longer["frames"]) == pytest.approx([media.grey(second) for second in (1, 3, 5, 7, 9)], abs=CODEC)
    assert longer["sound"].shape == (160000,)


def test_segments_spread_over_a_video(tmp_path, media):
    path = media.video(tmp_path / "a.mkv")
    clip = read_clip(path, num_segments=4, image_size=16, spread=True)  # middles at 1.25, 3.75, 6.25 and 8.75 s
    assert greys(clip["frames"]) == pytest.approx([media.grey(second) for second in (1, 3, 6, 8)], abs=CODEC)
    whole = torch.from_numpy(media.samples(10, 16000))
    windows = [whole[round(16000 * start) :][:16000] for start in (0.75, 3.25, 5.75, 8.25)]
    assert torch.equal(clip["sound"], torch.cat(windows))


# What is wrong is said


def test_missing_and_broken_videos_are_named(tmp_path, media):
    with pytest.raises(MediaError, match=r"none\.mp4 is missing"):
        read_video(tmp_path / "none.mp4", [0.5], image_size=16)
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    with pytest.raises(MediaError, match=r'page\.mp4 does not decode .*fetch it again, or .*on_error="skip"'):
        read_video(tmp_path / "page.mp4", [0.5], image_size=16)
    data = media.video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # its index, at the end, is lost
    with pytest.raises(MediaError, match=r"cut\.mp4 does not decode"):
        read_video(tmp_path / "cut.mp4", [0.5], image_size=16)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(MediaError, match=r"empty\.mp4 does not decode"):
        media_seconds(tmp_path / "empty.mp4")


def test_a_cut_short_video_with_its_index_in_front_is_named(tmp_path, media):
    data = media.video(tmp_path / "a.mp4", gop=5, movflags="faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        read_video(tmp_path / "cut.mp4", MIDDLES, image_size=16)


def test_a_video_cut_between_two_frames_is_named(tmp_path, media):
    av = pytest.importorskip("av")
    path = media.video(tmp_path / "a.mp4", sound=False, movflags="faststart")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[20]])  # nothing but the end tells: frames are whole
    wanted = r"a\.mp4: the video ends after 4\.00 s though its header says 10\.00 s: the file is cut short"
    with pytest.raises(MediaError, match=wanted):
        read_video(path, MIDDLES, image_size=16)
    assert read_video(path, [0.5, 3.5], image_size=16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_cut_short_matroska_is_named(tmp_path, media, suffix, tags):
    from fastav.data.sound import read_sound

    codecs = {"codec": "libvpx", "options": {"cpu-used": "8"}, "sound": False} if suffix == ".webm" else {}
    path = media.video(tmp_path / f"a{suffix}", greys=[media.grey(frame // 5) for frame in range(40)], **codecs)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    if not tags:
        without_tags(path)
    declared = 10 if suffix == ".mkv" and not tags else 8  # the file's length, which is the sound's, or the pictures'
    wanted = rf"the video ends after [2-6]\.\d\d s though its header says {declared}\.00 s: the file is cut short"
    with pytest.raises(MediaError, match=wanted):
        read_video(path, MIDDLES, image_size=16)
    assert greys(read_video(path, [0.5, 1.5], image_size=16)) == pytest.approx([20, 40], abs=CODEC)
    if suffix == ".mkv":
        with pytest.raises(
            MediaError, match=r"a\.mkv: the sound ends after [3-6]\.\d\d s though its header says 10\.00"
        ):
            read_sound(path, sampling_rate=16000, seconds=10)
        assert read_sound(path, sampling_rate=16000, seconds=2)[:32000].tolist() == media.samples(2, 16000).tolist()


def test_frame_times_that_go_back_are_named(tmp_path, media):
    options = {"x264-params": "bframes=3:b-adapt=0"}  # of whose order .avi knows nothing
    path = media.video(tmp_path / "a.avi", sound=False, options=options)
    wanted = r"a\.avi: the times of its frames go back, from \d\.\d0 to \d\.\d0 s; rewrite it, ffmpeg -i OLD NEW\.mp4"
    with pytest.raises(MediaError, match=wanted):
        read_video(path, MIDDLES, image_size=16)


@pytest.mark.parametrize("gop", [12, 5])  # 5: found after a jump
def test_damage_is_not_concealed(tmp_path, gop):
    av = pytest.importorskip("av")
    generator = torch.Generator().manual_seed(1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        stream.codec_context.gop_size = gop
        for _ in range(10):
            noise = torch.randint(0, 256, (128, 160, 3), generator=generator, dtype=torch.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise.numpy())))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    with av.open(str(tmp_path / "a.mp4")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][5]
    middle = packet.pos + packet.size // 2  # inside of a frame's data, whose length stays right
    data[middle : middle + 40] = noise.flatten()[:40].tolist()
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mp4 does not decode .*Invalid data"):
        read_video(tmp_path / "a.mp4", [0.5, 1.5], image_size=16)


def test_streams_that_are_not_there_are_named(tmp_path, media):
    from fastav.data.sound import read_sound

    silent = media.video(tmp_path / "silent.mp4", sound=False)
    assert read_video(silent, [0.5], image_size=16).shape == (1, 3, 16, 16)
    with pytest.raises(MediaError, match=r"silent\.mp4 has no audio stream: give a sound file for it, or"):
        read_sound(silent, sampling_rate=16000)
    blind = media.video(tmp_path / "blind.mp4", picture=False)
    with pytest.raises(MediaError, match=r"blind\.mp4 has no video stream: give extracted frames for it, or"):
        read_video(blind, [0.5], image_size=16)

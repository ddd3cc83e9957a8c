"""Sound of files, arrays and videos, against levels that are known."""

import pickle
import struct

import numpy as np
import pytest
import torch

from fastav.data import MediaError, MediaWarning
from fastav.data.sound import fit, load_array, read_sound, spread_windows

soundfile = pytest.importorskip("soundfile")


def test_sound_files_are_read_as_they_are(tmp_path, media):
    path = media.wav(tmp_path / "a.wav", seconds=3)
    made = read_sound(path, sampling_rate=16000)
    assert made.dtype == torch.float32
    assert torch.equal(made, torch.from_numpy(media.samples(3, 16000)))


def test_suffixes_may_be_in_capitals(tmp_path, media):
    path = media.npy(tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    assert torch.equal(read_sound(path, sampling_rate=32000), torch.from_numpy(media.samples(10, 32000)))
    path = media.wav(tmp_path / "a.wav", seconds=3).rename(tmp_path / "a.WAV")
    assert torch.equal(read_sound(path, sampling_rate=16000), torch.from_numpy(media.samples(3, 16000)))


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFEFFC, 0x80000000, 0xFFFFFFFF])
def test_a_wav_whose_writer_did_not_know_its_length_is_read_to_its_end(tmp_path, media, size):
    path = media.wav(tmp_path / "a.wav", seconds=3)
    data = path.read_bytes()
    start, rest = data.split(b"data", 1)
    path.write_bytes(start + b"data" + struct.pack("<I", size) + rest[4:])
    made = read_sound(path, sampling_rate=16000)
    assert torch.equal(made, torch.from_numpy(media.samples(3, 16000)))


def test_channels_are_averaged(tmp_path):
    sound = np.stack([np.full(1600, 0.5), np.full(1600, -0.25)], 1)
    soundfile.write(tmp_path / "a.flac", sound, 16000, subtype="PCM_16")
    made = read_sound(tmp_path / "a.flac", sampling_rate=16000)
    assert torch.equal(made, torch.full((1600,), 0.125))


@pytest.mark.parametrize("suffix", [".wav", ".mkv"])
def test_no_more_is_read_than_wanted(tmp_path, media, suffix):
    write = media.wav if suffix == ".wav" else media.video
    path = write(tmp_path / f"a{suffix}", rate=44100)
    made, whole = (read_sound(path, sampling_rate=16000, seconds=seconds) for seconds in (3, None))
    assert 48000 < len(made) < 56000
    assert torch.allclose(made[:48000], whole[:48000], atol=1e-6)  # a convolution's rounding


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_rates_are_resampled(tmp_path, rate):
    times = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * times), rate, subtype="FLOAT")
    made = read_sound(tmp_path / "a.wav", sampling_rate=16000)
    assert made.shape == (16000,)
    wanted = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    # Away from the ends, where the filter sees the silence around the sound; its pass band is flat to 1e-3.
    assert (made - wanted)[800:-800].abs().max() < 1e-3


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 16000), (".mkv", 44100)])
def test_sound_of_a_video(tmp_path, media, suffix, rate):
    made = read_sound(media.video(tmp_path / f"a{suffix}", rate=rate), sampling_rate=16000)
    assert len(made) == pytest.approx(160000, abs=2 * 1024)  # whole AAC frames
    middles = made[:160000].view(10, 16000)[:, 4000:12000].mean(1)
    levels = torch.tensor([media.level(second) for second in range(10)])
    assert (middles - levels).abs().max() < 1e-3  # what the codec loses of a constant


def test_a_stream_that_starts_late_has_silence_before_it(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        picture, audio = container.add_stream("mpeg4", rate=5), container.add_stream("pcm_f32le", rate=16000)
        picture.width = picture.height = 16
        picture.pix_fmt, audio.layout = "yuv420p", "mono"
        for _ in range(10):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(picture.encode())
        # A second of sound from 0.5 s on, a gap of as long, and another second.
        for start, level in ((8000, 0.25), (32000, 0.5)):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16000), level, np.float32), "flt", "mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    made = read_sound(tmp_path / "a.mkv", sampling_rate=16000)
    wanted = np.repeat([0, 0.25, 0.25, 0, 0.5, 0.5], 8000)
    assert made.tolist() == wanted.tolist()


def test_arrays_are_at_32_khz(tmp_path, media):
    path = media.npy(tmp_path / "a.npy")
    assert torch.equal(read_sound(path, sampling_rate=32000), torch.from_numpy(media.samples(10, 32000)))
    assert read_sound(path, sampling_rate=16000, seconds=10).shape == (160000,)
    with pytest.raises(MediaError, match=r"a\.npy holds 320000 samples: 5 s at 32000 Hz.* are 160000; give a \.wav"):
        read_sound(path, sampling_rate=16000, seconds=5)


def test_integer_arrays_are_scaled_and_wrong_ones_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full(320, -16384, np.int16))
    assert torch.equal(read_sound(tmp_path / "a.npy", sampling_rate=32000), torch.full((320,), -0.5))
    np.save(tmp_path / "a.npy", np.full(320, -16384, np.float32))
    with pytest.raises(MediaError, match="samples up to 16384: divide 16-bit samples by 32768"):
        read_sound(tmp_path / "a.npy", sampling_rate=32000)
    np.save(tmp_path / "a.npy", np.zeros((10, 128)))
    with pytest.raises(MediaError, match=r"holds float64 \(10, 128\): a mono sound"):
        read_sound(tmp_path / "a.npy", sampling_rate=32000)
    np.save(tmp_path / "a.npy", np.array({"a.wav": np.zeros(320)}, dtype=object))  # all sounds of a category
    with pytest.raises(MediaError, match=r"a\.npy holds a pickled dict: a mono sound \(samples,\) is wanted"):
        read_sound(tmp_path / "a.npy", sampling_rate=32000)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_let_in(tmp_path, protocol, monkeypatch):
    held = {"one.wav": np.arange(4, dtype=np.float32), "two.wav": np.ones(2)}
    monkeypatch.setattr(np.lib.format, "pickle", pickle, raising=False)
    np.save(tmp_path / "a.npy", held, allow_pickle=True)
    made = load_array(tmp_path / "a.npy")
    assert {name: sound.tolist() for name, sound in made.items()} == {"one.wav": [0, 1, 2, 3], "two.wav": [1, 1]}


def scalar(words):
    raise AssertionError(words)


@pytest.mark.parametrize(
    ("function", "asked"),
    [(print, r"builtins\.print"), (np.fromfile, r"numpy.*\.fromfile"), (scalar, r".*test_sound\.scalar")],
)
def test_other_pickles_are_not_run(tmp_path, function, asked):
    class Bomb:
        def __reduce__(self):
            return function, ("it ran",)

    np.save(tmp_path / "a.npy", np.array(Bomb(), dtype=object), allow_pickle=True)
    with pytest.raises(MediaError, match=rf"a\.npy does not load \(it asks for {asked}"):
        load_array(tmp_path / "a.npy")


def test_fitting_cuts_fills_and_tells():
    sound = torch.arange(1, 6.0)
    assert fit(sound, 3, 10, "a.wav").tolist() == [1, 2, 3]
    assert fit(sound, 6, 10, "a.wav").tolist() == [1, 2, 3, 4, 5, 0]  # 0.1 s: what codecs round to
    with pytest.warns(MediaWarning, match=r"a\.wav holds 0\.50 of 0\.8 s of sound: the rest is silence"):
        assert fit(sound, 8, 10, "a.wav").tolist() == [1, 2, 3, 4, 5, 0, 0, 0]


def test_windows_are_centred_and_stay_inside():
    sound = torch.arange(12.0)
    assert spread_windows(sound, 3, 2).tolist() == [1, 2, 5, 6, 9, 10]  # middles at 2, 6 and 10
    assert spread_windows(sound, 2, 10).tolist() == [*range(10), *range(2, 12)]
    assert spread_windows(sound[:3], 2, 4).tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", None, r"a\.wav is missing"),
        ("a.wav", b"RIFF", r'a\.wav does not decode .*fetch it again, or leave it out by on_error="skip"'),
        ("a.npy", None, r"a\.npy is missing"),
        ("a.npy", b"\x93NUMPY\x01", r"a\.npy does not load"),
        ("a.mp4", None, r"a\.mp4 is missing"),
        ("a.mp4", b"?", r"a\.mp4 does not decode"),
    ],
)
def test_missing_and_broken_sounds_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=message):
        read_sound(tmp_path / name, sampling_rate=16000)


def test_empty_and_infinite_sounds_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(MediaError, match=r"a\.wav holds an empty sound"):
        read_sound(tmp_path / "a.wav", sampling_rate=16000)
    np.save(tmp_path / "a.npy", np.array([0, np.nan], np.float32))
    with pytest.raises(MediaError, match=r"a\.npy holds NaN or infinite samples"):
        read_sound(tmp_path / "a.npy", sampling_rate=16000)


@pytest.mark.parametrize("name", ["a.wav", "a.WAV"])
def test_a_wav_that_is_cut_short_is_named(tmp_path, media, name):
    data = media.wav(tmp_path / name, channels=2).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(
        MediaError, match=r"the sound ends after 5\.00 s though its header says 10\.00 s: the file is cut"
    ):
        read_sound(tmp_path / name, sampling_rate=16000, seconds=10)
    with pytest.raises(MediaError, match=r"the sound ends after 5\.00 s though its header says 10\.00 s"):
        read_sound(tmp_path / name, sampling_rate=16000)
    made = read_sound(tmp_path / name, sampling_rate=16000, seconds=4)  # what is wanted is there
    assert made[:64000].tolist() == media.samples(4, 16000).tolist()


def test_a_sound_cut_between_two_packets_is_named(tmp_path, media):
    av = pytest.importorskip("av")
    path = media.video(tmp_path / "a.mp4", picture=False, movflags="faststart")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[64]])
    # The encoder's first packet of 1,024 samples is its delay: 63 x 1,024 / 16,000 s are left.
    with pytest.raises(MediaError, match=r"a\.mp4: the sound ends after 4\.03 s though its header says 10\.00 s"):
        read_sound(path, sampling_rate=16000)


def test_bare_aac_does_not_say_how_long_it_is(tmp_path):
    """Its length is guessed from the bit rate of its start: silence here, so that the guess is minutes."""
    av = pytest.importorskip("av")
    sound = np.zeros((1, 10 * 16000), np.float32)
    sound[:, 5 * 16000 :] = np.random.default_rng(0).uniform(-1, 1, 5 * 16000)
    with av.open(str(tmp_path / "a.aac"), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound, "fltp", "mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    with av.open(str(tmp_path / "a.aac")) as container:
        assert container.duration / 1e6 > 60
    made = read_sound(tmp_path / "a.aac", sampling_rate=16000, seconds=20)
    assert len(made) == pytest.approx(10 * 16000, abs=2 * 1024)  # whole frames of 1,024 samples, and one of delay
    assert made[: 4 * 16000].abs().max() < 1e-3 < 0.1 < made[6 * 16000 : 9 * 16000].abs().max()


def test_a_sound_that_is_cut_short_is_named(tmp_path, media):
    data = media.video(tmp_path / "a.mp4", picture=False, movflags="faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    wanted = r"cut\.mp4: (the sound ends after .* its header says 10\.00 s|its sound does not decode)"
    with pytest.raises(MediaError, match=wanted):
        read_sound(tmp_path / "cut.mp4", sampling_rate=16000)

"""The reader of LLP, on its own annotation files and on small trees."""

import shutil
from itertools import combinations

import pytest
import torch

from fastav.data import LLP, LLP_CLASSES, DataError, MediaError, MediaWarning
from fastav.data.llp import LLPEvent, event_map, llp_events, llp_split, llp_warts, parse_llp, parse_llp_events

NAMES = ["_-aaaaaaaaa_30_40", "bbbbbbbb_-b_101.8_111.8"]
WEAK = "filename\tevent_labels\n"
DENSE = "filename\tonset\toffset\tevent_labels\n"


def annotate(root):
    root.mkdir(parents=True, exist_ok=True)
    for name in ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv"):
        (root / name).write_text(f"{WEAK}{NAMES[0]}\tSpeech,Dog\n{NAMES[1]}\tFrying_(food)\n")
    (root / "AVVP_eval_audio.csv").write_text(
        f"{DENSE}{NAMES[0]}\t0\t3\tSpeech\n{NAMES[0]}\t2\t10\tDog\n{NAMES[0]}\t8\t8\tCat\n{NAMES[1]}\t9\t2\tCar\n"
    )
    (root / "AVVP_eval_visual.csv").write_text(f"{DENSE}{NAMES[0]}\t4\t5\tDog\n{NAMES[0]}\t6\t7\tDog\n")
    return root


@pytest.fixture
def tree(tmp_path, media):
    """Frames and sounds, named by the first eleven characters."""
    for name in NAMES:
        media.frames(tmp_path / "frame" / name[:11], fps=8, digits=6)
        media.wav(tmp_path / "audio" / f"{name[:11]}.wav")
    return annotate(tmp_path)


# The data set's own files


def test_counts_and_overlaps(real_annotations):
    rows = {split: llp_split(real_annotations / "llp", split) for split in LLP.splits}
    assert {split: len(rows[split]) for split in rows} == {"train": 10000, "val": 649, "test": 1200}
    videos = {split: {row.video for row in rows[split]} for split in rows}
    assert {split: len(videos[split]) for split in rows} == {"train": 10000, "val": 649, "test": 1200}
    assert not any(videos[a] & videos[b] for a, b in combinations(videos, 2))
    assert rows["test"][0].filename == "4YdbENYcIyE_23_33"
    assert [LLP_CLASSES[number] for number in rows["test"][1].classes] == ["Blender", "Speech"]
    used = {number for listed in rows.values() for row in listed for number in row.classes}
    assert used == set(range(25))


def test_events(real_annotations):
    events = llp_events(real_annotations / "llp")
    assert {kind: len(listed) for kind, listed in events.items()} == {"audio": 4131, "visual": 2495}
    test = {row.filename for row in llp_split(real_annotations / "llp", "test")}
    rows = {kind: {event.filename for event in listed} for kind, listed in events.items()}
    assert {kind: len(test - names) for kind, names in rows.items()} == {"audio": 5, "visual": 121}
    covered = {kind: {e.filename for e in listed if e.offset > e.onset} for kind, listed in events.items()}
    assert {kind: len(test - names) for kind, names in covered.items()} == {"audio": 6, "visual": 121}


def test_warts(real_annotations):
    folder = real_annotations / "llp"
    warts = llp_warts([*llp_split(folder, "val"), *llp_split(folder, "test")], llp_events(folder))
    assert [wart.partition(",")[0] for wart in warts[:1]] == ["6 audio rows without effect"]
    assert warts[1].startswith("8 names of events match no clip")
    assert "19jWnmYnlD8_30_400" in warts[1]
    assert warts[-1].startswith("in 81 clips of validation and test the clip's labels are not")
    assert len(warts) == 5


def test_the_older_revision_is_told(real_annotations, tmp_path):
    folder = real_annotations / "llp"
    current = (folder / "AVVP_eval_audio.csv").read_text()
    older = current.replace("JfZEqeLZqWk_30_40\t0\t4\tSpeech", "Baby_cry_infant_cry\t0\t4\tSpeech", 1)
    older = older.replace("KvIjsmANkxI_10_20\t0\t1\tCat", "KvIjsmANkxI_10_20`\t0\t1\tCat", 1)
    assert older != current
    (tmp_path / "audio.csv").write_text(older)
    rows = [*llp_split(folder, "val"), *llp_split(folder, "test")]
    warts = llp_warts(rows, {**llp_events(folder), "audio": parse_llp_events(tmp_path / "audio.csv")})
    told = [wart for wart in warts if "an old revision of AVVP_eval_audio.csv with 2 corrupt rows" in wart]
    assert len(told) == 1
    assert "Baby_cry_infant_cry" in told[0]
    assert any(wart.startswith("8 names of events match no clip") for wart in warts)  # the corrupt ones not again


# Clips


def test_a_training_clip_has_the_clips_labels_alone(tree, media):
    clip = LLP(tree, "train", image_size=16)[0]
    assert set(clip) == {"id", "frames", "sound", "clip_labels"}
    assert clip["id"] == NAMES[0]
    assert clip["clip_labels"].nonzero().flatten().tolist() == [0, 3]
    assert clip["clip_labels"].dtype == torch.float32
    assert clip["frames"][:, 0, 8, 8].tolist() == [media.grey(second) for second in range(10)]
    assert torch.equal(clip["sound"], torch.from_numpy(media.samples(10, 16000)))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluated_clips_have_events(tree, split):
    data = LLP(tree, split, image_size=16)
    clip = data[0]
    assert clip["audio_events"].dtype == clip["visual_events"].dtype == torch.bool
    wanted = torch.zeros(10, 25, dtype=torch.bool)
    wanted[0:3, 0] = wanted[2:10, 3] = True
    assert torch.equal(clip["audio_events"], wanted)
    assert clip["visual_events"].nonzero().tolist() == [[4, 3], [6, 3]]
    other = data[1]  # its one row has no effect
    assert not other["audio_events"].any()
    assert not other["visual_events"].any()


def test_official_frames_keep_time_at_eight_a_second(tree, media):
    folder = tree / "frame" / NAMES[0][:11]
    for frame in range(80, 100):  # more than the clip has: not to be spread over it
        media.picture(folder / f"{frame + 1:06d}.jpg", 255)
    frames = LLP(tree, "train", image_size=16)[0]["frames"]
    assert frames[:, 0, 8, 8].tolist() == [media.grey(second) for second in range(10)]


@pytest.mark.parametrize("fps", [1, 3, 10])
def test_six_digits_at_another_rate_are_known_by_their_number(tmp_path, media, fps):
    for name in NAMES:
        media.frames(tmp_path / "frame" / name[:11], fps=fps, digits=6)
        media.wav(tmp_path / "audio" / f"{name[:11]}.wav")
    said = rf"named %06d, as those at 8 a second are, but most clips have about {10 * fps} in 10 s"
    with pytest.warns(MediaWarning, match=said):
        data = LLP(annotate(tmp_path), "train", image_size=16)
    frames = data[0]["frames"]
    assert frames[:, 0, 8, 8].tolist() == [media.grey(second) for second in range(10)]


def test_a_short_clip_among_official_frames_keeps_time(tree, media):
    for frame in range(40, 80):
        (tree / "frame" / NAMES[1][:11] / f"{frame + 1:06d}.jpg").unlink()
    shutil.copytree(tree / "frame" / NAMES[0][:11], tree / "frame" / "ccccccccccc")
    shutil.copy(tree / "audio" / f"{NAMES[0][:11]}.wav", tree / "audio" / "ccccccccccc.wav")
    with (tree / "AVVP_train.csv").open("a") as file:
        file.write("ccccccccccc_0_10\tDog\n")
    data = LLP(tree, "train", image_size=16)
    with pytest.warns(MediaWarning, match=r"holds 40 pictures, 5 of 10 s: the last stands for the rest"):
        frames = data[1]["frames"]
    assert frames[:, 0, 8, 8].tolist() == [media.grey(min(second, 4)) for second in range(10)]
    (tree / "frame" / NAMES[1][:11] / "000040.jpg").unlink()
    with pytest.raises(MediaError, match=r"holds 39 pictures where 8 a second make 80 of 10 s, as in the other clips"):
        data[1]


def test_videos(tmp_path, media):
    for name in NAMES:
        media.video(tmp_path / "video" / f"{name[:11]}.mp4", seconds=10)
    data = LLP(annotate(tmp_path), "train", image_size=16)
    assert data.layout.pictures == data.layout.sounds == "videos in video"
    assert data[1]["frames"].shape == (10, 3, 16, 16)


def test_event_maps():
    events = [LLPEvent("a", 2, 3, 5), LLPEvent("a", 2, 4, 6), LLPEvent("a", 1, 9, 0), LLPEvent("a", 0, 0, 10)]
    covered = event_map(events)
    assert covered[:, 0].all()
    assert covered[:, 2].nonzero().flatten().tolist() == [3, 4, 5]
    assert covered.sum() == 13


# What is wrong is said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("_-aaaaaaaaa_30_40\tSpeech,Meow", r"line 2: 'Meow' is none of LLP's 25 classes"),
        ("short_30_40\tSpeech", r"line 2: 'short_30_40' is no name of a clip, wanted <11 characters>_<start>_<end>"),
        ("_-aaaaaaaaa_30_40,Speech", r"line 2 has 1 columns: filename, event_labels are wanted"),
        ("_-aaaaaaaaa_30_40\tCat\n_-aaaaaaaaa_30_40\tCar", r"names 1 clips twice"),
    ],
)
def test_wrong_labels_are_named(tmp_path, row, message):
    (tmp_path / "a.csv").write_text(f"{WEAK}{row}\n")
    with pytest.raises(DataError, match=rf"a\.csv.*{message}"):
        parse_llp(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x\t0\t11\tCat", r"line 2: onset '0' and offset '11', wanted seconds from 0 to 10"),
        ("x\t0.5\t1\tCat", r"line 2: onset '0\.5'"),
        ("x\t-1\t1\tCat", r"line 2: onset '-1'"),
        ("x\t0\t1\tMeow", r"line 2: 'Meow' is none of"),
    ],
)
def test_wrong_events_are_named(tmp_path, row, message):
    (tmp_path / "a.csv").write_text(f"{DENSE}{row}\n")
    with pytest.raises(DataError, match=rf"a\.csv, {message}"):
        parse_llp_events(tmp_path / "a.csv")


@pytest.mark.parametrize("ends", ["\n\n", "\r\n\r\n", "\r\n \t\r\n"])
def test_empty_lines_are_passed_over(tmp_path, ends):
    lines = ["", "filename\tevent_labels", f"{NAMES[0]}\tSpeech,Dog", f"{NAMES[1]}\tCar"]
    (tmp_path / "a.csv").write_bytes((ends.join(lines) + ends).encode())
    assert [(row.filename, row.classes) for row in parse_llp(tmp_path / "a.csv")] == [
        (NAMES[0], (0, 3)),
        (NAMES[1], (1,)),
    ]
    (tmp_path / "a.csv").write_bytes(f"{DENSE}x\t0\t3\tCat{ends}y\t1\t2\tMeow{ends}".encode())
    with pytest.raises(DataError, match=r"a\.csv, line 4: 'Meow'"):  # lines keep their numbers
        parse_llp_events(tmp_path / "a.csv")


def test_a_lost_header_is_told(tmp_path):
    (tmp_path / "a.csv").write_text(f"{NAMES[0]}\tCat\n")
    with pytest.raises(DataError, match=r"a\.csv begins with .*: the columns filename, event_labels with tabs"):
        parse_llp(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"a\.csv begins with ''"):
        parse_llp(tmp_path / "a.csv")


def test_missing_files_are_named(tree):
    (tree / "audio" / "bbbbbbbb_-b.wav").unlink()
    with pytest.raises(DataError, match=r"1 of the clips of LLP test .*bbbbbbbb_-b: audio/bbbbbbbb_-b\.wav missing"):
        LLP(tree, "test")
    (tree / "AVVP_eval_visual.csv").unlink()
    with (
        pytest.warns(MediaWarning, match=r"bbbbbbbb_-b: audio/bbbbbbbb_-b\.wav missing"),
        pytest.raises(DataError, match=r"holds no AVVP_eval_visual\.csv"),
    ):
        LLP(tree, "test", on_error="skip")

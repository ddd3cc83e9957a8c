"""The report on a data set: what it recognises, what it misses, by name."""

import json
import shutil

import numpy as np
import pytest

from fastav.data import DataError, check_data
from fastav.data.check import Report

h5py = pytest.importorskip("h5py")

IDS = [f"{number:011d}" for number in range(14)]


@pytest.fixture
def ave(tmp_path, media):
    """AVE with a header, DG-SCT's frames and arrays: twelve clips to train, one each to validate and to test."""
    rows = "".join(f"Cat&{name}&good&0&10\n" for name in IDS)
    (tmp_path / "Annotations.txt").write_text(f"Category&VideoID&Quality&StartTime&EndTime\n{rows}")
    for split, order in (("train", range(12)), ("val", [12]), ("test", [13])):
        with h5py.File(tmp_path / f"{split}_order.h5", "w") as file:
            file["order"] = np.array(order, np.int64)
    media.frames(tmp_path / "frames" / IDS[0], digits=8)
    media.npy(tmp_path / "wave" / f"{IDS[0]}.npy")
    for name in IDS[1:]:
        shutil.copytree(tmp_path / "frames" / IDS[0], tmp_path / "frames" / name)
        (tmp_path / "wave" / f"{name}.npy").hardlink_to(tmp_path / "wave" / f"{IDS[0]}.npy")
    return tmp_path


def test_all_is_there(ave):
    report = check_data("ave", ave, deep=True)
    assert report.ok
    assert report.counts == {"train": 12, "val": 1, "test": 1}
    assert dict(report.found) == {
        "annotations": "Annotations.txt with a header",
        "videos": "14; some have several rows",
        "pictures": "frames in frames",
        "sounds": ".npy sounds in wave",
        "frames of train": "named %08d, 10 to 10, mostly 10",
        "frames of val": "named %08d, 10 to 10, mostly 10",
        "frames of test": "named %08d, 10 to 10, mostly 10",
    }
    said = str(report).splitlines()
    assert said[0] == f"ave in {ave}: ok"
    assert "  train: 12 annotated, 3339 published" in said


def test_all_missing_ids_are_kept_and_long_lists_folded(ave):
    for name in IDS[:11]:
        (ave / "wave" / f"{name}.npy").unlink()
    report = check_data("ave", ave)
    assert not report.ok
    assert report.missing["train"] == {name: f"wave/{name}.npy missing" for name in IDS[:11]}
    assert not report.missing["val"]
    said = str(report)
    assert said.startswith(f"ave in {ave}: not all there")
    assert "  train: 11 lack files: " in said
    assert f"{IDS[9]}: wave/{IDS[9]}.npy missing and 1 more" in said
    assert f"{IDS[10]}:" not in said


def test_a_split_of_which_nothing_is_left_is_listed_too(ave, media):
    for name in IDS[:12]:
        (ave / "wave" / f"{name}.npy").rename(ave / "wave" / f"x{name}.npy")
    media.npy(ave / "wave" / f"{IDS[0]}.npy")
    shutil.rmtree(ave / "frames" / IDS[0])
    report = check_data("ave", ave)
    assert list(report.missing["train"]) == IDS[:12]
    assert report.missing["train"][IDS[0]] == f"frames/{IDS[0]} missing"
    assert not report.errors


def test_broken_files_are_found_by_decoding(ave, media):
    (ave / "frames" / IDS[2] / "00000004.jpg").write_bytes(b"\xff\xd8")
    (ave / "wave" / f"{IDS[3]}.npy").unlink()
    (ave / "wave" / f"{IDS[3]}.npy").write_bytes(b"")
    shutil.rmtree(ave / "frames" / IDS[4])
    (ave / "frames" / IDS[4]).mkdir()
    for number in (9, 10):
        (ave / "frames" / IDS[12] / f"{number:08d}.jpg").unlink()
    report = check_data("ave", ave)
    assert list(report.broken["train"]) == [IDS[4]]  # an empty folder is seen without decoding
    assert dict(report.found)["frames of val"] == "named %08d, 8 to 8, mostly 8"
    report = check_data("ave", ave, deep=True)
    assert set(report.broken["train"]) == {IDS[2], IDS[3], IDS[4]}
    assert "00000004.jpg does not decode" in report.broken["train"][IDS[2]]
    assert len(report.filled["val"]) == 1
    assert "holds 8 pictures for 10 segments" in report.filled["val"][0]
    assert "  train: 3 are broken: " in str(report)
    assert "  val: 1 are shorter than their clip: " in str(report)


def test_cut_and_late_videos_are_found_by_decoding(tmp_path, media):
    (tmp_path / "Annotations.txt").write_text("".join(f"Cat&{name}&good&0&10\n" for name in IDS[:3]))
    for row, split in enumerate(("train", "val", "test")):
        with h5py.File(tmp_path / f"{split}_order.h5", "w") as file:
            file["order"] = np.array([row])
    cut = media.video(tmp_path / "AVE" / f"{IDS[0]}.mkv")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    media.video(tmp_path / "AVE" / f"{IDS[1]}.mp4", greys=[media.grey(9)] * 35, late=3)
    media.video(tmp_path / "AVE" / f"{IDS[2]}.mp4")
    report = check_data("ave", tmp_path, deep=True)
    assert not report.ok
    assert list(report.broken["train"]) == [IDS[0]]
    assert "though its header says 10.00 s" in report.broken["train"][IDS[0]]
    assert [words.partition(": ")[2][:34] for words in report.filled["val"]] == ["the video starts after 3.00 s and "]
    assert not report.broken["val"]
    assert not report.broken["test"]
    assert not report.filled["test"]


def test_annotations_of_ave_without_media(real_annotations):
    report = check_data("ave", real_annotations / "ave")
    assert not report.ok
    assert report.counts == report.published == {"train": 3339, "val": 402, "test": 402}
    assert dict(report.found) == {
        "annotations": "Annotations.txt without a header",
        "videos": "4097; some have several rows",
    }
    assert report.warts[0].endswith("VWi2ENBuTbw")
    assert [wart.partition(":")[0] for wart in report.warts[1:]] == [
        "10 videos are in train and in val",
        "8 videos are in train and in test",
    ]
    assert len(report.errors) == 1  # and not one for each split
    assert "has no folder with pictures" in report.errors[0]


def test_annotations_of_llp_and_music_avqa_without_media(real_annotations):
    report = check_data("llp", real_annotations / "llp")
    assert report.counts == report.published == {"train": 10000, "val": 649, "test": 1200}
    assert dict(report.found) == {"audio events": "4131 rows", "visual events": "2495 rows"}
    assert len(report.warts) == 5
    report = check_data("music-avqa", real_annotations / "music_avqa")
    assert report.counts == {"val": 4568, "test": 9129}
    assert dict(report.found)["questions of test"] == "avqa-test.json, revision json_update, test"
    assert dict(report.found)["answers of val"] == "41 different ones"
    assert "holds no avqa-train.json" in report.errors[0]


def test_avsbench(tmp_path, media):
    (tmp_path / "ms3_meta_data.csv").write_text("name,split\nab,train\nab,val\nab,test\n")
    folder = tmp_path / "ms3_data"
    for number in range(1, 6):
        media.picture(folder / f"visual_frames/ab/ab.mp4_{number}.png", 0)
        for split in ("train", "val", "test"):
            media.picture(folder / f"gt_masks/{split}/ab/ab_{number}.png", 255)
            media.wav(folder / f"audio_wav/{split}/ab.wav", seconds=5)
    report = check_data("avsbench-ms3", tmp_path, deep=True)
    assert report.ok
    assert dict(report.found)["pictures"] == "frames in visual_frames"
    assert dict(report.found)["sounds"] == ".wav sounds in audio_wav"
    assert report.counts == {"train": 1, "val": 1, "test": 1}
    (folder / "gt_masks/val/ab/ab_2.png").unlink()
    report = check_data("avsbench-ms3", tmp_path)
    assert "gt_masks/val/ab/ab_2.png missing" in str(report)
    assert "holds neither Single-source/s4_meta_data.csv" in str(check_data("avsbench-s4", tmp_path))


def test_videos_of_many_questions_are_decoded_once(tmp_path, media, monkeypatch):
    entry = {"video_id": "00000001", "type": '["Audio", "Counting"]', "question_content": "How many?"}
    entries = [{**entry, "question_id": number, "templ_values": "[]", "anser": "two"} for number in range(3)]
    for split in ("train", "val", "test"):
        (tmp_path / f"avqa-{split}.json").write_text(json.dumps(entries))
    media.frames(tmp_path / "frames" / "00000001", digits=8)
    media.npy(tmp_path / "audio_wave" / "00000001.npy")
    from fastav.data import clips

    read, times = clips.read_clip, []
    monkeypatch.setattr(clips, "read_clip", lambda files, **options: times.append(files) or read(files, **options))
    report = check_data("music-avqa", tmp_path, deep=True)
    assert report.ok
    assert len(times) == 3
    assert dict(report.found)["questions of val"] == "avqa-val.json, revision unknown"
    (tmp_path / "json_update").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "json_update" / f"avqa-{split}.json").write_text(json.dumps(entries[:2]))
    report = check_data("music-avqa", tmp_path, questions="json_update")
    assert report.ok
    assert report.counts == {"train": 2, "val": 2, "test": 2}
    assert dict(report.found)["questions of val"] == "json_update/avqa-val.json, revision unknown"
    assert check_data("music-avqa", tmp_path, questions=".").counts == {"train": 3, "val": 3, "test": 3}


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("ave", "Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime\n"),
        ("llp", "AVVP_train.csv", "filename\tevent_labels\n"),
        ("avsbench-ms3", "ms3_meta_data.csv", "name,split\n"),
        ("music-avqa", "avqa-train.json", "[]"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_annotations_that_are_not_utf8_are_named(tmp_path, name, file, text, encoding):
    (tmp_path / file).write_bytes((text + "\u00e9t\u00e9").encode(encoding))
    report = check_data(name, tmp_path)
    assert not report.ok
    byte = "byte 0 is 0xff" if encoding == "utf-16" else f"byte {len(text)} is 0xe9"
    assert any(
        error.startswith(f"{tmp_path / file} is no UTF-8 text ({byte}): save it as UTF-8") for error in report.errors
    )


def test_wrong_names_and_roots(tmp_path):
    with pytest.raises(DataError, match="'kinetics' is no data set: one of ave, llp, avsbench-s4"):
        check_data("kinetics", tmp_path)
    report = check_data("llp", tmp_path / "nowhere")
    assert report.errors == [f"{tmp_path / 'nowhere'} is no folder: give the folder that holds the data set"]
    assert not report.ok


def test_an_empty_report_is_fine(tmp_path):
    assert Report("ave", tmp_path).ok

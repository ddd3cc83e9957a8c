"""The reader of AVE, on its own annotation files and on small trees of the layouts that its users have."""

import shutil
from itertools import combinations

import pytest
import torch

from fastav.data import AVE, AVE_CLASSES, DataError, MediaError, MediaWarning, collate
from fastav.data.ave import ave_labels, ave_split, parse_ave

h5py = pytest.importorskip("h5py")

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
ROWS = ["Bark&aaaaaaaaaaa&good&2&5", "Cat&-_bbbbbbbbb&good&0&10", "Goat&ccccccccccc&good&0&0"]


def write_order(root, split, order, key="order"):
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / f"{split}_order.h5", "w") as file:
        file[key] = order


def annotate(root, rows=ROWS, train=(2, 0), val=(1,), test=()):
    root.mkdir(parents=True, exist_ok=True)
    (root / "Annotations.txt").write_text("\n".join(rows) + "\n")
    for split, order in (("train", train), ("val", val), ("test", test)):
        write_order(root, split, torch.tensor(order, dtype=torch.int64).numpy())
    return root


@pytest.fixture
def tree(tmp_path, media):
    """LAVISH's layout with two training clips and one to validate."""
    for name in ("aaaaaaaaaaa", "-_bbbbbbbbb", "ccccccccccc"):
        media.frames(tmp_path / "video_frames" / name)
        media.wav(tmp_path / "raw_audio" / f"{name}.wav")
    return annotate(tmp_path)


# The data set's own files


@pytest.mark.parametrize(("name", "header"), [("Annotations.txt", False), ("Annotations_with_header.txt", True)])
def test_both_forms_of_the_header_give_all_rows(real_annotations, name, header):
    made = parse_ave(real_annotations / "ave" / name)
    assert made.has_header is header
    assert len(made.rows) == 4143
    assert len({row.video for row in made.rows}) == 4097
    first = made.rows[0]
    assert (first.video, first.category, first.start, first.end) == ("RUhOCu3LNXM", 0, 0, 10)
    assert made.rows[-1].video == "0IklLP7_kBw"
    assert (made.rows[26].video, made.rows[26].start, made.rows[26].end) == ("VWi2ENBuTbw", 0, 0)


def test_classes_are_in_the_order_of_first_appearance(real_annotations):
    lines = (real_annotations / "ave" / "Annotations.txt").read_text().splitlines()
    assert tuple(dict.fromkeys(line.split("&")[0] for line in lines)) == AVE_CLASSES
    assert (len(AVE_CLASSES), AVE_CLASSES[0], AVE_CLASSES[-1]) == (28, "Church bell", "Mandolin")


def test_splits_and_their_overlaps(real_annotations):
    rows = {split: ave_split(real_annotations / "ave", split) for split in AVE.splits}
    assert {split: len(rows[split]) for split in rows} == {"train": 3339, "val": 402, "test": 402}
    ids = {split: {row.video for row in rows[split]} for split in rows}
    shared = {(a, b): len(ids[a] & ids[b]) for a, b in combinations(ids, 2)}
    assert shared == {("train", "val"): 10, ("train", "test"): 8, ("val", "test"): 0}
    assert "VWi2ENBuTbw" in ids["train"]


def test_labels_are_those_of_the_published_files(real_annotations):
    folder = real_annotations / "ave"
    with h5py.File(folder / "labels_closs.h5") as close, h5py.File(folder / "mil_labels.h5") as mil:
        event, category = torch.from_numpy(close["avadataset"][:]), torch.from_numpy(mil["avadataset"][:])
    rows = parse_ave(folder / "Annotations.txt").rows
    labels = torch.stack([ave_labels(row) for row in rows])
    assert torch.equal(labels != 28, event.bool())
    assert torch.equal(torch.where(event.bool(), category.argmax(1)[:, None], 28), labels)
    assert (category.argmax(1) != 28).all()


def test_background_of_the_test_split(real_annotations):
    labels = torch.stack([ave_labels(row) for row in ave_split(real_annotations / "ave", "test")])
    assert (labels == 28).sum() == 715  # 17.786 % of 4,020: what the benchmark's always-background scores


def test_a_lost_first_row_is_found(real_annotations, tmp_path):
    for path in (real_annotations / "ave").glob("*_order.h5"):
        shutil.copy(path, tmp_path)
    lines = (real_annotations / "ave" / "Annotations.txt").read_text().splitlines(keepends=True)
    (tmp_path / "Annotations.txt").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"Annotations\.txt has 4142 rows, .* ask for row 4142: a row was lost"):
        ave_split(tmp_path, "train")
    (tmp_path / "Annotations.txt").write_text("".join(["Bark&aaaaaaaaaaa&good&0&1\n", *lines[:-1]]))
    shutil.copy(real_annotations / "ave" / "mil_labels.h5", tmp_path)
    with pytest.raises(DataError, match=r"mil_labels\.h5 and .*Annotations\.txt differ .* first in row 0"):
        ave_split(tmp_path, "train")


# Clips


def test_a_clip(tree, media):
    data = AVE(tree, "train", image_size=16)
    assert len(data) == 2
    assert data.num_classes == 28
    assert not data.missing
    clip = data[1]
    assert set(clip) == {"id", "frames", "sound", "labels", "clip_labels"}
    assert clip["id"] == "aaaaaaaaaaa"
    assert clip["frames"].shape == (10, 3, 16, 16)
    assert clip["frames"].dtype == torch.uint8
    assert clip["frames"][:, 0, 8, 8].tolist() == [media.grey(second) for second in range(10)]
    assert torch.equal(clip["sound"], torch.from_numpy(media.samples(10, 16000)))
    assert clip["labels"].tolist() == [28, 28, 2, 2, 2] + [28] * 5
    assert clip["labels"].dtype == torch.int64
    assert clip["clip_labels"].nonzero().flatten().tolist() == [2]
    assert clip["clip_labels"].dtype == torch.float32
    background = data[0]  # its event lasts no second, and yet weak supervision knows its class
    assert background["labels"].tolist() == [28] * 10
    assert background["clip_labels"].nonzero().flatten().tolist() == [18]


def test_batches(tree):
    data = AVE(tree, "train", image_size=16)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=2, collate_fn=collate)))
    assert batch["id"] == ["ccccccccccc", "aaaaaaaaaaa"]
    assert batch["labels"].shape == (2, 10)
    assert batch["sound"].shape == (2, 160000)


def test_all_layouts_give_the_same_clip(tmp_path, media):
    name = "aaaaaaaaaaa"
    roots = {layout: annotate(tmp_path / layout, ROWS[:1], (0,), ()) for layout in ("lavish", "dg", "official")}
    media.frames(roots["lavish"] / "video_frames" / name, fps=3, digits=4)
    media.wav(roots["lavish"] / "raw_audio" / f"{name}.wav")
    media.frames(roots["dg"] / "frames" / name, digits=8)
    media.npy(roots["dg"] / "wave" / f"{name}.npy")
    media.video(roots["official"] / "AVE" / f"{name}.mp4")
    for root in roots.values():
        clip = AVE(root, "train", image_size=16)[0]
        levels = torch.tensor([media.grey(second) for second in range(10)])
        assert (clip["frames"][:, 1, 8, 8] - levels).abs().max() <= 2  # what the video codec and jpg lose
        heard = clip["sound"].view(10, 16000)[:, 4000:12000]  # away from the steps, where filters ring
        levels = torch.tensor([media.level(second) for second in range(10)])
        assert (heard.mean(1) - levels).abs().max() < 1e-3  # what the sound codec loses


def test_suffixes_in_capitals_are_files_too(tmp_path, media):
    roots = {layout: annotate(tmp_path / layout, ROWS[:1], (0,), ()) for layout in ("frames", "video")}
    media.frames(roots["frames"] / "frames/aaaaaaaaaaa", suffix=".PNG")
    media.wav(roots["frames"] / "audio/aaaaaaaaaaa.WAV")
    media.video(roots["video"] / "AVE/aaaaaaaaaaa.MP4")
    for root in roots.values():
        clip = AVE(root, "train", image_size=16)[0]
        levels = torch.tensor([media.grey(second) for second in range(10)])
        assert (clip["frames"][:, 1, 8, 8] - levels).abs().max() <= 2  # what the video codec loses
        heard = clip["sound"].view(10, 16000)[:, 4000:12000]
        levels = torch.tensor([media.level(second) for second in range(10)])
        assert (heard.mean(1) - levels).abs().max() < 1e-3  # what the sound codec loses


def test_arrays_of_another_length_are_refused(tree, media):
    shutil.rmtree(tree / "raw_audio")
    for name in ("aaaaaaaaaaa", "ccccccccccc"):
        media.npy(tree / "wave" / f"{name}.npy", rate=16000)
    with pytest.raises(MediaError, match=r"aaaaaaaaaaa\.npy holds 160000 samples: 10 s at 32000 Hz"):
        AVE(tree, "train")[1]


def test_media_chooses_the_layout(tree, media):
    media.video(tree / "AVE" / "aaaaaaaaaaa.mp4")
    assert AVE(tree, "train").layout.pictures == "frames in video_frames"
    with pytest.raises(DataError, match=r"1 of the clips of AVE train .*ccccccccccc: AVE/ccccccccccc\.mp4 missing"):
        AVE(tree, "train", media="video")
    with pytest.raises(DataError, match="media='vidoe': one of auto, video, frames is wanted"):
        AVE(tree, "train", media="vidoe")


def test_split_files_stand_for_orders_and_must_agree_with_them(tree):
    (tree / "trainSet.txt").write_text(f"{ROWS[2]}\n{ROWS[0]}\n")
    assert [row.video for row in ave_split(tree, "train")] == ["ccccccccccc", "aaaaaaaaaaa"]
    (tree / "trainSet.txt").write_text(f"{ROWS[2]}\n{ROWS[1]}\n")
    with pytest.raises(DataError, match=r"trainSet\.txt and .*train_order\.h5 differ first in row 1"):
        ave_split(tree, "train")
    (tree / "train_order.h5").unlink()
    assert [row.video for row in ave_split(tree, "train")] == ["ccccccccccc", "-_bbbbbbbbb"]


def test_a_byte_order_mark_hides_no_header(tmp_path):
    (tmp_path / "a.txt").write_text(f"{HEADER}\n{ROWS[0]}\n", encoding="utf-8-sig")
    assert parse_ave(tmp_path / "a.txt").has_header
    assert len(parse_ave(tmp_path / "a.txt").rows) == 1


def test_annotations_may_lie_in_a_folder_of_their_own(tree):
    (tree / "data").mkdir()
    for path in (tree / "Annotations.txt", *tree.glob("*.h5")):
        path.rename(tree / "data" / path.name)
    assert len(AVE(tree, "val")) == 1


# What is wrong is said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Meow&ddddddddddd&good&0&1", r"line 4: 'Meow' is none of AVE's 28 classes"),
        ("Cat&ddddddddddd&good&0&11", r"line 4: start '0' and end '11', wanted 0 <= start <= end <= 10"),
        ("Cat&ddddddddddd&good&5&4", r"line 4: start '5' and end '4'"),
        ("Cat&ddddddddddd&good&-1&4", r"line 4: start '-1'"),
        ("Cat,ddddddddddd,good,0,1", r"line 4 reads 'Cat,.*Category&VideoID&Quality&StartTime&EndTime is wanted"),
        (HEADER, r"line 4: 'Category' is none of"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, message):
    annotate(tmp_path, [*ROWS, row])
    with pytest.raises(DataError, match=rf"Annotations\.txt, {message}"):
        parse_ave(tmp_path / "Annotations.txt")


def test_files_that_do_not_belong_together(tree):
    write_order(tree, "test", [1])
    with pytest.raises(DataError, match="name a row twice"):
        ave_split(tree, "train")
    annotate(tree, [*ROWS, ROWS[0]])
    with pytest.raises(DataError, match=r"Annotations\.txt has 4 rows, the splits' order files name 3"):
        ave_split(tree, "train")
    write_order(tree, "train", [0], key="orders")
    with pytest.raises(DataError, match=r"train_order\.h5 has no array 'order'"):
        ave_split(tree, "train")
    (tree / "train_order.h5").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match=r"train_order\.h5 has no array"):
        ave_split(tree, "train")
    (tree / "Annotations.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no annotations"):
        parse_ave(tree / "Annotations.txt")


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        ([0.0, 2.0], r"float64 \(2,\)"),
        ([[2], [0]], r"int64 \(2, 1\)"),
        (0, r"int64 \(\)"),
        (["0", "2"], r"object \(2,\)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])  # that which is read, and one that is only checked
def test_orders_that_hold_no_row_numbers_are_named(tree, split, order, kind):
    write_order(tree, split, order)
    said = rf"{split}_order\.h5: 'order' is {kind}, whole numbers of rows \(n,\) are wanted: get it again"
    with pytest.raises(DataError, match=said):
        ave_split(tree, "train")


def test_arrays_of_other_kinds_are_named(tree):
    write_order(tree, "test", [])  # stored as floats, and right all the same
    assert len(ave_split(tree, "train")) == 2
    write_order(tree, "mil_labels", 0, key="avadataset")
    (tree / "mil_labels_order.h5").rename(tree / "mil_labels.h5")
    with pytest.raises(DataError, match=r"mil_labels\.h5 is \(\), .*Annotations\.txt has 3 rows of 28 classes"):
        ave_split(tree, "train")
    order = (tree / "train_order.h5").rename(tree / "aside.h5")
    (tree / "trainSet.txt").write_text(f"{ROWS[2]}\n{ROWS[0]}\n")  # a split file in its place
    with pytest.raises(DataError, match=r"mil_labels\.h5 is \(\), "):
        ave_split(tree, "train")
    (tree / "mil_labels.h5").unlink()
    assert len(ave_split(tree, "train")) == 2
    (tree / "trainSet.txt").unlink()
    order.rename(tree / "train_order.h5")
    with h5py.File(tree / "train_order.h5", "w") as file:
        file.create_group("order")
    with pytest.raises(DataError, match=r"train_order\.h5 has no array 'order' that can be read"):
        ave_split(tree, "train")


def test_wrong_arguments(tree, tmp_path):
    with pytest.raises(DataError, match="AVE has no split 'valid': one of train, val, test is wanted"):
        AVE(tree, "valid")
    with pytest.raises(DataError, match="on_error='ignore'"):
        AVE(tree, "train", on_error="ignore")
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        AVE(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no Annotations\.txt"):
        AVE(tmp_path / "empty", "train")
    annotate(tmp_path / "empty")
    with pytest.raises(DataError, match=r"empty has no folder with pictures .* video_frames, frames, frame, AVE"):
        AVE(tmp_path / "empty", "train")


def test_an_empty_split_is_refused(tree):
    with pytest.raises(DataError, match=r"AVE test in .* has no clips: its list of them is empty"):
        AVE(tree, "test")


def test_missing_files_are_refused_or_left_out(tree):
    shutil.rmtree(tree / "video_frames" / "ccccccccccc")
    (tree / "raw_audio" / "ccccccccccc.wav").unlink()
    lacking = r"ccccccccccc: video_frames/ccccccccccc and raw_audio/ccccccccccc\.wav missing"
    with pytest.raises(DataError, match=rf'1 of the clips of AVE train .*{lacking}.*on_error="skip"'):
        AVE(tree, "train")
    with pytest.warns(MediaWarning, match=lacking):
        data = AVE(tree, "train", on_error="skip")
    assert [row.video for row in data.rows] == ["aaaaaaaaaaa"]
    assert list(data.missing) == ["ccccccccccc"]


def test_broken_files_are_refused_or_left_out(tree):
    (tree / "raw_audio" / "ccccccccccc.wav").write_bytes(b"RIFF")
    with pytest.raises(MediaError, match=r"ccccccccccc\.wav does not decode"):
        AVE(tree, "train")[0]
    data = AVE(tree, "train", on_error="skip")
    with pytest.warns(MediaWarning, match=r"AVE: left out ccccccccccc: .*ccccccccccc\.wav does not decode"):
        clips = [data[0], data[1]]
    assert clips[0] is None
    assert collate(clips)["id"] == ["aaaaaaaaaaa"]
    assert collate(clips[:1]) == {}

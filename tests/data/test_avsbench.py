"""The reader of AVSBench on small trees of its two subsets; its annotation files are sent on request alone."""

import pickle

import numpy as np
import pytest
import torch

from fastav.data import AVSBENCH_CLASSES, AVSBench, DataError, MediaError, MediaWarning, collate
from fastav.data.avsbench import parse_avsbench, read_mask

Image = pytest.importorskip("PIL.Image")

CATEGORY = "horse_clip-clop"
S4 = f"name,start,category,split\nab-_1,3,{CATEGORY},train\ncd_2,0,{CATEGORY},test\n"
MS3 = "name,split\nef_3,train\ngh_4,test\n"


def write_mask(path, rows, mode="L"):
    """A mask of 4 x 6 pixels, its first rows an object; each mode with the value that files of it have."""
    array = np.zeros((4, 6), np.uint8)
    array[:rows] = 255
    picture = Image.fromarray(array)
    if mode == "P":  # an index, and not the colour it stands for
        picture = Image.fromarray(array // 255, "L")
        picture.putpalette([0, 0, 0, 9, 0, 0])
    elif mode == "RGBA":
        picture = picture.convert("RGB")
        picture.putalpha(255)
    elif mode != "L":
        picture = picture.convert(mode)
    assert picture.mode == mode
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture
def tree(tmp_path, media):
    """Both subsets, in the layout in which they are sent."""
    single, multi = tmp_path / "Single-source", tmp_path / "Multi-sources"
    for folder, table in ((single / "s4_meta_data.csv", S4), (multi / "ms3_meta_data.csv", MS3)):
        folder.parent.mkdir()
        folder.write_text(table)
    for name, split, masks in (("ab-_1", "train", 1), ("cd_2", "test", 5)):
        place = f"{split}/{CATEGORY}"
        for number in range(1, 6):
            media.picture(single / f"s4_data/visual_frames/{place}/{name}/{name}_{number}.png", 10 * number)
        for number in range(1, masks + 1):
            write_mask(single / f"s4_data/gt_masks/{place}/{name}/{name}_{number}.png", number % 4)
        media.wav(single / f"s4_data/audio_wav/{place}/{name}.wav", seconds=5)
    for name, split in (("ef_3", "train"), ("gh_4", "test")):
        for number in range(1, 6):
            media.picture(multi / f"ms3_data/visual_frames/{name}/{name}.mp4_{number}.png", 10 * number)
            write_mask(multi / f"ms3_data/gt_masks/{split}/{name}/{name}_{number}.png", number % 4, "RGB")
        media.wav(multi / f"ms3_data/audio_wav/{split}/{name}.wav", seconds=5)
    return tmp_path


def rows_of(masks):
    """How many rows of each frame are an object, all of whose pixels must be."""
    assert torch.equal(masks, masks[..., :1].expand_as(masks))
    return masks[..., 0].sum(1).tolist()


@pytest.mark.parametrize(
    ("subset", "split", "name", "masks", "annotated"),
    [
        ("s4", "train", f"{CATEGORY}/ab-_1", [1, 0, 0, 0, 0], [True, False, False, False, False]),
        ("s4", "test", f"{CATEGORY}/cd_2", [1, 2, 3, 0, 1], [True] * 5),
        ("ms3", "train", "ef_3", [1, 2, 3, 0, 1], [True] * 5),
        ("ms3", "test", "gh_4", [1, 2, 3, 0, 1], [True] * 5),
    ],
)
def test_clips(tree, media, subset, split, name, masks, annotated):
    data = AVSBench(tree, split, subset=subset, image_size=16)
    assert len(data) == 1
    clip = data[0]
    assert set(clip) == {"id", "frames", "sound", "masks", "has_mask"}
    assert clip["id"] == name
    assert clip["frames"].shape == (5, 3, 16, 16)
    assert clip["frames"][:, 0, 8, 8].tolist() == [10, 20, 30, 40, 50]
    assert torch.equal(clip["sound"], torch.from_numpy(media.samples(5, 16000)))
    assert clip["masks"].shape == (5, 4, 6)
    assert clip["masks"].dtype == clip["has_mask"].dtype == torch.bool
    assert rows_of(clip["masks"]) == masks
    assert clip["has_mask"].tolist() == annotated


def test_a_subsets_own_folder_is_a_root_too(tree):
    assert AVSBench(tree / "Multi-sources", "train", subset="ms3", image_size=16)[0]["id"] == "ef_3"


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA"])
def test_masks_of_all_forms(tmp_path, mode):
    write_mask(tmp_path / "a.png", 3, mode)
    mask = read_mask(tmp_path / "a.png")
    assert mask.dtype == torch.bool
    assert mask.shape == (4, 6)
    assert rows_of(mask[None]) == [3]


def test_dark_and_coloured_objects_are_objects(tmp_path):
    Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False, True, True, True]]
    colours = np.array([[[0, 0, 0], [0, 0, 1], [9, 0, 0]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("palette", "wanted"),
    [
        ([0, 0, 0, 255, 255, 255, 9, 0, 0], [False, True, True]),
        ([255, 255, 255, 0, 0, 0, 9, 0, 0], [True, False, True]),  # the order in which quantize() may put them
        ([0, 0, 0, 0, 0, 0, 9, 0, 0], [False, True, True]),  # an index, where black is the background's
    ],
)
def test_palettes_that_do_not_begin_with_black_go_by_colour(tmp_path, palette, wanted):
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    picture.putpalette(palette)
    assert picture.mode == "P"
    picture.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [wanted]


def test_a_mask_that_pillow_quantised(tmp_path):
    array = np.zeros((4, 6), np.uint8)
    array[:3] = 255
    picture = Image.fromarray(array).convert("RGB").quantize(2)
    assert picture.getpalette()[:3] == [255, 255, 255]
    picture.save(tmp_path / "a.png")
    assert rows_of(read_mask(tmp_path / "a.png")[None]) == [3]


def test_suffixes_in_capitals_are_files_too(tree, media):
    wanted = AVSBench(tree, "test", subset="ms3", image_size=16)[0]
    for path in [*tree.rglob("*.png"), *tree.rglob("*.wav")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    clip = AVSBench(tree, "test", subset="ms3", image_size=16)[0]
    for name in ("frames", "sound", "masks"):
        assert torch.equal(clip[name], wanted[name])
    media.video(tree / "Multi-sources/ms3_data/raw_videos/gh_4.MP4", seconds=5)
    clip = AVSBench(tree, "test", subset="ms3", media="video", image_size=16)[0]
    assert clip["frames"][:, 1, 8, 8].tolist() == pytest.approx([media.grey(s) for s in range(5)], abs=2)  # the codec's


def test_videos_are_shown_at_the_last_sixteenth_of_each_second(tree, media):
    single = tree / "Single-source/s4_data"
    # Of a second's five frames the last is shown from 0.8 s on; it alone is bright here.
    greys = [40 * (frame // 5 + 1) if frame % 5 == 4 else 0 for frame in range(25)]
    media.video(single / f"raw_videos/test/{CATEGORY}/cd_2.mp4", seconds=5, greys=greys)
    (single / f"visual_frames/test/{CATEGORY}/cd_2/cd_2_1.png").unlink()
    clip = AVSBench(tree, "test", subset="s4", image_size=16)[0]
    assert clip["frames"][:, 1, 8, 8].tolist() == pytest.approx([40, 80, 120, 160, 200], abs=2)  # the codec's loss
    assert torch.equal(clip["sound"], torch.from_numpy(media.samples(5, 16000)))  # still that of the wav
    heard = AVSBench(tree, "test", subset="s4", media="video", image_size=16)[0]["sound"]
    levels = torch.tensor([media.level(second) for second in range(5)])
    assert (heard.view(5, 16000)[:, 4000:12000].mean(1) - levels).abs().max() < 1e-3  # the codec's loss
    media.video(tree / "Multi-sources/ms3_data/raw_videos/gh_4.mp4", seconds=5, greys=greys, sound=False)
    with pytest.raises(MediaError, match=r"gh_4\.mp4 has no audio stream"):
        AVSBench(tree, "test", subset="ms3", media="video")[0]


def test_arrays_of_all_sounds(tree, media):
    for wav in (tree / "Single-source/s4_data/audio_wav").rglob("*.wav"):
        wav.unlink()
    for split, name in (("train", "ab-_1"), ("test", "cd_2")):
        path = tree / f"Single-source/s4_data/wave/{split}/{CATEGORY}/AVS.npy"
        path.parent.mkdir(parents=True)
        np.save(path, {f"{name}.wav": media.samples(5, 32000)}, allow_pickle=True)
    data = AVSBench(tree, "train", subset="s4", sampling_rate=32000, image_size=16)
    assert torch.equal(data[0]["sound"], torch.from_numpy(media.samples(5, 32000)))
    assert AVSBench(tree, "train", subset="s4", image_size=16)[0]["sound"].shape == (80000,)
    path = tree / f"Single-source/s4_data/wave/train/{CATEGORY}/AVS.npy"
    path.rename(path.with_suffix(".NPY"))
    again = AVSBench(tree, "train", subset="s4", sampling_rate=32000, image_size=16)
    assert torch.equal(again[0]["sound"], data[0]["sound"])
    path.with_suffix(".NPY").unlink()
    np.save(path, {"other.wav": media.samples(5, 32000)}, allow_pickle=True)
    with pytest.raises(MediaError, match=r'AVS\.npy holds no sound "ab-_1\.wav"'):
        AVSBench(tree, "train", subset="s4")[0]


def test_it_travels_to_workers_and_makes_batches(tree):
    data = pickle.loads(pickle.dumps(AVSBench(tree, "test", subset="ms3", image_size=16)))
    batch = collate([data[0], data[0]])
    assert batch["masks"].shape == (2, 5, 4, 6)
    assert batch["has_mask"].all()


# What is wrong is said


@pytest.mark.parametrize(
    ("subset", "table", "message"),
    [
        ("s4", "name,split\nab,train\n", r"line 1 has 2 columns: name, start, category, split are wanted"),
        ("s4", S4 + "x,0,meowing,test\n", r"line 4: 'meowing' is none of the 23 categories"),
        ("s4", S4 + f"x,0,{CATEGORY},tset\n", r"line 4: 'tset' is no split, wanted train, val, test"),
        ("s4", S4 + f"cd_2,9,{CATEGORY},test\n", r"names a clip twice"),
        ("ms3", "name,split\n", r"names no clips"),
        ("ms3", "name\n", r"line 1 has 1 columns: name, split are wanted"),
        ("ms3", "\nname,split\n\nef_3,tset\n", r"line 4: 'tset' is no split"),
        ("ms3", "\n\n", r"names no clips"),
    ],
)
def test_wrong_tables_are_named(tmp_path, subset, table, message):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(DataError, match=rf"a\.csv.*{message}"):
        parse_avsbench(tmp_path / "a.csv", subset)


def test_columns_are_told_by_position(tmp_path):
    (tmp_path / "a.csv").write_text(S4)
    rows = parse_avsbench(tmp_path / "a.csv", "s4")
    (tmp_path / "a.csv").write_text(S4.replace("name,start,category,split", "id,t,label,set,"))
    assert parse_avsbench(tmp_path / "a.csv", "s4") == rows
    (tmp_path / "a.csv").write_text(S4.partition("\n")[2])
    assert parse_avsbench(tmp_path / "a.csv", "s4") == rows
    assert [(row.name, row.split, row.category) for row in rows] == [
        ("ab-_1", "train", CATEGORY),
        ("cd_2", "test", CATEGORY),
    ]
    assert len(AVSBENCH_CLASSES) == len(set(AVSBENCH_CLASSES)) == 23


@pytest.mark.parametrize(
    "text", [S4 + "\n\n", S4.replace("\n", "\r\n") + " \r\n", "\n" + S4.replace("\n", "\n\n"), S4 + ",,,\n"]
)
def test_empty_lines_are_passed_over(tmp_path, text):
    (tmp_path / "a.csv").write_text(S4)
    wanted = parse_avsbench(tmp_path / "a.csv", "s4")
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert parse_avsbench(tmp_path / "a.csv", "s4") == wanted
    assert len(wanted) == 2


def test_wrong_roots_are_named(tree, tmp_path):
    with pytest.raises(DataError, match=r"subset='s3': .s4. \(single source\) or .ms3."):
        AVSBench(tree, "train", subset="s3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds neither Multi-sources/ms3_meta_data\.csv nor ms3_meta_data\.csv"):
        AVSBench(tmp_path / "empty", "train", subset="ms3")


def test_an_empty_split_is_refused(tree):
    with pytest.raises(DataError, match=r"AVSBench val in .* has no clips: its list of them is empty"):
        AVSBench(tree, "val", subset="ms3")


def test_missing_and_broken_files_are_named(tree):
    folder = tree / "Multi-sources/ms3_data"
    (folder / "visual_frames/gh_4/gh_4.mp4_3.png").unlink()
    (folder / "gt_masks/test/gh_4/gh_4_5.png").unlink()
    lacking = r"gh_4: visual_frames/gh_4/gh_4\.mp4_3\.png and gt_masks/test/gh_4/gh_4_5\.png missing"
    with pytest.raises(DataError, match=rf"1 of the clips of AVSBench test .*{lacking}"):
        AVSBench(tree, "test", subset="ms3", on_error="skip")  # none is left
    (folder / "gt_masks/train/ef_3/ef_3_2.png").write_bytes(b"\x89PNG")
    with pytest.raises(MediaError, match=r"ef_3_2\.png does not decode"):
        AVSBench(tree, "train", subset="ms3")[0]
    with pytest.warns(MediaWarning, match=r"AVSBench: left out ef_3: .*ef_3_2\.png does not decode"):
        assert AVSBench(tree, "train", subset="ms3", on_error="skip")[0] is None
    Image.new("L", (3, 3)).save(folder / "gt_masks/train/ef_3/ef_3_2.png")
    sizes = r"ef_3_2\.png is \(3, 3\), .*ef_3_1\.png \(4, 6\): the masks \(H, W\) of a split are wanted in one size"
    with pytest.raises(MediaError, match=sizes):
        AVSBench(tree, "train", subset="ms3")[0]


@pytest.fixture
def uneven(tree):
    """Two multi-source test clips, the second of which has masks of another size."""
    folder = tree / "Multi-sources/ms3_data"
    (tree / "Multi-sources/ms3_meta_data.csv").write_text(f"{MS3}ef_3,test\n")
    for number in range(1, 6):
        path = folder / f"gt_masks/test/ef_3/ef_3_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 5)).save(path)
    (folder / "audio_wav/test/ef_3.wav").write_bytes((folder / "audio_wav/train/ef_3.wav").read_bytes())
    return tree


def test_masks_of_another_size_than_the_first_clips_are_named(uneven):
    folder = uneven / "Multi-sources/ms3_data"
    sizes = r"ef_3_1\.png is \(5, 8\), .*gh_4_1\.png \(4, 6\): the masks \(H, W\) of a split are wanted in one size"
    data = AVSBench(uneven, "test", subset="ms3", image_size=16)
    with pytest.raises(MediaError, match=sizes):  # whichever clip is read first
        data[1]
    assert data[0]["masks"].shape == (5, 4, 6)
    data = AVSBench(uneven, "test", subset="ms3", image_size=16, on_error="skip")
    with pytest.warns(MediaWarning, match=rf"left out ef_3: .*{sizes}"):
        assert collate([data[0], data[1]])["id"] == ["gh_4"]
    (folder / "gt_masks/test/gh_4/gh_4_1.png").write_bytes(b"\x89PNG")  # then the next clip gives the size
    assert AVSBench(uneven, "test", subset="ms3", image_size=16)[1]["masks"].shape == (5, 5, 8)


def test_clips_that_make_no_batch_are_named(uneven):
    test = AVSBench(uneven, "test", subset="ms3", image_size=16)[0]
    small = AVSBench(uneven, "train", subset="ms3", image_size=8)[0]
    with pytest.raises(DataError, match=r"frames of ef_3 are \(5, 3, 8, 8\), of gh_4 \(5, 3, 16, 16\): .* one shape"):
        collate([test, None, small])

"""A video that is given by itself is cut as the data set's own reader cuts it."""

import shutil
from dataclasses import replace

import pytest
import torch

from fastav.training.arguments import train_config, train_parser
from fastav.training.build import Opener, build_adapter, build_pair
from tests.data.conftest import Media

# Task, data set, its folder, where its videos are, how long the video is, and its frames a second. Videos are longer
# than a clip is, whose segments are the first ones of it, or in MUSIC-AVQA parts of the whole.
CASES = {
    "ave": ("localization", "ave", "ave_root", "AVE/{}.mkv", 12, 5),
    "llp": ("parsing", "llp", "llp_root", "video/{}.mp4", 12, 5),
    "s4": ("segmentation", "avsbench-s4", "avs_root", "Single-source/s4_data/raw_videos/test/{}.mp4", 6, 16),
    "ms3": ("segmentation", "avsbench-ms3", "avs_root", "Multi-sources/ms3_data/raw_videos/{}.mp4", 6, 16),
    "music-avqa": ("question_answering", "music-avqa", "qa_root", "MUSIC-AVQA-videos-Real/{}.mkv", 60, 4),
}
_WINDOWS = "--data.options={num_segments: 6, seconds_per_segment: 2}"


@pytest.mark.parametrize(("case", "more"), [*((case, []) for case in CASES), ("music-avqa", [_WINDOWS])])
def test_a_video_is_cut_as_the_data_sets_clips_are(case, more, request, flags, tmp_path):
    task, name, tree, place, seconds, fps = CASES[case]
    root = tmp_path / "root"
    shutil.copytree(request.getfixturevalue(tree), root)
    words = [f"--task={task}", f"--data.name={name}", f"--data.root={root}", "--data.media=video", *flags, *more]
    config = train_config(train_parser(words).parse_args(words))
    pair = build_pair(config)
    opener = Opener(build_adapter(config, pair), pair.data, config.data)
    greys = [97 * frame % 251 for frame in range(seconds * fps)]  # each frame is far from the next
    video = Media().video(tmp_path / f"some{place[-4:]}", seconds=seconds, fps=fps, greys=greys)
    extracted = pair.data.open(replace(config.data, media="frames"), "test")
    for row in extracted.rows:
        path = root / place.format(extracted.file_of(row))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
    for raw, kinds in ((True, ("frames", "sound")), (False, ("visual", "audio"))):
        clip, own = opener.video(str(video), raw=raw), opener("test", raw=raw)[0]
        assert clip["id"] == "some"
        for kind in kinds:
            assert torch.equal(clip[kind], own[kind]), kind
    segments = opener.num_segments
    shown = opener.video(str(video), raw=True)
    levels = shown["sound"].view(segments, -1).mean(1)
    assert len(shown["frames"].flatten(1).float().mean(1).round().unique()) == segments  # each another frame
    assert (levels.diff() > 0.01).all()  # and another sound

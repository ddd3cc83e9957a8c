"""The commands end to end, on clips that are learnt in seconds."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from fastav import FrozenBackbone
from fastav.data import collate
from fastav.training.arguments import train_config, train_parser
from fastav.training.cli import main
from fastav.training.run import set_up_training
from tests.training.conftest import epochs


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_validation_chooses_the_epoch(run):
    logged = epochs(run)
    assert len(logged["train/loss"]) == 5
    assert logged["train/loss"][-1] < 0.25 * logged["train/loss"][0]
    record = json.loads((run / "best" / "record.json").read_text())
    accuracies = logged["validation/accuracy"]
    assert record["chosen_by"] == "validation/accuracy"
    assert record["score"] == max(accuracies)
    assert record["epoch"] == accuracies.index(max(accuracies))


def test_checkpoints_hold_adapter_and_head_alone(run):
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert {name.partition(".")[0] for name in best} == {"adapter", "task"}
    assert not [name for name in best if name.startswith(("adapter.visual", "adapter.audio"))]
    from safetensors.torch import load_file

    kept = {f"adapter.{name}": value for name, value in load_file(run / "best" / "adapter_model.safetensors").items()}
    kept |= {f"task.{name}": value for name, value in load_file(run / "best" / "head.safetensors").items()}
    assert kept.keys() == best.keys()
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_evaluation_gives_the_score_that_chose_the_epoch(run, capsys):
    assert main(["evaluate", str(run), "--split=val"]) == 0
    scores = json.loads((run / "scores-val.json").read_text())
    assert scores["scores"]["accuracy"] == json.loads((run / "best" / "record.json").read_text())["score"]
    assert (scores["clips"], scores["left_out"]) == (5, 0)
    assert scores["scores"]["mismatched_recall"] is None  # of nothing
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["accuracy", f"{100 * scores['scores']['accuracy']:.2f}"] in shown


def test_predictions_are_what_was_scored(run, ave_root, tmp_path):
    assert main(["evaluate", str(run), "--data.batch_size=3"]) == 0
    scored = json.loads((run / "scores-test.json").read_text())["scores"]["accuracy"]
    assert main(["predict", str(run), f"--output={tmp_path}"]) == 0
    predicted = lines(tmp_path)
    rows = [line.split("&") for line in (ave_root / "testSet.txt").read_text().splitlines()]
    assert [(line["id"], line["index"]) for line in predicted] == [(row[1], n) for n, row in enumerate(rows)]
    right = 0
    for line, (category, _, _, start, end) in zip(predicted, rows, strict=True):
        said = ["background"] * 10
        for event in line["events"]:
            said[int(event["start"]) : int(event["end"])] = [event["event"]] * int(event["end"] - event["start"])
        right += sum(
            word == (category if int(start) <= second < int(end) else "background") for second, word in enumerate(said)
        )
    assert right / 70 == pytest.approx(scored, abs=1e-6)  # float32 against float64
    arrays = np.load(tmp_path / "probabilities.npz")
    assert arrays["probabilities"].shape == (7, 10, 29)
    assert list(arrays["id"]) == [row[1] for row in rows]


def test_a_single_video_is_predicted(run, tmp_path, capsys):
    video = write_video(tmp_path / "red.mkv", seconds=10)
    assert main(["predict", str(run), f"--video={video}", f"--output={tmp_path / 'out'}"]) == 0
    (line,) = lines(tmp_path / "out")
    assert line.keys() == {"id", "events"}  # a video is in no split's list
    assert line["id"] == "red"
    assert {event["event"] for event in line["events"]} == {"Church bell"}  # red, and its tone
    assert json.dumps(line) in capsys.readouterr().out
    assert main(["visualize", str(run), f"--video={video}", f"--output={tmp_path / 'red.png'}"]) == 0
    assert (tmp_path / "red.png").stat().st_size > 10_000


def write_video(path, seconds):
    """Red frames, and the tone that goes with red."""
    av = pytest.importorskip("av")
    from fractions import Fraction

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 40, 40, "yuv420p"
        audio = container.add_stream("pcm_f32le", rate=16000)
        audio.layout = "mono"
        for number in range(2 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((40, 40, 3), (230, 30, 30), np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        tone = np.sin(2 * np.pi * 300 * np.arange(16000 * seconds) / 16000).astype(np.float32) / 3
        sound = av.AudioFrame.from_ndarray(tone[None], "flt", "mono")
        sound.sample_rate, sound.pts, sound.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


def test_splits_that_are_read_from_different_places_are_named(ave_root, flags, tmp_path, capsys):
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    video = write_video(tmp_path / "red.mkv", seconds=10)
    (root / "video").mkdir()
    for number in range(5):
        shutil.rmtree(root / "frames" / f"val{number:07d}")
        shutil.copy(video, root / "video" / f"val{number:07d}.mkv")
    arguments = ["train", "--task=localization", "--optimizer.epochs=1", *flags]
    assert main([*arguments, f"--data.root={root}", f"--output={tmp_path / 'mixed'}"]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert f"note: the splits in {root} are not read from the same places" in shown
    assert "pictures of train are frames in frames, of val videos in video. Each" in shown  # and sounds are alike
    assert main([*arguments, f"--data.root={ave_root}", f"--output={tmp_path / 'alike'}"]) == 0
    assert "not read from the same places" not in capsys.readouterr().err


def test_rows_of_one_video_are_told_apart(run, ave_root, tmp_path, capsys):
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    listed = root / "testSet.txt"
    rows = listed.read_text().splitlines()
    listed.write_text("\n".join([*rows, rows[1].replace("&good&", "&bad&")]) + "\n")
    shutil.rmtree(root / "frames" / "test0000004")  # left out, and counted by the index
    given = [str(run), f"--data.root={root}", "--data.on_error=skip"]
    with pytest.warns(UserWarning, match="test0000004"):
        assert main(["predict", *given, f"--output={tmp_path / 'out'}"]) == 0
    predicted = lines(tmp_path / "out")
    assert [line["index"] for line in predicted] == [0, 1, 2, 3, 5, 6, 7]
    assert [line["id"] for line in predicted if line["index"] in (1, 7)] == ["test0000001"] * 2
    drawn = f"--output={tmp_path / 'drawn.png'}"
    capsys.readouterr()
    with pytest.warns(UserWarning, match="test0000004"):
        assert main(["visualize", *given, "--id=test0000001", drawn]) == 0
    words = "2 rows of test are called test0000001; drawn is that of index 1, and --index draws another: 7"
    assert words in capsys.readouterr().err
    with pytest.warns(UserWarning, match="test0000004"):
        assert main(["visualize", *given, "--index=7"]) == 0
    shown = capsys.readouterr()
    assert "rows of test" not in shown.err
    assert shown.out.strip() == str(run / "attention-test0000001-7.png")
    with pytest.warns(UserWarning, match="test0000004"):
        assert main(["visualize", *given, "--index=4"]) == 2
    assert "test has no clip of index 4: one of 0 ... 7 is wanted that is not left out" in capsys.readouterr().err


def test_flags_override_the_file_and_the_file_says_what_ran(run, tmp_path, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["optimizer"]["lr"], config["adapter"]["num_tokens"]) == ("localization", 0.01, 2)
    with pytest.raises(SystemExit) as done:
        main(["train", f"--config={run / 'config.yaml'}", "--adapter.num_tokens=3", "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    config["adapter"]["num_tokens"] = 3
    assert printed == config


def test_choosing_by_the_test_split_is_said(ave_root, flags, tmp_path, capsys):
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={tmp_path}", "--optimizer.epochs=1"]
    assert main(["train", *arguments, *flags, "--select_on_test=true"]) == 0
    assert "the test split chooses the epoch" in capsys.readouterr().err
    record = json.loads((tmp_path / "best" / "record.json").read_text())
    assert record["chosen_by"] == "test/accuracy"
    assert "validation/accuracy" not in epochs(tmp_path)
    assert main(["evaluate", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "scores-test.json").read_text())["scores"]["accuracy"] == record["score"]
    assert "optimistic" in capsys.readouterr().err


def test_random_backbones_are_drawn_again_alike(ave_root, flags, tmp_path):
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={tmp_path}", "--optimizer.epochs=1"]
    random = ["--visual.checkpoint=null", "--visual.pretrained=false", "--audio.pretrained=false", "--seed=5"]
    assert main(["train", *arguments, *flags, *random]) == 0
    torch.rand(3)
    assert main(["evaluate", str(tmp_path), "--split=val"]) == 0
    record = json.loads((tmp_path / "best" / "record.json").read_text())
    assert json.loads((tmp_path / "scores-val.json").read_text())["scores"]["accuracy"] == record["score"]


def test_backbones_run_in_the_chunks_that_were_asked_for(ave_root, flags, tmp_path, monkeypatch):
    """In training, and when the run is scored later."""
    seen, at_once = set(), FrozenBackbone._at_once

    def noted(self, x, ready):
        seen.add((type(self.module).__name__, len(x)))
        return at_once(self, x, ready)

    monkeypatch.setattr(FrozenBackbone, "_at_once", noted)
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={tmp_path}", "--optimizer.epochs=1"]
    assert main(["train", *arguments, *flags, "--visual.chunk=3", "--audio.chunk=4"]) == 0
    trained, kinds = set(seen), {kind for kind, _ in seen}
    assert len(kinds) == 2
    assert {max(size for one, size in trained if one == kind) for kind in kinds} == {3, 4}
    seen.clear()
    assert main(["evaluate", str(tmp_path), "--split=val"]) == 0
    assert {max(size for one, size in seen if one == kind) for kind in kinds} == {3, 4}


def test_what_is_not_asked_about_is_swapped_in_training(qa_run, qa_root, flags, tmp_path):
    """All questions are about one sense here: with the swap, other weights come of them, the same ones each time."""
    arguments = ["--task=question_answering", f"--data.root={qa_root}", "--optimizer.epochs=1", *flags]
    for share in (0.0, 0.5):
        assert main(["train", *arguments, f"--output={tmp_path / str(share)}", f"--head.swap_unasked={share}"]) == 0
    first, without, again = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
        for run in (qa_run, tmp_path / "0.0", tmp_path / "0.5")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["task.head.heard.2.weight"], without["task.head.heard.2.weight"])


def test_answers_in_another_order_are_refused(qa_run, qa_root, tmp_path, capsys):
    root = tmp_path / "qa"
    shutil.copytree(qa_root, root)
    questions = json.loads((root / "json" / "avqa-train.json").read_text())
    (root / "json" / "avqa-train.json").write_text(json.dumps(questions[::-1]))
    assert main(["evaluate", str(qa_run), f"--data.root={root}"]) == 2
    assert "test has other classes or answers, or in another order" in capsys.readouterr().err


def test_a_question_about_a_video_is_answered(qa_run, run, tmp_path, capsys):
    video = write_video(tmp_path / "minute.mkv", seconds=20)
    assert main(["predict", str(qa_run), f"--video={video}"]) == 2
    assert "the task 'question_answering' wants a --question" in capsys.readouterr().err
    assert main(["predict", str(run), f"--video={video}", "--question=Why?"]) == 2
    assert "the task 'localization' answers no --question" in capsys.readouterr().err
    asked = [f"--video={video}", "--question=Is there a red in the video?", f"--output={tmp_path / 'out'}"]
    assert main(["predict", str(qa_run), *asked]) == 0
    (line,) = lines(tmp_path / "out")
    assert line["question"] == "Is there a red in the video?"
    assert line["answers"] in {"yes", "no", "one", "two"}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_clip_that_cannot_be_drawn_is_named_with_its_file(run, ave_root, tmp_path, capsys, on_error):
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    broken = root / "frames" / "test0000001" / "0003.jpg"
    broken.write_bytes(b"no picture")
    asked = [f"--data.root={root}", f"--data.on_error={on_error}", "--id=test0000001"]
    assert main(["visualize", str(run), *asked]) == 2
    shown = capsys.readouterr().err
    assert f"test0000001: {broken} does not decode" in shown
    assert "extract it again" in shown
    assert "to draw another clip, name it by --id" in shown


def test_the_mode_of_scoring_is_chosen_at_evaluation(run, avs_root, flags, tmp_path, monkeypatch, capsys):
    from fastav.metrics import SegmentationScores

    folder = tmp_path / "avs"
    kind = ["--task=segmentation", "--data.name=avsbench-ms3", f"--data.root={avs_root}", "--optimizer.epochs=1"]
    assert main(["train", *kind, f"--output={folder}", *flags]) == 0
    by_hand = {"dataset": 0.25, "avsbench": 0.75}  # as the clips are too few to differ by mode
    monkeypatch.setattr(SegmentationScores, "compute", lambda self: {"miou": torch.tensor(by_hand[self.mode])})
    for words, mode in (([], "dataset"), (["--scoring=avsbench"], "avsbench"), (["--scoring=dataset"], "dataset")):
        assert main(["evaluate", str(folder), *words]) == 0
        written = json.loads((folder / "scores-test.json").read_text())
        assert (written["scoring"], written["scores"]) == (mode, {"miou": by_hand[mode]})
    assert main(["evaluate", str(run), "--scoring=avsbench"]) == 2
    assert "--scoring is for the task 'segmentation', and this run's is 'localization'" in capsys.readouterr().err


_SCENES = ["--optimizer.epochs=5", "--optimizer.lr=0.003", "--data.batch_size=2"]  # four clips are few for one step
LONG_ENOUGH = {"avsbench-s4": _SCENES, "avsbench-ms3": _SCENES}


@pytest.mark.parametrize("task", ["parsing", "avsbench-s4", "avsbench-ms3", "question_answering"])
@pytest.mark.parametrize("method", ["mettle", "molt"])
def test_each_task_trains_scores_and_predicts(task, method, request, flags, tmp_path):
    root = request.getfixturevalue({"parsing": "llp_root", "question_answering": "qa_root"}.get(task, "avs_root"))
    kind = [f"--task={task}"] if "avsbench" not in task else ["--task=segmentation", f"--data.name={task}"]
    command = ["train", *kind, f"--method={method}", f"--data.root={root}", f"--output={tmp_path / 'run'}"]
    assert main([*command, *flags, *LONG_ENOUGH.get(task, ["--optimizer.epochs=3"])]) == 0
    run = tmp_path / "run"
    losses = epochs(run)["train/loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert all(value > 0 for value in epochs(run)["train/aux_loss"]) == (method == "molt")
    assert main(["evaluate", str(run), "--split=val"]) == 0
    record = json.loads((run / "best" / "record.json").read_text())
    scores = json.loads((run / "scores-val.json").read_text())
    monitor = record["chosen_by"].removeprefix("validation/")
    assert scores["scores"][monitor] == pytest.approx(record["score"], abs=1e-6)
    assert main(["predict", str(run), f"--output={tmp_path / 'out'}"]) == 0
    if task in LONG_ENOUGH:
        assert record["score"] > 0.8  # red on the left with its tone, or green on the right: learnt in seconds
    if task == "avsbench-s4" and method == "mettle":  # one subset's run on the other's clips, whose ids are bare names
        assert main(["predict", str(run), "--data.name=avsbench-ms3", f"--output={tmp_path / 'other'}"]) == 0
        assert [line["id"] for line in lines(tmp_path / "other")] == ["test0", "test1", "test2"]
    check_predictions(task, lines(tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize(
    "kind",
    [["parsing", "llp"], ["segmentation", "avs", "--data.name=avsbench-s4"], ["question_answering", "qa"]]
    + [["localization", "ave", f"--head.supervision={supervision}"] for supervision in ("full", "weak")],
    ids=lambda kind: kind[0],
)
@pytest.mark.parametrize("method", ["mettle", "molt"])
@pytest.mark.parametrize("source", [None, "audio", "visual", "both"])
def test_every_trainable_parameter_gets_a_gradient(kind, method, source, request, flags, tmp_path):
    """As several processes want it, which wait for the gradients of all; in 16 bits too."""
    task, data, *more = kind
    root = request.getfixturevalue(f"{data}_root")
    words = [f"--task={task}", f"--method={method}", f"--data.root={root}", f"--output={tmp_path / 'run'}"]
    words += [*flags, *more]
    if source is not None:
        words += ["--adapter.inject_stages=stages", f"--adapter.inject_source={source}"]
    training = set_up_training(train_config(train_parser(words).parse_args(words)))
    batch = collate([training.clips.train[number] for number in range(4)])
    module = training.module.train()
    module.log_dict = module.log = lambda *_, **__: None  # there is no trainer to log to
    for bits in (32, 16):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bits == 16):
            loss = module.training_step(batch, 0)
        loss.backward()
        named = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        assert [name for name, gradient in named.items() if gradient is None] == []
        assert [name for name, gradient in named.items() if not gradient.isfinite().all()] == []


def check_predictions(task, predicted, folder):
    assert [line["index"] for line in predicted] == list(range(len(predicted)))
    if task == "parsing":
        assert [line["id"] for line in predicted] == [f"test__{number:05d}_30_40" for number in range(4)]
        assert all(line.keys() == {"id", "index", "audio_events", "visual_events"} for line in predicted)
        assert np.load(folder / "probabilities.npz")["audio_probabilities"].shape == (4, 10, 25)
    elif task == "question_answering":
        assert [line["id"] for line in predicted] == [str(number) for number in range(25, 33)]
        assert predicted[0]["question"] == "Is there a red in the video?"
        assert {line["answers"] for line in predicted} <= {"yes", "no", "one", "two"}
    else:
        from PIL import Image

        ids = [f"dog_barking/test{number}" if task == "avsbench-s4" else f"test{number}" for number in range(3)]
        assert [line["id"] for line in predicted] == ids
        for line in predicted:
            assert line["masks"] == [f"masks/{line['id']}/{second}.png" for second in range(5)]
            for mask in line["masks"]:
                pixels = np.asarray(Image.open(folder / mask))
                assert pixels.shape == (24, 24)
                assert set(np.unique(pixels)) <= {0, 255}

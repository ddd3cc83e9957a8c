"""Clips that are left out: counted, named, and never all of them without a word."""

import json
import shlex
import shutil

import pytest
import torch

from fastav.training.arguments import train_config, train_parser
from fastav.training.cli import main
from fastav.training.run import set_up_training


def test_what_is_left_out_is_counted(run, ave_root, tmp_path):
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    (root / "frames" / "test0000001" / "0003.jpg").write_bytes(b"no picture")
    shutil.rmtree(root / "frames" / "test0000004")
    with pytest.warns(UserWarning, match="test0000004"):
        status = main(["evaluate", str(run), f"--data.root={root}", "--data.on_error=skip"])
    assert status == 0
    scores = json.loads((run / "scores-test.json").read_text())
    assert (scores["clips"], scores["left_out"]) == (5, 2)


def test_what_training_left_out_is_counted(spoilt_ave, flags, tmp_path, capsys):
    """Both batches that Lightning looks at before the first epoch are left out, which is no reason to stop."""
    root = spoilt_ave(train=[3, 4, 7], val=[0, 1])
    shutil.rmtree(root / "frames" / "train0000010")
    words = ["--task=localization", f"--data.root={root}", "--data.on_error=skip", *flags, "--data.batch_size=1"]
    with pytest.warns(UserWarning, match="train0000010"):
        assert main(["train", *words, f"--output={tmp_path / 'run'}", "--optimizer.epochs=2"]) == 0
    assert "\n8 clips of train, 4 left out; 3 clips of val, 2 left out\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("split", "count", "purpose"), [("train", 12, "train on"), ("val", 5, "score"), ("test", 7, "score")]
)
@pytest.mark.filterwarnings("ignore:AVE. left out")
def test_training_without_a_clip_is_refused(split, count, purpose, ave_root, spoilt_ave, flags, tmp_path, capsys):
    root, folder = spoilt_ave(**{split: range(count)}), tmp_path / "run"
    words = ["train", "--task=localization", f"--output={folder}", *flags, "--optimizer.epochs=2"]
    words += ["--select_on_test=true"] if split == "test" else []
    assert main([*words, f"--data.root={root}", "--data.on_error=skip", "--optimizer.patience=1"]) == 2
    shown = capsys.readouterr()
    said = f"fastav train: epoch 1: all clips of AVE {split} in {root} were left out, there is none to {purpose}: "
    last = shown.err.splitlines()[-1]
    assert last.startswith(said)
    assert "best " not in shown.out
    assert not (folder / "best").exists()
    assert not (folder / "checkpoints").exists()
    command = last.removeprefix(said).removesuffix(" says why")
    assert main(shlex.split(command)[1:]) == 1  # the remedy, as it stands
    assert f"{split}: {count} are broken" in capsys.readouterr().out
    assert main([*words, f"--data.root={ave_root}"]) == 0  # nothing is in the way once the clips are mended
    judges = "7 clips of test" if split == "test" else "5 clips of val"
    assert f"12 clips of train; {judges}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "data", "name", "split", "more"),
    [
        ("localization", "ave", None, "AVE val", []),
        ("parsing", "llp", None, "LLP val", ["--data.media=frames"]),
        ("segmentation", "avs", "avsbench-s4", "AVSBench val", []),
        ("segmentation", "avs", "avsbench-ms3", "AVSBench val", []),
        ("question_answering", "qa", None, "MUSIC-AVQA val", ["--data.options={questions: json}"]),
    ],
)
def test_the_command_that_checks_a_split_is_for_its_data_set(
    task, data, name, split, more, request, flags, tmp_path, capsys
):
    root = request.getfixturevalue(f"{data}_root")
    words = [f"--task={task}", f"--data.root={root}", f"--output={tmp_path}", *flags, *more]
    words += [f"--data.name={name}"] if name else []
    training = set_up_training(train_config(train_parser(words).parse_args(words)))
    said, command = training.clips.describe("validation")
    assert said == f"{split} in {root}"
    assert ("--media frames" in command) == (data == "llp")
    assert ("--questions json" in command) == (data == "qa")
    capsys.readouterr()
    assert main(shlex.split(command)[1:]) == 0
    assert f"{name or split.split()[0].lower()} in {root}: ok" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:AVE. left out")
def test_a_split_without_a_clip_is_not_scored(run, spoilt_ave, tmp_path, capsys):
    """By its own name, whichever split it is; --media is said again where it was said."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "scores-*"))
    root = spoilt_ave(val=range(5), test=range(7))
    for split in ("val", "test"):
        asked = [f"--split={split}", f"--data.root={root}", "--data.on_error=skip", "--data.media=frames"]
        assert main(["evaluate", str(folder), *asked]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"fastav evaluate: all clips of AVE {split} in {root} were left out, there is none to score: "
            f"fastav check-data ave {root} --deep --media frames says why"
        )
    assert not list(folder.glob("scores-*"))
    asked = [f"--data.root={root}", "--data.on_error=skip", f"--output={tmp_path / 'out'}"]
    assert main(["predict", str(folder), *asked]) == 2
    assert f"AVE test in {root} were left out, there is none to predict" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_no_epoch_is_chosen_by_a_score_that_is_no_number(value, ave_root, flags, tmp_path, monkeypatch, capsys):
    """Lightning keeps the first as minus infinity, which JSON does not have."""
    from fastav.metrics import LocalizationScores

    monkeypatch.setattr(LocalizationScores, "compute", lambda self: {"accuracy": torch.tensor(float(value))})
    words = ["train", "--task=localization", f"--data.root={ave_root}", f"--output={tmp_path}", *flags]
    assert main([*words, "--optimizer.epochs=1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"fastav train: epoch 1: validation/accuracy is {value}, by which no epoch can be chosen" in last
    assert not (tmp_path / "best").exists()


def test_what_is_left_out_is_counted_in_questions(qa_run, qa_root, tmp_path, capsys):
    """Two questions are asked about each video, and neither remains of one whose files are missing."""
    root = tmp_path / "qa"
    shutil.copytree(qa_root, root)
    shutil.rmtree(root / "frames" / "test0001")
    given = [str(qa_run), f"--data.root={root}", "--data.on_error=skip"]
    with pytest.warns(UserWarning, match=r"left out 2 of the clips of MUSIC-AVQA test .*test0001"):
        assert main(["evaluate", *given]) == 0
    scores = json.loads((qa_run / "scores-test.json").read_text())
    assert (scores["clips"], scores["left_out"]) == (6, 2)
    assert "6 clips of test, 2 left out" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="test0001"):
        assert main(["predict", *given, f"--output={tmp_path / 'out'}"]) == 0
    assert "6 clips, 2 left out" in capsys.readouterr().out

"""What users get wrong is said in one line, with exit status 2 and no traceback."""

import json
import shutil

import pytest
import torch

from fastav.training.cli import main

BASE = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1"]


def refused(capsys, *arguments):
    """The one line that a command is refused with."""
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # jsonargparse's own
        status = stop.code
    shown = capsys.readouterr().err
    assert status == 2, shown
    assert "Traceback" not in shown
    return shown.strip().splitlines()[-1]


@pytest.fixture
def train(ave_root, backbone_flags, tmp_path):
    """``fastav train`` on AVE; later flags win."""
    output = f"--output={tmp_path / 'run'}"
    return ["train", "--task=localization", f"--data.root={ave_root}", output, *backbone_flags, *BASE]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--data.root=/nowhere"], "/nowhere is no folder: give the folder that holds the data set"),
        (["--data.name=llp"], "'llp' is for the task 'parsing'; for 'localization' give ave"),
        (["--task=segmentation"], "data.name is not given; for 'segmentation' give avsbench-s4 or avsbench-ms3"),
        (["--data.options={subset: s4}"], "data.options: AVE has no subset to choose, none at all"),
        (["--data.options={media: x}"], "data.options: AVE has no media to choose, none at all"),
        (
            ["--task=question_answering", "--data.options={asked: x}"],
            "data.options: MusicAVQA has no asked to choose, only answers, num_segments, questions, "
            "seconds_per_segment",
        ),
        (
            ["--task=question_answering", "--data.options={num_segments: many}"],
            "num_segments is 'many', wanted a whole number of at least 1",
        ),
        (["--data.batch_size=0"], "batch_size is 0, wanted at least 1"),
        (["--seed=-1"], "--seed is -1, wanted 0 ... 4294967295"),
        (["--seed=4294967296"], "--seed is 4294967296, wanted 0 ... 4294967295"),
        (["--adapter.tokens=3"], "unrecognized arguments: --adapter.tokens=3"),
        (["--adapter.rank=5"], "rank 5 does not divide into 2 heads"),
        (["--adapter.layers=9"], "taps=9 asks for the last 9 blocks of"),
        (["--method=lora"], "there is no adapter method 'lora'; choose one of ['mettle', 'molt']"),
        (["--task=counting"], "there is no task 'counting'; choose one of ['localization', 'parsing', "),
        (["--head.supervision=half"], "Expected a typing.Literal['full', 'weak']. Got value: half"),
        (["--optimizer.warm_up=2"], "warm_up is 2"),
        (["--trainer.precision=7-bit"], "7-bit"),
        (["--trainer.accelerator=abacus"], "abacus"),
        (["--trainer.devices=0"], "trainer: "),
        (["--trainer.devices=[0, 0]"], "trainer: "),
        (["--visual.name=vit_tiny"], "timm has no model 'vit_tiny'; near it are "),
        (["--visual.checkpoint=/nowhere.pth"], "visual.checkpoint: there is no file /nowhere.pth"),
        (["--visual.options={wings: 2}"], "unexpected keyword argument 'wings'"),
        (["--visual.checkpoint=null"], "Without a connection, give a file of weights as visual.checkpoint"),
        (["--audio.name=openai/whisper-tiny"], "Without a connection, give a folder that save_pretrained wrote"),
        (["--audio.options={max_source_positions: 100}"], "the weights of "),
        (["--resume=true"], "holds no last.ckpt of a finished epoch to resume: leave --resume out to start anew"),
        (["--config=/nowhere.yaml"], "the configuration /nowhere.yaml cannot be read"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_training_is_refused(train, wrong, words, capsys, tmp_path):
    assert words in refused(capsys, *train, *wrong)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_file_that_does_not_decode_is_named(train, ave_root, tmp_path, capsys):
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    broken = root / "frames" / "train0000003" / "0002.jpg"
    broken.write_bytes(b"no picture")
    for workers in (0, 1):  # a worker's error comes wrapped in its traceback
        output = f"--output={tmp_path / str(workers)}"
        words = refused(capsys, *train, f"--data.root={root}", f"--data.num_workers={workers}", output)
        assert words.startswith("fastav train: ")
        assert str(broken) in words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_accelerator_that_is_not_there(train, capsys):
    assert "trainer: No supported gpu backend found" in refused(capsys, *train, "--trainer.accelerator=gpu")


def test_a_file_after_a_flag_decides(train, ave_root, tmp_path, capsys):
    """As everywhere the later word counts, for which flags there are too."""
    file = tmp_path / "molt.yaml"
    file.write_text(f"method: molt\ntask: localization\noutput: {tmp_path / 'run'}\nadapter: {{router: loud}}\n")
    assert "router is 'loud'" in refused(capsys, *train, "--method=mettle", f"--config={file}")
    file.write_text("method: mettle\n")
    assert "unrecognized arguments: --adapter.router=hard" in refused(
        capsys, *train, "--method=molt", f"--config={file}", "--adapter.router=hard"
    )


def test_flags_before_the_runs_folder(run, capsys):
    for command in ("evaluate", "predict", "visualize"):
        words = refused(capsys, command, "--split=val", str(run))
        assert f"the run's folder comes first, as in: fastav {command} RUN --split=val" in words


def test_flags_that_would_do_nothing(run, capsys):
    assert "--question is asked of a --video" in refused(capsys, "predict", str(run), "--question=what?")
    both = ["--id=test0000001", "--video=some.mp4"]
    assert "give one of them" in refused(capsys, "visualize", str(run), *both)
    assert "give one of them" in refused(capsys, "visualize", str(run), "--index=0", "--video=some.mp4")


def test_scores_are_shown_though_they_cannot_be_written(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "scores-val.json").unlink(missing_ok=True)
    (folder / "scores-val.json").mkdir()
    assert main(["evaluate", str(folder), "--split=val"]) == 2
    shown = capsys.readouterr()
    assert "5 clips of val; percent" in shown.out
    assert "scores-val.json" in shown.err


def test_folders_that_are_no_runs(tmp_path, capsys):
    for command in ("evaluate", "predict", "visualize"):
        assert f"{tmp_path} is no run's folder" in refused(capsys, command, str(tmp_path))


def test_a_runs_configuration_of_another_version(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: localization\ndata: {root: x}\n")
    assert "config.yaml is not what this version of fastav writes" in refused(capsys, "evaluate", str(tmp_path))


def test_commands_that_are_none(capsys):
    assert main(["tran"]) == 2
    assert "there is no command 'tran'" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "check-data" in capsys.readouterr().out


def test_check_data_says_what_is_missing(ave_root, tmp_path, capsys):
    assert main(["check-data", "ave", str(ave_root), "--deep"]) == 0
    assert "train: 12 annotated, 3339 published" in capsys.readouterr().out
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    (root / "audio" / "val0000002.wav").unlink()
    assert main(["check-data", "ave", str(root)]) == 1
    assert "val0000002" in capsys.readouterr().out


def test_check_data_writes_every_id(ave_root, tmp_path, capsys):
    root, written = tmp_path / "ave", tmp_path / "report.json"
    shutil.copytree(ave_root, root)
    names = sorted(line.split("&")[1] for line in (root / "trainSet.txt").read_text().splitlines())[1:]
    for name in names:
        (root / "audio" / f"{name}.wav").unlink()
    assert main(["check-data", "ave", str(root), f"--json={written}"]) == 1
    shown = capsys.readouterr().out
    assert "train: 11 lack files: " in shown
    assert "and 1 more" in shown
    report = json.loads(written.read_text())
    assert sorted(report["missing"]["train"]) == names
    assert report["missing"]["train"][names[-1]] == f"audio/{names[-1]}.wav missing"
    assert (report["name"], report["root"], report["ok"]) == ("ave", str(root), False)
    assert report["counts"]["train"] == 12
    assert ["pictures", "frames in frames"] in report["found"]
    nowhere = tmp_path / "no" / "report.json"
    assert str(nowhere) in refused(capsys, "check-data", "ave", str(root), f"--json={nowhere}")


def test_check_data_questions_are_of_music_avqa(ave_root, capsys):
    words = refused(capsys, "check-data", "ave", str(ave_root), "--questions=json")
    assert "questions='json' is for music-avqa alone, not for ave" in words


def test_env_names_versions_and_backends(capsys):
    import torch

    import fastav

    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"fastav {fastav.__version__}" in shown
    assert f"torch {torch.__version__}" in shown
    assert "reference: usable" in shown

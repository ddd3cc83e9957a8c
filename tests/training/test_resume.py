"""Runs that go on: in the same bits, in another folder, and never as another run."""

import json
import shutil

import pytest
import torch
import yaml

from fastav.training.cli import main
from fastav.training.module import AudioVisualModule
from tests.training.conftest import epochs


class PowerCut(BaseException):
    """What no command can catch."""


def break_off(monkeypatch, command, epoch):
    """Run a command until this epoch's first batch."""

    def cut(self, *_):
        if self.current_epoch == epoch:
            raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(AudioVisualModule, "on_train_batch_end", cut)
        with pytest.raises(PowerCut):
            main(command)


def test_a_run_that_broke_in_its_first_epoch_starts_anew(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "broken"
    command = ["train", f"--config={run / 'config.yaml'}", f"--output={folder}", "--optimizer.epochs=1"]
    break_off(monkeypatch, command, epoch=0)
    assert (folder / "config.yaml").is_file()
    assert main([*command, "--resume=true"]) == 2
    assert "leave --resume out to start anew" in capsys.readouterr().err
    assert main(["evaluate", str(folder)]) == 2
    assert "holds no finished epoch yet: start it anew with fastav train" in capsys.readouterr().err
    assert main([*command, "--seed=3"]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3
    assert main(["evaluate", str(folder)]) == 0


def test_a_finished_run_without_its_checkpoints_is_not_written_over(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    command = ["train", f"--config={run / 'config.yaml'}", f"--output={tmp_path / 'run'}"]
    for more in ([], ["--resume=true"]):
        assert main([*command, *more]) == 2
        assert capsys.readouterr().err.strip().endswith(": choose another --output")


def test_a_resumed_run_ends_in_the_same_bits(run, tmp_path, monkeypatch):
    config, folder = run / "config.yaml", tmp_path / "broken"
    command = ["train", f"--config={config}", f"--output={folder}"]
    break_off(monkeypatch, command, epoch=3)
    assert len(epochs(folder)["train/loss"]) == 3
    assert main([*command, "--resume=true"]) == 0
    straight, resumed = (torch.load(place / "checkpoints" / "last.ckpt", weights_only=False) for place in (run, folder))
    assert resumed["epoch"] == straight["epoch"] == 4
    for name, value in straight["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    assert epochs(folder)["train/loss"] + epochs(folder, "logs-2")["train/loss"] == epochs(run)["train/loss"]
    records = [json.loads((place / "best" / "record.json").read_text()) for place in (run, folder)]
    assert records[0] == records[1]


def test_a_resumed_run_must_be_the_same_run(run, capsys):
    command = ["train", f"--config={run / 'config.yaml'}", f"--output={run}"]
    assert main([*command, "--resume=true", "--optimizer.lr=0.5"]) == 2
    assert "optimizer.lr was 0.01 and is 0.5" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_training_stops_when_the_score_no_longer_rises(ave_root, flags, tmp_path, capsys):
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={tmp_path}", *flags]
    standstill = [
        "--optimizer.epochs=9",
        "--optimizer.lr=0",
        "--optimizer.patience=2",
        "--trainer.precision=bf16-mixed",
    ]
    assert main(["train", *arguments, *standstill, "--adapter.standardize=false"]) == 0
    assert len(epochs(tmp_path)["train/loss"]) == 3  # the first sets the score, two do not raise it
    assert json.loads((tmp_path / "best" / "record.json").read_text())["epoch"] == 0  # of equals the first
    assert "12 clips of train; 5 clips of val\n" in capsys.readouterr().out
    last = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    assert main(["train", *arguments, *standstill, "--adapter.standardize=false", "--resume=true"]) == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == last  # it had ended
    assert "clips of" not in capsys.readouterr().out  # none was looked at


@pytest.fixture
def halfway(run, tmp_path, monkeypatch):
    """A run that broke off in its third epoch of five, and the command that it goes on with."""
    folder = tmp_path / "broken"
    break_off(monkeypatch, ["train", f"--config={run / 'config.yaml'}", f"--output={folder}"], epoch=2)
    return folder, ["train", f"--config={folder / 'config.yaml'}", "--resume=true"]


def test_a_copied_run_keeps_its_best_epoch(halfway, tmp_path):
    """Lightning forgets the best score where the folder is another one, and takes the next epoch for the best."""
    folder, command = halfway
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    checkpoint = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=False)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("BestEpoch"))
    state["best_model_score"] = torch.tensor(0.995)
    state["best_k_models"] = {path: torch.tensor(0.995) for path in state["best_k_models"]}
    state["kth_value"] = torch.tensor(0.995)
    torch.save(checkpoint, copy / "checkpoints" / "last.ckpt")
    before = [(copy / "best" / name).read_bytes() for name in ("record.json", "head.safetensors")]
    original = sorted((folder / "checkpoints").iterdir())
    assert main([*command, f"--output={copy}"]) == 0
    assert len(epochs(copy, "logs-2")["train/loss"]) == 3
    assert [(copy / "best" / name).read_bytes() for name in ("record.json", "head.safetensors")] == before
    assert sorted((folder / "checkpoints").iterdir()) == original


def test_other_weights_are_refused(ave_root, flags, tmp_path, capsys):
    weights = tmp_path / "vit.pth"
    (given,) = (word.partition("=")[2] for word in flags if word.startswith("--visual.checkpoint"))
    shutil.copy(given, weights)
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={tmp_path / 'run'}"]
    command = ["train", *arguments, *flags, f"--visual.checkpoint={weights}", "--optimizer.epochs=1"]
    assert main(command) == 0
    state = torch.load(weights)
    state["blocks.1.mlp.fc1.weight"][0, 0] += 1
    torch.save(state, weights)
    for again in (["evaluate", str(tmp_path / "run")], [*command, "--resume=true"]):
        assert main(again) == 2
        assert "visual: the backbone's weights are not those that" in capsys.readouterr().err


def test_a_schedule_of_another_length_is_refused(halfway, ave_root, tmp_path, capsys):
    folder, command = halfway
    assert main([*command, f"--output={folder}", "--data.batch_size=2"]) == 2
    assert "data.batch_size was 4 and is 2" in capsys.readouterr().err
    fewer = tmp_path / "ave"
    shutil.copytree(ave_root, fewer)
    lines = (fewer / "trainSet.txt").read_text().splitlines()
    (fewer / "trainSet.txt").write_text("\n".join(lines[:7]) + "\n")
    assert main([*command, f"--output={folder}", f"--data.root={fewer}"]) == 2
    # 12 and 7 clips in batches of 4, five epochs.
    assert "the run was to have 15 steps and would have 10 now" in capsys.readouterr().err


def test_other_answers_are_refused(halfway, capsys):
    folder, command = halfway
    record = folder / "best" / "record.json"
    entries = json.loads(record.read_text())
    record.write_text(json.dumps({**entries, "class_names": entries["class_names"][::-1]}))
    assert main([*command, f"--output={folder}"]) == 2
    assert "the data set has other classes or answers than" in capsys.readouterr().err


def test_damaged_files_are_named(halfway, tmp_path, capsys):
    folder, command = halfway
    for name, damage, again in (
        ("checkpoints/last.ckpt", lambda data: data[: len(data) // 2], [*command, f"--output={folder}"]),
        ("best/head.safetensors", lambda data: data[:100], ["evaluate", str(folder)]),
        ("best/record.json", lambda data: data[:20], ["evaluate", str(folder)]),
        ("config.yaml", lambda data: data.replace(b"data:", b"data:\n  colour: red"), ["evaluate", str(folder)]),
    ):
        file = folder / name
        kept = file.read_bytes()
        file.write_bytes(damage(kept))
        assert main(again) == 2
        words = capsys.readouterr().err
        assert str(file) in words
        assert "is damaged" in words or "is not what this version of fastav writes" in words
        file.write_bytes(kept)

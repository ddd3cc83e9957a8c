"""Two processes share the clips out, and score each exactly once."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from torch import distributed

from fastav.training.cli import main

load_file = pytest.importorskip("safetensors.torch").load_file

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")


def fastav(*arguments, status=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fastav", *arguments]
    # A process that waits for another for ever is to fail the test, not to stop it: these take seconds.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_two_processes_train_one_adapter_and_score_each_clip_once(ave_root, backbone_flags, tmp_path):
    """5 validation clips do not divide by two: a sampler that pads would count one of them twice."""
    run = tmp_path / "run"
    sizes = ["--adapter.num_tokens=2", "--adapter.width=16", "--adapter.rank=4", "--data.batch_size=2"]
    training = ["--optimizer.epochs=2", "--optimizer.lr=0.01", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    data = [f"--data.root={ave_root}", "--data.num_workers=0"]
    shown = fastav("train", "--task=localization", f"--output={run}", *backbone_flags, *data, *sizes, *training)
    assert "on 2 x cpu" in shown
    assert shown.count("trainable: ") == shown.count("best validation/accuracy") == 1  # one process speaks
    record = json.loads((run / "best" / "record.json").read_text())

    assert main(["evaluate", str(run), "--split=val", "--trainer.devices=1"]) == 0
    alone = json.loads((run / "scores-val.json").read_text())
    assert alone["clips"] == 5
    assert alone["scores"]["accuracy"] == record["score"]  # which two processes found
    assert 0 < record["score"] < 1
    right = 50 * record["score"]  # of 50 seconds; with a sixth clip there were 60
    assert right == pytest.approx(round(right), abs=1e-4)  # the score is float32

    # Both processes' clips are in the statistics: 3 batches of 2 clips each, an epoch.
    state = load_file(run / "best" / "adapter_model.safetensors")
    batches = 3 * (record["epoch"] + 1)
    assert state["distillation.standardization.measured"] == batches
    clips, segments, tokens = 2 * 2 * batches, 10, 5  # the first tap has four patches and a class token
    assert state["distillation.standardization.tokens"][0] == clips * segments * tokens


def test_a_process_that_leaves_out_all_its_clips_does_not_stop_the_others(ave_root, backbone_flags, tmp_path):
    """Two training clips, one a process; the sound of one is broken. And one clip to validate on."""
    root = tmp_path / "ave"
    shutil.copytree(ave_root, root)
    (root / "valSet.txt").write_text((root / "valSet.txt").read_text().splitlines()[0] + "\n")
    lines = (root / "trainSet.txt").read_text().splitlines()[:2]
    (root / "trainSet.txt").write_text("\n".join(lines) + "\n")
    (root / "audio" / f"{lines[0].split('&')[1]}.wav").write_bytes(b"RIFF")
    run = tmp_path / "run"
    sizes = ["--adapter.num_tokens=2", "--adapter.width=16", "--adapter.rank=4", "--data.batch_size=1"]
    training = ["--optimizer.epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    data = [f"--data.root={root}", "--data.num_workers=0", "--data.on_error=skip"]
    shown = fastav("train", "--task=localization", f"--output={run}", *backbone_flags, *data, *sizes, *training)
    assert "1 clip of train, 1 left out; 1 clip of val\n" in shown
    with (run / "logs" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 1
    assert losses[0] > 0  # of the one clip that was read


def test_processes_count_a_clip_once_and_refuse_alike_to_go_on_without_any(spoilt_ave, backbone_flags, tmp_path):
    """Of three training clips each of two processes takes two: one is repeated, another one in each epoch."""
    sizes = ["--adapter.num_tokens=2", "--adapter.width=16", "--adapter.rank=4", "--data.batch_size=1"]
    training = ["--optimizer.epochs=3", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    for split, broken in (("train", 1), ("train", 3), ("val", 5)):
        root = spoilt_ave(**{split: range(broken)})
        lines = (root / "trainSet.txt").read_text().splitlines()[:3]
        (root / "trainSet.txt").write_text("\n".join(lines) + "\n")
        data = [f"--data.root={root}", "--data.num_workers=0", "--data.on_error=skip"]
        words = ["train", "--task=localization", f"--output={tmp_path / 'run'}", *backbone_flags, *data, *sizes]
        shown = fastav(*words, *training, status=0 if broken == 1 else 2)
        if broken == 1:
            assert "2 clips of train, 1 left out; 5 clips of val\n" in shown
            shutil.rmtree(tmp_path / "run")
        else:
            assert f"epoch 1: all clips of AVE {split} in {root} were left out" in shown
        shutil.rmtree(root)

"""The whole demo at a toy size with every package out of reach: drawn scenes, random weights, under a clear label."""

import math

import pytest
import torch
from PIL import Image

from examples.stamps import __main__ as demo
from examples.stamps import methods, report, taps, training, weights
from examples.stamps.assets import STAMPS, AssetUnavailable
from examples.stamps.material import load_material
from examples.stamps.scenes import compose
from fastav import FrozenBackbone

CLIPS = {"train": 4, "validation": 2, "test": 9, "cross": 2}


@pytest.fixture
def backbones():
    return FrozenBackbone(weights.random_vit(42), [1, 3]), FrozenBackbone(weights.random_whisper_encoder(10), 2)


@pytest.fixture
def splits(backbones, tmp_path):
    material = load_material(None, None)
    return {
        name: taps.Split(compose(material, name, CLIPS[name], image_size=42), *backbones, tmp_path)
        for name in ("train", "validation", "test")
    }


def test_runs_without_any_package(monkeypatch, tmp_path, capsys):
    problem = AssetUnavailable(STAMPS, tmp_path, ["a tool: no route"])
    monkeypatch.setattr(demo, "fetch_all", lambda packages: ({}, [problem]))
    monkeypatch.setattr(demo, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(demo, "CLIPS", CLIPS)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 42)
    monkeypatch.setattr("sys.argv", ["stamps", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "out")])
    demo.main()
    printed = capsys.readouterr().out
    assert f"NOT AVAILABLE: {STAMPS.name} {STAMPS.version} is out of reach." in printed
    assert "procedurally drawn" in printed
    assert "RANDOM (package out of reach)" in printed
    assert "the same prediction in every second of the test split" in printed
    assert "cross-source" not in printed
    table = (tmp_path / "out" / "table.md").read_text()
    assert "procedurally drawn" in table
    assert "RANDOM" in table
    for name in ("linear probe, last layers", "mean-pooled, all layers", "Mettle"):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        assert row.count("±") == 4
    for name in ("learning_curves", "confusion_matrix", "test_clips"):
        picture = Image.open(tmp_path / "out" / f"{name}.png").convert("L")
        assert min(picture.size) > 300
        assert len(picture.getcolors(256)) > 20  # something was drawn


def test_stored_taps_are_the_backbones_own(splits, backbones):
    split, (visual, audio) = splits["train"], backbones
    clip = split.clips[2]
    inputs = taps.prepare(type(clip)(*(value[None] for value in clip)))
    read = split.taps(torch.tensor([2]))
    # 16-bit storage: 11 bits of precision
    for stored, direct in zip(read.visual, visual(inputs.frames.flatten(0, 1)), strict=True):
        torch.testing.assert_close(stored.float(), direct, rtol=2**-10, atol=1e-4)
    for stored, direct in zip(read.audio, audio(inputs.log_mel), strict=True):
        torch.testing.assert_close(stored.float(), direct, rtol=2**-10, atol=1e-4)
    z = torch.nn.functional.layer_norm(read.visual[1].float(), (384,)).mean(1)
    torch.testing.assert_close(split.pooled[1, 2], z)
    assert split.pooled.shape == (4, 4, 10, 384)


def test_taps_are_written_once(splits, backbones, tmp_path, monkeypatch):
    again = splits["test"]
    monkeypatch.setattr(taps, "DataLoader", None)  # whoever wants to run the backbones fails
    reread = taps.Split(again.clips, *backbones, tmp_path)
    assert torch.equal(reread.pooled, again.pooled)
    other = compose(again.clips.material, "test", 9, seed=1, image_size=42)
    with pytest.raises(TypeError):
        taps.Split(other, *backbones, tmp_path)


def test_training_is_deterministic_and_scores_are_the_best_epochs(splits, backbones):
    make = methods.build(splits["train"], *backbones)["Mettle"]
    one, two = (training.train("Mettle", make, splits, epochs=2, seed=3) for _ in range(2))
    assert one.losses == two.losses
    assert one.scores == two.scores
    assert one.scores["validation"]["accuracy"] == max(one.accuracies)
    assert training.score(one.model, splits["test"]) == pytest.approx(one.scores["test"], nan_ok=True)
    assert one.losses[1] < one.losses[0]


def test_saved_bytes_count_the_taps(splits, backbones):
    run = training.train("Mettle", methods.build(splits["train"], *backbones)["Mettle"], splits, epochs=1, seed=0)
    read = splits["train"].taps(torch.arange(4))
    stored = sum(tap.numel() * tap.element_size() for tap in (*read.visual, *read.audio)) / 4
    # These taps have hardly more tokens (10 and 50) than there are query rows (12, in float32).
    assert stored < run.saved_bytes < 3 * stored


def test_table_gives_means_and_spreads(splits, backbones):
    make = methods.build(splits["train"], *backbones)["linear probe, last layers"]
    runs = [training.train("probe", make, splits, epochs=1, seed=seed) for seed in range(3)]
    for run, value in zip(runs, (10.0, 20.0, 60.0), strict=True):
        run.scores["test"]["accuracy"] = value
    table = report.table({"probe": runs}, splits)
    assert f"30.0 ± {math.sqrt((400 + 100 + 900) / 2):.1f}" in table
    background = splits["test"].labels == splits["test"].clips.material.num_classes
    assert f"| always background | {100 * background.float().mean():.1f} " in table

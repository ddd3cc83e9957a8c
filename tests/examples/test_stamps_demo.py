"""The whole demo at a toy size with every package out of reach: drawn scenes, random weights, under a clear label."""

import dataclasses
import json
import math
import re
import threading

import pytest
import torch
from PIL import Image

from examples.stamps import __main__ as demo
from examples.stamps import exercises, report, splits, taps, training
from examples.stamps.assets import STAMPS, AssetUnavailable
from examples.stamps.material import load_material
from examples.stamps.scenes import compose
from examples.stamps.taps import Pairs
from fastav import FrozenBackbone

TOY = demo.Size({"train": 4, "validation": 2, "test": 6, "cross": 2}, {"train": 4, "validation": 2, "test": 6}, 1, True)
METHODS = (exercises.PROBE, exercises.POOLED, exercises.METTLE, exercises.MOLT)

BRIEFLY = {"epochs": 1, "batch": 4, "weight_decay": 0.05}


@pytest.fixture
def studio(monkeypatch, tmp_path):
    monkeypatch.setattr(splits, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(splits, "CLIP_SIZE", 42)
    monkeypatch.setattr(splits, "SCENE_SIZE", 42)
    return splits.Studio(load_material(None, None), None, None)


@pytest.fixture
def clips(studio):
    return studio.clips(TOY.clips)


@pytest.mark.filterwarnings("ignore:.*is read as unknown")  # four clips' questions do not have all words
def test_runs_without_any_package(studio, monkeypatch, tmp_path, capsys):
    problem = AssetUnavailable(STAMPS, tmp_path, ["a tool: no route"])
    monkeypatch.setattr(demo, "fetch_all", lambda packages: ({}, [problem]))
    monkeypatch.setattr(demo, "SUBSET", TOY)
    made = demo._exercises

    def briefly(*given):
        return {name: dataclasses.replace(exercise, epochs=1, settling=1) for name, exercise in made(*given).items()}

    monkeypatch.setattr(demo, "_exercises", briefly)
    monkeypatch.setattr("sys.argv", ["stamps", "--out", str(tmp_path / "out")])
    demo.main()
    printed = capsys.readouterr().out
    assert f"NOT AVAILABLE: {STAMPS.name} {STAMPS.version} is out of reach." in printed
    assert "procedurally drawn" in printed
    assert "RANDOM (package out of reach)" in printed
    assert "the same prediction in every second of the test split" in printed
    table = (tmp_path / "out" / "table.md").read_text()
    assert "procedurally drawn" in table
    assert "RANDOM" in table
    head, _, *rows = (re.split(r" *\| *", line)[1:-1] for line in table.split("\n\n")[0].splitlines())
    assert head == ["exercise", "score", "nothing learned", *METHODS, "Mettle without the sound"]
    assert len(rows) == 10
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d", cell) for cell in row[2:-1])
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(found) == 6
    assert all(len(of["MoLT"]["test"][key]) == 1 for of in found.values() for key in of["MoLT"]["test"])
    for name in ("learning_curves", "confusion_matrix", "test_clips", "test_scenes"):
        picture = Image.open(tmp_path / "out" / f"{name}.png").convert("L")
        assert min(picture.size) > 300
        assert len(picture.getcolors(256)) > 20  # something was drawn


def test_stored_taps_are_the_backbones_own(clips):
    split = clips["train"]
    inputs = taps.prepare([split.clips[2]])
    visual = FrozenBackbone(split.visual.module, [3, 9])
    read = split.taps(Pairs(torch.tensor([2]), torch.tensor([2])), visual, split.audio)
    # 16-bit storage: 11 bits of precision
    for stored, direct in zip(read.visual, visual(inputs.frames.flatten(0, 1)), strict=True):
        torch.testing.assert_close(stored.float(), direct, rtol=2**-10, atol=1e-4)
    for stored, direct in zip(read.audio, split.audio(inputs.log_mel), strict=True):
        torch.testing.assert_close(stored.float(), direct, rtol=2**-10, atol=1e-4)
    z = torch.nn.functional.layer_norm(read.visual[1].float(), (384,)).mean(1)
    pooled = split.pooled(visual, split.audio)
    torch.testing.assert_close(pooled[1, 2], z)
    assert pooled.shape == (6, 4, 10, 384)


def test_backbones_are_given_the_clips_where_they_are(studio, tmp_path):
    came = []

    class Elsewhere:
        device, tap_names, module = torch.device("meta"), ("one",), torch.nn.Linear(1, 1)

        def __call__(self, given):
            came.append(given.device.type)
            return [torch.zeros(len(given), 2, 3)]

    made = compose(studio.material, "test", 2, seed=0, image_size=42)
    split = taps.Split(made, made.labels, Elsewhere(), Elsewhere(), tmp_path)
    assert came == ["meta"] * 2
    assert split.device.type == "meta"


def test_who_comes_while_taps_are_written_waits_for_them(studio, tmp_path):
    """Another process, or here a thread, with nothing in the cache either; it has three seconds to go wrong."""
    made, came, found = compose(studio.material, "test", 2, seed=0, image_size=42), [], {}

    def split():
        found[threading.current_thread().name] = taps.Split(made, made.labels, Ones(), Ones(), tmp_path / "one")

    other = threading.Thread(target=split, name="other")

    class Ones:
        device, tap_names, module = torch.device("cpu"), ("one",), torch.nn.Linear(1, 1).requires_grad_(False)

        def __init__(self):
            self.module.weight.fill_(1)
            self.module.bias.fill_(1)

        def __call__(self, given):
            if not came:
                came.append(threading.current_thread().name)
                other.start()
                other.join(3)
            came.append(threading.current_thread().name)
            return [torch.ones(len(given), 2, 3)]

    split()
    other.join()
    assert set(came) == {"MainThread"}
    for one in found.values():
        assert all(tap.eq(1).all() for tap in (*one._visual[:], *one._audio[:]))
    assert len(found) == 2


def test_taps_are_written_once(clips, tmp_path, monkeypatch):
    again = clips["test"]
    monkeypatch.setattr(taps, "DataLoader", None)  # whoever wants to run the backbones fails
    given = again.visual, again.audio, tmp_path / "taps" / "clips-test-6"
    reread = taps.Split(again.clips, again.clips.labels, *given)
    assert torch.equal(*(split.pooled(split.visual, split.audio) for split in (reread, again)))
    other = compose(again.clips.material, "test", 6, seed=1, image_size=42)
    with pytest.raises(TypeError):
        taps.Split(other, other.labels, *given)


def test_training_is_deterministic_and_scores_are_the_best_epochs(clips):
    exercise = exercises.localization(clips, weak=False)
    make, examples = exercise.methods["Mettle"], exercise.examples
    one, two = (training.train("Mettle", make, examples, **{**BRIEFLY, "epochs": 2}, seed=3) for _ in range(2))
    assert one.losses == two.losses
    assert one.scores == two.scores
    assert one.scores["validation"]["accuracy"] == max(one.monitored)
    assert training.score(one.model, examples["test"]) == pytest.approx(one.scores["test"], nan_ok=True)
    assert one.losses[1] < one.losses[0]
    # Ten seconds a clip: the mean of the clips' accuracies is the accuracy.
    assert one.of_clips.mean().item() == pytest.approx(one.scores["test"]["accuracy"], rel=1e-5)


def test_taps_of_what_is_seen_and_of_what_is_heard(clips):
    split, seen, heard = clips["train"], torch.tensor([2, 0]), torch.tensor([1, 3])
    mixed, looked, listened = (
        split.taps(Pairs(*pair), split.visual, split.audio) for pair in ((seen, heard), (seen, seen), (heard, heard))
    )
    assert all(torch.equal(*pair) for pair in zip(mixed.visual, looked.visual, strict=True))
    assert all(torch.equal(*pair) for pair in zip(mixed.audio, listened.audio, strict=True))
    assert not torch.equal(looked.audio[0], listened.audio[0])


@pytest.mark.parametrize("method", ["mean-pooled, all layers", "linear probe, last layers", "Mettle"])
def test_questions_are_asked_with_another_clip_for_what_they_do_not_ask(clips, method):
    """In training: the visual tokens of the clip to look at, the audio tokens of the clip to listen to."""
    exercise = exercises.questions(clips, None)
    torch.manual_seed(0)
    model, examples = exercise.methods[method](), exercise.examples["train"]
    model.source.eval()  # in its first steps an adapter measures what it is given
    index, given = torch.arange(len(examples)), []
    model.task.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(1)
    seen, heard = model.task.pairing(examples.batch(index), examples.clip)
    torch.manual_seed(1)
    model(examples, index)
    everything = model.source(examples.split, Pairs(*[torch.arange(len(examples.split))] * 2))
    assert (seen != examples.clip).any()
    assert (heard != examples.clip).any()
    # Other sizes of a product, another order of its sums.
    torch.testing.assert_close(given[0].visual, everything.visual[seen], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given[0].audio, everything.audio[heard], rtol=1e-4, atol=1e-4)


def test_saved_bytes_count_the_taps(clips):
    exercise = exercises.localization(clips, weak=False)
    run = training.train("Mettle", exercise.methods["Mettle"], exercise.examples, **BRIEFLY, seed=0)
    adapter = run.model.source.adapter
    read = clips["train"].taps(Pairs(torch.arange(4), torch.arange(4)), adapter.visual, adapter.audio)
    stored = sum(tap.numel() * tap.element_size() for tap in (*read.visual, *read.audio)) / 4
    # These taps have hardly more tokens (10 and 50) than there are query rows (12, in float32).
    assert stored < run.saved_bytes < 3 * stored


def test_tables_give_means_spreads_and_paired_leads(clips):
    exercise = exercises.localization(clips, weak=False)
    make = exercise.methods["linear probe, last layers"]
    runs = [training.train("probe", make, exercise.examples, **BRIEFLY, seed=seed) for seed in range(3)]
    for run, value in zip(runs, (10.0, 20.0, 60.0), strict=True):
        run.scores["test"]["accuracy"] = value
        run.of_clips = torch.tensor([value, value + 10, 0.0, 0.0])
    better = [training.Run(runs[0].model, of_clips=torch.tensor([40.0, 50.0, 4.0, 4.0])) for _ in range(3)]
    for run in better:
        run.scores = runs[0].scores
    of = {"localisation": {"mean-pooled, all layers": runs, "Mettle": better}}
    table = report.scores([exercise], of)
    assert f"30.0 ± {math.sqrt((400 + 100 + 900) / 2):.1f}" in table
    labels = clips["test"].clips.labels
    background = labels == clips["test"].clips.material.num_classes
    nothing = {"accuracy": f"{100 * background.float().mean():.1f}", "mismatched recall": "100.0"}
    for score, value in nothing.items():
        assert re.search(rf"^\| localisation +\| {score} +\| {value} +\| ", table, re.MULTILINE)
    # Clip by clip 40 - 30, 50 - 40, 4 - 0, 4 - 0; the deviation of 10, 10, 4, 4 is 12 ** 0.5, over 2.
    assert f"| +7.0 ± {12**0.5 / 2:.1f} " in report.leads([exercise], of)
    # Twins count as one: 10 and 4, whose deviation is 18 ** 0.5, over the root of 2.
    assert "| +7.0 ± 3.0 " in report.leads([dataclasses.replace(exercise, twins=True)], of)

"""``fastav profile`` end to end on tiny backbones with random weights."""

import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastav import FrozenBackbone, MettleAdapter
from fastav.cost import METHODS, Cost, WrongError, profile
from fastav.training import cli
from fastav.training.config import AudioConfig, ProfileConfig, VisualConfig
from tests.cost.test_measure import GIVEN, cells

for module in ("timm", "transformers", "greenlet", "peft", "matplotlib", "jsonargparse"):
    pytest.importorskip(module)
profile_command = importlib.import_module("fastav.training.profile_command")

VIT = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
AST = {
    "max_length": 64,
    "num_mel_bins": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def costs_in(folder, batch="costs"):
    return [Cost.from_dict(one) for one in json.loads((folder / "costs.json").read_text())[batch]]


def arguments(folder, **flags):
    given = {
        "visual.name": "vit_tiny_patch16_224",
        "visual.pretrained": "false",
        "visual.options": json.dumps(VIT),
        "audio.name": "audio-spectrogram-transformer",
        "audio.pretrained": "false",
        "audio.options": json.dumps(AST),
        "segments": "2",
        "rounds": "2",
        "device": "cpu",
        "output": str(folder),
        **flags,
    }
    return ["profile", *(word for name, value in given.items() for word in (f"--{name}", value))]


def test_all_methods_are_measured_and_written(tmp_path, capsys):
    assert cli.main(arguments(tmp_path)) == 0
    printed = capsys.readouterr().out
    costs = costs_in(tmp_path)
    assert [cost.method for cost in costs] == list(METHODS)
    for title in ("Mettle", "MoLT", "frozen features", "ladder side tuning", "LoRA", "LAVISH", "DG-SCT"):
        assert f"\n{title} " in printed
    said = (tmp_path / "costs.md").read_text()
    assert said.startswith("# vit_tiny_patch16_224 and audio-spectrogram-transformer, 2 segments a clip, float32\n")
    assert f"torch {torch.__version__}" in said
    row = cells(said, "DG-SCT")
    of_dgsct = costs[METHODS.index("dg-sct")]
    assert row[3:5] == [f"{of_dgsct.trainable:,}", f"{of_dgsct.head:,}"]
    assert row[6] == f"{of_dgsct.saved_bytes / 1e6:.1f}"
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert "costs.png" in printed


def test_what_does_not_go_with_the_backbones_is_named_and_the_rest_measured(tmp_path, capsys):
    raw = {"audio.name": "hubert", "audio.options": '{"num_hidden_layers": 1}', "methods": '["lavish", "frozen"]'}
    assert cli.main(arguments(tmp_path, **raw)) == 0
    said = capsys.readouterr()
    assert "LAVISH: not measured: Lavish hears spectrograms" in said.err
    assert "LAVISH: not measured: Lavish hears spectrograms" in (tmp_path / "costs.md").read_text()
    assert [cost.method for cost in costs_in(tmp_path)] == ["frozen"]
    assert json.loads((tmp_path / "costs.json").read_text())["absences"][0][:2] == ["costs", "lavish"]


def test_methods_are_measured_again_with_the_largest_batch(tmp_path, capsys, monkeypatch):
    """By peaks that are given: 3 clips fit into what is there."""
    monkeypatch.setattr("fastav.cost.largest._peak", lambda step, clips, device: clips << 20)
    assert cli.main(arguments(tmp_path, methods='["frozen"]', memory=str(3.5 / 1024))) == 0
    assert "The largest batch that fits into 0.00341797 GiB" in capsys.readouterr().out
    assert [cost.clips for cost in costs_in(tmp_path, "largest")] == [3]
    assert [cost.clips for cost in costs_in(tmp_path)] == [1]
    assert (tmp_path / "largest.png").is_file()


def test_methods_of_which_not_one_clip_fits_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastav.cost.largest._peak", lambda step, clips, device: 2 << 30)
    assert cli.main(arguments(tmp_path, methods='["frozen"]', memory="1")) == 0
    assert "frozen features: not measured: not even one clip fits into 1 GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (WrongError("it is wrong"), 1, "WrongError: it is wrong"),
        (RuntimeError("broken"), 1, "RuntimeError: broken"),
        (KeyError("broken"), 1, "KeyError: 'broken'"),
        (ValueError("taps[3] holds NaN"), 1, "ValueError: taps[3] holds NaN"),
        (torch.cuda.OutOfMemoryError(), 0, "its check in float64, of 2 segments, does not fit into"),
    ],
)
def test_what_fails_is_named_and_the_rest_is_kept(tmp_path, capsys, monkeypatch, error, status, reason):
    check = profile.check

    def failing(step):
        if isinstance(step.method, MettleAdapter):
            raise error
        return check(step)

    monkeypatch.setattr(profile, "check", failing)
    assert cli.main(arguments(tmp_path, methods='["frozen", "mettle"]')) == status
    assert f"Mettle: not measured: {reason}" in capsys.readouterr().err
    assert [cost.method for cost in costs_in(tmp_path)] == ["frozen"]


def test_waveforms_last_as_long_as_they_are_asked_to(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastav.training.profile_command.profile",
        lambda methods, eyes, ears, inputs, **options: seen.append(inputs[1].shape) or [],
    )
    raw = {"audio.name": "hubert", "audio.options": '{"num_hidden_layers": 1}', "seconds": "2.5"}
    assert cli.main(arguments(tmp_path, **raw)) == 1  # nothing was measured
    assert cli.main(arguments(tmp_path, audio_layout="clip", **raw)) == 1
    assert seen == [(1, 2, 40000), (1, 80000)]


def test_chunks_are_said_and_used(tmp_path, capsys, monkeypatch):
    seen, at_once = set(), FrozenBackbone._at_once

    def noted(self, x, ready):
        if len(x) > 2:  # not of the trial and the check
            seen.add(len(x))
        return at_once(self, x, ready)

    monkeypatch.setattr(FrozenBackbone, "_at_once", noted)
    flags = {"methods": '["mettle"]', "segments": "7", "visual.chunk": "3", "audio.chunk": "4"}
    assert cli.main(arguments(tmp_path, **flags)) == 0
    assert "frozen backbones run 3 frames and 4 sounds at a time" in capsys.readouterr().out
    assert seen == {3, 4}


def test_options_of_methods_are_used_and_said(tmp_path, capsys):
    trainable = []
    for tokens in (4, 8):
        own, folder = json.dumps({"mettle": {"num_tokens": tokens, "rank": 4}}), tmp_path / str(tokens)
        assert cli.main(arguments(folder, methods='["mettle"]', options=own)) == 0
        assert f"; Mettle with num_tokens={tokens}, rank=4\n" in capsys.readouterr().out
        trainable += [cost.trainable for cost in costs_in(folder)]
    assert trainable[1] - trainable[0] == 4 * (2 + 2) * 32  # a query a token, of all taps, of their width


def test_an_option_that_a_method_refuses_is_a_failure(tmp_path, capsys):
    own = json.dumps({"lavish": {"ratio": 5}})
    assert cli.main(arguments(tmp_path, methods='["lavish", "frozen"]', options=own)) == 1
    assert "LAVISH: not measured: ValueError: " in capsys.readouterr().err
    assert [cost.method for cost in costs_in(tmp_path)] == ["frozen"]


def test_no_profile_is_written_over(tmp_path, capsys):
    for name in ("mine", "mine-2", "mine-3"):
        assert cli.main(arguments(tmp_path / "mine", methods='["frozen"]')) == 0
        assert f"written to {tmp_path / name}: costs.md" in capsys.readouterr().out
        assert len(costs_in(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ("device", "memory", "wanted"), [("cpu", None, False), ("cpu", 8.0, True), ("cuda:0", None, True)]
)
def test_the_largest_batch_is_measured_where_something_limits_it(device, memory, wanted):
    config = ProfileConfig(VisualConfig("a"), AudioConfig("b"), memory=memory)
    assert profile_command.wants_largest(config, torch.device(device)) == wanted


def test_without_a_limit_it_is_what_the_device_has(tmp_path, capsys, monkeypatch):
    """As on a GPU, of which 3 clips take everything."""
    monkeypatch.setattr(profile_command, "wants_largest", lambda config, device: True)
    monkeypatch.setattr("fastav.cost.largest._peak", lambda step, clips, device: clips if clips <= 3 else None)
    assert cli.main(arguments(tmp_path, methods='["frozen"]')) == 0
    assert "The largest batch that fits into the device's memory" in capsys.readouterr().out
    assert [cost.clips for cost in costs_in(tmp_path, "largest")] == [3]


def test_a_snapshot_that_is_not_written_costs_no_measurement(tmp_path, capsys, monkeypatch):
    """Steps that say they work on a GPU, of which one fills the disk."""

    def profiled(methods, *backbones, then, **options):
        for method in methods:
            yield replace(GIVEN, method=method)
            then(method, SimpleNamespace(device=torch.device("cuda", 0)))

    def write_snapshot(step, path):
        if "lora" in path.name:
            raise OSError("no space left")

    monkeypatch.setattr(profile_command, "profile", profiled)
    monkeypatch.setattr(profile_command, "write_snapshot", write_snapshot)
    assert cli.main(arguments(tmp_path, methods='["frozen", "lora", "mettle"]')) == 1
    said = capsys.readouterr()
    assert "fastav profile: LoRA: no memory snapshot: OSError: no space left\n" in said.err
    assert "costs.png, memory-frozen.pickle, memory-mettle.pickle\n" in said.out
    assert [cost.method for cost in costs_in(tmp_path)] == ["frozen", "lora", "mettle"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"methods": '["metle"]'}, "--methods: there is no metle; choose among mettle, molt"),
        ({"device": "mps"}, "--device mps: costs are measured on cpu and cuda alone"),
        ({"memory": "0"}, "memory is 0.0, wanted a number above 0"),
        ({"memory": ".inf"}, "memory is inf, wanted a number above 0"),
        ({"seconds": ".inf"}, "seconds is inf, wanted a number above 0"),
        ({"memory": "1e9"}, "--memory 1e+09: this machine has"),
        ({"device": "tpu9"}, "--device tpu9: torch knows no such device"),
        ({"visual.chunk": "0"}, "chunk is 0, wanted at least 1"),
        ({"rounds": "1"}, "rounds is 1, wanted at least 2"),
        ({"visual.name": "vit_tinny"}, "timm has no model 'vit_tinny'"),
        (
            {"visual.name": "resnet18", "visual.options": "{}"},
            "--visual.name resnet18: ResNet has no transformer blocks of a family that fastav knows; choose a model",
        ),
        (
            {"audio.name": "bert", "audio.options": '{"hidden_size": 12, "num_hidden_layers": 1}'},
            "--audio.name bert: BertModel has no transformer blocks of a family that fastav knows; choose a model",
        ),
        ({"options": '{"mettle": {"tokens": 8}}'}, "options for mettle: there is no tokens; choose among activation"),
        ({"options": '{"molt": {}}', "methods": '["frozen"]'}, "options for 'molt', which is not measured"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, said):
    assert cli.main(arguments(tmp_path, **flags)) == 2
    assert said in capsys.readouterr().err

"""``fastav profile`` end to end on tiny backbones with random weights."""

import json

import pytest

from fastav import FrozenBackbone
from fastav.cost import METHODS, Cost
from fastav.training import cli

for module in ("timm", "transformers", "greenlet", "peft", "matplotlib", "jsonargparse"):
    pytest.importorskip(module)

VIT = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
AST = {
    "max_length": 64,
    "num_mel_bins": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


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
    costs = [Cost.from_dict(one) for one in json.loads((tmp_path / "costs.json").read_text())]
    assert [cost.method for cost in costs] == list(METHODS)
    for title in ("Mettle", "MoLT", "frozen features", "ladder side tuning", "LoRA", "LAVISH", "DG-SCT"):
        assert f"\n{title} " in printed
    table = (tmp_path / "costs.md").read_text()
    assert table.startswith(
        "# vit_tiny_patch16_224 and audio-spectrogram-transformer, 1 clip(s) of 2 segments, float32"
    )
    assert f"{costs[0].saved_bytes / 1e6:.1f}" in table
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert "costs.png" in printed


def test_what_does_not_go_with_the_backbones_is_named_and_the_rest_measured(tmp_path, capsys):
    raw = {"audio.name": "hubert", "audio.options": '{"num_hidden_layers": 1}', "methods": '["lavish", "frozen"]'}
    assert cli.main(arguments(tmp_path, **raw)) == 0
    said = capsys.readouterr()
    assert "LAVISH: not measured: Lavish hears spectrograms" in said.err
    assert [one["method"] for one in json.loads((tmp_path / "costs.json").read_text())] == ["frozen"]


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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"methods": '["metle"]'}, "--methods: there is no metle; choose among mettle, molt"),
        ({"device": "tpu9"}, "--device tpu9: torch knows no such device"),
        ({"visual.chunk": "0"}, "chunk is 0, wanted at least 1"),
        ({"rounds": "1"}, "rounds is 1, wanted at least 2"),
        ({"visual.name": "vit_tinny"}, "timm has no model 'vit_tinny'"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, said):
    assert cli.main(arguments(tmp_path, **flags)) == 2
    assert said in capsys.readouterr().err

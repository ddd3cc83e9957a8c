import json

import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import nn

from fastav import FrozenBackbone, MettleAdapter, MettleConfig, create_adapter


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 3, 3, 32, 32, generator=generator)
    return frames, torch.randn(2, 3, 8, 100, generator=generator)


def trained(vit, whisper, inputs, **options):
    """An adapter none of whose tensors has its initial value."""
    torch.manual_seed(5)
    adapter = create_adapter("mettle", visual=vit, audio=whisper, **options)
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        out = adapter(*inputs)
        (out.visual.square().mean() + out.audio.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapter.eval()


@pytest.mark.parametrize("options", [{}, {"share": "width", "layers": {"visual": [0, 2], "audio": 1}}])
def test_reloads_to_the_same_bits(vit, whisper, inputs, tmp_path, options):
    adapter = trained(vit, whisper, inputs, **options)
    out = adapter(*inputs)
    adapter.save_pretrained(tmp_path / "new" / "folder")
    again = MettleAdapter.from_pretrained(tmp_path / "new" / "folder", visual=vit, audio=whisper)
    assert not again.training
    assert again.config == adapter.config
    assert again.visual.tap_names == adapter.visual.tap_names
    assert torch.equal(again(*inputs).visual, out.visual)
    assert torch.equal(again(*inputs).audio, out.audio)
    again.train()
    assert not again.visual.module.training
    assert again.distillation.standardization.measuring  # 3 of 8 batches measured: it goes on where it stopped


@pytest.mark.parametrize(
    ("method", "depth", "options", "injected"),
    [
        ("molt", 12, {}, (2, 5, 8, 11)),  # distils the last four blocks, other quarters than those of its taps
        ("molt", 20, {}, (4, 9, 14, 19)),  # distils five, more than a quarter of its taps
        ("mettle", 12, {"layers": {"visual": 6, "audio": 1}}, (2, 5, 8, 11)),
        ("mettle", 12, {}, (2, 5, 8, 11)),
    ],
)
def test_reloads_onto_the_blocks_that_it_was_trained_with(whisper, inputs, tmp_path, method, depth, options, injected):
    """What "stages" and None mean depends on how many blocks there are, not on how many of them were tapped."""
    torch.manual_seed(1)
    deep = VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=depth, num_heads=2, num_classes=0)
    adapter = create_adapter(method, visual=deep, audio=whisper, inject_stages="stages", **options).eval()
    assert [adapter.visual.tap_names[i] for i in adapter.injected] == [f"blocks.{i}" for i in injected]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
    adapter.save_pretrained(tmp_path)
    again = type(adapter).from_pretrained(tmp_path, visual=deep, audio=whisper)
    assert (again.distilled, again.injected) == (adapter.distilled, adapter.injected)
    assert again.config == adapter.config
    one, other = adapter(*inputs), again(*inputs)
    assert len(one.features) == len(other.features) == 4
    for a, b in zip((one.visual, one.audio, *one.features), (other.visual, other.audio, *other.features), strict=True):
        assert torch.equal(a, b)
    again.save_pretrained(tmp_path / "again")
    files = [(folder / "adapter_config.json").read_text() for folder in (tmp_path, tmp_path / "again")]
    assert files[0] == files[1]


def test_damaged_weights_are_named(vit, whisper, tmp_path):
    MettleAdapter(vit, whisper).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        MettleAdapter.from_pretrained(tmp_path, visual=vit, audio=whisper)


def test_files_hold_the_adapter_alone(vit, whisper, inputs, tmp_path):
    adapter = trained(vit, whisper, inputs)
    adapter.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert set(weights) == set(adapter.state_dict())
    own = {name for name, p in adapter.named_parameters() if p.requires_grad}
    buffers = ("mean", "variance", "inverse_std", "tokens", "measured")
    statistics = {f"distillation.standardization.{name}" for name in buffers}
    assert set(weights) == own | statistics
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["method"] == "mettle"
    blocks = ["blocks.0", "blocks.1", "blocks.2"]
    assert values["visual"] == {"taps": blocks, "widths": [48, 48, 48], "distilled": blocks, "injected": []}
    assert MettleConfig.from_pretrained(tmp_path) == adapter.config


def test_only_the_main_process_writes(vit, whisper, tmp_path):
    MettleAdapter(vit, whisper).save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_frozen_backbones_inside_a_larger_model_stay_out_of_its_state(vit, whisper, inputs):
    model = nn.ModuleDict({"adapter": MettleAdapter(vit, whisper), "head": nn.Linear(4, 2)})
    names = set(model.state_dict())
    assert not any("visual.module" in name or "audio.module" in name for name in names)
    other = nn.ModuleDict({"adapter": MettleAdapter(vit, whisper), "head": nn.Linear(4, 2)})
    other.load_state_dict(model.state_dict())  # strict
    one, two = model["adapter"].eval()(*inputs), other["adapter"].eval()(*inputs)
    assert torch.equal(one.visual, two.visual)


def test_other_backbones_are_refused(vit, swin, whisper, tmp_path):
    MettleAdapter(vit, whisper).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the visual backbone has the taps"):
        MettleAdapter.from_pretrained(tmp_path, visual=FrozenBackbone(swin), audio=whisper)
    with pytest.raises(FileNotFoundError, match="save_pretrained wrote"):
        MettleAdapter.from_pretrained(tmp_path / "nowhere", visual=vit, audio=whisper)


def test_config_round_trip_and_unknown_keys():
    config = MettleConfig(num_tokens=8, branches=("adaptation",), layers=[0, -1])
    assert MettleConfig.from_dict(config.to_dict()) == config
    assert MettleConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.warns(UserWarning, match=r"dropping unknown keys \['from_the_future'\]"):
        assert MettleConfig.from_dict({**config.to_dict(), "from_the_future": 1}) == config
    with pytest.raises(ValueError, match="method 'molt'"):
        MettleConfig.from_dict({"method": "molt"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"rank": 10, "heads": 4}, "rank 10 does not divide into 4 heads"),
        ({"branches": ("both",)}, "branches is"),
        ({"branches": ()}, "branches is"),
        ({"branches": "adaptation"}, "branches is"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"share": "all"}, "share is 'all'"),
        ({"audio_layout": "clips"}, "audio_layout is 'clips'"),
        ({"layers": {"visual": 1}}, "layers has the keys"),
        ({"standardize_batches": True}, "standardize_batches is True"),
        ({"inject_source": "sound"}, "inject_source is 'sound'"),
        ({"inject_gate": float("nan")}, "inject_gate is nan, wanted a number"),
        ({"inject_stages": 2.5}, "inject_stages is 2.5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MettleConfig(**options)


def test_create_adapter_names_its_methods(vit, whisper):
    assert isinstance(create_adapter("mettle", visual=vit, audio=whisper, num_tokens=2), MettleAdapter)
    with pytest.raises(ValueError, match=r"no adapter method 'lavish'; choose one of \['mettle', 'molt'\]"):
        create_adapter("lavish", visual=vit, audio=whisper)
    with pytest.raises(TypeError, match="MettleConfig"):
        MettleAdapter(vit, whisper, config={"num_tokens": 2})


def test_layers_and_own_taps_must_agree(vit, whisper):
    adapter = MettleAdapter(vit, whisper, MettleConfig(layers={"visual": 2, "audio": "all"}))
    assert adapter.visual.tap_names == ("blocks.1", "blocks.2")
    MettleAdapter(FrozenBackbone(vit, 2), whisper, MettleConfig(layers={"visual": 2, "audio": "all"}))
    chosen = MettleAdapter(FrozenBackbone(vit), whisper, MettleConfig(layers={"visual": 2, "audio": "all"}))
    assert (len(chosen.visual.tap_names), chosen.distilled["visual"]) == (3, (1, 2))
    with pytest.raises(ValueError, match=r"config\.layers asks for 2"):
        MettleAdapter(FrozenBackbone(vit, [0, 2]), whisper, MettleConfig(layers={"visual": 2, "audio": "all"}))

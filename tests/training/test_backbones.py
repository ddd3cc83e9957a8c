"""Backbones from the configuration have the weights that they are asked for."""

import pytest
import torch

from fastav.training.backbones import build_audio, build_visual
from fastav.training.config import AudioConfig, VisualConfig

transformers = pytest.importorskip("transformers")

CLAP = {
    "patch_embeds_hidden_size": 8,
    "depths": [2, 2],
    "num_attention_heads": [2, 2],
    "hidden_size": 16,
    "projection_dim": 8,
}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """A whole CLAP model, and the folder where it was saved."""
    torch.manual_seed(0)
    model = transformers.ClapModel(transformers.ClapConfig(audio_config=CLAP, text_config=TEXT, projection_dim=8))
    folder = tmp_path_factory.mktemp("clap")
    model.save_pretrained(folder)
    return model, folder


def test_of_a_clap_checkpoint_the_audio_half_comes_with_its_weights(clap, tmp_path):
    """transformers' own ClapAudioModel.from_pretrained would draw them at random."""
    whole, folder = clap
    whole.audio_model.save_pretrained(tmp_path)
    for place in (folder, tmp_path):
        state = build_audio(AudioConfig(str(place)), seconds=1).state_dict()
        assert state.keys() == whole.audio_model.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in whole.audio_model.state_dict().items())


def test_weights_that_a_checkpoint_lacks_are_not_drawn_at_random(whisper_folder):
    config = AudioConfig(str(whisper_folder), options={"encoder_layers": 3})
    with pytest.raises(ValueError, match=r"holds no encoder\.layers\.2\.fc1\.bias and 14 more weights"):
        build_audio(config, seconds=1)


def test_a_whisper_is_cut_to_the_sounds_length(whisper_folder):
    table = transformers.WhisperModel.from_pretrained(whisper_folder).encoder.embed_positions.weight
    encoder = build_audio(AudioConfig(str(whisper_folder)), seconds=2)
    assert torch.equal(encoder.embed_positions.weight, table[:100])
    with pytest.raises(ValueError, match="a whole number from 1 to 600"):
        build_audio(AudioConfig(str(whisper_folder)), seconds=13)


def test_random_weights_on_request(whisper_folder):
    drawn = build_audio(AudioConfig(str(whisper_folder), pretrained=False), seconds=2)
    kept = build_audio(AudioConfig(str(whisper_folder)), seconds=2)
    assert drawn.layers[0].fc1.weight.shape == kept.layers[0].fc1.weight.shape
    assert not torch.equal(drawn.layers[0].fc1.weight, kept.layers[0].fc1.weight)
    by_type = build_audio(AudioConfig("clap_audio_model", pretrained=False, options=CLAP), seconds=1)
    assert type(by_type) is transformers.ClapAudioModel
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vit = build_visual(VisualConfig("vit", library="transformers", pretrained=False, options=sizes))
    assert (type(vit), vit.config.num_hidden_layers) == (transformers.ViTModel, 2)


def test_timm_weights_of_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    options = {"depth": 2, "embed_dim": 12, "num_heads": 2, "img_size": 32}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    built = build_visual(VisualConfig("vit_tiny_patch16_224", checkpoint=str(tmp_path / "vit.pth"), options=options))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in built.state_dict().items())
    torch.save({"blocks.0.wrong": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold weights of vit_tiny_patch16_224"):
        build_visual(VisualConfig("vit_tiny_patch16_224", checkpoint=str(tmp_path / "other.pth"), options=options))

"""Attention maps are the shares that distil pools with, and lie where the tokens lie."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastav import MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from fastav.training.attention import LayerAttention, frame_maps, sound_maps, spectrograms, token_attention

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=12, num_heads=2)


@pytest.fixture
def whisper():
    torch.manual_seed(1)
    names = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = transformers.WhisperConfig(num_mel_bins=8, max_source_positions=40, **names)
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config)


def randomise(adapter):
    """Parameters and statistics as after training: nothing is zero or one."""
    for parameter in adapter.distillation.parameters():
        nn.init.normal_(parameter)
    adapter.distillation.standardization.measure(
        [torch.randn(5, 7, width) * 2 + 1 for width in adapter.distilled_widths]
    )
    return adapter.eval()


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_shares_pool_the_taps_to_what_distil_gives(vit, whisper, norm, layer):
    """With p the shares and hat x the normed taps, p hat x are the first K rows that the adapter itself pools."""
    config = MettleConfig(num_tokens=3, rank=4, norm=norm, audio_layout="clip", layers={"visual": [0, 2], "audio": 2})
    adapter = randomise(MettleAdapter(vit, whisper, config))
    inputs = {"visual": torch.randn(2, 4, 3, 32, 32), "audio": torch.randn(2, 8, 80)}
    taps = {"visual": adapter.visual(inputs["visual"].flatten(0, 1)), "audio": adapter.audio(inputs["audio"])}
    taps["audio"] = [tap.unflatten(1, (4, -1)).flatten(0, 1) for tap in taps["audio"]]
    weights, _ = adapter.distillation.prepare()
    pooled = adapter.distillation.pool([*taps["visual"], *taps["audio"]], weights)
    for modality, first in (("visual", 0), ("audio", 2)):
        found = token_attention(adapter, modality, inputs[modality], num_segments=4, layer=layer)
        position = first + layer % 2
        tap = taps[modality][layer]
        hat = (
            F.layer_norm(tap, tap.shape[-1:], eps=1e-6)
            if norm == "layer"
            else F.rms_norm(tap, tap.shape[-1:], eps=1e-6)
        )
        hat = hat * weights.weight[position] + weights.bias[position]
        shares = found.patches.flatten(0, 1)
        if modality == "visual":  # ViT has one class token, the first
            assert found.patches.shape == (2, 4, 3, 4)
            shares = torch.cat([found.prefix.flatten(0, 1)[..., None], shares], -1)
        else:
            assert found.patches.shape == (2, 4, 3, 10)
            assert not found.prefix.any()
        torch.testing.assert_close(shares.sum(-1), torch.ones(8, 3))
        torch.testing.assert_close(shares @ hat, pooled[position][:, :3], rtol=1e-4, atol=1e-5)  # float32 sums
    blocks = [token_attention(adapter, m, inputs[m], num_segments=4, layer=layer).block for m in inputs]
    assert blocks == ["blocks.2", "layers.1"]
    with pytest.raises(ValueError, match="there is no visual layer 2: the adapter distils 2 of them"):
        token_attention(adapter, "visual", inputs["visual"], num_segments=4, layer=2)


def test_without_preservation_the_heads_mean_is_shown(vit, whisper):
    config = MettleConfig(num_tokens=3, rank=4, heads=2, branches=["adaptation"])
    adapter = randomise(MettleAdapter(vit, whisper, config))
    x = torch.randn(1, 2, 3, 32, 32)
    found = token_attention(adapter, "visual", x, num_segments=2)
    tap = adapter.visual(x.flatten(0, 1))[-1]
    weights, _ = adapter.distillation.prepare()
    hat = F.layer_norm(tap, (12,), eps=1e-6) * weights.weight[2] + weights.bias[2]
    heads = [(weights.queries[2][rows] @ hat.mT / 12**0.5).softmax(-1) for rows in (slice(3), slice(3, 6))]
    torch.testing.assert_close(found.patches[0], (heads[0] + heads[1])[..., 1:] / 2)


def test_uni_modal_tokens_of_molt(vit, whisper):
    adapter = randomise(MoLTAdapter(vit, whisper, MoLTConfig(num_tokens=2, rank=4, audio_layout="clip")))
    found = token_attention(adapter, "audio", torch.randn(1, 8, 80), num_segments=4)
    torch.testing.assert_close(found.patches.sum(-1), torch.ones(1, 4, 2))


def test_frames_and_time_are_in_order():
    shares = torch.arange(9.0)
    found = LayerAttention("b", shares.view(1, 1, 1, 9), torch.zeros(1, 1, 1))
    assert frame_maps(found)[0, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="10 patches, which are no square"):
        frame_maps(LayerAttention("b", torch.zeros(1, 1, 1, 10), torch.zeros(1, 1, 1)))


class Backbone:
    """As much of a FrozenBackbone as maps of sound ask for."""

    def __init__(self, module, in_order=False):
        self.module, self.tokens_in_time_order = module, in_order


def test_hts_ats_patches_come_back_into_time_and_frequency():
    """Its own fold of a spectrogram whose values say where they are, unfolded again."""
    sizes = {"patch_embeds_hidden_size": 8, "depths": [2, 2], "num_attention_heads": [2, 2], "hidden_size": 16}
    model = transformers.ClapAudioModel(transformers.ClapAudioConfig(projection_dim=8, **sizes)).eval()
    time, mel = torch.arange(1024.0), torch.arange(64.0)
    for ramp, along in ((time[:, None].expand(1024, 64), -1), (mel.expand(1024, 64), -2)):
        folded = model.audio_encoder.reshape_mel2img(ramp[None, None].clone())  # (1, 1, 256, 256)
        patches = F.avg_pool2d(folded, 4).flatten()  # the first stage's 64 x 64 tokens
        found = LayerAttention("b", patches.view(1, 1, 1, -1), torch.zeros(1, 1, 1))
        heard = sound_maps(found, Backbone(model))[0, 0, 0]
        assert heard.shape == (16, 256)
        steps = heard.diff(dim=along)
        assert (steps == 4).all()  # four frames, or four mels, a patch
        assert (heard.diff(dim=-3 - along) == 0).all()


def test_asts_patches_lie_by_frequency_then_time():
    config = transformers.ASTConfig(max_length=104, num_mel_bins=48, **SIZES)
    model = transformers.ASTModel(config).eval()
    projection = model.embeddings.patch_embeddings.projection
    nn.init.constant_(projection.weight, 1 / 256)
    nn.init.zeros_(projection.bias)
    ramp = torch.arange(104.0)[:, None].expand(104, 48)
    patches = model.embeddings.patch_embeddings(ramp[None])[0, :, 0]  # each patch's mean, (4 x 9)
    found = LayerAttention("b", patches.view(1, 1, 1, -1), torch.zeros(1, 1, 1))
    heard = sound_maps(found, Backbone(model))[0, 0, 0]
    assert heard.shape == (4, 9)
    torch.testing.assert_close(heard, (7.5 + 10 * torch.arange(9.0)).expand(4, 9))  # strides of 10 frames


def test_a_family_that_is_not_known_is_refused():
    found = LayerAttention("b", torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="cannot tell where in the spectrogram the tokens of Linear lie"):
        sound_maps(found, Backbone(nn.Linear(1, 1)))
    assert sound_maps(found, Backbone(nn.Linear(1, 1), in_order=True)).shape == (1, 1, 1, 1, 16)


def test_spectrograms_of_both_layouts(vit, whisper):
    log_mel = torch.randn(2, 8, 80)
    adapter = MettleAdapter(vit, whisper, MettleConfig(audio_layout="clip"))
    pictures = spectrograms(adapter, log_mel, num_segments=4)
    assert pictures.shape == (2, 4, 8, 20)
    assert torch.equal(pictures[1, 2], log_mel[1, :, 40:60])
    adapter = MettleAdapter(vit, whisper, MettleConfig(audio_layout="segment"))
    assert torch.equal(spectrograms(adapter, log_mel[None], num_segments=2)[0], log_mel)


def test_the_spectrum_of_a_waveform_shows_its_tone(vit):
    wave = transformers.HubertModel(
        transformers.HubertConfig(
            **SIZES,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )
    adapter = MettleAdapter(vit, wave, MettleConfig(audio_layout="segment"))
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16000) / 16000)
    pictures = spectrograms(adapter, tone.expand(1, 3, -1), num_segments=3)
    assert pictures.shape[:3] == (1, 3, 201)
    assert (pictures[0, :, :, 5:-5].argmax(1) == 50).all()  # bins of 40 Hz

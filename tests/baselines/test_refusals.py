"""What peers' methods refuse, and in which words."""

import pytest
import torch

from fastav import FrozenBackbone, MettleAdapter, MettleConfig
from fastav.baselines import BASELINES, create_baseline
from tests.baselines.making import SEGMENTS, WIDTH, built

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("option", "value"), [("width", 0), ("standardize_batches", 0), ("standardize_batches", -2), ("width", True)]
)
def test_counts_below_one(pair, name, option, value):
    with pytest.raises(ValueError, match=f": {option} is {value}, wanted an integer of at least 1"):
        create_baseline(name, visual=pair[0], audio=pair[1], **{option: value})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, option) for name in ("lavish", "dg-sct") for option in ("num_tokens", "ratio", "groups")),
        ("naive", "ratio"),
        ("naive", "groups"),
        ("ladder", "ratio"),
        ("lora", "rank"),
    ],
)
@pytest.mark.parametrize("value", [0, 2.0])
def test_counts_of_their_own(pair, name, option, value):
    with pytest.raises(ValueError, match=f": {option} is {value}, wanted an integer of at least 1"):
        create_baseline(name, visual=pair[0], audio=pair[1], **{option: value})


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_no_backbone(pair, name):
    with pytest.raises(TypeError, match="str"):
        create_baseline(name, visual="vit", audio=pair[1])


@pytest.mark.parametrize("name", BASELINES)
def test_backbones_that_want_to_be_in_the_state(pair, name):
    with pytest.raises(ValueError, match=r"in_state_dict=True, but a method's state holds what it trains alone"):
        create_baseline(name, visual=FrozenBackbone(pair[0], in_state_dict=True), audio=pair[1])


def test_frames_of_whole_numbers(pair, clips):
    """Which every other method's backbone refuses by itself."""
    model = built("lavish", pair)
    with pytest.raises(TypeError, match=r"visual_input is torch\.uint8, wanted floating numbers, normalised"):
        model(torch.zeros_like(clips[0], dtype=torch.uint8), clips[1])


def test_a_waveform_for_a_spectrogram(pair, clips):
    """Of one clip of one segment too, whose only axis could be taken for a spectrogram's."""
    model = built("lavish", pair)
    with pytest.raises(ValueError, match=r"audio_input has sounds of shape \(1024,\), wanted spectrograms"):
        model(clips[0][:1, :1], clips[1][:1, :1].reshape(1, 1, -1)[..., :1024])


def test_inputs_without_anything_to_hear(pair, clips):
    with pytest.raises(ValueError, match=r"audio_input has shape \(2, 3\), wanted \(2, 3\) first, .* and then what"):
        built("frozen", pair)(clips[0], torch.zeros(2, 3))


def test_maps_of_frames_that_are_not_square(tiny):
    """4 x 9 patches are as many as 6 x 6."""
    eyes, ears = tiny.vit(img_size=(64, 144)), tiny.vit(in_chans=1)
    frames, sound = torch.randn(1, SEGMENTS, 3, 64, 144), torch.randn(1, SEGMENTS, 1, 32, 32)
    for name in ("frozen", "lavish"):
        options = {"ratio": 2} if name == "lavish" else {}
        model = create_baseline(name, visual=eyes, audio=ears, width=WIDTH, dense=True, **options)
        with pytest.raises(ValueError, match="frames of 64 x 144 pixels, but feature maps"):
            model(frames, sound)
    adapter = MettleAdapter(eyes, ears, MettleConfig(inject_stages="stages", rank=4, width=8))
    with pytest.raises(ValueError, match="frames of 64 x 144 pixels, but feature maps"):
        adapter(frames, sound)
    plain = create_baseline("frozen", visual=eyes, audio=ears, width=WIDTH)
    assert plain(frames, sound).visual.shape == (1, SEGMENTS, 1, WIDTH)


def test_full_fine_tuning_leaves_whispers_positions_alone(tiny):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_attention_heads": 2,
    }
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(num_mel_bins=8, max_source_positions=50, decoder_layers=1, **sizes)
    )
    model = create_baseline("full", visual=tiny.vit(), audio=whisper, width=WIDTH)
    left = {name for name, p in model.audio.module.named_parameters() if not p.requires_grad}
    assert "embed_positions.weight" in left
    assert model.audio.module.layers[0].fc1.weight.requires_grad

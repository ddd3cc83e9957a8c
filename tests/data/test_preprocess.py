"""Preprocessing: values against arithmetic done by hand, and what each backbone wants."""

import pickle

import pytest
import torch
from torch import nn

from fastav import FrozenBackbone
from fastav.backbones import shorten_whisper
from fastav.data import DataError, MediaWarning, Preprocess, whisper_front_end

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
WhisperEncoder = pytest.importorskip("transformers.models.whisper.modeling_whisper").WhisperEncoder

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def clip(segments=2, rate=16000):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (segments, 3, 4, 6), generator=generator, dtype=torch.uint8)
    sound = torch.rand(segments * rate, generator=generator) - 0.5
    return {"id": "one", "frames": frames, "sound": sound, "labels": torch.zeros(segments)}


def first_samples(waveform, sampling_rate):
    return waveform[..., :3] * sampling_rate


def vit(**options):
    return timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=2, **options)


def whisper(seconds):
    config = transformers.WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8)
    return shorten_whisper(WhisperEncoder(config), seconds)


def test_values_in_both_layouts():
    given = clip()
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0), "num_segments": 2}
    made = Preprocess(first_samples, **options)(given)
    assert set(made) == {"id", "labels", "visual", "audio"}
    assert "frames" in given
    for colour, (mean, std) in enumerate(zip(options["mean"], options["std"], strict=True)):
        wanted = (given["frames"][:, colour].double() / 255 - mean) / std
        assert (made["visual"][:, colour] - wanted).abs().max() < 1e-5  # float32 against float64, values up to 4
    assert made["visual"].dtype == torch.float32
    starts = torch.stack([given["sound"][:3], given["sound"][16000:16003]])
    assert torch.equal(made["audio"], starts * 16000)
    whole = Preprocess(first_samples, audio_layout="clip", sampling_rate=8000, **options)(given)
    assert torch.equal(whole["audio"], given["sound"][:3] * 8000)


def test_front_ends_get_segments_or_the_clip():
    given = clip()
    made = Preprocess.for_backbones(vit(), whisper(1), num_segments=2)(given)
    assert torch.equal(made["audio"], whisper_front_end(1)(given["sound"].view(2, 16000), 16000))
    made = Preprocess.for_backbones(FrozenBackbone(vit()), whisper(2), num_segments=2, audio_layout="clip")(given)
    assert torch.equal(made["audio"], whisper_front_end(2)(given["sound"], 16000))
    longer = Preprocess.for_backbones(vit(), whisper(2), num_segments=2, seconds_per_segment=2)
    assert longer(clip(rate=32000))["audio"].shape == (2, 80, 200)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2", "WavLM"])
def test_waveforms_get_the_zeros_that_make_tokens_divide(kind):
    config = getattr(transformers, f"{kind}Config")(conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2, **SIZES)
    audio = getattr(transformers, f"{kind}Model")(config)
    given = clip()
    made = Preprocess.for_backbones(vit(), audio, num_segments=2, audio_layout="clip")(given)["audio"]
    assert torch.equal(made, torch.cat([given["sound"], torch.zeros(80)]))
    assert audio._get_feat_extract_output_lengths(len(made)) == 100  # 50 a second
    other = Preprocess.for_backbones(vit(), audio, num_segments=2, sampling_rate=8000)
    with pytest.raises(DataError, match="16000 Hz, not 8000"):
        other(given)


def wav2vec2(**options):
    sizes = {"conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 2, **SIZES}
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes, **options))


def heard(audio):
    """What a backbone gets of two segments that are far from zero mean and unit variance, and those segments."""
    segments = 0.05 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [4.0]])
    segments += torch.tensor([[0.3], [-0.1]])
    preprocess = Preprocess.for_backbones(vit(), audio, num_segments=2)
    return pickle.loads(pickle.dumps(preprocess))({**clip(), "sound": segments.flatten()})["audio"], segments


def normalised(segments):
    """By transformers' own extractor, with the zeros that make tokens divide behind."""
    made = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(
        list(segments.numpy()), sampling_rate=16000, return_tensors="pt"
    )["input_values"]
    return nn.functional.pad(made, (0, 80))


@pytest.mark.parametrize(("says", "norm"), [(True, "group"), (True, "layer"), (False, "group"), (False, "layer")])
def test_waveforms_are_normalised_where_the_checkpoints_extractor_says_so(tmp_path, says, norm):
    wav2vec2(feat_extract_norm=norm).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=says).save_pretrained(tmp_path)
    made, segments = heard(FrozenBackbone(transformers.Wav2Vec2Model.from_pretrained(tmp_path)))
    wanted = normalised(segments) if says else nn.functional.pad(segments, (0, 80))
    assert (made - wanted).abs().max() < 1e-5  # values up to 5, sums of 16,000 numbers in another order


@pytest.mark.parametrize(("norm", "says"), [("group", False), ("layer", True)])
def test_waveforms_for_models_without_an_extractor_go_by_their_configuration(tmp_path, norm, says):
    model = wav2vec2(feat_extract_norm=norm)
    model.save_pretrained(tmp_path)
    made, segments = heard(model)
    wanted = normalised(segments) if says else nn.functional.pad(segments, (0, 80))
    assert (made - wanted).abs().max() < 1e-5
    said = rf"has no feature extractor .*: sounds are {'normalised' if says else 'left as they are'}.*'{norm}'"
    with pytest.warns(MediaWarning, match=said):
        again, _ = heard(transformers.Wav2Vec2Model.from_pretrained(tmp_path))
    assert torch.equal(again, made)


def test_colours_are_the_backbones():
    def statistics(backbone, **options):
        made = Preprocess.for_backbones(backbone, whisper(1), num_segments=2, **options)
        return [[round(value, 6) for value in values.flatten().tolist()] for values in (made.mean, made.std)]

    assert statistics(vit()) == [list(values) for values in IMAGENET]
    halves = timm.create_model("test_vit", pretrained=False)  # its checkpoint was trained with halves
    assert statistics(halves) == [list(values) for values in HALVES]
    image = {"image_size": 32, "patch_size": 16}
    hugging = transformers.ViTModel(transformers.ViTConfig(**image, **SIZES))
    assert statistics(hugging) == [list(values) for values in HALVES]
    dino = {**SIZES, **image}
    dino.pop("intermediate_size")  # DINOv2 has a ratio
    assert statistics(FrozenBackbone(transformers.Dinov2Model(transformers.Dinov2Config(**dino)))) == [
        list(values) for values in IMAGENET
    ]
    given = statistics(nn.Linear(2, 2), mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert given == [[0.1, 0.2, 0.3], [1, 2, 3]]
    with pytest.raises(DataError, match=r"Linear does not say .*give mean and std"):
        statistics(nn.Linear(2, 2))


def test_a_checkpoints_own_image_processor_is_read(tmp_path):
    config = transformers.ViTConfig(image_size=32, patch_size=16, **SIZES)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = transformers.ViTModel.from_pretrained(tmp_path)
    with pytest.warns(MediaWarning, match="has no image processor .* as its family vit has it"):
        made = Preprocess.for_backbones(model, whisper(1), num_segments=2)
    assert made.mean.flatten().tolist() == [0.5] * 3
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3).save_pretrained(tmp_path)
    made = Preprocess.for_backbones(model, whisper(1), num_segments=2)
    assert made.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_wrong_shapes_are_named():
    make = Preprocess(first_samples, mean=(0, 0, 0), std=(1, 1, 1), num_segments=3)
    with pytest.raises(DataError, match=r"frames of one are torch.uint8 \(2, 3, 4, 6\): uint8 \(3, 3, H, W\)"):
        make(clip())
    given = clip(3)
    with pytest.raises(DataError, match=r"sound of one is \(47999,\): .*divide by 3 segments"):
        make({**given, "sound": given["sound"][1:]})
    with pytest.raises(DataError, match=r"torch.float32"):
        make({**given, "frames": given["frames"].float()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio_layout": "video"}, 'audio_layout=.video.: "segment" or "clip"'),
        ({"std": (1, 0, 1)}, "those of std positive"),
        ({"mean": (0.5,)}, "three numbers each"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(first_samples, **{"mean": (0, 0, 0), "std": (1, 1, 1), "num_segments": 2, **options})


def test_it_travels_to_workers():
    made = Preprocess.for_backbones(vit(), whisper(1), num_segments=2)
    copy = pickle.loads(pickle.dumps(made))
    assert torch.equal(copy(clip())["audio"], made(clip())["audio"])

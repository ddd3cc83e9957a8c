"""Front ends against the libraries' extractors, and against where a pure tone must show up."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastav import optional
from fastav.backbones import FrozenBackbone, shorten_whisper
from fastav.data import ast_front_end, clap_front_end, front_end, whisper_front_end
from fastav.data import front_ends as room

BROKEN = (ImportError, OSError, RuntimeError)  # what a package built for another torch may raise
transformers = pytest.importorskip("transformers", exc_type=BROKEN)
functional = pytest.importorskip("torchaudio.functional", exc_type=BROKEN)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


def tone(hertz, seconds, rate):
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


def slaney_mel(hertz):
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def kaldi_mel(hertz):
    return 1127 * math.log(1 + hertz / 700)


def bin_of(hertz, mel, low, high, bins):
    """Number of the triangular filter nearest a tone, of ``bins`` even in mel between ``low`` and ``high`` Hz."""
    return round((mel(hertz) - mel(low)) / (mel(high) - mel(low)) * (bins + 1)) - 1


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [1, 2.5])
def test_whisper_is_the_librarys(bins, seconds):
    sound = noise(3, round(seconds * 16000))
    made = whisper_front_end(seconds, num_mel_bins=bins)(sound, 16000)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    wanted = extractor(list(sound.numpy()), padding="longest", sampling_rate=16000, return_tensors="pt").input_features
    assert made.shape == (3, bins, round(100 * seconds))
    assert torch.equal(made, wanted)


def test_clap_is_the_librarys():
    sound = noise(2, 48000)
    made = clap_front_end(1)(sound, 48000)
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc")
    wanted = extractor(list(sound.numpy()), sampling_rate=48000, return_tensors="pt").input_features
    assert made.shape == (2, 1, 1001, 64)
    assert torch.equal(made, wanted.float())


def test_ast_is_torchaudios_fbank():
    from torchaudio.compliance import kaldi

    sound = noise(2, 16000)
    made = ast_front_end(1, max_length=110)(sound, 16000)
    assert made.shape == (2, 110, 128)
    bank = kaldi.fbank(sound[1:], sample_frequency=16000, window_type="hanning", num_mel_bins=128)
    assert bank.shape == (98, 128)
    assert torch.allclose(made[1, :98], (bank + 4.2677393) / (2 * 4.5689974), atol=1e-5)
    assert torch.allclose(made[1, 98:], torch.tensor(4.2677393 / (2 * 4.5689974)))
    assert torch.equal(ast_front_end(1, max_length=50)(sound, 16000), made[:, :50])
    other = ast_front_end(1, max_length=110, mean=1.0, std=2.0)(sound, 16000)
    assert torch.allclose(other[1, :98], (bank - 1) / 4, atol=1e-5)


@pytest.mark.parametrize("hertz", [440, 1000, 3000])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_tone_lights_up_its_bin(hertz, rate):
    sound = tone(hertz, 1, rate)
    whisper = whisper_front_end(1)(sound, rate)[:, 10:-10].mean(1)
    clap = clap_front_end(1)(sound, rate)[0].mean(0)
    ast = ast_front_end(1, max_length=98)(sound, rate).mean(0)
    assert abs(whisper.argmax() - bin_of(hertz, slaney_mel, 0, 8000, 80)) <= 1
    assert abs(clap.argmax() - bin_of(hertz, slaney_mel, 0, 14000, 64)) <= 1
    assert abs(ast.argmax() - bin_of(hertz, kaldi_mel, 20, 8000, 128)) <= 1


def test_clap_repeats_short_sounds():
    made = clap_front_end(1)(noise(48000), 48000)[0]  # one second is 100 frames
    assert torch.allclose(made[100:200], made[200:300], atol=1e-3)
    assert torch.allclose(made[100:200], made[800:900], atol=1e-3)
    padded = clap_front_end(4)(noise(4 * 48000), 48000)[0]
    assert padded[790].mean() > -40
    assert (padded[810:] == -100).all()  # two repeats, then silence


def test_clap_takes_the_first_ten_seconds():
    sound = noise(11 * 48000)
    made = clap_front_end(11)(sound, 48000)
    assert torch.equal(made, clap_front_end(10)(sound[: 10 * 48000], 48000))
    assert torch.equal(made, clap_front_end(11)(sound, 48000))


def test_resampling_is_torchaudios():
    sound = noise(2, 44100)
    made = whisper_front_end(1)(sound, 44100)
    assert torch.equal(made, whisper_front_end(1)(functional.resample(sound, 44100, 16000), 16000))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.98, 1, 1.3])
def test_any_rate_gives_the_exact_length(rate, seconds):
    made = whisper_front_end(seconds)(noise(round(seconds * rate)), rate)
    assert made.shape == (80, round(100 * seconds))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 2, 2)])
def test_leading_dimensions_are_kept(lead):
    sound = noise(*lead, 16000)
    for make in (whisper_front_end(1), clap_front_end(1), ast_front_end(1, max_length=98)):
        made = make(sound, 16000)
        assert made.shape[: len(lead)] == lead
        last = make(sound.reshape(-1, 16000)[-1], 16000)
        # Resampling for CLAP is a convolution, whose rounding depends on the batch.
        assert torch.allclose(made.reshape(-1, *last.shape)[-1], last, atol=1e-3)


def test_other_floating_types_and_views():
    make, sound = whisper_front_end(1), noise(2, 32000)
    assert torch.equal(make(sound[:, ::2], 16000), make(sound[:, ::2].double(), 16000))
    assert make(sound[:, ::2].bfloat16(), 16000).dtype == torch.float32
    assert not make(sound[:, ::2].requires_grad_(), 16000).requires_grad


def test_front_end_follows_the_backbone():
    sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}
    tokens = {"vocab_size": 9, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **sizes, **tokens, decoder_layers=1, decoder_attention_heads=2, num_mel_bins=128
    )
    encoder = transformers.WhisperModel(config).encoder
    with pytest.raises(ValueError, match=r"takes 30 s, not 1 s: .*shorten_whisper\(encoder, 1\)"):
        front_end(encoder, seconds=1)
    backbone = FrozenBackbone(shorten_whisper(encoder, 1))
    made = front_end(backbone, seconds=1)(noise(2, 16000), 16000)
    assert torch.equal(made, whisper_front_end(1, num_mel_bins=128)(noise(2, 16000), 16000))
    assert backbone(made)[0].shape == (2, 50, 8)

    config = transformers.ASTConfig(
        max_length=64, num_mel_bins=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    backbone = FrozenBackbone(transformers.ASTModel(config))
    made = front_end(backbone, seconds=1)(noise(2, 16000), 16000)
    assert torch.equal(made, ast_front_end(1, num_mel_bins=32, max_length=64)(noise(2, 16000), 16000))
    assert backbone(made)[0].shape == (2, 12, 8)  # 5 x 2 patches and two prefix tokens

    config = transformers.ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1], num_attention_heads=[2], hidden_size=8
    )
    backbone = FrozenBackbone(transformers.ClapAudioModel(config))
    made = front_end(backbone, seconds=1)(noise(2, 16000), 16000)
    assert torch.equal(made, clap_front_end(1)(noise(2, 16000), 16000))
    assert backbone(made)[0].shape == (2, 4096, 8)


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match=r"'Linear'.*HuBERT.* take the waveform"):
        front_end(nn.Linear(2, 2), seconds=1)


@pytest.mark.parametrize(
    ("waveform", "error", "message"),
    [
        (torch.zeros(16000, dtype=torch.int16), TypeError, "divide 16-bit samples by 32768"),
        (torch.full((16000,), float("nan")), ValueError, "NaN"),
        (torch.full((16000,), float("inf")), ValueError, "infinite"),
        (torch.zeros(15999), ValueError, "1 s at 16000 Hz are 16000 samples"),
        (torch.zeros(16000, 2), ValueError, "last dimension"),
        (torch.zeros(0, 16000), ValueError, "one sound or more"),
        (torch.zeros(()), ValueError, "last dimension"),
    ],
)
def test_wrong_waveforms_are_refused(waveform, error, message):
    with pytest.raises(error, match=message):
        whisper_front_end(1)(waveform, 16000)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_lengths_must_be_positive(seconds):
    with pytest.raises(ValueError, match="seconds"):
        clap_front_end(seconds)


def test_whisper_wants_whole_tokens():
    with pytest.raises(ValueError, match=r"seconds=1\.01 is not"):
        whisper_front_end(1.01)


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, error):
    make = whisper_front_end(1)

    def broken(name):
        raise error(f"cannot load {name}")

    monkeypatch.setattr(optional, "import_module", broken)
    with pytest.raises(ImportError, match=r'need torchaudio, .*pip install "fastav\[audio\]"'):
        make(noise(8000), 8000)
    with pytest.raises(ImportError, match="need transformers"):
        clap_front_end(1)
    assert make(noise(16000), 16000).shape == (80, 100)  # no resampling, no torchaudio


def test_the_extractor_gets_float32_of_the_exact_length():
    class Extractor:
        sampling_rate = 100
        model_input_names = ("levels",)

        def __call__(self, sounds, **options):
            assert [(sound.shape, sound.dtype) for sound in sounds] == [((200,), np.float32)] * 6
            assert options == {"sampling_rate": 100, "return_tensors": "pt", "padding": "longest"}
            return {"levels": torch.from_numpy(np.stack(sounds))}

    sound = noise(2, 3, 300).double()
    made = room.FrontEnd(Extractor(), seconds=3, longest=2, padding="longest")(sound, 100)
    assert torch.equal(made, sound[..., :200].float())


def test_under_autocast_the_features_are_the_same():
    """In mixed precision training loops the front end may stand inside."""
    sound = noise(1, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        inside = whisper_front_end(1)(sound, 16000)
    assert torch.equal(inside, whisper_front_end(1)(sound, 16000))

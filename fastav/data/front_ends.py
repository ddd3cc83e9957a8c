"""From waveforms to what audio backbones take, through the feature extractors that were made for them.

torchaudio and transformers are imported where they are used, so that ``import fastav`` needs neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.optional import load_optional


class FrontEnd:
    """Turns mono waveforms of one length into an audio backbone's input, without any randomness.

    Made by ``whisper_front_end``, ``clap_front_end``, ``ast_front_end``, or ``front_end``, which picks one of them.

    Attributes:
        seconds: length of one sound.
        sampling_rate: Hz that the backbone was trained at; waveforms at other rates are resampled to it.
    """

    def __init__(self, extractor: Any, *, seconds: float, longest: float = float("inf"), **options: Any) -> None:
        """Hold a transformers feature extractor, the ``options`` of its calls, and where it cuts sounds off."""
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, got {seconds}")
        self.seconds = seconds
        self.sampling_rate: int = extractor.sampling_rate
        self._extractor = extractor
        self._options = options
        self._samples = round(min(seconds, longest) * self.sampling_rate)

    def __call__(self, waveform: Tensor, sampling_rate: int) -> Tensor:
        """Extract features.

        Args:
            waveform: floating (..., samples), mono, usually within [-1, 1]; samples is ``seconds`` x ``sampling_rate``.
            sampling_rate: of the waveform, in Hz.

        Returns:
            (..., features), float32, on the waveform's device: leading dimensions are kept, so that (B, T, samples)
            gives (B, T, ...). One item is (mels, frames) for Whisper, (1, frames, mels) for CLAP and (frames, mels)
            for AST.

        Raises:
            TypeError: integer samples.
            ValueError: another number of samples, none at all, or samples that are not finite.
            ImportError: torchaudio is missing and the rates differ.
        """
        if not waveform.is_floating_point():
            raise TypeError(f"waveform must be floating, got {waveform.dtype}: divide 16-bit samples by 32768")
        wanted = round(self.seconds * sampling_rate)
        if waveform.dim() == 0 or waveform.shape[-1] != wanted or waveform.numel() == 0:
            raise ValueError(
                f"waveform is {tuple(waveform.shape)}: {self.seconds} s at {sampling_rate} Hz are {wanted} samples "
                "in the last dimension, for one sound or more"
            )
        if not waveform.isfinite().all():
            raise ValueError("waveform holds NaN or infinite samples")
        sounds = waveform.detach().to("cpu", torch.float32).reshape(-1, wanted)
        if sampling_rate != self.sampling_rate:
            functional = _load("torchaudio.functional")
            sounds = functional.resample(sounds, sampling_rate, self.sampling_rate)
        # Resampling rounds lengths up, and odd rates leave a sample too few: pad or cut to the exact number.
        sounds = nn.functional.pad(sounds, (0, self._samples - sounds.shape[-1]))
        with torch.autocast("cpu", enabled=False):  # the extractor's products must not come out in bfloat16
            made = self._extractor(
                list(sounds.numpy()), sampling_rate=self.sampling_rate, return_tensors="pt", **self._options
            )
        features = made[self._extractor.model_input_names[0]].to(waveform.device, torch.float32)
        return features.unflatten(0, waveform.shape[:-1]) if waveform.dim() > 1 else features[0]


def whisper_front_end(seconds: float, *, num_mel_bins: int = 80) -> FrontEnd:
    """Log-mel spectrogram of Whisper: 16 kHz, (..., num_mel_bins, 100 x seconds).

    Raises:
        ValueError: ``seconds`` is not a whole number of Whisper's tokens of 20 ms.
        ImportError: transformers is missing.
    """
    if abs(50 * seconds - round(50 * seconds)) > 1e-6:
        raise ValueError(f"seconds={seconds} is not a whole number of Whisper's tokens of 0.02 s")
    extractor = _load("transformers").WhisperFeatureExtractor(feature_size=num_mel_bins)
    return FrontEnd(extractor, seconds=seconds, padding="longest")  # all are alike: no padding to 30 seconds


def clap_front_end(seconds: float) -> FrontEnd:
    """Log-mel spectrogram of the unfused CLAP checkpoints (HTS-AT): 48 kHz, (..., 1, 1001, 64).

    It always covers 10 seconds. A shorter sound is repeated as often as it fits in whole, with silence after it, as in
    the checkpoints' training; of a longer one, the first 10 seconds are taken (in training, a random stretch was).

    Raises:
        ImportError: transformers is missing.
    """
    extractor = _load("transformers").ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    # Cut before the extractor sees it, so that its random choice never has a choice.
    return FrontEnd(extractor, seconds=seconds, longest=extractor.max_length_s)


def ast_front_end(
    seconds: float,
    *,
    num_mel_bins: int = 128,
    max_length: int = 1024,
    mean: float = -4.2677393,
    std: float = 4.5689974,
) -> FrontEnd:
    """Kaldi filter bank of the Audio Spectrogram Transformer: 16 kHz, (..., max_length, num_mel_bins).

    Frames are 10 ms apart; missing ones are zeros, and those beyond ``max_length`` are dropped. ``mean`` and ``std``
    are those of the training set, AudioSet's by default.

    Raises:
        ImportError: transformers is missing.
    """
    extractor = _load("transformers").ASTFeatureExtractor(
        num_mel_bins=num_mel_bins, max_length=max_length, mean=mean, std=std
    )
    return FrontEnd(extractor, seconds=seconds)


def front_end(backbone: nn.Module, *, seconds: float) -> FrontEnd:
    """Make the front end that a Hugging Face audio backbone wants.

    Args:
        backbone: a Whisper, CLAP audio or AST model, or a ``FrozenBackbone`` of one.
        seconds: length of one sound.

    Returns:
        A callable, ``features = made(waveform, sampling_rate)``.

    Raises:
        ValueError: a backbone of another family, or a Whisper encoder set up for another length.
        ImportError: transformers is missing.
    """
    module = backbone.module if isinstance(backbone, FrozenBackbone) else backbone
    config: Any = getattr(module, "config", None)
    kind = getattr(config, "model_type", type(module).__name__)
    if kind == "whisper":
        if config.max_source_positions != round(50 * seconds):
            raise ValueError(
                f"this Whisper encoder takes {config.max_source_positions / 50:g} s, not {seconds} s: "
                f"set it up with fastav.backbones.shorten_whisper(encoder, {seconds})"
            )
        return whisper_front_end(seconds, num_mel_bins=config.num_mel_bins)
    if kind == "clap_audio_model":
        return clap_front_end(seconds)
    if kind == "audio-spectrogram-transformer":
        return ast_front_end(seconds, num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    raise ValueError(
        f"no front end for {kind!r}, only for Whisper, CLAP and AST; HuBERT, wav2vec 2.0 and WavLM take the waveform "
        "at 16 kHz itself"
    )


def _load(name: str) -> Any:
    return load_optional(name, by="audio front ends", extra="audio")

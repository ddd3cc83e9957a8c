"""From a clip's frames and sound to what the two backbones take."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastav.backbones import FrozenBackbone
from fastav.data.errors import DataError, MediaWarning
from fastav.data.front_ends import front_end as front_end_for
from fastav.optional import load_optional

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
#: What the publishers of each Hugging Face family normalise by, for models that come without a checkpoint's settings.
_FAMILIES = {
    "vit": _HALVES,
    "swin": _IMAGENET,
    "swinv2": _IMAGENET,
    "dinov2": _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
    "dinov3_vit": _IMAGENET,
}
_WAVEFORM_FAMILIES = ("hubert", "wav2vec2", "wavlm")


class Preprocess:
    """Turn a clip's "frames" and "sound" into "visual" and "audio"; a reader's ``preprocess``.

    Args:
        front_end: turns waveforms (..., samples) and their rate into the audio backbone's input, (..., features);
            usually a :class:`fastav.data.FrontEnd`. Its length is a segment's, or with ``audio_layout="clip"`` a
            clip's.
        mean: of each colour, on the scale of 0 to 1; the visual backbone's.
        std: the same.
        num_segments: T.
        audio_layout: "segment": one sound a segment, "audio" is (T, ...); "clip": one a clip, "audio" is (...).
        sampling_rate: of the clips' sounds, in Hz.

    Raises:
        ValueError: an unknown layout, or not three colours.
    """

    def __init__(
        self,
        front_end: Callable[[Tensor, int], Tensor],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_segments: int,
        audio_layout: str = "segment",
        sampling_rate: int = 16000,
    ) -> None:
        if audio_layout not in ("segment", "clip"):
            raise ValueError(f'audio_layout={audio_layout!r}: "segment" or "clip" is wanted')
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"mean={mean} and std={std}: three numbers each are wanted, those of std positive")
        self.front_end, self.audio_layout = front_end, audio_layout
        self.num_segments, self.sampling_rate = num_segments, sampling_rate
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    @classmethod
    def for_backbones(
        cls,
        visual: nn.Module,
        audio: nn.Module,
        *,
        num_segments: int,
        seconds_per_segment: float = 1.0,
        audio_layout: str = "segment",
        sampling_rate: int = 16000,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Preprocess":
        """Make what a pair of backbones wants.

        Args:
            visual: a timm or Hugging Face backbone, or a ``FrozenBackbone`` of one.
            audio: a Hugging Face Whisper, CLAP audio, AST, HuBERT, wav2vec 2.0 or WavLM, or a ``FrozenBackbone``. Of
                the last three each sound is brought to zero mean and unit variance if the checkpoint's feature
                extractor says ``do_normalize``, or where it has none, if its ``feat_extract_norm`` is "layer".
            num_segments: T.
            seconds_per_segment: length of a segment's sound.
            audio_layout: as in the class.
            sampling_rate: of the clips' sounds, in Hz.
            mean: of each colour; by default what the visual backbone's checkpoint says.
            std: the same.

        Raises:
            ValueError: an audio backbone of another family, or one that is set up for another length.
            DataError: a visual backbone that does not say what it wants; give ``mean`` and ``std``.
            ImportError: timm or transformers is missing.
        """
        if mean is None or std is None:
            mean, std = colour_statistics(visual)
        seconds = seconds_per_segment * (num_segments if audio_layout == "clip" else 1)
        return cls(
            _waveform(audio) or front_end_for(audio, seconds=seconds),
            mean=mean,
            std=std,
            num_segments=num_segments,
            audio_layout=audio_layout,
            sampling_rate=sampling_rate,
        )

    def __call__(self, clip: dict[str, Any]) -> dict[str, Any]:
        """Preprocess a clip.

        Args:
            clip: "frames" (T, 3, H, W) uint8, "sound" (samples,) float32, and anything else.

        Returns:
            A new dictionary without these two, with "visual" (T, 3, H, W) float32 and "audio" float32.

        Raises:
            DataError: frames or sound of other shapes.
        """
        rest = dict(clip)
        frames, sound = rest.pop("frames"), rest.pop("sound")
        if frames.ndim != 4 or frames.shape[:2] != (self.num_segments, 3) or frames.dtype != torch.uint8:
            raise DataError(
                f"frames of {clip.get('id')} are {frames.dtype} {tuple(frames.shape)}: uint8 ({self.num_segments}, 3, "
                "H, W) is wanted; give Preprocess the num_segments of the reader"
            )
        if sound.ndim != 1 or sound.numel() % self.num_segments:
            raise DataError(
                f"sound of {clip.get('id')} is {tuple(sound.shape)}: (samples,) that divide by {self.num_segments} "
                "segments is wanted"
            )
        waveform = sound.view(self.num_segments, -1) if self.audio_layout == "segment" else sound
        rest["visual"] = (frames.float() / 255 - self.mean) / self.std
        rest["audio"] = self.front_end(waveform, self.sampling_rate)
        return rest


def colour_statistics(visual: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation of each colour that a visual backbone was trained with.

    Args:
        visual: a timm or Hugging Face backbone, or a ``FrozenBackbone`` of one. Of a Hugging Face checkpoint the
            settings of its image processor are read; models without any get those of their family.

    Raises:
        DataError: neither timm nor a known Hugging Face family.
        ImportError: timm is missing.
    """
    module = visual.module if isinstance(visual, FrozenBackbone) else visual
    kind = getattr(getattr(module, "config", None), "model_type", None)
    if kind is None and type(module).__module__.partition(".")[0] == "timm":
        found = load_optional("timm.data", by="normalised frames", extra="backbones").resolve_model_data_config(module)
        return found["mean"], found["std"]
    name = getattr(getattr(module, "config", None), "_name_or_path", "")
    if name:
        transformers = load_optional("transformers", by="normalised frames", extra="backbones")
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name)
            return processor.image_mean, processor.image_std
        except (OSError, ValueError) as error:
            if kind in _FAMILIES:
                warnings.warn(
                    f"{name} has no image processor ({error}): frames are normalised as its family {kind} has it, by "
                    f"{_FAMILIES[kind]}; give mean and std if the checkpoint wants others",
                    MediaWarning,
                    stacklevel=2,
                )
    if kind not in _FAMILIES:
        raise DataError(f"{type(module).__name__} does not say what its frames are normalised by: give mean and std")
    return _FAMILIES[kind]


def _waveform(audio: nn.Module) -> Callable[[Tensor, int], Tensor] | None:
    """For backbones that take the waveform itself: it with zeros that make tokens divide by segments; None for others.

    A convolution that reaches over r samples every s makes (n - r) / s + 1 tokens of n samples: n / s with r - s zeros.
    """
    config: Any = getattr(audio.module if isinstance(audio, FrozenBackbone) else audio, "config", None)
    if getattr(config, "model_type", None) not in _WAVEFORM_FAMILIES:
        return None
    strides = [math.prod(config.conv_stride[:layer]) for layer in range(len(config.conv_stride) + 1)]
    reach = 1 + sum((kernel - 1) * stride for kernel, stride in zip(config.conv_kernel, strides, strict=False))
    return _PaddedWaveform(max(0, reach - strides[-1]), normalise=_heard_normalised(config))


def _heard_normalised(config: Any) -> bool:
    """Whether a model was trained on sounds of zero mean and unit variance: its checkpoint's feature extractor says.

    Where there is none, the configuration tells: in all three families the models with layer norms in their
    convolutions were.
    """
    name, norm = getattr(config, "_name_or_path", ""), config.feat_extract_norm
    if name:
        transformers = load_optional("transformers", by="normalised waveforms", extra="backbones")
        try:
            return bool(transformers.AutoFeatureExtractor.from_pretrained(name).do_normalize)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"{name} has no feature extractor ({error}): sounds are "
                f"{'normalised' if norm == 'layer' else 'left as they are'}, as its feat_extract_norm {norm!r} has it; "
                "put the checkpoint's preprocessor_config.json beside its weights if it wants otherwise",
                MediaWarning,
                stacklevel=4,
            )
    return bool(norm == "layer")


class _PaddedWaveform:
    """A class, not a closure, so that loaders' workers can be started by spawning."""

    def __init__(self, zeros: int, *, normalise: bool) -> None:
        self.zeros, self.normalise = zeros, normalise

    def __call__(self, waveform: Tensor, sampling_rate: int) -> Tensor:
        if sampling_rate != 16000:
            raise DataError(f"the audio backbone takes sound at 16000 Hz, not {sampling_rate}: set sampling_rate=16000")
        if self.normalise:  # each sound by itself, as transformers' Wav2Vec2FeatureExtractor does; zeros come after
            variance, mean = torch.var_mean(waveform, -1, correction=0, keepdim=True)
            waveform = (waveform - mean) / (variance + 1e-7).sqrt()
        return pad(waveform, (0, self.zeros))

"""Backbones from the configuration: built by timm or transformers, with pretrained, a file's or random weights."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from fastav.backbones import shorten_whisper
from fastav.backbones.whisper import whisper_encoder
from fastav.optional import load_optional
from fastav.training.config import AudioConfig, VisualConfig


def build_visual(config: VisualConfig) -> nn.Module:
    """Build the visual backbone.

    Raises:
        ValueError: no such model, options that it does not take, or weights that are not to be had; says what to do.
        ImportError: its library is missing.
    """
    if config.library == "timm":
        return _from_timm(config)
    if config.checkpoint is not None:
        raise ValueError("visual.checkpoint is for timm models: give the folder of a transformers model as visual.name")
    return from_transformers(config.name, pretrained=config.pretrained, options=config.options, flag="visual")


def build_audio(config: AudioConfig, seconds: float) -> nn.Module:
    """Build the audio backbone, a Whisper encoder for sounds of ``seconds``.

    Raises:
        ValueError: as :func:`build_visual`, or a Whisper encoder that knows fewer seconds.
        ImportError: transformers is missing.
    """
    model = from_transformers(config.name, pretrained=config.pretrained, options=config.options, flag="audio")
    return model if whisper_encoder(model) is None else shorten_whisper(model, seconds)


def _from_timm(config: VisualConfig) -> nn.Module:
    timm = load_optional("timm", by="timm backbones", extra="backbones")
    if not timm.is_model(config.name.partition(".")[0]):
        near = get_close_matches(config.name, timm.list_models(), n=3)
        raise ValueError(f"visual.name: timm has no model {config.name!r}; near it are {', '.join(near) or 'none'}")
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ValueError(f"visual.checkpoint: there is no file {config.checkpoint}")
    options = {"num_classes": 0, **config.options}
    try:
        if config.checkpoint is not None:
            return timm.create_model(config.name, checkpoint_path=config.checkpoint, **options)
        return timm.create_model(config.name, pretrained=config.pretrained, **options)
    except TypeError as error:
        raise ValueError(f"visual.options: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        if config.checkpoint is not None:
            raise ValueError(f"{config.checkpoint} does not hold weights of {config.name}: {_brief(error)}") from error
        raise ValueError(_no_weights(config.name, "visual", "a file of weights as visual.checkpoint", error)) from error


def from_transformers(name: str, *, pretrained: bool, options: dict[str, Any], flag: str) -> Any:
    """A transformers model, of a CLAP checkpoint its audio half.

    Args:
        name: on the hub, of a folder, or, without pretrained weights, a model type.
        pretrained: with the weights.
        options: fields of its configuration.
        flag: what the command line calls the model, for messages.

    Raises:
        ValueError: no such model, or weights that are not to be had.
        ImportError: transformers is missing.
    """
    transformers = load_optional("transformers", by="transformers backbones", extra="backbones")
    known = pretrained or Path(name).is_dir()
    settings = transformers.AutoConfig
    try:
        config = settings.from_pretrained(name, **options) if known else settings.for_model(name, **options)
        # Alone it is no model that transformers' Auto class knows.
        audio_half = config.model_type == "clap_audio_model"
        loader = transformers.ClapAudioModel if audio_half else transformers.AutoModel
        if pretrained:
            model, found = loader.from_pretrained(name, config=config, output_loading_info=True)
        else:
            model = loader(config) if audio_half else loader.from_config(config)
    except (OSError, RuntimeError, ValueError) as error:
        if pretrained:
            instead = f"a folder that save_pretrained wrote as {flag}.name"
            raise ValueError(_no_weights(name, flag, instead, error)) from error
        raise ValueError(f"{flag}: transformers cannot build {name!r}: {_brief(error)}") from error
    # transformers draws what a checkpoint lacks at random, with no more than a warning. No tap is behind a pooler.
    lacks = sorted(key for key in found["missing_keys"] if "pooler" not in key) if pretrained else []
    if lacks:
        raise ValueError(f"{flag}: {name!r} holds no {lacks[0]} and {len(lacks) - 1} more weights of the model")
    return model.audio_model if config.model_type == "clap" else model


def _no_weights(name: str, flag: str, instead: str, error: Exception) -> str:
    return (
        f"{flag}: the weights of {name!r} could not be loaded ({_brief(error)}). Without a connection, give {instead}, "
        f"or copy the cache of a machine that has them (HF_HOME); --{flag}.pretrained false goes without"
    )


def _brief(error: Exception) -> str:
    """The first line of a message that may fill a page."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")

"""Which blocks of a backbone to tap, what to probe it with, and how a block's output is read as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

# Transformer blocks by "file.Class" inside each library: the classes outlive the attribute names that lead to them.
# The value says whether the tokens are a sequence over time, in its order, or patches of a picture or spectrogram.
_KNOWN_BLOCKS: dict[str, dict[str, bool]] = {
    "timm": {
        "vision_transformer.Block": False,
        "vision_transformer.ResPostBlock": False,
        "vision_transformer.ParallelScalingBlock": False,
        "vision_transformer.DiffParallelScalingBlock": False,
        "vision_transformer.ParallelThingsBlock": False,
        "eva.EvaBlock": False,
        "eva.EvaBlockPostNorm": False,
        "beit.Block": False,
        "swin_transformer.SwinTransformerBlock": False,
        "swin_transformer_v2.SwinTransformerV2Block": False,
    },
    "transformers": {
        "modeling_vit.ViTLayer": False,
        "modeling_dinov2.Dinov2Layer": False,
        "modeling_dinov2_with_registers.Dinov2WithRegistersLayer": False,
        "modeling_dinov3_vit.DINOv3ViTLayer": False,
        "modeling_swin.SwinLayer": False,
        "modeling_swinv2.Swinv2Layer": False,
        "modeling_audio_spectrogram_transformer.ASTLayer": False,
        "modeling_clap.ClapAudioLayer": False,
        "modeling_whisper.WhisperEncoderLayer": True,
        "modeling_hubert.HubertEncoderLayer": True,
        "modeling_hubert.HubertEncoderLayerStableLayerNorm": True,
        "modeling_wav2vec2.Wav2Vec2EncoderLayer": True,
        "modeling_wav2vec2.Wav2Vec2EncoderLayerStableLayerNorm": True,
        "modeling_wavlm.WavLMEncoderLayer": True,
        "modeling_wavlm.WavLMEncoderLayerStableLayerNorm": True,
    },
}

# Class tokens of Hugging Face's families by model type; registers are in their configurations.
_CLASS_TOKENS = {
    "vit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "audio-spectrogram-transformer": 2,
}


def time_order(block: nn.Module) -> bool | None:
    """Whether a block's tokens lie in time order; None for a block of no known family."""
    library, name = block_class(block)
    return _KNOWN_BLOCKS[library][name] if name else None


def block_class(block: nn.Module) -> tuple[str, str]:
    """The library and the "file.Class" of a block of a known family, also by what it derives from; else two "".

    Classes outlive the attribute names that lead to them.
    """
    for cls in type(block).__mro__:
        library, _, file = cls.__module__.partition(".")
        name = f"{file.rpartition('.')[2]}.{cls.__name__}"
        if name in _KNOWN_BLOCKS.get(library, {}):
            return library, name
    return "", ""


def find_blocks(module: nn.Module) -> list[str]:
    """Names of all transformer blocks of known families inside ``module``, in network order."""
    return [name for name, block in module.named_modules() if time_order(block) is not None]


def select_taps(module: nn.Module, taps: str | int | Sequence[int] | Sequence[str]) -> tuple[str, ...]:
    """Names of the blocks to tap, in network order and each once.

    Args:
        module: the backbone.
        taps: "all"; an int for the last n blocks; ints (negative from the end); or module names, in which each
            "*" stands for one or part of one dotted component, as in "layers.*.blocks.*".

    Raises:
        ValueError: no known blocks, a number outside the network, a name that matches nothing, or nothing asked for.
        TypeError: ``taps`` is of another type, or mixes numbers and names.
    """
    if isinstance(taps, str) and taps != "all":
        return _matching(module, [taps])
    if not isinstance(taps, str | int):
        names = [item for item in taps if isinstance(item, str)]
        if not taps:
            raise ValueError("taps is empty: name at least one block, or leave it at 'all'")
        if len(names) == len(taps):
            return _matching(module, names)
    blocks = find_blocks(module)
    if not blocks:
        raise ValueError(_nothing_known(module))
    if taps == "all":
        return tuple(blocks)
    if isinstance(taps, int):
        if not 0 < taps <= len(blocks):
            raise ValueError(f"taps={taps} asks for the last {taps} blocks of {len(blocks)}")
        return tuple(blocks[-taps:])
    indices = [item for item in taps if isinstance(item, int)]
    if len(indices) < len(taps):
        raise TypeError(f"taps must be 'all', an int, a sequence of ints or one of module names, got {taps!r}")
    outside = [index for index in indices if not -len(blocks) <= index < len(blocks)]
    if outside:
        raise ValueError(f"taps names blocks {outside}, but there are {len(blocks)}: 0 to {len(blocks) - 1}")
    return tuple(blocks[index] for index in sorted({index % len(blocks) for index in indices}))


def count_prefix_tokens(module: nn.Module) -> int:
    """How many tokens of a backbone stand before those of its patches: class, distillation and register tokens."""
    model: Any = module
    libraries = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    if "timm" in libraries:
        return getattr(model, "num_prefix_tokens", 0)
    if "transformers" in libraries:
        registers = getattr(model.config, "num_register_tokens", 0)
        return _CLASS_TOKENS.get(model.config.model_type, 0) + registers
    return 0


def example_for(module: nn.Module) -> Tensor:
    """Make zeros that a timm or Hugging Face backbone of a known family takes: one item, float32, on the CPU.

    Raises:
        ValueError: the backbone's configuration does not tell what it takes.
    """
    model: Any = module  # what follows are attributes of timm's and transformers' classes
    libraries = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    if "timm" in libraries:
        # img_size is what the model was built for, pretrained_cfg what its weights were trained on.
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        stem = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        return torch.zeros(1, stem.in_channels, *(built_for or model.pretrained_cfg["input_size"][1:]))
    if "transformers" in libraries:
        config, kind = model.config, model.config.model_type
        if model.main_input_name == "pixel_values":
            size = config.image_size
            return torch.zeros(1, config.num_channels, *((size, size) if isinstance(size, int) else size))
        if kind == "audio-spectrogram-transformer":
            return torch.zeros(1, config.max_length, config.num_mel_bins)
        if kind == "whisper":
            return torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
        if kind == "clap_audio_model" and config.enable_fusion:
            raise ValueError(
                "a CLAP model with enable_fusion=True wants more than its input: use an unfused checkpoint"
            )
        if kind == "clap_audio_model":  # shorter spectrograms, the usual 1001 frames too, are stretched to this many
            return torch.zeros(1, 1, config.spec_size**2 // config.num_mel_bins, config.num_mel_bins)
        if kind in ("hubert", "wav2vec2", "wavlm"):
            return torch.zeros(1, 16000)
    raise ValueError(
        f"cannot tell what {type(module).__name__} takes: pass example_input, a tensor that it takes, one item or more"
    )


def token_layout(output: Tensor, *, channels_last: bool, name: str) -> str:
    """Tell the axes of a block's output for a batch of one: "BND", "NBD" (sequence first), "BHWC" or "BCHW".

    A 4-D output is read by its equal sides unless ``channels_last`` says that the block's family puts channels last.

    Raises:
        ValueError: the shape does not say which axis holds the channels; ``name`` is the block's.
    """
    shape = tuple(output.shape)
    match shape:
        case (1, _, _):
            return "BND"
        case (_, 1, _):
            return "NBD"
        case (1, height, width, channels) if channels_last or height == width != channels:
            return "BHWC"
        case (1, channels, height, width) if height == width != channels:
            return "BCHW"
    raise ValueError(
        f"block {name!r} puts out {shape} for one item, where batch, tokens and channels cannot be told apart: "
        f"tap a block that puts out (B, N, D), (N, B, D), or a square (B, H, W, C) or (B, C, H, W)"
    )


def as_tokens(output: Tensor, layout: str) -> Tensor:
    """Read a block's output as (B, N, D) with unit stride over D: a view wherever the memory allows."""
    if layout == "NBD":
        output = output.transpose(0, 1)
    elif layout == "BHWC":
        output = output.flatten(1, 2)
    elif layout == "BCHW":
        output = output.permute(0, 2, 3, 1).flatten(1, 2)
    return output if output.stride(-1) == 1 else output.contiguous()


def _matching(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of the submodules that match any pattern, component by component, in network order."""
    names = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        parts = pattern.split(".")
        hits = {
            name
            for name in names
            if name.count(".") == len(parts) - 1 and all(map(fnmatchcase, name.split("."), parts))
        }
        if not hits:
            raise ValueError(f"taps: no module of {type(module).__name__} is called {pattern!r}. {_candidates(module)}")
        found |= hits
    return tuple(name for name in names if name in found)


def _nothing_known(module: nn.Module) -> str:
    known = sorted({block.rpartition(".")[2] for blocks in _KNOWN_BLOCKS.values() for block in blocks})
    return (
        f"{type(module).__name__} holds no transformer block of a known timm or transformers family "
        f"({', '.join(known)}). {_candidates(module)}"
    )


def _candidates(module: nn.Module) -> str:
    """Say what could be tapped: lists of two or more children of one class."""
    runs = []
    for name, child in module.named_modules():
        kinds = {type(item).__name__ for item in child.children()}
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1 and len(kinds) == 1:
            pattern = f"{name}.*" if name else "*"
            runs.append(f'"{pattern}" ({len(child)} x {kinds.pop()})')
    if not runs:
        return 'Pass taps=[...] with module names, as in taps=["trunk.0", "trunk.1"].'
    return f"Pass taps=[...] with module names; likely ones: {', '.join(runs)}."

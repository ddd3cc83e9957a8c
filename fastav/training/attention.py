"""Where an adapter's query tokens look: their attention over one block's tokens, as maps over frames and sounds."""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastav.adapters import Adapter
from fastav.backbones import FrozenBackbone

#: Rows of the spectrogram that HTS-AT folds into a picture's height, one after the other.
_CLAP_FOLDS = 4


class LayerAttention(NamedTuple):
    """The attention of K tokens in one distilled block of one modality, for B clips of T segments.

    Attributes:
        block: the block's name in its backbone.
        patches: (B, T, K, N) float32, how much of each token goes to each patch or time step of its segment.
        prefix: (B, T, K) float32, how much goes to tokens of no place, such as a class token. With these, ``patches``
            sums to one.
    """

    block: str
    patches: Tensor
    prefix: Tensor


@torch.no_grad()
def token_attention(
    adapter: Adapter, modality: str, backbone_input: Tensor, *, num_segments: int, layer: int = -1
) -> LayerAttention:
    """How the query tokens of one distilled block share their attention out: the p of ``p hat x`` in ``distill``.

    Of Mettle's branches preservation is shown, whose tokens are mixes of exactly these shares. Where it does not run,
    it is adaptation, its heads' mean. Of MoLT the tokens are the uni-modal ones.

    Args:
        adapter: any.
        modality: "visual" or "audio".
        backbone_input: (B, T, ...), of audio in the layout "clip" (B, ...), as the adapter takes it.
        num_segments: T.
        layer: which of the distilled blocks of this modality; negative from the end.

    Raises:
        ValueError: there is no such block.
    """
    backbone: FrozenBackbone = getattr(adapter, modality)
    distilled = adapter.distilled[modality]
    if not -len(distilled) <= layer < len(distilled):
        raise ValueError(f"there is no {modality} layer {layer}: the adapter distils {len(distilled)} of them")
    number = distilled[layer]
    by_clip = modality == "audio" and adapter.config.audio_layout == "clip"
    tap = backbone(backbone_input if by_clip else backbone_input.flatten(0, 1))[number].float()
    if by_clip:
        tap = tap.unflatten(1, (num_segments, -1)).flatten(0, 1)

    weights, _ = adapter.distillation.prepare()
    first = 0 if modality == "visual" else adapter.num_visual
    position = first + layer % len(distilled)
    hat = _normed(tap, adapter.config.norm, adapter.config.eps)
    if weights.weight is not None and weights.bias is not None:
        hat = hat * weights.weight[position] + weights.bias[position]
    shares = (hat.shape[-1] ** -0.5 * weights.queries[position] @ hat.mT).softmax(-1)  # (B T, R, N)
    count = adapter.config.num_tokens
    if "preservation" in adapter.config.branches:
        shares = shares[:, :count]
    else:
        shares = shares.unflatten(1, (-1, count)).mean(1)
    shares = shares.unflatten(0, (-1, num_segments))
    prefix = 0 if by_clip else backbone.prefix_tokens
    return LayerAttention(backbone.tap_names[number], shares[..., prefix:], shares[..., :prefix].sum(-1))


def frame_maps(attention: LayerAttention) -> Tensor:
    """Attention over the frames' patches: (B, T, K, h, w).

    Raises:
        ValueError: the patches are no square map.
    """
    side = isqrt(attention.patches.shape[-1])
    if side * side != attention.patches.shape[-1]:
        raise ValueError(f"block {attention.block!r} has {attention.patches.shape[-1]} patches, which are no square")
    return attention.patches.unflatten(-1, (side, side))


def sound_maps(attention: LayerAttention, backbone: FrozenBackbone) -> Tensor:
    """Attention over a segment's sound: (B, T, K, f, t), low frequencies first.

    Tokens in time order have no frequency, f = 1. Patches of a spectrogram are brought into its own axes.

    Raises:
        ValueError: patches of a backbone of no known family.
    """
    patches, module = attention.patches, backbone.module
    if backbone.tokens_in_time_order:
        return patches[..., None, :]
    config: Any = getattr(module, "config", None)
    kind = getattr(config, "model_type", "")
    if kind == "audio-spectrogram-transformer":
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return patches.unflatten(-1, (rows, -1))
    if kind == "clap_audio_model":
        side = isqrt(patches.shape[-1])
        folded = patches.unflatten(-1, (_CLAP_FOLDS, side // _CLAP_FOLDS, side))
        return folded.transpose(-3, -2).flatten(-2)
    raise ValueError(f"cannot tell where in the spectrogram the tokens of {type(module).__name__} lie")


def spectrograms(adapter: Adapter, audio_input: Tensor, *, num_segments: int) -> Tensor:
    """What the audio backbone heard, as pictures of one segment each: (B, T, frequencies, frames), low ones first.

    Log-mel and filter-bank inputs are shown as they are, waveforms by their log-magnitude spectrum.

    Args:
        adapter: whose audio backbone it is.
        audio_input: (B, T, ...), in the layout "clip" (B, ...), as the adapter takes it.
        num_segments: T.
    """
    kind = getattr(getattr(adapter.audio.module, "config", None), "model_type", "")
    x = audio_input.float()
    if kind == "clap_audio_model":
        x = x.squeeze(-3)
    if kind in ("audio-spectrogram-transformer", "clap_audio_model"):
        x = x.mT
    elif kind != "whisper":
        x = _log_spectrum(x)
    if adapter.config.audio_layout == "segment":
        return x
    frames = x.shape[-1] // num_segments
    return x[..., : frames * num_segments].unflatten(-1, (num_segments, frames)).transpose(1, 2)


def _log_spectrum(waveform: Tensor) -> Tensor:
    size, hop = 400, 160  # 25 and 10 ms at 16 kHz
    flat = waveform.flatten(0, -2)
    spectrum = torch.stft(flat, size, hop, window=torch.hann_window(size, device=flat.device), return_complex=True)
    return spectrum.abs().clamp_min(1e-5).log10().unflatten(0, waveform.shape[:-1])


def _normed(tap: Tensor, norm: str, eps: float) -> Tensor:
    if norm == "none":
        return tap
    return (F.layer_norm if norm == "layer" else F.rms_norm)(tap, tap.shape[-1:], eps=eps)

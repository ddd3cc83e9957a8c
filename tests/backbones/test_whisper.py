"""Whisper for clips shorter than its 30 seconds."""

import pytest
import torch
from torch import nn

from fastav.backbones import FrozenBackbone, shorten_whisper


@pytest.mark.parametrize("whole", [True, False])
def test_shorten_whisper(tiny, whole):
    model = tiny.hf("Whisper")
    long_table = model.encoder.embed_positions.weight.detach().clone()
    encoder = shorten_whisper(model if whole else model.encoder, 0.5)
    assert encoder is model.encoder
    assert encoder.config.max_source_positions == encoder.max_source_positions == 25
    assert torch.equal(encoder.embed_positions.weight, long_table[:25])
    assert FrozenBackbone(encoder)(torch.randn(2, 80, 50))[-1].shape == (2, 25, 12)
    with pytest.raises(ValueError, match="length 50"):
        encoder(torch.randn(2, 80, 200))


@pytest.mark.parametrize("seconds", [0, 0.03, 2.02, -1])
def test_lengths_that_whisper_cannot_take(tiny, seconds):
    with pytest.raises(ValueError, match="from 1 to 100"):
        shorten_whisper(tiny.hf("Whisper"), seconds)


def test_only_whisper_is_shortened():
    with pytest.raises(ValueError, match="WhisperEncoder"):
        shorten_whisper(nn.Linear(2, 2), 1)

import pytest
import timm
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder


@pytest.fixture
def vit():
    """A ViT of three blocks of width 48 over (3, 32, 32) pictures: 4 patches and a class token."""
    torch.manual_seed(1)
    return timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=3, num_heads=4, num_classes=0)


@pytest.fixture
def swin():
    """A Swin-V2 of two stages of two blocks, widths 24 and 48, over (3, 64, 64) pictures."""
    torch.manual_seed(2)
    return timm.models.SwinTransformerV2(
        img_size=64, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0
    )


@pytest.fixture
def whisper():
    """A Whisper encoder of two blocks of width 32 over one second, (8, 100) log-mel: 50 tokens."""
    torch.manual_seed(3)
    return WhisperEncoder(
        WhisperConfig(
            num_mel_bins=8,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            max_source_positions=50,
        )
    ).eval()

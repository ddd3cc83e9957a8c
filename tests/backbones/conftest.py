"""Tiny backbones of every family, with random weights."""

import pytest

BROKEN = (ImportError, OSError, RuntimeError)  # what a package built for another torch may raise

_VIT = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
_WAVE = {
    **_VIT,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_SWIN = {"embed_dim": 8, "depths": [2, 3], "num_heads": [2, 2], "window_size": 4}
_CONFIGS = {
    "ViT": {"image_size": 32, "patch_size": 16, **_VIT},
    "Dinov2": {"image_size": 28, "patch_size": 14, **_VIT},
    "Dinov2WithRegisters": {"image_size": 28, "patch_size": 14, **_VIT},
    "DINOv3ViT": {"image_size": 32, "patch_size": 16, **_VIT, "hidden_size": 16},
    "AST": {"max_length": 64, "num_mel_bins": 32, **_VIT},
    "Swin": {"image_size": 64, "patch_size": 4, **_SWIN},
    "Swinv2": {"image_size": 64, "patch_size": 4, **_SWIN},
    "Hubert": _WAVE,
    "Wav2Vec2": _WAVE,
    "WavLM": _WAVE,
    "ClapAudio": {
        "patch_embeds_hidden_size": 8,
        "depths": [2, 2],
        "num_attention_heads": [2, 2],
        "hidden_size": 16,
        "projection_dim": 8,
    },
    "Whisper": {
        "d_model": 12,
        "max_source_positions": 100,
        "vocab_size": 60,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        **{
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
        },
    },
}


class Tiny:
    """Makes the backbones; skips the test that asks for one where its library does not load."""

    def vit(self, **options):
        timm = pytest.importorskip("timm", exc_type=BROKEN)
        sizes = {"img_size": 32, "depth": 3, "embed_dim": 12, "num_heads": 2}
        return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})

    def swin(self):
        timm = pytest.importorskip("timm", exc_type=BROKEN)
        return timm.create_model("swinv2_tiny_window8_256", img_size=64, **_SWIN)

    def hf(self, family, kind="Model", **options):
        """Make a Hugging Face model, such as ``hf("ClapAudio", "ModelWithProjection")``."""
        transformers = pytest.importorskip("transformers", exc_type=BROKEN)
        config = getattr(transformers, f"{family}Config")(**{**_CONFIGS[family], **options})
        return getattr(transformers, f"{family}{kind}")(config)


@pytest.fixture(scope="session")
def tiny():
    return Tiny()

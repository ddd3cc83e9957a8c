import pytest
import torch

from tests.backbones.conftest import tiny

__all__ = ["tiny"]


@pytest.fixture
def pair(tiny):
    """A ViT of three blocks that sees 32 x 32 and one of two that hears spectrograms of that size; width 16."""
    torch.manual_seed(0)
    return tiny.vit(embed_dim=16), tiny.vit(embed_dim=16, depth=2, in_chans=1)

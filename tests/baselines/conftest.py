import pytest
import torch

from tests.backbones.conftest import tiny
from tests.baselines.making import CLIPS, SEGMENTS

__all__ = ["tiny"]


@pytest.fixture
def pair(tiny):
    """A ViT of three blocks that sees 32 x 32 and one of two that hears spectrograms of that size, in float64."""
    torch.manual_seed(0)
    return tiny.vit(embed_dim=16).double(), tiny.vit(embed_dim=16, depth=2, in_chans=1).double()


@pytest.fixture
def clips():
    torch.manual_seed(1)
    return [torch.randn(CLIPS, SEGMENTS, channels, 32, 32).double() for channels in (3, 1)]

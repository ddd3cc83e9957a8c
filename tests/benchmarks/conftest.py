from tests.backbones.conftest import tiny

__all__ = ["tiny"]

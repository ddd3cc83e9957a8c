"""fastav adapts big frozen audio and visual transformers without back-propagating through them.

See the README for the way in, :class:`MettleAdapter` for the adapter and :mod:`fastav.ops` for what it is made of.
"""

__version__ = "0.1.0"

from fastav import backbones, ops, reference
from fastav.adapters import AdapterOutput, MettleAdapter, MettleConfig, create_adapter
from fastav.backbones import FrozenBackbone, TapStore
from fastav.ops import backends, set_backend

__all__ = [
    "AdapterOutput",
    "FrozenBackbone",
    "MettleAdapter",
    "MettleConfig",
    "TapStore",
    "backbones",
    "backends",
    "create_adapter",
    "ops",
    "reference",
    "set_backend",
]

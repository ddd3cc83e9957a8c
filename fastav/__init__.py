"""fastav adapts big frozen audio and visual transformers without back-propagating through them.

See the README for the way in, :class:`MettleAdapter` for the adapter and :mod:`fastav.ops` for what it is made of.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

from fastav import backbones, data, ops, reference, tasks
from fastav.adapters import AdapterOutput, MettleAdapter, MettleConfig, create_adapter
from fastav.backbones import FrozenBackbone, TapStore
from fastav.ops import backends, set_backend

if TYPE_CHECKING:
    from fastav import metrics as metrics

__all__ = [
    "AdapterOutput",
    "FrozenBackbone",
    "MettleAdapter",
    "MettleConfig",
    "TapStore",
    "backbones",
    "backends",
    "create_adapter",
    "data",
    "ops",
    "reference",
    "set_backend",
    "tasks",
]


def __getattr__(name: str) -> object:
    # Only when asked for, and not by a star import: the metrics need torchmetrics, the library does not.
    if name == "metrics":
        return importlib.import_module("fastav.metrics")
    raise AttributeError(f"module 'fastav' has no attribute {name!r}")

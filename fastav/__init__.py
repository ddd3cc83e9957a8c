"""fastav adapts big frozen audio and visual transformers without back-propagating through them.

See the README for the way in, :class:`MettleAdapter` and :class:`MoLTAdapter` for the adapters and :mod:`fastav.ops`
for what they are made of.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

from fastav import backbones, baselines, cost, data, ops, reference, tasks
from fastav.adapters import MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig, create_adapter
from fastav.backbones import FrozenBackbone, TapStore
from fastav.ops import backends, set_backend
from fastav.output import AdapterOutput

if TYPE_CHECKING:
    from fastav import metrics as metrics

__all__ = [
    "AdapterOutput",
    "FrozenBackbone",
    "MettleAdapter",
    "MettleConfig",
    "MoLTAdapter",
    "MoLTConfig",
    "TapStore",
    "backbones",
    "backends",
    "baselines",
    "cost",
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

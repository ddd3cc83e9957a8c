"""Adapters: modules that own parameters and call the ops beside two frozen backbones."""

from fastav.adapters.base import Adapter, AdapterOutput
from fastav.adapters.config import AdapterConfig, MettleConfig, MoLTConfig
from fastav.adapters.mettle import MettleAdapter
from fastav.adapters.molt import MoLTAdapter
from fastav.adapters.registry import adapter_class, create_adapter

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterOutput",
    "MettleAdapter",
    "MettleConfig",
    "MoLTAdapter",
    "MoLTConfig",
    "adapter_class",
    "create_adapter",
]

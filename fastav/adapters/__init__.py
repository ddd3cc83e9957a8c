"""Adapters: modules that own parameters and call the ops beside two frozen backbones."""

from fastav.adapters.base import Adapter, AdapterOutput
from fastav.adapters.config import AdapterConfig, MettleConfig
from fastav.adapters.mettle import MettleAdapter
from fastav.adapters.registry import create_adapter

__all__ = ["Adapter", "AdapterConfig", "AdapterOutput", "MettleAdapter", "MettleConfig", "create_adapter"]

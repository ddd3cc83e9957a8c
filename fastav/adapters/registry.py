"""Adapters by name."""

from typing import Any

from torch import nn

from fastav.adapters.base import Adapter
from fastav.adapters.mettle import MettleAdapter
from fastav.adapters.molt import MoLTAdapter
from fastav.backbones import FrozenBackbone

_ADAPTERS: dict[str, type[Adapter]] = {adapter.config_class.method: adapter for adapter in (MettleAdapter, MoLTAdapter)}


def create_adapter(
    name: str, *, visual: nn.Module | FrozenBackbone, audio: nn.Module | FrozenBackbone, **options: Any
) -> Adapter:
    """Build an adapter by its method's name.

    Args:
        name: ``"mettle"`` or ``"molt"``.
        visual: the visual backbone.
        audio: the audio backbone.
        options: fields of the method's configuration, such as ``num_tokens=8``.

    Raises:
        ValueError: there is no such method.
        TypeError: the method's configuration has no such field.
    """
    adapter = adapter_class(name)
    return adapter(visual, audio, adapter.config_class(**options))


def adapter_class(name: str) -> type[Adapter]:
    """The adapter of a method, by the method's name; its ``config_class`` is what it is configured with.

    Raises:
        ValueError: there is no such method.
    """
    if name not in _ADAPTERS:
        raise ValueError(f"there is no adapter method {name!r}; choose one of {sorted(_ADAPTERS)}")
    return _ADAPTERS[name]

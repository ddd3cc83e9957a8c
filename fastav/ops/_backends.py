"""Which implementation serves an op: chosen by device, by :func:`set_backend` or by ``FASTAV_BACKEND``."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from fastav import reference

VARIABLE = "FASTAV_BACKEND"


@dataclass(frozen=True)
class BackendStatus:
    """What :func:`backends` says of one backend.

    Attributes:
        usable: whether it can serve calls on this machine.
        devices: the device types it serves, empty for all.
        reason: why it is not usable and what to do, empty if it is.
    """

    usable: bool
    devices: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class _Backend:
    status: BackendStatus
    #: Holds a function ``<op>`` and a function ``<op>_backward`` for each op; None where the backend is not usable.
    functions: ModuleType | None = None

    def serves(self, device: torch.device) -> bool:
        return self.status.usable and (not self.status.devices or device.type in self.status.devices)


#: In the order in which ``"auto"`` tries them.
_BACKENDS = {
    "triton": _Backend(
        BackendStatus(False, ("cuda",), "this version has no Triton kernels yet; use 'auto' or 'reference'")
    ),
    "native": _Backend(
        BackendStatus(False, ("cpu",), "this version has no native CPU kernels yet; use 'auto' or 'reference'")
    ),
    "reference": _Backend(BackendStatus(True), reference),
}

_chosen: str | None = None


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, usable or not, with the reason why not."""
    return {name: backend.status for name, backend in _BACKENDS.items()}


def set_backend(name: str) -> None:
    """Choose the implementation of all ops, for this process, over the environment variable ``FASTAV_BACKEND``.

    Args:
        name: ``"auto"`` (the fastest that serves the tensors' device), ``"triton"``, ``"native"`` or ``"reference"``.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend is not usable on this machine; the message says why.
    """
    global _chosen
    _check_usable(name, "set_backend")
    _chosen = name


def implementation(function: str, device: torch.device) -> Callable:
    """The ``function`` (``"distill"``, ``"distill_backward"``, ...) that serves tensors on ``device``."""
    name = _chosen
    if name is None:
        name = os.environ.get(VARIABLE, "auto")
        _check_usable(name, f"the environment variable {VARIABLE}")
    if name == "auto":
        name = next(name for name, backend in _BACKENDS.items() if backend.serves(device))
    if not _BACKENDS[name].serves(device):
        raise RuntimeError(
            f"{function}: the chosen backend {name!r} serves devices of type {_BACKENDS[name].status.devices}, "
            f"the tensors are on {device}; move them or call fastav.set_backend('auto')"
        )
    return getattr(_BACKENDS[name].functions, function)


def _check_usable(name: str, who: str) -> None:
    if name == "auto":
        return
    if name not in _BACKENDS:
        raise ValueError(f"{who}: there is no backend {name!r}; choose one of {['auto', *_BACKENDS]}")
    status = _BACKENDS[name].status
    if not status.usable:
        raise RuntimeError(f"{who}: the backend {name!r} is not usable here: {status.reason}")

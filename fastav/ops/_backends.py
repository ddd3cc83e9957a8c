"""Which implementation serves an op: chosen by device, by :func:`set_backend` or by ``FASTAV_BACKEND``."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

VARIABLE = "FASTAV_BACKEND"


@dataclass(frozen=True)
class BackendStatus:
    """What :func:`backends` says of one backend.

    Attributes:
        usable: whether it can serve calls on this machine.
        devices: the device types it serves, empty for all.
        reason: why it is not usable and what to do, empty if it is.
        detail: what serves, where there is a choice.
    """

    usable: bool
    devices: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""


class _Backend:
    """One implementation of all ops: a module that holds ``<op>_forward`` and ``<op>_backward`` for each.

    The module is imported when it serves its first call; one that cannot serve everything holds a function ``refusal``,
    which says of a call, in words, why not.
    """

    module: str
    devices: tuple[str, ...] = ()

    def obstacle(self) -> str:
        """Why it is not usable on this machine and what to do, or nothing."""
        return ""

    def detail(self) -> str:
        """What serves, if it is usable and has a choice."""
        return ""

    def status(self) -> BackendStatus:
        try:
            reason = self.obstacle()
        except RuntimeError as error:  # what stops every call is reported here, not raised
            reason = str(error)
        return BackendStatus(not reason, self.devices, reason, "" if reason else self.detail())

    def refusal(self, function: str, device: torch.device, tensors: dict[str, Any]) -> str:
        """Why it does not serve this call, or nothing."""
        if self.devices and device.type not in self.devices:
            return f"it serves devices of type {self.devices}, the tensors are on {device}"
        refusal = self.obstacle()
        if not refusal and hasattr(self.functions, "refusal"):
            refusal = self.functions.refusal(function, tensors)
        return refusal

    @functools.cached_property
    def functions(self) -> ModuleType:
        return importlib.import_module(self.module)


class _Reference(_Backend):
    module = "fastav.ops._reference"


class _Native(_Backend):
    module = "fastav.ops._native"
    devices = ("cpu",)
    library = Path(__file__).with_name("libfastav_native.so")

    def obstacle(self) -> str:
        """As for all; loads the library.

        Raises:
            RuntimeError: the environment variable ``FASTAV_CPU`` names no vector path that this machine could run.
        """
        reason = _load(self.library)
        if not reason:
            self._path()  # a wrong FASTAV_CPU is the user's to mend, not a reason to go on with another backend
        return reason

    def detail(self) -> str:
        return f"vector path {self._path()}; FASTAV_CPU=avx512|avx2|portable forces another"

    def _path(self) -> str:
        return torch.ops.fastav_native.path()


@functools.cache
def _load(library: Path) -> str:
    """Load the native library into PyTorch, once; why that is not possible, or nothing."""
    remedy = "install fastav again, or call `make native` in its checkout; 'auto' and 'reference' work without"
    note = library.with_name("native.txt")  # what came of the build, by csrc/fastav_build.py
    built = note.read_text().strip() if note.is_file() else "nothing says that it was ever tried"
    if not library.is_file():
        return f"the native CPU kernels were not built: {built}\n({remedy})"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        why = error.__cause__ or error
        return f"the native CPU kernels, {built}, cannot be loaded into PyTorch {torch.__version__}: {why} ({remedy})"
    return ""


class _Triton(_Backend):
    module = "fastav.kernels"

    @functools.cached_property
    def devices(self) -> tuple[str, ...]:  # type: ignore[override]
        interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
        return ("cuda", "cpu") if interpreted else ("cuda",)

    @functools.cache  # noqa: B019 - there is one of it, for good
    def obstacle(self) -> str:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; it comes with PyTorch for Linux, elsewhere use 'auto' or 'reference'"
        if "cpu" not in self.devices and not torch.cuda.is_available():
            return (
                "there is no CUDA or ROCm device; use 'auto' or 'reference', or, for tests, set TRITON_INTERPRET=1 "
                "before Python starts to run the kernels on CPU tensors in Triton's interpreter"
            )
        return ""


#: In the order in which ``"auto"`` tries them.
_BACKENDS: dict[str, _Backend] = {"triton": _Triton(), "native": _Native(), "reference": _Reference()}

_chosen: str | None = None
_served: set[str] = set()


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, usable or not, with the reason why not."""
    return {name: backend.status() for name, backend in _BACKENDS.items()}


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


@contextmanager
def using(name: str) -> Iterator[None]:
    """Let ``name`` serve all ops for a while, see :func:`set_backend`."""
    global _chosen
    before = _chosen
    set_backend(name)
    try:
        yield
    finally:
        _chosen = before


@contextmanager
def serving() -> Iterator[set[str]]:
    """The names of the backends that serve calls meanwhile; not to be nested."""
    global _served
    found: set[str] = set()
    _served = found
    try:
        yield found
    finally:
        _served = set()


def implementation(function: str, device: torch.device, tensors: dict[str, Any]) -> Callable:
    """The ``function`` (``"distill_forward"``, ``"distill_backward"``, ...) that serves these lists on ``device``.

    Raises:
        RuntimeError: the backend that was chosen does not serve them; the message says why.
    """
    name = _chosen
    if name is None:
        name = os.environ.get(VARIABLE, "auto")
        _check_usable(name, f"the environment variable {VARIABLE}")
    if name == "auto":
        name = next(name for name, backend in _BACKENDS.items() if not backend.refusal(function, device, tensors))
    elif refusal := _BACKENDS[name].refusal(function, device, tensors):
        raise RuntimeError(
            f"{function}: the chosen backend {name!r} does not serve this call: {refusal}; change the call or "
            f"choose fastav.set_backend('auto')"
        )
    _served.add(name)
    return getattr(_BACKENDS[name].functions, function)


def _check_usable(name: str, who: str) -> None:
    if name == "auto":
        return
    if name not in _BACKENDS:
        raise ValueError(f"{who}: there is no backend {name!r}; choose one of {['auto', *_BACKENDS]}")
    if obstacle := _BACKENDS[name].obstacle():
        raise RuntimeError(f"{who}: the backend {name!r} is not usable here: {obstacle}")

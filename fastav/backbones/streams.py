"""Side streams: work beside a device's current stream, forked and joined by events.

They are ``torch.cuda``'s, which ROCm builds serve under the same name. Nothing here touches a device on import, or for
tensors of devices without streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


class SideStreams:
    """Work on side streams of one device, from a ``with`` statement's beginning to its end.

    Where there are none, on other devices than CUDA and ROCm, under CUDA graph capture and under ``torch.compile``, the
    same calls leave all work on the current stream, in order.

    The caching allocator gives a freed tensor's memory to the next one of the stream that it was made on. Hence every
    tensor that crosses from one stream to another is to be named, by :meth:`fork` or :meth:`hand_back`.

    Args:
        device: where the tensors are; None for no side streams.

    Example:
        >>> with SideStreams(x.device) as side:
        ...     with side.fork("audio", [x]):
        ...         y = audio(x)
        ...         side.hand_back([y])
        ...     z = visual(x)  # beside it, on the current stream
        >>> y + z  # after both
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device if device is not None and has_streams(device) else None
        self._forked: dict[str, torch.cuda.Stream] = {}

    def __enter__(self) -> SideStreams:
        if self._device is not None:
            self._home = torch.cuda.current_stream(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        """Join: what the entering stream is given from now on waits for all that the side streams were given."""
        for stream in self._forked.values():
            self._home.wait_stream(stream)

    @contextmanager
    def fork(self, name: str, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Give what follows to the device's side stream ``name``, after all that the current stream was given so far.

        Args:
            name: one stream for each name, made once per device.
            tensors: what it reads of other streams' tensors.
        """
        if self._device is None:
            yield
            return
        stream = self._forked[name] = _stream(self._device, name)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        self._record(tensors, stream)
        with torch.cuda.stream(stream):
            yield

    def hand_back(self, tensors: Iterable[Tensor]) -> None:
        """Name tensors made on a side stream that the entering stream will read, after the end."""
        if self._device is not None:
            self._record(tensors, self._home)

    def _record(self, tensors: Iterable[Tensor], stream: torch.cuda.Stream) -> None:
        for tensor in tensors:
            if tensor.device == self._device:  # one of another device is a mistake, and named where it is read
                tensor.record_stream(stream)


def has_streams(device: torch.device) -> bool:
    """Whether work may leave the current stream of ``device``."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return not torch.cuda.is_current_stream_capturing()


@cache
def _stream(device: torch.device, name: str) -> torch.cuda.Stream:
    """Made once: the allocator keeps a pool of memory for every stream that it has ever seen."""
    return torch.cuda.Stream(device)

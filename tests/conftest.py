"""A stand-in for the streams of a device, with which races between them can be found on a CPU."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastav.backbones import streams


class FakeStream:
    """Knows of each stream, itself too, how many operators it was given before what it is given next."""

    def __init__(self, device=None):
        self.device, self.seen = device, Counter()

    def wait_stream(self, other):
        self.seen |= other.seen  # the larger of each two counts


class FakeCuda(TorchDispatchMode):
    """Runs everything at once, but keeps account of which stream it was given to.

    Refuses what a device would not do right: to read on one stream what another one makes without waiting for it, and
    to read on one stream a tensor of another's memory that was not recorded. Parameters and buffers, which outlive
    every forward, are free to all.
    """

    def __init__(self):
        super().__init__()
        self.home = self.current = FakeStream()
        self.capturing = False
        # Of each storage: stream and count of the operator that made it. It is kept, so that no other takes its place.
        self.made = {}
        self.recorded = set()  # storage and stream
        self.calls = []  # operator and stream

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def record_stream(self, tensor, stream):
        self.recorded.add((tensor.untyped_storage()._cdata, stream))

    def streams_of(self, operator):
        """The stream of each call of an operator, in order."""
        return [stream for name, stream in self.calls if name == operator]

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        here, name = self.current, operator._schema.name
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            self.calls.append((name, here))
            here.seen[here] += 1
            for storage in inputs & self.made.keys():
                maker, count, _ = self.made[storage]
                assert here.seen[maker] >= count, f"{name} does not wait for what it reads"
                assert maker is here or (storage, here) in self.recorded, f"{name} reads what is not recorded"
            for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
                self.made[storage._cdata] = here, here.seen[here], storage
        return out


@pytest.fixture
def fake_cuda(monkeypatch):
    """Lets CPU tensors go over side streams; to be entered by ``with`` around what is to be watched."""
    fake, real = FakeCuda(), streams.has_streams
    streams._stream.cache_clear()
    monkeypatch.setattr(streams, "has_streams", lambda device: real(torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.current)
    monkeypatch.setattr(torch.cuda, "stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: fake.record_stream(tensor, stream))
    yield fake
    streams._stream.cache_clear()

"""Side streams, by a stand-in that refuses races and memory that is not kept; on a GPU where there is one."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from fastav.backbones import streams
from fastav.backbones.streams import SideStreams

DEVICE = torch.device("cpu")  # the stand-in's only one with tensors


def test_forks_wait_and_join(fake_cuda):
    with fake_cuda:
        x = torch.ones(4)
        with SideStreams(DEVICE) as side:
            with side.fork("a", [x]):
                a = x + 1
                with side.fork("b", [a]):  # after "a", and by way of it after the current stream
                    b = a * 2
                side.hand_back([a])
            with side.fork("b", []):
                side.hand_back([b])
            beside = x - 1
        total = a + b + beside
    assert torch.equal(total, torch.full((4,), 6.0))
    plus, times, minus, *rest = (stream for _, stream in fake_cuda.calls[1:])  # the first made x
    assert len({plus, times, fake_cuda.home}) == 3
    assert {minus, *rest} == {fake_cuda.home}


def test_tensors_of_another_device_are_left_alone(fake_cuda):
    with fake_cuda, SideStreams(DEVICE) as side, side.fork("a", [torch.ones(1, device="meta")]):
        side.hand_back([torch.ones(1, device="meta")])
    assert not fake_cuda.recorded


def test_side_streams_join_after_an_error(fake_cuda):
    made = []

    def fails(x):
        with SideStreams(DEVICE) as side, side.fork("a", [x]):
            made.append(x + 1)
            side.hand_back(made)
            raise ValueError("in the midst")

    with fake_cuda:
        with pytest.raises(ValueError, match="in the midst"):
            fails(torch.ones(4))
        assert (made[0] + 1).tolist() == [3.0] * 4  # has waited
    assert fake_cuda.current is fake_cuda.home


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("input not recorded", "reads what is not recorded"),
        ("result not recorded", "reads what is not recorded"),
        ("no join", "does not wait"),
        ("", None),
    ],
)
def test_the_stand_in_finds_mistakes(fake_cuda, mistake, message):
    def run():
        x = torch.ones(4)
        with SideStreams(DEVICE) as side:
            with side.fork("a", [] if mistake == "input not recorded" else [x]):
                y = x + 1
                side.hand_back([] if mistake == "result not recorded" else [y])
            if mistake == "no join":
                y + 1
        y + 1

    with fake_cuda, pytest.raises(AssertionError, match=message) if message else nullcontext():
        run()


def test_streams_are_made_once_for_a_device_and_a_name(fake_cuda):
    def run(device):
        with SideStreams(device) as side:
            for name in ("a", "b"):
                with side.fork(name, []):
                    yield torch.cuda.current_stream()

    first, again, other = list(run(DEVICE)), list(run(DEVICE)), list(run(torch.device("cuda", 1)))
    assert first == again
    assert len({*first, *other}) == 4
    assert [stream.device for stream in other] == [torch.device("cuda", 1)] * 2


def test_serial_without_a_device_and_under_capture(fake_cuda):
    def stays(device):
        with SideStreams(device) as side, side.fork("a", [torch.ones(1)]):
            side.hand_back([torch.ones(1)])
            return torch.cuda.current_stream() is fake_cuda.home

    assert not stays(DEVICE)
    assert stays(None)
    fake_cuda.capturing = True
    assert stays(DEVICE)
    assert not streams._stream.cache_info().currsize > 1


def test_serial_under_compile(fake_cuda):
    def add(x):
        return x + streams.has_streams(DEVICE)

    assert add(torch.zeros(1)) == 1
    assert torch.compile(add, fullgraph=True, backend="eager")(torch.zeros(1)) == 0


def test_no_streams_on_a_cpu_and_no_cuda_call_on_import():
    script = (
        "import torch\n"
        "def refuse(*_): raise AssertionError('a CUDA call')\n"
        "for name in ('Stream', 'current_stream', 'stream', 'is_current_stream_capturing', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, refuse)\n"
        "from fastav.backbones.streams import SideStreams\n"
        "x = torch.ones(1)\n"
        "with SideStreams(x.device) as side, side.fork('a', [x]):\n"
        "    side.hand_back([x + 1])\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_is_not_given_away_while_it_is_read():
    """A side stream that is kept busy reads its input after the current stream has long given its memory on."""
    x = torch.ones(1 << 20, device="cuda")
    wait = torch.randn(4096, 4096, device="cuda")
    with SideStreams(x.device) as side:
        with side.fork("a", [x, wait]):
            for _ in range(20):
                wait @ wait
            y = x + 1
            side.hand_back([y])
        del x
        torch.full((1 << 20,), 7.0, device="cuda")
    assert y.eq(2).all()

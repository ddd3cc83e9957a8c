"""What is asked of a GPU for times, memory and energy, on a stand-in whose answers are known."""

from types import SimpleNamespace

import pytest
import torch

from fastav.cost import energy, timing
from fastav.cost.memory import Peak, peak
from fastav.cost.profile import write_snapshot
from fastav.cost.timing import Marks, Spread, clock, measure, timed

GPU = torch.device("cuda", 0)
CYCLES_A_MILLISECOND = 2_000_000


class Event:
    """A moment on a :class:`Device`, known when the device has come to it."""

    def __init__(self, device):
        self.device, self.at = device, None

    def record(self, stream="current"):
        assert stream == "current"
        self.device.queue.append(self)

    def synchronize(self):
        self.device.wait()

    def query(self):
        return self.at is not None

    def elapsed_time(self, later):
        assert None not in (self.at, later.at), "an event that has not happened yet"
        return later.at - self.at


class Device:
    """A GPU with one stream: work is queued, and done when somebody waits.

    Times are in milliseconds, memory in bytes.
    """

    def __init__(self, monkeypatch):
        self.queue, self.now, self.waits = [], 0.0, 0
        self.allocated = self.highest = 100
        self.calls, self.retries = [], 0

        for name, stand_in in {
            "Event": lambda enable_timing: Event(self),
            "current_stream": lambda device: "current",
            "synchronize": lambda device: self.wait(),
            "empty_cache": lambda: self.calls.append("empty_cache"),
            "reset_peak_memory_stats": self.reset,
            "memory_stats": lambda device: {
                "num_alloc_retries": self.retries,
                "active_bytes.all.current": self.allocated,
                "active_bytes.all.peak": self.highest,
            },
            "max_memory_reserved": lambda device: 4096,
            "_sleep": lambda cycles: self.work(cycles / CYCLES_A_MILLISECOND),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def work(self, milliseconds, memory=0):
        """Queue work that takes some memory as long as it lasts."""
        self.queue.append((milliseconds, memory))

    def wait(self):
        self.waits += 1
        for one in self.queue:
            if isinstance(one, tuple):
                self.now += one[0]
                self.highest = max(self.highest, self.allocated + one[1])
            else:
                one.at = self.now
        self.queue.clear()

    def reset(self, device):
        assert not self.queue
        self.highest = self.allocated


@pytest.fixture
def gpu(monkeypatch):
    return Device(monkeypatch)


def test_a_call_is_timed_without_what_was_queued_before_it(gpu):
    gpu.work(50)
    assert timed(lambda: gpu.work(7), GPU) == pytest.approx(7e-3)


def test_only_the_device_is_timed_and_rounds_with_the_host_in_them_are_told(gpu, monkeypatch):
    host = iter(0.5 * count for count in range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(host))  # each call takes the host half a second
    timing._cycles_a_second.cache_clear()
    ahead = []
    sleep = torch.cuda._sleep
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: (ahead.append(cycles), sleep(cycles)))
    assert measure([lambda: gpu.work(7)], GPU, 3) == Spread(*[pytest.approx(7e-3)] * 3, rounds=3, late=0)
    assert ahead[-3:] == [pytest.approx(1.001 * 1e3 * CYCLES_A_MILLISECOND)] * 3  # twice the half second, and 1 ms

    def waiting():
        gpu.work(3)
        gpu.wait()

    assert measure([waiting], GPU, 4).late == 4
    timing._cycles_a_second.cache_clear()


def test_the_clock_of_a_gpu_adds_up(gpu):
    now = clock(GPU)
    gpu.work(3)
    first = now()
    gpu.work(4)
    gpu.work(5)
    assert (first, now()) == (pytest.approx(3e-3), pytest.approx(12e-3))


def test_marks_do_not_wait_and_the_last_of_a_name_counts(gpu):
    gpu.work(50)
    marks = Marks(GPU)
    waits = gpu.waits
    marks.set("start")
    gpu.work(2)
    marks.set("backbones")
    gpu.work(3)
    marks.set("backbones")
    gpu.work(4)
    marks.set("head")
    assert gpu.waits == waits
    found = marks.since("start")
    assert found == {"start": 0.0, "backbones": pytest.approx(5e-3), "head": pytest.approx(9e-3)}


def test_peaks_are_over_what_there_was(gpu):
    gpu.work(1, 1_000_000)  # of somebody else, before
    assert peak(lambda: gpu.work(1, 500), GPU) == Peak(500, 4096)
    assert gpu.calls == ["empty_cache"]


def nvml():
    millijoules = iter([5_000, 7_000, 12_500])
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1234": "handle"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"handle": next(millijoules)}[handle],
    )


def test_energy_is_that_of_the_device_in_joules(monkeypatch):
    monkeypatch.setattr(energy, "load_optional", lambda *args, **options: nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    joules, reason = energy.energy_counter(GPU)
    assert reason == ""
    assert (joules(), joules()) == (7.0, 12.5)


def test_a_driver_that_does_not_tell_energy_says_why(monkeypatch):
    monkeypatch.setattr(energy, "load_optional", lambda *args, **options: nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="other"))
    assert energy.energy_counter(GPU) == (None, "the driver does not tell: 'GPU-other'")


class Stepping:
    """A step on the GPU that may fail."""

    device = GPU

    def __init__(self, calls, error=None):
        self.calls, self.error = calls, error

    def __call__(self):
        self.calls.append("step")
        if self.error is not None:
            raise self.error


def test_a_snapshot_holds_one_step_and_recording_ends(gpu, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: calls.append((path, gpu.waits)))
    path = tmp_path / "memory.pickle"
    write_snapshot(Stepping(calls), path)
    assert calls[1:] == ["step", (str(path), 1), {"enabled": None}]
    with pytest.raises(RuntimeError, match="broken"):
        write_snapshot(Stepping(calls, RuntimeError("broken")), path)
    assert calls[-1] == {"enabled": None}

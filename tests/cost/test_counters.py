"""Memory and energy, on calls and counters whose numbers are known."""

import sys

import pytest
import torch

from fastav.cost import energy, memory
from fastav.cost.memory import Peak, peak

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read where Linux tells them")


@LINUX
def test_peak_is_what_is_held_at_once():
    """Resident pages are counted in portions by each thread: 1 MiB is room for them and for what Python makes."""

    def call():
        a = torch.ones(8 << 20)  # 32 MiB
        b = a + 1
        del a
        return (b + 1).sum()  # two at once, never three

    call()  # makes the threads' own memory
    found = peak(call, CPU)
    assert found.reserved is None
    assert abs(found.bytes - (64 << 20)) <= 1 << 20


@LINUX
def test_what_is_there_before_does_not_count():
    held = torch.ones(32 << 20)
    assert peak(lambda: held.sum(), CPU).bytes < 1 << 20


@pytest.mark.parametrize("text", ["VmPeak: 1 kB\n", ""])
def test_a_system_that_does_not_tell_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "status").write_text(text)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    found = peak(lambda: None, CPU)
    assert found == Peak(None, reason=f"{tmp_path / 'status'} does not tell the peak of the resident memory")


def packages(tmp_path, *values, top=1_000_000):
    for i, value in enumerate(values):
        folder = tmp_path / f"intel-rapl:{i}"
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{top}\n")
    inner = tmp_path / "intel-rapl:0:0"
    inner.mkdir(exist_ok=True)
    (inner / "energy_uj").write_text("77\n")


def test_energy_is_of_all_packages_and_counters_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    packages(tmp_path, 100, 999_000)
    joules, reason = energy.energy_counter(CPU)
    assert reason == ""
    packages(tmp_path, 500_100, 1_999)  # 0.5 J; and 1,001 to the top and its 1,999 more
    assert joules() == pytest.approx(0.5 + 0.003)
    packages(tmp_path, 500_100, 2_999)
    assert joules() == pytest.approx(0.5 + 0.004)


def test_a_machine_without_counters_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    assert energy.energy_counter(CPU) == (None, f"the system does not tell: nothing in {tmp_path}")
    packages(tmp_path, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    counter, reason = energy.energy_counter(CPU)
    assert counter is None
    assert "energy_uj" in reason

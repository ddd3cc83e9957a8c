"""Memory and energy, on calls and counters whose numbers are known."""

import sys

import pytest
import torch

from fastav import backends, ops
from fastav.cost import energy
from fastav.cost.memory import Peak, peak
from fastav.ops._backends import using

CPU = torch.device("cpu")


def twice_at_once(a):
    """Three tensors as large as ``a``, of which two are there at once."""
    b = a + 1
    c = b + 1
    del b
    return (c + 1).sum()


def test_peak_is_what_is_held_at_once():
    a = torch.ones(1000, 1000)
    few = 64  # bytes of scalars
    assert 8_000_000 <= peak(lambda: twice_at_once(a), CPU).bytes <= 8_000_000 + few
    assert 12_000_000 <= peak(lambda: twice_at_once(torch.ones(1000, 1000)), CPU).bytes <= 12_000_000 + few
    assert peak(lambda: twice_at_once(a), CPU) == peak(lambda: twice_at_once(a), CPU)


def test_what_was_there_before_does_not_count():
    """Neither where it stays nor where it is freed, though an earlier measurement saw it come."""
    held = []
    assert peak(lambda: held.append(torch.ones(1000)), CPU) == Peak(4000)

    def call():
        held.clear()
        return torch.ones(500)

    assert peak(call, CPU) == Peak(2000)
    ones = torch.ones(1000)
    assert peak(lambda: ones.mul_(ones), CPU) == Peak(0)


@pytest.mark.skipif(not backends()["native"].usable, reason="counts the memory of native kernels")
def test_the_native_kernels_own_memory_counts():
    tokens, weights, biases = [torch.ones(4, 64, 32)], [torch.ones(32, 16)], [torch.ones(16)]
    with using("native"):
        of_fuse = peak(lambda: ops.fuse(tokens, weights, biases, norm="layer"), CPU).bytes
    assert of_fuse > 4 * (4 * 64 * 16 + 32 * 16)  # the output, and the weight laid out anew


def packages(tmp_path, *values, top=1_000_000):
    for i, value in enumerate(values):
        folder = tmp_path / f"intel-rapl:{i}"
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"package-{i}\n")
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{top}\n")
    for number, name in {"0:0": "core", "9": "psys"}.items():
        other = tmp_path / f"intel-rapl:{number}"
        other.mkdir(exist_ok=True)
        (other / "name").write_text(f"{name}\n")
        (other / "energy_uj").write_text(f"{sum(values)}\n")
        (other / "max_energy_range_uj").write_text(f"{top}\n")


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
    assert energy.energy_counter(CPU) == (None, f"the system does not tell: no package in {tmp_path}")
    packages(tmp_path, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    counter, reason = energy.energy_counter(CPU)
    assert counter is None
    assert "energy_uj" in reason


@pytest.mark.parametrize(("seconds", "tick"), [(0.06, 0.25), (0.7, 0.25)])
def test_energy_of_a_call_by_a_counter_that_moves_now_and_then(monkeypatch, seconds, tick):
    """At 100 W; calls shorter and longer than what lies between two moves of the counter."""
    clock = [10.01]

    def call():
        clock[0] += seconds

    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])
    joules, reason = energy.joules_a_call(call, lambda: 100 * tick * (clock[0] // tick))
    assert reason == ""
    # At either end it is off by a call or a tick, whichever is shorter; what lies between is shorter by a longer one.
    assert joules == pytest.approx(100 * seconds, rel=min(seconds, tick) / (energy.SECONDS - 2 * max(seconds, tick)))


def test_a_counter_that_stands_still_says_so(monkeypatch):
    clock = [0.0]

    def call():
        clock[0] += 1

    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])
    assert energy.joules_a_call(call, lambda: 5.0) == (None, "the counter of energy did not move in 16 s")
    told = iter([5.0, 6.0])
    clock[0] = 0.0
    assert energy.joules_a_call(call, lambda: next(told, 6.0))[0] is None


def test_a_gpu_whose_counts_nothing_reads_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    said = 'energy counts need pynvml, which does not load: pip install "fastav[bench]"'
    assert energy.energy_counter(torch.device("cuda", 0)) == (None, said)

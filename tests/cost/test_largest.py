"""The search for the largest batch, on peaks that are given."""

import gc
import weakref

import pytest
import torch

from fastav.cost import Peak
from fastav.cost.largest import fewer, largest_batch
from fastav.cost.room import lacks_room

CPU = torch.device("cpu")


def search(monkeypatch, peak_of, memory):
    """What it finds, and which batches it tried."""
    tried = []

    def make(clips):
        return lambda: tried.append(clips)

    monkeypatch.setattr("fastav.cost.largest.peak", lambda run, device: peak_of(tried[-1]))
    return largest_batch(make, CPU, memory), tried


@pytest.mark.parametrize(
    ("first", "each", "memory", "fits"),
    [(10, 3, 40, 11), (10, 3, 39, 10), (50, 3, 40, 0), (30, 20, 40, 1), (30, 10, 40, 2), (10, 0, 9, 0)],
)
def test_finds_where_a_line_crosses_the_memory(monkeypatch, first, each, memory, fits):
    found, tried = search(monkeypatch, lambda clips: Peak(first + each * (clips - 1)), memory)
    assert found == fits
    assert max(first + each * (clips - 1) for clips in tried) <= max(first, 1.5 * memory)


def test_large_batches_are_found_to_within_an_eighth(monkeypatch):
    found, tried = search(monkeypatch, lambda clips: Peak(clips), 1000)
    assert 1000 * 8 / 9 <= found <= 1000
    assert len(tried) < 16


def test_noise_neither_ends_nor_inflates_the_search(monkeypatch):
    """Two clips that seem to take less than one."""
    noisy = {1: 45, 2: 40}
    found, tried = search(monkeypatch, lambda clips: Peak(noisy.get(clips, 20 * clips)), 200)
    assert found == 10
    assert max(tried) <= 16


#: As PyTorch says it on Linux and on Windows.
CPU_MESSAGES = [
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "140737488355328 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError(), MemoryError(), *map(RuntimeError, CPU_MESSAGES)])
def test_what_the_device_has_no_room_for_does_not_fit(monkeypatch, error):
    def peak_of(clips):
        if clips > 5:
            raise error
        return Peak(1)

    assert search(monkeypatch, peak_of, None)[0] == 5


def test_memory_that_a_cpu_does_not_have_does_not_fit():
    bytes_of = {1: 2**10, 2: 2**62}  # more than any address

    def make(clips):
        return lambda: torch.empty(bytes_of[clips], dtype=torch.uint8)

    assert largest_batch(make, CPU, None) == 1


#: As cuBLAS, the driver and Triton say it.
GPU_MESSAGES = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "Triton Error [CUDA]: out of memory",
]


@pytest.mark.parametrize("message", GPU_MESSAGES)
def test_libraries_that_ask_past_the_allocator_lack_room_too(message):
    assert lacks_room(RuntimeError(message))
    assert not lacks_room(ValueError(message))
    assert not lacks_room(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_other_errors_are_no_lack_of_memory(monkeypatch):
    def peak_of(clips):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        search(monkeypatch, peak_of, None)


def test_what_fails_where_fewer_do_not_is_too_many_and_told(monkeypatch):
    def peak_of(clips):
        if clips > 5:
            raise RuntimeError("index is out of 32 bits")
        return Peak(1)

    with pytest.warns(RuntimeWarning, match="8 clips count as too many: index is out of 32 bits"):
        assert search(monkeypatch, peak_of, None)[0] == 5
    assert search(monkeypatch, peak_of, None)[0] == 5  # nor is it an error where warnings of fastav's are


def test_a_batch_for_which_the_allocator_gives_back_everything_does_not_fit(monkeypatch):
    retries = [0]

    def make(clips):
        def step():
            retries[0] += clips > 5

        return step

    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": retries[0]})
    monkeypatch.setattr("fastav.cost.largest.peak", lambda run, device: (run(), Peak(1))[1])
    assert largest_batch(make, torch.device("cuda", 0), None) == 5


def test_an_eighth_fewer_each_time_down_to_one():
    assert list(fewer(20)) == [20, 18, 16, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert list(fewer(0)) == []


def test_memory_is_freed_when_the_step_is_gone(monkeypatch):
    """Also that of a step that did not fit."""
    steps, gone = [], []

    class Step:
        def __call__(self):
            if len(steps) > 2:
                raise torch.cuda.OutOfMemoryError

    def make(clips):
        step = Step()
        steps.append(weakref.ref(step))
        return step

    monkeypatch.setattr("fastav.cost.largest.peak", lambda run, device: Peak(1))
    monkeypatch.setattr(gc, "collect", lambda: gone.append([step() is None for step in steps]))
    assert largest_batch(make, CPU, None) == 2
    assert gone == [[True] * count for count in range(1, len(steps) + 1)]
    assert len(steps) > 2

"""The search for the largest batch, on peaks that are given."""

import pytest
import torch

from fastav.cost import Peak
from fastav.cost.largest import largest_batch

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


def test_what_the_device_has_no_room_for_does_not_fit(monkeypatch):
    def peak_of(clips):
        if clips > 5:
            raise torch.cuda.OutOfMemoryError
        return Peak(1)

    assert search(monkeypatch, peak_of, None)[0] == 5

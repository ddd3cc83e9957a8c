"""Whether the benchmark of stored taps trains the same steps from them, and sees where it does not."""

import pytest
import torch

from fastav.cost import OURS, build_step
from fastav.cost.methods import random_inputs

store = pytest.importorskip("benchmarks.test_store")


class Benchmark:
    """pytest-benchmark's fixture, which notes what it times."""

    def __init__(self):
        self.timed = []

    def pedantic(self, call):
        self.timed.append(call)


@pytest.fixture(params=OURS)
def epochs(request, tiny, tmp_path):
    pair = tiny.vit(), tiny.hf("ClapAudio")
    frames, sounds = random_inputs(*pair, clips=store.CLIPS, segments=2)
    step = build_step(request.param, *pair, (frames[:1], sounds[:1]))
    return store.Epochs(step, frames, sounds, tmp_path)


def test_stored_taps_are_those_of_the_backbones_in_order(epochs):
    visual = epochs.step.method.visual
    for number, (frames, _) in enumerate(epochs.clips):
        taps = epochs.stores[0][2 * number : 2 * number + 2]
        for tap, exact in zip(taps, visual(frames[0]), strict=True):
            assert torch.equal(tap, exact.half())
    assert epochs.bytes == 2 * 2 * sum(rows * width for one in epochs.stores for rows, width in one.shapes)


def test_an_epoch_is_timed_once_it_gives_the_gradients(epochs, monkeypatch):
    seconds = iter([6.0, 2.0, 8.0, 2.0, 6.0, 3.0, 6.0, 2.0, 7.0, 2.0])  # through the backbones and stored, by turns
    monkeypatch.setattr(store, "timed", lambda call, device: next(seconds))
    benchmark = Benchmark()
    found = store._compared(benchmark, epochs)
    assert (found["through"], found["stored"], found["times as fast"]) == (6.0, 2.0, 3.0)
    assert (found["quartiles"], found["dtype"], found["bytes"]) == ((3.0, 3.5), "float16", epochs.bytes)
    assert len(benchmark.timed) == 1


def test_taps_of_another_clip_are_seen(epochs):
    class Shifted:
        """A store whose rows are one segment late."""

        def __init__(self, kept):
            self._kept = kept

        def __getitem__(self, rows):
            return self._kept[slice(rows.start - 1, rows.stop - 1) if rows.start else rows]

    epochs.stores[1] = Shifted(epochs.stores[1])
    with pytest.raises(AssertionError, match=r"gradients from taps in torch\.float16 are off by"):
        store._compared(Benchmark(), epochs)

"""An epoch from stored taps beside one through the frozen backbones: ``pytest benchmarks``.

The store was written just before, so that the system holds it in memory: where it does not, the disk's own time comes
on top. Steps are of one clip each, one after the other, without a process that reads ahead.
"""

from functools import partial

import pytest
import torch

from benchmarks.environment import DEVICE
from benchmarks.pairs import inputs
from fastav import TapStore
from fastav.cost import OURS, build_step
from fastav.cost.room import unless_too_large
from fastav.cost.timing import Spread, clock, timed

CLIPS = 4
ROUNDS = 5
#: How far gradients may be off with taps in 16 bits, in units of one rounding, which is what a sum of rounded terms
#: loses where they do not cancel. They do in part where queries learn from differences between tokens; the most seen
#: was 0.9.
FACTOR = 4


class Epochs:
    """The same training steps in two ways: from frames and sound, and from taps on disk.

    Args:
        step: a training step of one clip with one of our methods.
        frames: the visual inputs of some clips.
        sounds: the audio inputs.
        folder: where to write the taps, in the backbones' own dtype if it has 16 bits, else in float16.
    """

    def __init__(self, step, frames, sounds, folder):
        self.step, self.clips = step, list(zip(frames.split(1), sounds.split(1), strict=True))
        backbones = step.method.visual, step.method.audio
        self.dtype = backbones[0].dtype if backbones[0].dtype.itemsize == 2 else torch.float16
        self.stores = []
        for name, backbone, given in zip(("visual", "audio"), backbones, (frames, sounds), strict=True):
            rows = given.flatten(0, 1)
            store = None
            for start in range(0, len(rows), step.segments):  # a clip at a time, as training runs them
                taps = backbone(rows[start : start + step.segments].to(backbone.dtype))
                shapes = [tuple(tap.shape[1:]) for tap in taps]
                store = store or TapStore.create(folder / name, len(rows), shapes, self.dtype)
                store.write(start, taps)
            self.stores.append(TapStore.open(folder / name))

    @property
    def bytes(self):
        """Of one clip's taps on disk."""
        return sum(store.nbytes for store in self.stores) // len(self.clips)

    def through(self, number):
        """The loss of a clip, through the backbones."""
        self.step.inputs = self.clips[number]
        return self.step.forward()

    def stored(self, number):
        """The loss of a clip, from its taps."""
        segments = self.step.segments
        rows = slice(number * segments, (number + 1) * segments)
        taps = ([tap.to(DEVICE) for tap in store[rows]] for store in self.stores)
        return self.step.loss(self.step.method.forward_taps(*taps, num_segments=segments))

    def gradients(self, loss_of, number):
        """All of a clip's gradients as one vector, without dropout."""
        self.step.modules.eval()
        found = torch.autograd.grad(loss_of(number), self.step.parameters)
        self.step.modules.train()
        return torch.cat([gradient.flatten() for gradient in found])

    def epoch(self, loss_of):
        """One step a clip."""
        for number in range(len(self.clips)):
            self.step.learn(loss_of(number))


@pytest.mark.benchmark(timer=clock(DEVICE))
@pytest.mark.parametrize("method", OURS)
def test_store(benchmark, size, pair, absent, failing, tmp_path, method):
    """Check that taps in 16 bits give the same gradients, then time both epochs in turn."""
    visual, audio = pair
    told = {"method": method, "batch": f"an epoch of {CLIPS} clips"}
    found = {}
    with failing(**told), unless_too_large():
        frames, sounds = inputs(pair, CLIPS, size.segments)
        step = build_step(method, visual, audio, (frames[:1], sounds[:1]), **size.ours)
        epochs = Epochs(step, frames, sounds, tmp_path)
        found = _compared(benchmark, epochs)
    if not found:
        absent("it does not fit into the device's memory", **told)
    benchmark.group = "an epoch from stored taps"
    benchmark.extra_info |= {"kind": "store", "size": size.name, "clips": CLIPS, **told, **found}


def _compared(benchmark, epochs):
    ways = [partial(epochs.epoch, of) for of in (epochs.through, epochs.stored)]
    for way in ways:
        way()
    for number in range(CLIPS):
        exact, stored = (epochs.gradients(of, number) for of in (epochs.through, epochs.stored))
        off, allowed = (stored - exact).norm() / exact.norm(), FACTOR * torch.finfo(epochs.dtype).eps / 2
        assert off <= allowed, f"gradients from taps in {epochs.dtype} are off by {off:.1e}, more than {allowed:.1e}"
    pairs = [tuple(timed(way, DEVICE) for way in ways) for _ in range(ROUNDS)]
    benchmark.pedantic(ways[1])
    ratio = Spread.of([through / stored for through, stored in pairs])
    return {
        "bytes": epochs.bytes,
        "dtype": str(epochs.dtype).removeprefix("torch."),
        "through": Spread.of([through for through, _ in pairs]).median,
        "stored": Spread.of([stored for _, stored in pairs]).median,
        "times as fast": ratio.median,
        "quartiles": (ratio.low, ratio.high),
    }

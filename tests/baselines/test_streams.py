"""Which methods run their two backbones beside each other, by the stand-in for a device's streams."""

from collections import defaultdict

import pytest
import torch

from fastav.backbones import streams
from fastav.baselines import BASELINES
from fastav.baselines.base import blocks_of
from tests.baselines.making import built, stirred

pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")

TOGETHER = ("lavish", "dg-sct")  # whose blocks need what the other modality's make


def watched(model, fake):
    """Streams by modality that what belongs to it runs on: blocks, what stands in or beside them, read-outs."""
    found = defaultdict(set)
    parts = {"visual": blocks_of(model.visual), "read": [model.read_visual, model.read_audio]}
    if hasattr(model, "audio"):
        parts["audio"] = blocks_of(model.audio)
    for modality in ("visual", "audio"):
        if model.name == "naive":
            parts[modality] += [bottleneck for pair in model.adapters[modality] for bottleneck in pair]
        if model.name == "ladder":
            parts[modality] += getattr(model, f"beside_{modality}").layers
    for part, modules in parts.items():
        for module in modules:
            module.register_forward_hook(lambda *_, part=part: found[part].add(fake.current))
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_independent_backbones_run_beside_each_other_and_do_not_race(pair, clips, fake_cuda, name):
    """The stand-in refuses to read what was not waited for, or not recorded."""
    model = stirred(built(name, pair))
    fake_cuda.capturing = True
    plain = model(*clips)  # one after the other
    fake_cuda.capturing = False
    found = watched(model, fake_cuda)
    with fake_cuda:
        out = model(*(x.mul(1) for x in clips))  # made on the current stream just before
        torch.cat([out.visual, out.audio]).sum()
    home = fake_cuda.home
    assert found["visual"] == found["read"] == {home}
    if name in TOGETHER:
        assert found["audio"] <= {home}
        assert not fake_cuda.recorded
    else:
        assert len(found["audio"]) == 1
        assert home not in found["audio"]
        # The sound goes there, and one tensor comes back.
        assert [stream for _, stream in fake_cuda.recorded].count(home) == 1
        assert [stream for _, stream in fake_cuda.recorded].count(*found["audio"]) == 1
    for one, other in zip(out[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(BASELINES.keys() - {*TOGETHER}))
def test_training_is_the_same_beside_each_other(pair, clips, monkeypatch, name):
    """Losses and weights of some steps, also where gradients run through the backbone on the side stream."""
    found = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(streams, "has_streams", lambda device: False)
        model = stirred(built(name, pair)).cuda().train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 1e-3)
        losses = []
        for step in range(5):
            out = model(*(x.cuda() + step for x in clips))
            losses.append(out.visual.square().mean() + out.audio.square().mean())
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([torch.stack(losses).detach(), *(p.detach().clone() for p in trained)])
    for beside, after in zip(*found, strict=True):
        torch.testing.assert_close(beside, after)

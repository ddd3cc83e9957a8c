"""What of a step is whose: counted by hand on backbones whose taps are known."""

import gc
import weakref

import pytest
import torch
from torch import nn

from fastav.cost import METHODS, PARTS, PLACES, build_step, random_inputs, saved_for_backward

pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")

CLIPS, SEGMENTS, TOKENS, WIDTH = 2, 3, 5, 16
ROWS = CLIPS * SEGMENTS
TAP = ROWS * TOKENS * WIDTH * 4  # bytes in float32


def step(pair, name):
    inputs = random_inputs(*pair, clips=CLIPS, segments=SEGMENTS)
    return build_step(name, *pair, inputs)


def test_saved_storages_count_once_and_what_is_there_anyway_does_not():
    a = torch.randn(10, 7, requires_grad=True)
    b = torch.randn(7, requires_grad=True)

    def forward():
        c = a.exp()  # saves its result, 280 bytes
        return (c * b) + c[:2].sum()  # saves c again, and b, which is there anyway

    assert saved_for_backward(forward, own=[b]) == {"all": 280}
    assert saved_for_backward(forward) == {"all": 280 + 28}
    where = saved_for_backward(forward, where=lambda t: "b" if t.shape == b.shape else "c")
    assert where == {"c": 280, "b": 28}


def test_of_views_the_whole_storage_counts():
    big = torch.randn(1000, 4)
    w = torch.randn(4, requires_grad=True)
    assert saved_for_backward(lambda: big[:1] * w, own=[w]) == {"all": 16000}


def test_what_nothing_depends_on_in_the_end_does_not_count():
    """Its memory may be another's by then."""
    a = torch.randn(1000, requires_grad=True)

    def forward():
        for _ in range(3):
            a.exp().sin()  # two results saved, and gone
        return a.exp().sum()

    assert saved_for_backward(forward) == {"all": 4000}


def test_nothing_outlives_the_count():
    """A node that saves its own output would hold itself, were it given back with its graph."""
    a = torch.randn(10, requires_grad=True)
    found = []

    def forward():
        c = a.exp()
        found.append(weakref.ref(c))
        return c.sum()

    assert saved_for_backward(forward) == {"all": 40}
    gc.collect()
    assert found[0]() is None


def test_the_loss_is_the_heads(pair):
    """What follows the head's forward, labels and all, is counted with it."""
    run = step(pair, "frozen")
    whole = run.saved()
    run.task.loss = lambda said, batch: said.sum()
    without = run.saved()
    assert whole["method"] == without["method"]
    assert whole["head"] - without["head"] >= run.batch["labels"].nbytes


def test_what_ours_keep_is_taps_and_nothing_inside_of_the_backbones(pair):
    mettle = step(pair, "mettle")
    mettle()  # the one batch of statistics
    saved = mettle.saved()
    assert list(saved) == list(PLACES)
    assert saved["taps"] == (3 + 2) * TAP
    assert saved["backbones"] == 0
    assert saved["head"] > 0
    frozen = step(pair, "frozen").saved()
    assert (frozen["taps"], frozen["backbones"]) == (0, 0)  # it is the mean alone that is read


@pytest.mark.parametrize("name", ["lora", "naive", "lavish", "dg-sct", "full"])
def test_what_peers_keep_is_inside_of_the_backbones(pair, name):
    saved = step(pair, name).saved()
    # In each block at least what its two norms, its attention and its MLP start from.
    blocks = 2 * 3 if name == "lavish" else 3 + 2
    assert saved["backbones"] > 4 * (blocks - 1) * TAP
    assert (saved["method"] > 4 * TAP) == (name != "full")


def test_adapters_inside_of_blocks_are_the_methods(pair):
    """The same backbone saves as much for itself whatever stands in it, and bottlenecks what they are known to."""
    naive, full = (step(pair, name).saved() for name in ("naive", "full"))
    assert naive["backbones"] < full["backbones"]  # whose own maps need their inputs too
    inner = TAP // 8
    # LN: input is the block's; its output transposed, two batch norms' and the ReLU's, LN's input, the gate's.
    of_each = 2 * TAP + inner
    assert naive["method"] > 2 * (3 + 2) * of_each


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_whole_and_always_the_same(pair, name):
    run = step(pair, name)
    run()
    before = [p.detach().clone() for p in run.parameters]
    torch.manual_seed(5)
    first = run.forward().item()
    run()
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert all(p.grad is None for p in run.parameters)
    torch.manual_seed(5)
    assert run.forward().item() == first
    assert run.trainable == sum(p.numel() for p in run.parameters)
    assert run.total == sum(p.numel() for p in run.modules.parameters())


def test_parts_are_in_order_and_as_long_as_what_they_stand_for(pair, monkeypatch):
    """With a clock that counts its readings, every part is one, the backbones' ending with the second one."""
    run = step(pair, "mettle")
    run()
    ticks = iter(range(100))
    monkeypatch.setattr("fastav.cost.timing.time.perf_counter", lambda: next(ticks))
    assert run.parts() == {"backbones": 2, "side branch": 1, "head": 1, "backward": 1, "update": 1}
    assert list(run.parts()) == list(PARTS)
    assert not any(module._forward_hooks for module in run.modules.modules())


def test_infer_is_forward_alone_in_eval_mode(pair):
    run, seen = step(pair, "mettle"), []
    run.task.register_forward_hook(lambda task, *_: seen.append((task.training, torch.is_grad_enabled())))
    with run.inference() as infer:
        said = infer()
    assert seen == [(False, False)]
    assert not said.requires_grad
    assert said.shape == (CLIPS, SEGMENTS, 29)
    assert run.method.training
    assert run.task.training


def test_methods_have_the_same_labels_and_inputs_do_not_depend_on_the_order(pair):
    torch.manual_seed(1)
    one, two = step(pair, "mettle"), step(pair, "naive")
    assert torch.equal(one.batch["labels"], two.batch["labels"])
    torch.manual_seed(2)
    again = step(pair, "mettle")
    for a, b in zip(one.parameters, again.parameters, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.inputs[0], again.inputs[0])


def test_optimizer_is_real(pair):
    """AdamW keeps its two moments of every parameter."""
    run = step(pair, "mettle")
    run()
    moments = [v for state in run.optimizer.state.values() for v in state.values() if v.ndim]
    assert sum(v.numel() for v in moments) == 2 * run.trainable
    assert isinstance(run.modules, nn.ModuleList)

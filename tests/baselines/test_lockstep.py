"""Runs in turns against the same sums written out, and what happens where they do not go together."""

import sys

import pytest
import torch

from fastav.baselines import LiveBackbone, in_step, inserted

pytest.importorskip("greenlet")


@pytest.fixture
def pair(tiny):
    torch.manual_seed(0)
    return [LiveBackbone(tiny.vit()).double() for _ in range(2)]


def blocks(backbone):
    return [backbone.module.get_submodule(name) for name in backbone.tap_names]


def crossed(values):
    """Each goes on with half of what the other has."""
    return [values[1] / 2, values[0] / 2]


def run(backbone, x):
    """A backbone that meets the other beside every attention."""

    def forward(meet):
        def added(number, which, tokens):
            return meet(tokens) if which == 0 else torch.zeros_like(tokens)

        with inserted(blocks(backbone), added):
            return backbone(x)

    return forward


def test_two_backbones_exchange_their_tokens_block_by_block(pair):
    frames = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    taps = in_step(crossed, *(run(backbone, x) for backbone, x in zip(pair, frames, strict=True)))
    models = [backbone.module for backbone in pair]
    tokens = [model._pos_embed(model.patch_embed(x)) for model, x in zip(models, frames, strict=True)]
    for number in range(3):
        one, other = (model.blocks[number] for model in models)
        x, y = tokens
        x, y = x + one.attn(one.norm1(x)) + y / 2, y + other.attn(other.norm1(y)) + x / 2
        tokens = [x + one.mlp(one.norm2(x)), y + other.mlp(other.norm2(y))]
        for tap, expected in zip(taps, tokens, strict=True):
            torch.testing.assert_close(tap[number], expected, rtol=1e-10, atol=1e-10)


def test_gradients_cross_and_saved_tensors_are_seen(pair):
    frames = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64).requires_grad_()
    seen = [0]

    def pack(tensor):
        seen[0] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        one, _ = in_step(crossed, *(run(backbone, x) for backbone, x in zip(pair, frames, strict=True)))
    assert seen[0] > 2 * 3 * 5  # at least the maps of every block of both: qkv, two products, projection and MLP
    one[-1].square().sum().backward()
    assert frames.grad[1].abs().sum() > 0  # what the other one saw


def test_runs_without_gradient_have_none(pair):
    frames = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        taps = in_step(crossed, *(run(backbone, x) for backbone, x in zip(pair, frames, strict=True)))
    assert not any(tap.requires_grad for one in taps for tap in one)
    assert torch.is_grad_enabled()


def test_runs_that_do_not_meet_equally_often_are_named():
    def meets(times):
        return lambda meet: [meet(number) for number in range(times)]

    assert in_step(lambda values: values, meets(2), meets(2), meets(2)) == [[0, 1]] * 3
    with pytest.raises(ValueError, match=r"runs \[1\] of 2 wait to meet others that have ended"):
        in_step(lambda values: values, meets(1), meets(2))


def test_an_error_in_one_comes_out_and_leaves_no_hooks(pair):
    frames = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)

    def broken(meet):
        meet(torch.zeros(()))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        in_step(lambda values: [torch.zeros_like(values[0]), None], run(pair[0], frames[0]), broken)
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pair[0].module.modules())


def test_without_greenlet_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(ImportError, match=r'two backbones need greenlet, .* "fastav\[baselines\]"'):
        in_step(lambda values: values, lambda meet: None)

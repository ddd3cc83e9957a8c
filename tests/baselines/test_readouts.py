"""What the peers' read-outs are given and give: in which dtype, and by which statistics standardised."""

import copy

import pytest
import torch

from fastav import FrozenBackbone
from fastav.baselines import BASELINES, create_baseline
from tests.baselines.making import RATIOS, built, stirred

pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")


def test_backbones_in_half_precision_are_read_out_in_float32(pair, clips):
    halves = [m.bfloat16() for m in pair]
    for name in BASELINES:
        model = create_baseline(name, visual=halves[0], audio=halves[1], **({"ratio": 2} if name in RATIOS else {}))
        out = model.train()(*(x.float() for x in clips))
        assert out.visual.dtype == out.audio.dtype == torch.float32
        (out.visual.sum() + out.audio.sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert [m.blocks[0].norm1.weight.dtype for m in halves] == [torch.bfloat16] * 2


def test_lavish_brings_spectrograms_to_their_size_before_they_are_rounded(pair, clips):
    """On a CPU PyTorch does not resize in bfloat16 at all."""
    model = create_baseline("lavish", visual=pair[0].bfloat16(), audio=pair[1].bfloat16(), ratio=2).train()
    frames, sound = clips[0].float(), clips[1].float().repeat(1, 1, 1, 2, 3)
    given = []
    model.visual.module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    assert model(frames, sound).audio.isfinite().all()
    wanted = type(model.pictures)()(sound.flatten(0, 1), 1, frames.shape[-2:])
    assert torch.equal(given[0][-len(wanted) :], wanted.bfloat16())


def read_outs(model, clips):
    """What both read-outs of a run are given and what they give."""
    found = []
    hooks = [
        part.register_forward_hook(lambda _, args, out: found.append((args, out)))
        for part in (model.read_visual, model.read_audio)
    ]
    model(*clips)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_under_autocast_the_backbones_round_and_the_read_outs_do_not(pair, clips, name):
    """Tokens lose at most twice what they lose where all is bfloat16.

    That rounds the same products and the sums of the branches besides; twice, as either is one draw of roundings.
    """
    model = stirred(built(name, [m.float() for m in pair]).float())
    clips = [x.float() for x in clips]
    exact = read_outs(model, clips)
    with torch.autocast("cpu", torch.bfloat16):
        rough = read_outs(model, clips)
    half = copy.deepcopy(model)
    for child in half.children():
        if child not in (half.read_visual, half.read_audio):
            child.bfloat16()
    rounded = read_outs(half, clips)
    for (given, out), (wanted, _), (coarse, _), read in zip(
        rough, exact, rounded, (model.read_visual, model.read_audio), strict=True
    ):
        loss, allowed = ((tokens[0].float() - wanted[0]).norm() for tokens in (given, coarse))
        assert 0 < loss < 2 * allowed
        assert out.dtype == torch.float32
        assert torch.equal(out, read(*given))


def test_only_what_a_method_adds_is_cast(tiny):
    """A backbone in half precision whose norms are not."""
    vit, ears = tiny.vit(embed_dim=16).bfloat16(), tiny.vit(embed_dim=16, in_chans=1).bfloat16()
    vit.norm.float()
    model = create_baseline("naive", visual=vit, audio=ears, ratio=2)
    assert vit.norm.weight.dtype == torch.float32
    assert {p.dtype for p in model.adapters.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("batches", [1, 2])
def test_read_outs_are_standardised_by_the_first_training_batches(pair, clips, batches):
    model = built("frozen", pair, standardize_batches=batches).train()
    first, other = clips, [3 * x.flip(0) for x in clips]
    model(*first)
    model(*other)
    measured = model.state_dict()
    model.eval()(*other)
    model.train()(*other)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, measured[name], rtol=0, atol=0)
    pooled = []
    for frames in (first[0], other[0])[:batches]:
        tokens = FrozenBackbone(pair[0], taps=1)(frames.flatten(0, 1))[0]
        pooled.append(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]).mean(1))
    pooled = torch.cat(pooled)
    found = model.read_visual.standardization
    torch.testing.assert_close(found.mean, pooled.mean(0))
    torch.testing.assert_close(found.variance, pooled.var(0, correction=0))
    assert int(found.measured) == batches


@pytest.mark.parametrize("name", BASELINES)
def test_standardisation_follows_what_moves(pair, clips, name):
    """All that a read-out is given moves with what is trained, but for frozen features."""
    model = built(name, pair, standardize_batches=1).train()
    for _ in range(3):
        model(*clips)
    model.eval()(*clips)
    assert int(model.read_visual.standardization.measured) == (1 if name == "frozen" else 3)
    (seen, _), *_ = read_outs(model.train(), clips)
    tokens, places = seen[0], seen[1] if len(seen) > 1 else None
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    means = (tokens.mean(1, keepdim=True) if places is None else places @ tokens)[:, 0]
    torch.testing.assert_close(model.read_visual.standardization.mean, means.mean(0).detach())

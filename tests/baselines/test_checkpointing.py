"""Gradient checkpointing: blocks run twice, with all that stands in them, and nothing else changes."""

import pytest
import torch
from torch import nn

from fastav.baselines import LiveBackbone, create_baseline, inserted
from fastav.cost import saved_for_backward
from tests.baselines.making import CLIPS, RATIOS, SEGMENTS, WIDTH, built, stirred
from tests.baselines.test_sites import FAMILIES

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")

THROUGH = {
    "lora": {},
    "naive": {},
    "naive beside": {"placement": "beside"},
    "lavish": {},
    "full": {},
    "dg-sct": {},
}


def trained(name, pair, clips, **options):
    """One step's outputs, gradients and running statistics."""
    method, own = name.partition(" ")[0], THROUGH[name]
    model = stirred(built(method, pair, **own, **options)).train()
    out = model(*clips)
    (out.visual.square().sum() + out.audio.sin().sum()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    return model, [*out[:2], *gradients.values(), *model.buffers()], list(gradients)


@pytest.mark.parametrize("name", THROUGH)
def test_values_gradients_and_running_statistics_are_the_same_bits(pair, clips, name):
    _, plain, names = trained(name, pair, clips)
    _, again, same_names = trained(name, pair, clips, gradient_checkpointing=True)
    assert names == same_names
    assert len(plain) == len(again)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in THROUGH if name != "dg-sct"])
def test_each_block_runs_once_more_and_is_where_it_was(pair, clips, name):
    model = stirred(built(name.partition(" ")[0], pair, **THROUGH[name], gradient_checkpointing=True)).train()
    runs, blocks = [], []
    backbones = [part for part in (model.visual, getattr(model, "audio", None)) if part is not None]
    for backbone in backbones:
        for block in backbone.module.blocks:
            blocks.append(block)
            block.attn.register_forward_pre_hook(lambda attention, _: runs.append(attention))
    attentions = [block.attn for block in blocks]
    out = model(*clips)
    assert set(runs) == set(attentions)
    assert len(runs) == len(blocks)
    (out.visual.square().sum() + out.audio.square().sum()).backward()
    assert sorted(map(id, runs)) == sorted(2 * [id(one) for one in attentions])
    standing = [block for backbone in backbones for block in backbone.module.blocks]
    assert all(a is b for a, b in zip(standing, blocks, strict=True))
    runs.clear()
    with torch.no_grad():
        model(*clips)
    assert len(runs) == len(blocks)


def test_of_paired_backbones_the_adapters_run_again_and_the_blocks_that_are_not_paired(pair, clips):
    """Three visual blocks and two audio ones: the second visual block has no partner."""
    model = stirred(built("dg-sct", pair, gradient_checkpointing=True)).train()
    assert model.pairs == [(0, 0), (2, 1)]
    runs = []
    parts = [*model.visual.module.blocks, *model.audio.module.blocks]
    parts += [adapter for both in model.adapters for adapter in both.values()]
    for part in parts:
        part.register_forward_pre_hook(lambda part, _: runs.append(part))
    out = model(*clips)
    assert len(runs) == len(parts) == 3 + 2 + 2 * 2 * 2
    (out.visual.square().sum() + out.audio.square().sum()).backward()
    paired = [model.visual.module.blocks[0], model.visual.module.blocks[2], *model.audio.module.blocks]
    assert [runs.count(part) for part in parts] == [1 if part in paired else 2 for part in parts]
    kept = []
    for again in (False, True):
        model = stirred(built("dg-sct", pair, gradient_checkpointing=again)).train()
        model(*clips)
        own = [*model.parameters(), *model.buffers(), *clips]
        kept.append(saved_for_backward(lambda model=model: model(*clips).visual.sum(), own)["all"])
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", ["lora", "naive", "lavish"])
def test_what_is_kept_inside_of_the_backbones_is_what_goes_into_each_block(pair, clips, name):
    """The first visual block's input has no gradient and is kept too; read-outs keep the last block's output."""
    model = stirred(built(name, pair, gradient_checkpointing=True)).train()
    model(*clips)  # statistics are measured
    own = [*model.parameters(), *model.buffers(), *clips]
    kept = saved_for_backward(lambda: sum(tokens.sum() for tokens in model(*clips)[:2]), own)["all"]
    rows, tokens, width = CLIPS * SEGMENTS, 5, 16
    tap = rows * tokens * width * 8
    blocks = 2 * 3 if name == "lavish" else 3 + 2
    ends = 2  # of both modalities, in the read-outs
    rest = 4  # at most: norms' statistics, pooled tokens, and what embeds the input, small beside blocks of width 4 D
    assert (blocks + ends) * tap <= kept < (blocks + ends + rest) * tap
    plain = stirred(built(name, pair)).train()
    plain(*clips)
    own = [*plain.parameters(), *plain.buffers(), *clips]
    # A block itself keeps more than ten times its input: qkv, attention, and the MLP's four times as wide.
    assert saved_for_backward(lambda: sum(tokens.sum() for tokens in plain(*clips)[:2]), own)["all"] > 5 * kept


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_run_again_with_what_stands_in_them(tiny, family, behind):
    torch.manual_seed(0)
    backbone = LiveBackbone(FAMILIES[family](tiny)).double()
    for p in backbone.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # a new Swin V2's norms are zero
    x = torch.randn(2, *backbone.example_input.shape[1:]).double()
    blocks = [backbone.module.get_submodule(name) for name in backbone.tap_names]
    maps = nn.ModuleList(nn.Linear(width, width) for width in backbone.widths for _ in (0, 1)).double()

    def inside(*, only=None):
        return inserted(blocks, lambda number, which, t: maps[2 * number + which](t).sin(), behind=behind, only=only)

    def gradients():
        return torch.autograd.grad(sum(tap.square().sum() for tap in backbone(x, inside=inside)), [*maps.parameters()])

    plain = gradients()
    backbone.run_again = backbone.tap_names
    for one, other in zip(gradients(), plain, strict=True):
        assert torch.equal(one, other)
    assert all(g.any() for g in plain)


def test_blocks_are_back_in_place_after_an_error(tiny):
    backbone = LiveBackbone(tiny.vit())
    backbone.run_again = backbone.tap_names
    blocks = list(backbone.module.blocks)
    with pytest.raises(RuntimeError):
        backbone(torch.randn(1, 3, 32, 32).requires_grad_().repeat(1, 2, 1, 1))
    assert all(a is b for a, b in zip(backbone.module.blocks, blocks, strict=True))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frozen", r"FrozenFeatures: gradient_checkpointing=True, but no gradients run through the backbones"),
        ("ladder", r"LadderSideTuning: gradient_checkpointing=True, but no gradients run"),
    ],
)
def test_where_nothing_can_run_again_it_is_refused(pair, name, said):
    options = {"ratio": RATIOS[name]} if name in RATIOS else {}
    with pytest.raises(ValueError, match=said):
        create_baseline(name, visual=pair[0], audio=pair[1], width=WIDTH, gradient_checkpointing=True, **options)


@pytest.mark.parametrize("name", ["naive", "lavish", "dg-sct", "lora", "full"])
def test_checkpointed_blocks_are_refused_where_adapters_stand_in_them_by_hooks(tiny, clips, name):
    """They run once more in backward, when the hooks are gone; LoRA's maps are still there."""
    pair = [tiny.vit(embed_dim=16).double(), tiny.vit(embed_dim=16, in_chans=1).double()]
    pair[0].set_grad_checkpointing()
    if name in ("naive", "lavish", "dg-sct"):
        for given in [pair, pair[::-1]][: 1 + (name != "lavish")]:
            with pytest.raises(ValueError, match=r"checkpoints gradients.*call its set_grad_checkpointing\(False\)"):
                built(name, given)
        return
    gradients = []
    for on in (True, False):
        pair[0].set_grad_checkpointing(on)
        model = built(name, pair)
        model(*clips).visual.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)

"""What is put into a backbone's blocks: where it stands, what it is given, what comes of it."""

import pytest
import torch
from torch import nn

from fastav import FrozenBackbone
from fastav.backbones.blocks import example_for
from fastav.baselines import Bottleneck, LiveBackbone, inserted

timm = pytest.importorskip("timm")

SIZES = {"img_size": 32, "patch_size": 16, "depth": 3, "embed_dim": 12, "num_heads": 2}
FAMILIES = {
    "ViT of timm": lambda tiny: tiny.vit(),
    "EVA": lambda tiny: timm.models.Eva(**SIZES),
    "BEiT": lambda tiny: timm.models.Beit(**SIZES),
    "Swin": lambda tiny: timm.models.SwinTransformer(
        img_size=64, window_size=4, embed_dim=8, depths=(2, 3), num_heads=(2, 2)
    ),
    "Swin V2": lambda tiny: tiny.swin(),
    "ViT": lambda tiny: tiny.hf("ViT"),
    "AST": lambda tiny: tiny.hf("AST"),
    "HTS-AT": lambda tiny: tiny.hf("ClapAudio"),
    "Whisper": lambda tiny: tiny.hf("Whisper"),
}


class Read:
    """Runs a backbone with something added at one place, and keeps what went into each branch."""

    def __init__(self, backbone, x):
        self.backbone, self.x = backbone, x
        self.behind = False
        self.blocks = [backbone.module.get_submodule(name) for name in backbone.tap_names]

    def run(self, place=None, shift=None):
        self.entries = {}

        def added(number, which, x):
            self.entries[number, which] = x
            return shift.expand_as(x) if (number, which) == place else torch.zeros_like(x)

        with inserted(self.blocks, added, behind=self.behind):
            return self.backbone(self.x)


@pytest.fixture(params=FAMILIES)
def read(tiny, request):
    torch.manual_seed(0)
    module = FAMILIES[request.param](tiny)
    backbone = LiveBackbone(module)
    x = torch.randn(2, *example_for(backbone.module).shape[1:]).double()
    return Read(backbone.double(), x)


def test_nothing_added_changes_nothing_and_blocks_are_given_what_they_run_on(read):
    plain = read.backbone(read.x)
    for one, other in zip(read.run(), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    stages = read.backbone.stages
    for number in range(1, len(stages)):
        if stages[number] == stages[number - 1]:  # nothing stands between the two
            torch.testing.assert_close(read.entries[number, 0], plain[number - 1], rtol=0, atol=0)
    assert sorted(read.entries) == [(number, which) for number in range(len(stages)) for which in (0, 1)]


def test_what_is_added_beside_the_attention_goes_into_the_mlp(read):
    read.run()
    before = dict(read.entries)
    shift = torch.randn_like(before[0, 0][:1, :1])
    read.run((0, 0), shift)
    assert torch.equal(read.entries[0, 0], before[0, 0])
    # The sum's order is another one.
    torch.testing.assert_close(read.entries[0, 1], before[0, 1] + shift, rtol=1e-12, atol=1e-12)


def test_what_is_added_beside_the_mlp_comes_out(read):
    before, last = read.run(), len(read.blocks) - 1
    shift = torch.randn_like(read.entries[last, 1][:1, :1])
    after = read.run((last, 1), shift)
    torch.testing.assert_close(after[last], before[last] + shift, rtol=1e-12, atol=1e-12)
    for one, other in zip(after[:last], before[:last], strict=True):
        assert torch.equal(one, other)


def test_behind_is_given_what_comes_out_of_each_branch(read):
    """Which is what the block puts onto what goes into it."""
    taps = read.run()
    before = read.entries
    read.behind = True
    for one, other in zip(read.run(), taps, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for number, tap in enumerate(taps):
        # The tests' own sums are rounded as the blocks' are.
        torch.testing.assert_close(before[number, 1], before[number, 0] + read.entries[number, 0], rtol=0, atol=0)
        torch.testing.assert_close(tap, before[number, 1] + read.entries[number, 1], rtol=0, atol=0)


def test_what_is_added_behind_goes_onto_the_tokens(read):
    before, last = read.run(), len(read.blocks) - 1
    shift = torch.randn_like(read.entries[last, 1][:1, :1])
    read.behind = True
    after = read.run((last, 1), shift)
    # The sum's order is another one.
    torch.testing.assert_close(after[last], before[last] + shift, rtol=1e-12, atol=1e-12)
    for one, other in zip(after[:last], before[:last], strict=True):
        assert torch.equal(one, other)


def test_gradients_reach_the_first_block_and_never_the_weights(read):
    """The adapters' in the first block are what costs the peers the whole backbone."""
    adapters = nn.ModuleList(
        Bottleneck(width, ratio=2, groups=1, batch_norm=False) for width in read.backbone.widths for _ in (0, 1)
    ).double()
    for adapter in adapters:
        nn.init.ones_(adapter.gate)
    with inserted(read.blocks, lambda number, which, x: adapters[2 * number + which](x)):
        last = read.backbone(read.x)[-1]
    last.square().sum().backward()
    assert all(adapter.down.weight.grad.abs().sum() > 0 for adapter in adapters)
    assert all(p.grad is None and not p.requires_grad for p in read.backbone.parameters())
    assert not [
        hook for block in read.blocks for m in block.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)
    ]


def test_a_frozen_backbone_gives_no_gradient_whatever_is_put_into_it(tiny):
    backbone = FrozenBackbone(tiny.vit())
    scale = torch.ones((), requires_grad=True)
    blocks = [backbone.module.get_submodule(name) for name in backbone.tap_names]
    with inserted(blocks, lambda number, which, x: scale * x):
        assert not any(tap.requires_grad for tap in backbone(torch.randn(1, 3, 32, 32)))
    with torch.no_grad():
        assert not any(tap.requires_grad for tap in LiveBackbone(backbone.module)(torch.randn(1, 3, 32, 32)))


def test_blocks_whose_branches_are_not_known_are_named():
    said = r"cannot be put into Linear: only blocks of vision_transformer\.Block, .* are known"
    with pytest.raises(ValueError, match=said), inserted([nn.Linear(2, 2)], lambda number, which, x: x):
        pass

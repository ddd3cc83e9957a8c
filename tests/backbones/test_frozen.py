"""What freezing promises: no gradients, eval mode, dtypes, devices, saving and loading."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastav.backbones import FrozenBackbone


class Parent(nn.Module):
    """A user's model: a frozen backbone and a head."""

    def __init__(self, tiny, **options):
        super().__init__()
        self.backbone = FrozenBackbone(tiny.vit(), **options)
        self.head = nn.Linear(12, 2)


def test_no_gradient_and_no_graph(tiny):
    backbone = FrozenBackbone(tiny.vit())
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    taps = backbone(x)
    assert all(tap.grad_fn is None and not tap.requires_grad and not tap.is_inference() for tap in taps)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    query = torch.ones(12, requires_grad=True)
    (taps[0] @ query).sum().backward()  # taps can be saved for a backward
    assert torch.allclose(query.grad, taps[0].sum((0, 1)))


@pytest.mark.parametrize("reach", ["self", "parent", "module", "block"])
def test_stays_in_eval_mode(tiny, reach):
    parent = nn.Sequential(FrozenBackbone(tiny.vit(drop_path_rate=0.5, proj_drop_rate=0.5)))
    backbone, x = parent[0], torch.randn(4, 3, 32, 32)
    before = backbone(x)
    {"self": backbone, "parent": parent, "module": backbone.module, "block": backbone.module.blocks[1]}[reach].train()
    assert all(map(torch.equal, backbone(x), before))
    assert not any(child.training for child in backbone.modules())
    assert parent.training


def test_spec_augment_is_off(tiny):
    masked = {"apply_spec_augment": True, "mask_time_prob": 0.9, "mask_time_length": 2, "layerdrop": 0.9}
    backbone, x = FrozenBackbone(tiny.hf("Wav2Vec2", **masked)), torch.randn(2, 1600)
    before = backbone(x)
    backbone.module.train()
    assert all(map(torch.equal, backbone(x), before))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_taps_have_the_backbones_dtype(tiny, dtype):
    backbone, x = FrozenBackbone(tiny.vit()).to(dtype), torch.randn(2, 3, 32, 32)
    assert backbone.dtype == dtype
    taps = backbone(x)
    assert all(tap.dtype == dtype for tap in taps)
    assert all(map(torch.equal, taps, backbone(x.to(dtype))))


def test_taps_have_the_backbones_dtype_under_autocast():
    backbone, x = (
        FrozenBackbone(nn.Sequential(nn.Linear(6, 6)), "0", example_input=torch.zeros(1, 5, 6)),
        torch.randn(2, 5, 6),
    )
    with torch.autocast("cpu", torch.bfloat16):
        taps = backbone(x)
    assert all(tap.dtype == torch.float32 for tap in taps)
    assert not torch.equal(taps[0], backbone(x)[0])  # it did run in bfloat16


def test_another_device_is_refused_with_the_remedy(tiny):
    backbone = FrozenBackbone(tiny.vit())
    with pytest.raises(ValueError, match=r"input is on meta, the backbone on cpu: .*input\.to\('cpu'\)"):
        backbone(torch.empty(1, 3, 32, 32, device="meta"))
    assert backbone.to("meta").device == torch.device("meta")


# Saving and loading.


def test_state_dict_leaves_the_backbone_out(tiny):
    parent = Parent(tiny)
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    assert not parent.backbone.state_dict()
    assert len(list(parent.parameters())) > 2


def test_a_state_without_the_backbone_loads_strictly(tiny):
    source, target = Parent(tiny), Parent(tiny)
    kept = copy.deepcopy(dict(target.backbone.module.state_dict()))
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target.head.weight, source.head.weight)
    assert all(torch.equal(value, kept[name]) for name, value in target.backbone.module.state_dict().items())
    target.backbone.load_state_dict({}, strict=True)
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        target.load_state_dict({"head.weight": source.head.weight}, strict=True)
    with pytest.raises(RuntimeError, match=r"Unexpected.*stray"):
        target.load_state_dict({**source.state_dict(), "backbone.stray": torch.zeros(1)}, strict=True)


def test_the_backbone_is_saved_on_demand(tiny):
    source, target = Parent(tiny, in_state_dict=True), Parent(tiny, in_state_dict=True)
    state = source.state_dict()
    assert "backbone.module.blocks.0.attn.qkv.weight" in state
    target.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 32, 32)
    assert all(map(torch.equal, target.backbone(x), source.backbone(x)))
    left_out = Parent(tiny)
    left_out.load_state_dict(state, strict=True)  # what is there is loaded all the same
    assert all(map(torch.equal, left_out.backbone(x), source.backbone(x)))
    with pytest.raises(RuntimeError, match=r"backbone\.module"):
        target.load_state_dict(Parent(tiny).state_dict(), strict=True)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda parent: pickle.loads(pickle.dumps(parent))])
def test_copies_are_independent_and_whole(tiny, clone):
    parent, x = Parent(tiny), torch.randn(1, 3, 32, 32)
    other = clone(parent)
    assert all(map(torch.equal, other.backbone(x), parent.backbone(x)))
    with torch.no_grad():
        other.backbone.module.patch_embed.proj.weight.zero_()
    other.load_state_dict(parent.state_dict(), strict=True)
    assert not other.backbone.module.patch_embed.proj.weight.any()  # the copy's own tensors stood in
    assert not torch.equal(other.backbone(x)[0], parent.backbone(x)[0])

"""Which blocks are found, how taps are chosen, and how outputs are read as tokens."""

import pytest
import timm
import torch
import transformers
from torch import nn

from fastav.backbones import FrozenBackbone
from fastav.backbones.blocks import as_tokens, example_for, find_blocks, select_taps, time_order, token_layout


@pytest.fixture(scope="module")
def vit(tiny):
    return tiny.vit(depth=5)


@pytest.fixture(scope="module")
def swin(tiny):
    return tiny.swin()


def test_every_block_of_swin_is_found_in_network_order(swin):
    expected = [f"layers.0.blocks.{i}" for i in range(2)] + [f"layers.1.blocks.{i}" for i in range(3)]
    assert find_blocks(swin) == expected


def test_time_order_belongs_to_the_family(swin):
    assert time_order(swin.layers[0].blocks[0]) is False
    assert time_order(nn.Linear(2, 2)) is None


def test_a_subclass_of_a_known_block_is_known(vit):
    class MyBlock(type(vit.blocks[0])):
        pass

    assert time_order(MyBlock(dim=12, num_heads=2)) is False


def test_a_block_of_the_same_name_elsewhere_is_not_known():
    block = type("Block", (nn.Module,), {"__module__": "mylib.vision_transformer"})()
    assert time_order(block) is None


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        (2, (3, 4)),
        (5, (0, 1, 2, 3, 4)),
        ([0, -1], (0, 4)),
        ((3, 1, 1, -2), (1, 3)),
        (range(1, 3), (1, 2)),
        ("blocks.2", (2,)),
        (["blocks.4", "blocks.0"], (0, 4)),
        (["blocks.[12]", "blocks.2"], (1, 2)),
        (["blocks.*"], (0, 1, 2, 3, 4)),
    ],
)
def test_selection(vit, taps, expected):
    assert select_taps(vit, taps) == tuple(f"blocks.{i}" for i in expected)


def test_numbers_select_as_in_timm(vit):
    from timm.models._features import feature_take_indices

    for taps in (1, 3, [0, 2], [-1, -3]):
        wanted = sorted(feature_take_indices(5, taps)[0])
        assert select_taps(vit, taps) == tuple(f"blocks.{i}" for i in wanted)


def test_a_star_does_not_cross_a_dot(swin):
    assert select_taps(swin, ["layers.*"]) == ("layers.0", "layers.1")
    assert len(select_taps(swin, ["layers.*.blocks.*"])) == 5


@pytest.mark.parametrize("taps", [0, -1, 6, [5], [-6]])
def test_numbers_outside_the_network_are_refused(vit, taps):
    with pytest.raises(ValueError, match="5"):
        select_taps(vit, taps)


def test_nothing_asked_for_is_refused(vit):
    with pytest.raises(ValueError, match="empty"):
        select_taps(vit, [])


@pytest.mark.parametrize("taps", [["blocks.0", 1], [0.5]])
def test_other_types_are_refused(vit, taps):
    with pytest.raises(TypeError, match="taps must be"):
        select_taps(vit, taps)


def test_a_wrong_name_is_refused_with_what_there_is(vit):
    with pytest.raises(ValueError, match=r"'block\.0'.*\"blocks\.\*\" \(5 x Block\)"):
        select_taps(vit, ["block.0"])


def test_an_unknown_module_is_refused_with_candidates():
    steps = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(3))
    module = nn.ModuleDict({"stem": nn.Linear(4, 6), "steps": steps})
    with pytest.raises(
        ValueError, match=r"ModuleDict holds no.*SwinTransformerV2Block.*\"steps\.\*\" \(3 x Sequential\)"
    ):
        select_taps(module, "all")
    assert select_taps(module, ["steps.*"]) == ("steps.0", "steps.1", "steps.2")


@pytest.mark.parametrize(
    ("shape", "channels_last", "layout"),
    [
        ((1, 7, 5), False, "BND"),
        ((7, 1, 5), False, "NBD"),
        ((1, 1, 5), False, "BND"),
        ((1, 4, 4, 9), False, "BHWC"),
        ((1, 9, 4, 4), False, "BCHW"),
        ((1, 4, 6, 9), True, "BHWC"),
        ((1, 4, 4, 4), True, "BHWC"),
    ],
)
def test_layout(shape, channels_last, layout):
    assert token_layout(torch.empty(shape), channels_last=channels_last, name="b") == layout


@pytest.mark.parametrize("shape", [(1, 4, 6, 9), (1, 4, 4, 4), (3, 7, 5), (1, 5), (1, 2, 3, 4, 5), (2, 4, 4, 9)])
def test_shapes_that_do_not_say_are_refused(shape):
    with pytest.raises(ValueError, match=r"'trunk\.3'"):
        token_layout(torch.empty(shape), channels_last=False, name="trunk.3")


@pytest.mark.parametrize(("layout", "axes"), [("BND", (0, 1, 2)), ("NBD", (1, 0, 2))])
def test_sequences_are_views(layout, axes):
    x = torch.randn(3, 7, 5)
    tokens = as_tokens(x.permute(axes), layout)
    assert torch.equal(tokens, x)
    assert as_tokens(x, layout).data_ptr() == x.data_ptr()


def test_channels_last_grid_is_a_view():
    x = torch.randn(3, 4, 6, 5)
    tokens = as_tokens(x, "BHWC")
    assert tokens.data_ptr() == x.data_ptr()
    assert tokens.stride() == (120, 5, 1)
    assert torch.equal(tokens[:, 6 * 2 + 1], x[:, 2, 1])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_channels_first_grid(memory):
    x = torch.randn(3, 5, 4, 4).contiguous(memory_format=memory)
    tokens = as_tokens(x, "BCHW")
    assert torch.equal(tokens[:, 4 * 2 + 1], x[:, :, 2, 1])
    assert tokens.stride(-1) == 1
    assert (tokens.data_ptr() == x.data_ptr()) == (memory is torch.channels_last)


def _transformers_model(kind, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes, **options))


@pytest.mark.parametrize(
    ("build", "count", "patches"),
    [
        (lambda: timm.models.VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2), 1, 4),
        (lambda: timm.models.VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2, reg_tokens=4), 5, 4),
        (lambda: timm.models.SwinTransformerV2(32, 4, embed_dim=8, depths=(1,), num_heads=(2,), window_size=4), 0, 64),
        (lambda: _transformers_model("ViT", image_size=32, patch_size=16), 1, 4),
        (lambda: _transformers_model("Dinov2WithRegisters", image_size=32, patch_size=16, num_register_tokens=3), 4, 4),
        # Patches of 16 x 16 every 10: 9 in time, 2 in frequency.
        (lambda: _transformers_model("AST", max_length=100, num_mel_bins=32), 2, 18),
    ],
    ids=["timm vit", "timm registers", "timm swin", "vit", "registers", "ast"],
)
def test_prefix_tokens_are_what_a_tap_has_beside_its_patches(build, count, patches):
    backbone = FrozenBackbone(build())
    assert backbone.prefix_tokens == count
    assert backbone(example_for(backbone.module))[0].shape[1] == count + patches

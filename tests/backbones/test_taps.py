"""Taps against the libraries' own hidden states, and how much memory and work they cost."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastav.backbones import FrozenBackbone


def hidden_states(module, x):
    """The hidden states that a Hugging Face model itself gives, the embedding's first."""
    with torch.no_grad():
        return module.eval()(**{module.main_input_name: x}, output_hidden_states=True).hidden_states


class Trunk(nn.Module):
    """A backbone of no known family, whose steps count how often they ran."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.ran = [0] * 4

    def forward(self, x):
        for i, step in enumerate(self.steps):
            self.ran[i] += 1
            x = step(x)
        return x


# Taps are what the library itself gives.


def test_timm_vit_taps_are_forward_intermediates(tiny):
    module, x = tiny.vit(class_token=True), torch.randn(2, 3, 32, 32)
    backbone = FrozenBackbone(module)
    with torch.no_grad():
        wanted = module.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    for tap, (patches, prefix) in zip(backbone(x), wanted, strict=True):
        assert torch.equal(tap, torch.cat([prefix, patches], 1))
    assert backbone.widths == (12, 12, 12)
    assert backbone.stages == (0, 0, 0)
    assert backbone.tokens_in_time_order is False


def test_timm_swin_taps_are_all_blocks_of_all_stages(tiny):
    module, x = tiny.swin(), torch.randn(2, 3, 64, 64)
    backbone = FrozenBackbone(module)
    wanted = []
    with torch.no_grad():
        y = module.patch_embed(x)
        for stage in module.layers:
            y = stage.downsample(y)
            for block in stage.blocks:
                y = block(y)
                wanted.append(y.reshape(2, -1, y.shape[-1]))
    taps = backbone(x)
    assert [tuple(tap.shape) for tap in taps] == [(2, 256, 8)] * 2 + [(2, 64, 16)] * 3
    assert all(map(torch.equal, taps, wanted))
    assert backbone.widths == (8, 8, 16, 16, 16)
    assert backbone.stages == (0, 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("family", "options", "shape", "ordered"),
    [
        ("ViT", {}, (3, 32, 32), False),
        ("Dinov2", {}, (3, 28, 28), False),
        ("Dinov2WithRegisters", {}, (3, 28, 28), False),
        ("DINOv3ViT", {}, (3, 32, 32), False),
        ("AST", {}, (64, 32), False),
        ("Hubert", {}, (1600,), True),
        ("Hubert", {"do_stable_layer_norm": True}, (1600,), True),
        ("Wav2Vec2", {}, (1600,), True),
        ("Wav2Vec2", {"do_stable_layer_norm": True}, (1600,), True),
        ("WavLM", {}, (1600,), True),
        ("WavLM", {"do_stable_layer_norm": True}, (1600,), True),
        ("Whisper", {"encoder_layers": 3}, (80, 200), True),
    ],
)
def test_hugging_face_taps_are_hidden_states(tiny, family, options, shape, ordered):
    backbone, x = FrozenBackbone(tiny.hf(family, **options)), torch.randn(2, *shape)
    taps, wanted = backbone(x), hidden_states(backbone.module, x)[1:]
    assert len(taps) == len(backbone.tap_names) == len(wanted) == 3
    # The library shows its last hidden state after the final norm, which is no block's output.
    for tap, state in zip(taps[:-1], wanted[:-1], strict=True):
        assert torch.allclose(tap, state, atol=1e-6)
    assert backbone.widths == tuple(tap.shape[2] for tap in taps)
    assert backbone.tokens_in_time_order is ordered
    assert all(tap.stride(2) == 1 for tap in taps)


@pytest.mark.parametrize("name", ["Swin", "Swinv2"])
def test_hugging_face_swin_taps(tiny, name):
    module, x = tiny.hf(name), torch.randn(2, 3, 64, 64)
    backbone = FrozenBackbone(module)
    taps = backbone(x)
    assert backbone.widths == (8, 8, 16, 16, 16)
    with torch.no_grad():
        merged = module.encoder.layers[0].downsample(taps[1], (16, 16))
        assert torch.allclose(merged, hidden_states(module, x)[1], atol=1e-6)
        assert torch.allclose(module.layernorm(taps[-1]), module(x).last_hidden_state, atol=1e-6)


@pytest.mark.parametrize("kind", ["Model", "ModelWithProjection"])
def test_clap_taps_are_all_blocks_of_hts_at(tiny, kind):
    module, x = tiny.hf("ClapAudio", kind), torch.randn(2, 1, 1001, 64)
    backbone = FrozenBackbone(module)
    taps = backbone(x)
    assert [tuple(tap.shape) for tap in taps] == [(2, 4096, 8)] * 2 + [(2, 1024, 16)] * 2
    assert backbone.stages == (0, 0, 1, 1)
    assert backbone.tokens_in_time_order is False
    encoder = next(child for child in module.modules() if type(child).__name__ == "ClapAudioEncoder")
    with torch.no_grad():
        merged = encoder.layers[0].downsample(taps[1], (64, 64))
        wanted = encoder(x, output_hidden_states=True).hidden_states
    assert torch.allclose(merged, wanted[1].flatten(2).transpose(1, 2), atol=1e-6)


def test_of_a_whole_whisper_the_encoder_is_kept(tiny):
    model = tiny.hf("Whisper")
    backbone = FrozenBackbone(model, taps=[-1])
    x = torch.randn(2, 80, 200)
    assert backbone.module is model.encoder
    with torch.no_grad():
        assert torch.allclose(model.encoder.layer_norm(backbone(x)[0]), model.encoder(x).last_hidden_state, atol=1e-6)


def test_batches_of_any_size(tiny):
    backbone, x = FrozenBackbone(tiny.swin()), torch.randn(6, 3, 64, 64)
    for whole, parts in zip(backbone(x), zip(*map(backbone, x.split(1)), strict=True), strict=True):
        assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize(("chunk", "runs"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (9, [7]), (None, [7])])
def test_chunks_run_one_after_the_other_and_give_the_same_taps(tiny, chunk, runs):
    whole, x, seen, portions = FrozenBackbone(tiny.swin()).double(), torch.randn(7, 3, 64, 64).double(), [], []
    expected = whole(x)
    backbone = FrozenBackbone(whole.module, chunk=chunk)
    whole.module.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    taps = backbone(x, portions.append)
    assert seen == runs
    assert [len(portion) for portion in portions] == [2, 3]
    assert [tap.data_ptr() for tap in taps] == [tap.data_ptr() for portion in portions for tap in portion]
    for tap, own in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, own)
        assert tap.stride(-1) == 1
        assert not tap.requires_grad


@pytest.mark.parametrize("chunk", [0, -1, True, 2.0])
def test_chunks_of_nothing_are_refused(tiny, chunk):
    with pytest.raises(ValueError, match=f"chunk is {chunk!r}, wanted a number of items of at least 1, or None"):
        FrozenBackbone(tiny.vit(), chunk=chunk)
    backbone = FrozenBackbone(tiny.vit())
    with pytest.raises(ValueError, match=f"chunk is {chunk!r}, wanted"):
        backbone.chunk = chunk
    assert backbone.chunk is None


def test_integers_reach_the_backbone_as_they_are():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, x):
            return self.table(x)

    backbone = FrozenBackbone(Words(), taps=["table"], example_input=torch.zeros(1, 5, dtype=torch.long))
    x = torch.randint(9, (3, 5))
    assert torch.equal(backbone(x)[0], backbone.module.table.weight[x])


# Taps are views, and no work is done beyond them.


def test_taps_are_the_blocks_own_memory(tiny):
    backbone, own = FrozenBackbone(tiny.swin()), []
    handles = [
        block.register_forward_hook(lambda *call: own.append(call[2]))
        for s in backbone.module.layers
        for block in s.blocks
    ]
    taps = backbone(torch.randn(2, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert [tap.data_ptr() for tap in taps] == [output.data_ptr() for output in own]
    assert all(tap._is_view() for tap in taps)


def test_transposed_memory_is_copied_once_and_then_no_more(tiny):
    encoder = tiny.hf("Whisper").encoder
    backbone, inputs = FrozenBackbone(encoder), []
    handle = encoder.layers[1].register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    first, second = backbone(torch.randn(2, 80, 200))
    handle.remove()
    assert first.stride() == second.stride() == (1200, 12, 1)
    assert inputs[0].data_ptr() == first.data_ptr()


def test_backbone_stops_after_the_last_tap():
    trunk = Trunk()
    backbone = FrozenBackbone(trunk, taps=["steps.2", "steps.1"], example_input=torch.zeros(1, 5, 6))
    trunk.ran = [0] * 4
    taps = backbone(torch.randn(2, 5, 6))
    assert trunk.ran == [1, 1, 1, 0]
    assert backbone.tap_names == ("steps.1", "steps.2")
    with torch.no_grad():
        assert torch.equal(trunk.steps[2](taps[0]), taps[1])


def test_taps_are_handed_out_as_portions_finish():
    trunk = Trunk()
    backbone = FrozenBackbone(trunk, taps=["steps.0", "steps.1", "steps.3"], example_input=torch.zeros(1, 5, 6))
    assert backbone.portions == (range(0, 1), range(1, 2), range(2, 3))
    trunk.ran, portions, ran = [0] * 4, [], []

    def ready(portion):
        assert torch.is_grad_enabled()
        portions.append(portion)
        ran.append(sum(trunk.ran))

    taps = backbone(torch.randn(2, 5, 6), ready)
    assert ran == [1, 2, 4]
    assert [tap.data_ptr() for tap in taps] == [tap.data_ptr() for portion in portions for tap in portion]
    with torch.no_grad():
        backbone(torch.randn(2, 5, 6), lambda _: ran.append(torch.is_grad_enabled()))
    assert ran[3:] == [False] * 3


@pytest.mark.parametrize(
    ("widths", "portions"),
    [
        ([6] * 3, [1, 1, 1]),
        ([6] * 4, [1, 1, 1, 1]),
        ([6] * 24, [6, 6, 6, 6]),
        ([6] * 11, [2, 3, 3, 3]),
        ([4, 4, 6, 6, 6, 6, 6, 6, 8], [2, 6, 1]),
    ],
)
def test_portions_are_stages_or_quarters_of_a_single_one(widths, portions):
    trunk = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise([6, *widths])))
    backbone, handed_out = FrozenBackbone(trunk, ["*"], example_input=torch.zeros(1, 5, 6)), []
    taps = backbone(torch.randn(2, 5, 6), handed_out.append)
    assert [len(portion) for portion in handed_out] == [len(numbers) for numbers in backbone.portions] == portions
    assert [id(tap) for portion in handed_out for tap in portion] == [id(tap) for tap in taps]


def test_portions_come_in_network_order_whatever_ran_first():
    class Reversed(nn.Sequential):
        def forward(self, x):
            for block in reversed(self):
                x = block(x)
            return x

    backbone = FrozenBackbone(Reversed(*Trunk().steps), ["*"], example_input=torch.zeros(1, 5, 6))
    handed_out = []
    taps = backbone(torch.randn(2, 5, 6), handed_out.append)
    assert [id(tap) for portion in handed_out for tap in portion] == [id(tap) for tap in taps]
    with torch.no_grad():
        assert torch.equal(backbone.module[0](taps[1]), taps[0])


def test_an_error_while_portions_are_handed_out_ends_the_forward(tiny):
    def fail(_):
        raise ValueError("enough")

    backbone = FrozenBackbone(tiny.vit())
    with pytest.raises(ValueError, match="enough"):
        backbone(torch.randn(1, 3, 32, 32), fail)
    assert not any(child._forward_hooks for child in backbone.modules())


def test_hooks_are_gone_afterwards_even_after_an_error(tiny):
    backbone = FrozenBackbone(tiny.vit())
    backbone(torch.randn(1, 3, 32, 32))
    with pytest.raises(AssertionError):
        backbone(torch.randn(1, 3, 48, 48))
    assert not any(child._forward_hooks for child in backbone.modules())
    assert backbone.module(torch.randn(1, 3, 32, 32)).shape[0] == 1  # runs to its end again


def test_taps_are_freed_without_the_garbage_collector(tiny):
    backbone = FrozenBackbone(tiny.vit())
    gc.disable()
    try:
        taps = backbone(torch.randn(1, 3, 32, 32))
        alive = [weakref.ref(tap) for tap in taps]
        del taps
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()


def test_fused_clap_is_refused(tiny):
    with pytest.raises(ValueError, match="enable_fusion"):
        FrozenBackbone(tiny.hf("ClapAudio", enable_fusion=True))


def test_repr_is_one_short_line(tiny):
    text = repr(nn.ModuleList([FrozenBackbone(tiny.swin())]))
    assert "SwinTransformerV2, 5 taps layers.0.blocks.0 ... layers.1.blocks.2 of width 2 x 8, 3 x 16;" in text
    assert text.count("\n") == 2
    assert "taps blocks.2 of width 1 x 12" in repr(FrozenBackbone(tiny.vit(), 1))

"""Injection of the learned tokens into visual features, for dense tasks, in both methods."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from tests.adapters.test_mettle import EXACT, batch, graph_leaves, rows_normalized, stir

BOTH = pytest.mark.parametrize(("kind", "config"), [(MettleAdapter, MettleConfig), (MoLTAdapter, MoLTConfig)])


@BOTH
@pytest.mark.parametrize("source", ["both", "audio", "visual"])
def test_formula(swin, whisper, kind, config, source):
    adapter = kind(swin, whisper, config(inject_stages="stages", inject_source=source)).double().eval()
    stir(adapter)
    frames, mel = batch(size=64)
    out = adapter(frames, mel)
    assert [tuple(x.shape) for x in out.features] == [(2, 3, 16, 16, 24), (2, 3, 8, 8, 48)]
    tokens = {"audio": [out.audio], "visual": [out.visual], "both": [out.audio, out.visual]}[source]
    memory = torch.cat(tokens, 2).flatten(0, 1).detach().numpy()
    taps = adapter.visual(frames.flatten(0, 1))
    stage_taps = [taps[adapter.visual.tap_names.index(name)] for name in ("layers.0.blocks.1", "layers.1.blocks.1")]
    module, start = adapter.injection, 0
    for stage, (tap, found) in enumerate(zip(stage_taps, out.features, strict=True)):
        own = slice(start, start + tap.shape[-1])
        start += tap.shape[-1]
        w_k, w_v = (w.detach().numpy()[:, own] for w in (module.to_keys, module.to_values))
        gate = module.gates[stage].item()
        for x, m, got in zip(tap.numpy(), memory, found.flatten(0, 1).flatten(1, 2), strict=True):
            m = rows_normalized(m, "layer", 1e-6)
            scores = rows_normalized(x, "layer", 1e-6) @ (m @ w_k).T / math.sqrt(x.shape[-1])
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            np.testing.assert_allclose(got.detach().numpy(), x + gate * p @ (m @ w_v), **EXACT)


def test_mettle_distils_the_top_alone(swin, whisper):
    adapter = MettleAdapter(swin, whisper, MettleConfig(inject_stages="stages"))
    assert adapter.visual.tap_names == ("layers.0.blocks.1", "layers.1.blocks.1")
    assert len(adapter.audio.tap_names) == 1
    assert adapter.distilled == {"visual": (1,), "audio": (0,)}
    assert adapter.injected == (0, 1)
    assert len(adapter.distillation.meta_tokens) == 2
    all_layers = MettleAdapter(swin, whisper, MettleConfig(inject_stages="stages", layers="all"))
    assert all_layers.distilled == {"visual": (0, 1, 2, 3), "audio": (0, 1)}
    assert all_layers.injected == (1, 3)


def test_molt_distils_late_layers_and_injects_into_all_stages(whisper):
    swin = timm.models.SwinTransformerV2(
        img_size=64, patch_size=4, embed_dim=8, depths=(2, 6), num_heads=(2, 4), window_size=4, num_classes=0
    )
    adapter = MoLTAdapter(swin, whisper, MoLTConfig(inject_stages="stages"))
    assert adapter.visual.tap_names == ("layers.0.blocks.1", *(f"layers.1.blocks.{i}" for i in range(2, 6)))
    assert adapter.distilled["visual"] == (1, 2, 3, 4)
    assert adapter.injected == (0, 4)


def test_a_backbone_with_one_stage_is_cut_into_quarters(whisper):
    vit = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=10, num_heads=2, num_classes=0)
    adapter = MettleAdapter(vit, whisper, MettleConfig(inject_stages="stages"))
    assert adapter.visual.tap_names == ("blocks.2", "blocks.4", "blocks.7", "blocks.9")
    out = adapter(*batch())
    assert [tuple(x.shape) for x in out.features] == [(2, 3, 2, 2, 8)] * 4  # the class token has no place


def test_stages_by_number_and_in_a_frozen_backbone(vit, whisper):
    assert MettleAdapter(vit, whisper, MettleConfig(inject_stages=[0])).visual.tap_names == ("blocks.0", "blocks.2")
    given = MettleAdapter(FrozenBackbone(vit, [0, 1]), whisper, MettleConfig(inject_stages=[0]))
    assert (given.distilled["visual"], given.injected) == ((1,), (0,))
    with pytest.raises(ValueError, match=r"has the taps \('blocks.0', 'blocks.1'\), but config.inject_stages asks for"):
        MettleAdapter(FrozenBackbone(vit, [0, 1]), whisper, MettleConfig(inject_stages=[2]))


@BOTH
def test_no_gradient_enters_the_backbone(swin, whisper, kind, config):
    torch.manual_seed(0)
    adapter = kind(swin, whisper, config(inject_stages="stages"))
    frames, mel = batch(size=64)
    out = adapter(frames, mel)
    # The maps alone reach every trained parameter: nothing is left without a gradient in a dense task.
    leaves = graph_leaves(*out.features, out.aux_loss)
    assert leaves == {id(p) for p in adapter.parameters() if p.requires_grad}


def test_gradients_are_those_of_finite_differences():
    from fastav.adapters.injection import Injection

    torch.manual_seed(0)
    module = Injection([5, 3], MettleConfig(width=4)).double()
    features = [torch.randn(2, n, d, dtype=torch.float64) for n, d in ((6, 5), (4, 3))]
    memory = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def run(memory, *values):
        return tuple(torch.func.functional_call(module, dict(zip(names, values, strict=True)), (features, memory)))

    assert torch.autograd.gradcheck(run, (memory, *module.parameters()))


def test_saved_and_read_back(swin, whisper, tmp_path):
    torch.manual_seed(0)
    adapter = MettleAdapter(swin, whisper, MettleConfig(inject_stages="stages", inject_gate=0.5)).eval()
    assert torch.equal(adapter.injection.gates, torch.full((2,), 0.5))
    adapter.save_pretrained(tmp_path)
    again = MettleAdapter.from_pretrained(tmp_path, visual=swin, audio=whisper)
    frames, mel = batch(size=64)
    for one, other in zip(adapter(frames, mel).features, again(frames, mel).features, strict=True):
        assert torch.equal(one, other)


def test_taps_without_a_square_map_are_named(whisper):
    trunk = FrozenBackbone(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["*"], example_input=torch.zeros(1, 7, 4))
    adapter = MettleAdapter(trunk, whisper, MettleConfig(inject_stages="stages"))
    audio = adapter.audio(batch()[1].flatten(0, 1))
    with pytest.raises(ValueError, match=r"visual_taps\[0\] has 7 tokens beside 0 of no place, which are no square"):
        adapter.forward_taps([torch.randn(6, 7, 4)] * 2, audio, num_segments=3)
